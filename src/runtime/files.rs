//! Files that others name: of bounded size, whatever they are.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Largest file of settings.
pub const SETTINGS_BYTES_MAX: u64 = 1 << 20;

/// Reads a file of at most as many bytes. Devices and pipes are read too, as far.
///
/// # Errors
/// The file system's, and [`io::ErrorKind::InvalidData`] for a file that is larger.
pub fn read_bytes(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        let problem = format!("larger than {} KiB", bytes_max >> 10);
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    Ok(bytes)
}

/// The same for text.
///
/// # Errors
/// As [`read_bytes`], and where it is no UTF-8.
pub fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    let bytes = read_bytes(path, bytes_max)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))
}

/// Most links on the way to a file, as in Linux.
const LINKS_MAX: usize = 40;

/// Whether a path is one of the system's, such as `/dev/stdout`: what it stands for belongs to somebody else, also where that is a
/// file.
#[must_use]
pub fn is_of_system(path: &Path) -> bool {
    (path.starts_with("/dev") && !path.starts_with("/dev/shm")) || path.starts_with("/proc")
}

/// The file that a path leads to, through symbolic links; it need not be there. Those of the system are not followed.
///
/// # Errors
/// When the links have no end.
pub fn followed(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..=LINKS_MAX {
        let target = if is_of_system(&path) { None } else { std::fs::read_link(&path).ok() };
        let Some(target) = target else { return Ok(path) };
        path = path.parent().unwrap_or_else(|| Path::new("")).join(target);
    }
    Err(io::Error::other("too many levels of symbolic links"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_also_to_what_is_not_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, at(name)).expect("links");
        link("b", "a");
        link(&at("file").display().to_string(), "b");
        assert_eq!(followed(&at("a")).expect("ends"), at("file"));
        assert_eq!(followed(&at("file")).expect("ends"), at("file"));
        link("/dev/stdout", "out");
        assert_eq!(followed(&at("out")).expect("ends"), Path::new("/dev/stdout"));
        link("round", "round");
        assert!(followed(&at("round")).is_err());
    }

    #[test]
    fn a_file_without_an_end_is_not_read_for_ever() {
        let error = read_text(Path::new("/dev/zero"), 1 << 20).expect_err("no end");
        assert_eq!(error.to_string(), "larger than 1024 KiB");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, vec![b'a'; 1 << 10]).expect("writes");
        assert_eq!(read_text(&path, 1 << 10).expect("fits").len(), 1 << 10);
        assert!(read_text(&path, (1 << 10) - 1).is_err());
        std::fs::write(&path, [0xff]).expect("writes");
        assert_eq!(read_text(&path, 9).expect_err("no text").to_string(), "not UTF-8");
    }
}
