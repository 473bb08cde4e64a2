//! Notifications as lines of JSON in a file of the data folder.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::{Notification, Notifier};
use crate::backends::{BackendError, BackendResult, error::ErrorKind};

/// Size at which the file is put aside as `….1` and a new one begun.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Appends to one file.
pub struct Recorder {
    path: PathBuf,
    file: tokio::sync::Mutex<File>,
}

impl Recorder {
    /// Opens the file, or makes it.
    pub async fn open(path: &Path) -> BackendResult<Self> {
        let file = open(path).await.map_err(failed)?;
        Ok(Self { path: path.to_owned(), file: tokio::sync::Mutex::new(file) })
    }
}

async fn open(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).open(path).await
}

fn failed(error: std::io::Error) -> BackendError {
    BackendError::unknown("push.notify", ErrorKind::Unavailable, error)
}

#[async_trait]
impl Notifier for Recorder {
    async fn notify(&self, notifications: &[Notification]) -> BackendResult<()> {
        let mut text = String::new();
        for notification in notifications {
            text.push_str(&serde_json::to_string(notification).expect("plain data"));
            text.push('\n');
        }
        let mut file = self.file.lock().await;
        if file.metadata().await.map_err(failed)?.len() > FILE_BYTES_MAX {
            // Another push server with this data folder may have put it aside: the file that it has begun stays.
            let present = tokio::fs::metadata(&self.path).await;
            if present.is_ok_and(|present| present.len() > FILE_BYTES_MAX) {
                tokio::fs::rename(&self.path, self.path.with_extension("jsonl.1")).await.map_err(failed)?;
            }
            *file = open(&self.path).await.map_err(failed)?;
        }
        file.write_all(text.as_bytes()).await.map_err(failed)?;
        file.flush().await.map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ConversationId, MessageId, UserId};

    #[tokio::test]
    async fn a_notification_is_one_line_without_text() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notifications.jsonl");
        let recorder = Recorder::open(&path).await.expect("opens");
        let n = Notification { user: UserId(1), conversation: ConversationId(2), id: MessageId(3), at: 4 };
        recorder.notify(&[n, n]).await.expect("records");
        let text = std::fs::read_to_string(&path).expect("reads");
        assert_eq!(text.lines().count(), 2);
        let line: serde_json::Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
        assert_eq!(line, serde_json::json!({"user": "u1", "conversation": "c2", "id": 3, "at": 4}));
    }

    #[tokio::test]
    async fn two_servers_with_one_folder_put_a_full_file_aside_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notifications.jsonl");
        let (here, there) = (Recorder::open(&path).await.expect("opens"), Recorder::open(&path).await.expect("opens"));
        std::fs::File::options().write(true).open(&path).expect("opens").set_len(FILE_BYTES_MAX + 1).expect("full");
        let n = Notification { user: UserId(1), conversation: ConversationId(2), id: MessageId(3), at: 4 };
        for recorder in [&here, &there] {
            recorder.notify(&[n]).await.expect("records");
        }
        let aside = std::fs::metadata(path.with_extension("jsonl.1")).expect("there is one").len();
        assert_eq!(aside, FILE_BYTES_MAX + 1, "the full one");
        assert_eq!(std::fs::read_to_string(&path).expect("reads").lines().count(), 2);
    }
}
