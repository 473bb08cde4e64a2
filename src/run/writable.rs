//! Whether the files that a run will write can be written: found out before it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use crate::run::Error;
use crate::runtime::files;

/// Finds out whether files can be made in a folder, which is made if it is not there. `flag` names the setting in the error.
///
/// # Errors
/// Names the setting, the folder and what is in the way.
pub fn probe_folder(flag: &str, folder: &Path) -> Result<(), Error> {
    let probe = folder.join(format!(".probe-{}", std::process::id()));
    let write = || {
        std::fs::create_dir_all(folder)?;
        create_and_remove(&probe)
    };
    write().map_err(|e| refused(flag, folder, &e))
}

/// Finds out whether a file can be written; what is in it stays. One that is not there is not left behind: an empty file would
/// be read as a result where there is none in the end. Links are followed, and stay. `flag` names the setting in the error.
///
/// # Errors
/// Names the setting, the file and what is in the way.
pub fn probe_file(flag: &str, path: &Path) -> Result<(), Error> {
    // A pipe or a device, such as /dev/stdout: opening it might wait for a reader.
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return Ok(());
    }
    let probe = || {
        let path = files::followed(path)?;
        match OpenOptions::new().append(true).open(&path) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => create_and_remove(&path),
            Err(error) => Err(error),
        }
    };
    probe().map_err(|e| refused(flag, path, &e))
}

/// Removes only what it created.
fn create_and_remove(path: &Path) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    let written = write_one(&mut file);
    // The write failed on a disk that is full: the file is there all the same.
    let removed = std::fs::remove_file(path);
    written.and(removed)
}

/// A disk that is full says so at the first byte.
fn write_one(file: &mut File) -> io::Result<()> {
    file.write_all(b"\n")?;
    file.flush()
}

fn refused(flag: &str, path: &Path, error: &io::Error) -> Error {
    Error::environment(error).at(format!("{flag} {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::ErrorKind;

    #[test]
    fn what_can_be_written_is_left_as_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let deep = folder.path().join("a").join("b");
        probe_folder("--out", &deep).expect("can be written");
        assert_eq!(std::fs::read_dir(&deep).expect("is there").count(), 0);
        let file = deep.join("file");
        probe_file("--json", &file).expect("can be written");
        assert!(!file.exists());
        std::fs::write(&file, "content").expect("writes");
        probe_file("--json", &file).expect("can be written");
        assert_eq!(std::fs::read_to_string(&file).expect("is there"), "content");
    }

    #[test]
    fn a_link_is_followed_and_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        std::os::unix::fs::symlink(at("later"), at("link")).expect("links");
        std::os::unix::fs::symlink(at("no").join("where"), at("dangling")).expect("links");
        probe_file("--junit", &at("link")).expect("can be written");
        assert!(at("link").is_symlink() && !at("later").exists());
        let refused = probe_file("--junit", &at("dangling")).expect_err("its folder is not there");
        assert!(at("dangling").is_symlink() && refused.to_string().starts_with("--junit "), "{refused}");
    }

    #[test]
    fn what_can_not_be_written_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("writes");
        for refused in [
            probe_folder("--out", &file),
            probe_folder("--out", &file.join("deeper")),
            probe_folder("--out", Path::new("/proc/nothing")),
            probe_file("--out", folder.path()),
            probe_file("--out", &folder.path().join("nowhere").join("file")),
        ] {
            let refused = refused.expect_err("can't be written");
            assert!(refused.kind == ErrorKind::Environment && refused.to_string().starts_with("--out "), "{refused}");
        }
    }
}
