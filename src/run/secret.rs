//! The secret that workers and coordinators of one user share.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::loadgen::fleet::Secret;
use crate::run::Error;
use crate::runtime::files::{self, SETTINGS_BYTES_MAX};

/// Reads the secret from a file; without one from the user's configuration folder, where it is made if it is not there.
///
/// # Errors
/// Names the file. A file that was asked for is not made.
pub fn read(file: Option<&Path>) -> Result<Secret, Error> {
    let path = match file {
        Some(file) => file.to_owned(),
        None => default_file()?,
    };
    let place = || format!("the workers' secret {}", path.display());
    match files::read_text(&path, SETTINGS_BYTES_MAX) {
        Ok(text) => Secret::new(&text).map_err(|e| Error::usage(e).at(place())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => {
            let made = make(&path).map_err(|e| Error::environment(e).at(place()));
            // Another process may have made it meanwhile.
            made.or_else(|refused| {
                files::read_text(&path, SETTINGS_BYTES_MAX).ok().and_then(|text| Secret::new(&text).ok()).ok_or(refused)
            })
        }
        Err(error) => Err(Error::usage(error).at(place())),
    }
}

fn default_file() -> Result<PathBuf, Error> {
    let folder = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let folder = folder.or_else(home).ok_or_else(|| Error::usage("HOME is not set: give --secret-file"))?;
    Ok(folder.join("chatctl").join("worker.secret"))
}

/// Makes a secret that only its owner can read, in one step: nobody sees half of it.
fn make(path: &Path) -> std::io::Result<Secret> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let (secret, text) = Secret::generate();
    let whole = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&whole)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    // A link fails where there is one already, a rename would replace it.
    let linked = written.and_then(|()| std::fs::hard_link(&whole, path));
    std::fs::remove_file(&whole)?;
    linked.map(|()| secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_read_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deep").join("worker.secret");
        make(&path).expect("makes");
        let text = std::fs::read_to_string(&path).expect("is there");
        assert!(make(&path).is_err(), "it is never replaced");
        assert_eq!(std::fs::read_to_string(&path).expect("is there"), text);
        assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        assert!(read(Some(&folder.path().join("nowhere"))).is_err(), "a named file is not made");
    }
}
