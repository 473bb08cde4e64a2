//! The secrets of a deployment, as files of its data folder: `secret`, and `secret.also` with those that are accepted besides.
//!
//! A new secret comes into use without a gap in three steps, each on every server: put the new one into `secret.also` and restart;
//! change the two files' contents and restart; remove `secret.also` once no token of the old one lives any more, and restart.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::StackError;
use crate::server::access::keys::{KEY_BYTES, Keys, Purpose};

/// Secrets that are accepted besides the one in use.
const ACCEPTED_MAX: usize = 4;

/// What was read.
pub(super) struct Secrets {
    current: [u8; KEY_BYTES],
    accepted: Vec<[u8; KEY_BYTES]>,
}

impl Secrets {
    /// Reads the secrets of a data folder, and makes the first one where there is none, readable by its owner only.
    ///
    /// # Errors
    /// Names the file and the fix.
    pub(super) fn read_or_make(data: &Path) -> Result<Self, StackError> {
        let (secrets, path) = (read(&data.join("secret"))?, data.join("secret"));
        let failed = |source| StackError::Data { path: path.clone(), source };
        let current = match secrets.as_slice() {
            [] => {
                let secret: [u8; KEY_BYTES] = rand::random();
                let mut options = std::fs::OpenOptions::new();
                let mut file = options.write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
                file.write_all(&secret).and_then(|()| file.sync_all()).map_err(failed)?;
                secret
            }
            [secret] => *secret,
            _ => {
                return Err(failed(std::io::Error::other("it has more than 32 bytes; others belong into secret.also")));
            }
        };
        let path = data.join("secret.also");
        let accepted = read(&path)?;
        if accepted.len() > ACCEPTED_MAX {
            let source = std::io::Error::other(format!("it has over {ACCEPTED_MAX} secrets of 32 bytes"));
            return Err(StackError::Data { path, source });
        }
        Ok(Self { current, accepted })
    }

    /// The keys of a use.
    pub(super) fn keys(&self, purpose: Purpose) -> Keys {
        Keys::derive(&self.current, &self.accepted, purpose)
    }
}

/// The secrets of a file; none where it is not there.
fn read(path: &Path) -> Result<Vec<[u8; KEY_BYTES]>, StackError> {
    let failed = |source| StackError::Data { path: path.to_owned(), source };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let (secrets, rest) = bytes.as_chunks::<KEY_BYTES>();
    if secrets.is_empty() || !rest.is_empty() {
        let text = format!("it has {} bytes, and a secret has 32; copy it once more, or remove it", bytes.len());
        return Err(failed(std::io::Error::other(text)));
    }
    Ok(secrets.to_vec())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_made_once_and_others_are_accepted_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let keys = || Secrets::read_or_make(folder.path()).map(|secrets| secrets.keys(Purpose::Tokens));
        let first = keys().expect("makes");
        assert_eq!(keys().expect("reads"), first);
        let path = folder.path().join("secret");
        assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        std::fs::write(folder.path().join("secret.also"), [[8; 32], [9; 32]].concat()).expect("writes");
        let both = keys().expect("reads");
        assert_eq!((both.current(), both.all().count()), (first.current(), 3));
    }

    #[test]
    fn files_of_another_length_are_refused_by_name() {
        for (name, length) in [("secret", 0), ("secret", 31), ("secret", 64), ("secret.also", 33), ("secret.also", 160)]
        {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join(name), vec![1; length]).expect("writes");
            let error = Secrets::read_or_make(folder.path()).err().expect("refused");
            let text = crate::runtime::error_chain(&error);
            assert!(text.contains(name), "{text}");
        }
    }
}
