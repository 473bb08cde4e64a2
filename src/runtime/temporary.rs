//! Folders that live as long as this process needs them, and are removed however it ends by its own will.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Those that are to be removed.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A new folder in the system's temporary one. Only its owner may enter; it is removed, with everything in it, when this is
/// dropped.
#[derive(Debug)]
pub struct TemporaryFolder {
    path: PathBuf,
}

impl TemporaryFolder {
    /// Makes one.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn create() -> io::Result<Self> {
        // Nobody can know the name before: nothing of somebody else's lies there. Not the time either: two folders of one process
        // may be made in the same microsecond.
        let name = format!("chatctl-{}-{}", std::process::id(), uuid::Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        lock().push(path.clone());
        Ok(Self { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it where it is, for somebody to read.
    pub fn keep(self) -> PathBuf {
        lock().retain(|path| *path != self.path);
        self.path.clone()
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let mut folders = lock();
        if let Some(at) = folders.iter().position(|path| *path == self.path) {
            folders.swap_remove(at);
            drop(folders);
            // What can't be removed lies in the system's temporary folder.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes all of them at once, for a process that ends without dropping what it has.
pub fn remove_all() {
    for path in lock().drain(..) {
        // As above.
        let _ = std::fs::remove_dir_all(path);
    }
}

fn lock() -> std::sync::MutexGuard<'static, Vec<PathBuf>> {
    FOLDERS.lock().expect("no panic while held")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_its_owner_unless_it_is_kept() {
        let folder = TemporaryFolder::create().expect("makes");
        let path = folder.path().to_owned();
        std::fs::create_dir(path.join("deep")).expect("is a folder");
        drop(folder);
        assert!(!path.exists());
        let kept = TemporaryFolder::create().expect("makes").keep();
        assert!(kept.exists());
        std::fs::remove_dir_all(kept).expect("is there");
    }
}
