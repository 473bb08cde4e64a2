//! Media: pictures, films, documents. A blob is written once, under a key of its own, and read whole or in part.

#[cfg(test)]
pub(crate) mod contract;
mod objects;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use uuid::Uuid;

pub use objects::ObjectMedia;

use super::BackendResult;

/// Extensions and their content types: what a chat carries. Nothing that a browser would run (HTML, SVG) is among them;
/// an extension that is not here is served as bytes.
const CONTENT_TYPES: [(&str, &str); 17] = [
    ("avif", "image/avif"),
    ("gif", "image/gif"),
    ("heic", "image/heic"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("m4a", "audio/mp4"),
    ("mov", "video/quicktime"),
    ("mp3", "audio/mpeg"),
    ("mp4", "video/mp4"),
    ("oga", "audio/ogg"),
    ("ogg", "audio/ogg"),
    ("pdf", "application/pdf"),
    ("png", "image/png"),
    ("txt", "text/plain; charset=utf-8"),
    ("wav", "audio/wav"),
    ("webm", "video/webm"),
    ("webp", "image/webp"),
];

/// Longest extension.
const EXTENSION_CHARS_MAX: usize = 8;

/// The name of a blob: a random id and an extension that says what it holds, such as
/// `67e55044-10b1-426f-9247-bb680e5fe0c8.jpg`. Never used again for another blob, so whoever has its bytes may keep them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MediaKey {
    id: Uuid,
    extension: String,
}

impl MediaKey {
    /// A key that no blob has. `None` when the extension is not one to eight of `a-z0-9`.
    #[must_use]
    pub fn fresh(extension: &str) -> Option<Self> {
        Self::new(Uuid::new_v4(), extension)
    }

    /// A key that no blob ever has, to ask an engine for.
    #[must_use]
    pub fn nowhere() -> Self {
        Self { id: Uuid::nil(), extension: "txt".to_owned() }
    }

    fn new(id: Uuid, extension: &str) -> Option<Self> {
        let is_valid = (1..=EXTENSION_CHARS_MAX).contains(&extension.len())
            && extension.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        is_valid.then(|| Self { id, extension: extension.to_owned() })
    }

    /// What the blob is served as.
    #[must_use]
    pub fn content_type(&self) -> &'static str {
        let known = CONTENT_TYPES.iter().find(|(extension, _)| *extension == self.extension);
        known.map_or("application/octet-stream", |(_, content_type)| content_type)
    }
}

impl fmt::Display for MediaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.extension)
    }
}

impl FromStr for MediaKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is no media key: valid is UUID.EXTENSION");
        let (id, extension) = text.split_once('.').ok_or_else(invalid)?;
        // One spelling for each key: what is cached by address must have one address.
        let id = id.parse::<Uuid>().ok().filter(|parsed| parsed.to_string() == id).ok_or_else(invalid)?;
        Self::new(id, extension).ok_or_else(invalid)
    }
}

/// What is known of a stored blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaInfo {
    /// In bytes.
    pub size: u64,
    /// Strong validator, as HTTP's `ETag` has it, with its quotes.
    pub etag: String,
    /// When it was stored, in ms since 1970.
    pub stored_at: u64,
}

/// Bytes of a blob, piece by piece. Ends with an error where the engine breaks off.
pub type MediaBody = BoxStream<'static, BackendResult<Bytes>>;

/// The store of blobs.
#[async_trait]
pub trait Media: Send + Sync {
    /// Begins a blob. Nobody sees anything of it before [`MediaUpload::finish`].
    async fn begin(&self, key: &MediaKey) -> BackendResult<Box<dyn MediaUpload>>;

    /// What is known of a blob; `None` when there is none.
    async fn info(&self, key: &MediaKey) -> BackendResult<Option<MediaInfo>>;

    /// A blob's bytes, all of them or those of a range as far as they exist; `None` when there is no such blob.
    async fn read(&self, key: &MediaKey, range: Option<Range<u64>>) -> BackendResult<Option<(MediaInfo, MediaBody)>>;

    /// Removes a blob. Removing what is not there changes nothing.
    async fn remove(&self, key: &MediaKey) -> BackendResult<()>;
}

/// A blob that is being written. Dropped without an end, it is never seen; what was kept of it is the engine's to clear.
#[async_trait]
pub trait MediaUpload: Send {
    /// Adds bytes. Returns when the engine keeps up: at most some parts are under way.
    async fn write(&mut self, bytes: Bytes) -> BackendResult<()>;

    /// Ends the blob: durable and readable by everyone on `Ok`, whole or not at all.
    async fn finish(self: Box<Self>) -> BackendResult<MediaInfo>;

    /// Throws away what was written.
    async fn abort(self: Box<Self>) -> BackendResult<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_spelling_and_a_content_type_that_no_browser_runs() {
        let text = "67e55044-10b1-426f-9247-bb680e5fe0c8.jpg";
        let key: MediaKey = text.parse().expect("valid");
        assert_eq!((key.to_string().as_str(), key.content_type()), (text, "image/jpeg"));
        for bad in [
            "",
            "67e55044-10b1-426f-9247-bb680e5fe0c8",
            "67e55044-10b1-426f-9247-bb680e5fe0c8.",
            "67e55044-10b1-426f-9247-bb680e5fe0c8.JPG",
            "67E55044-10B1-426F-9247-BB680E5FE0C8.jpg",
            "67e5504410b1426f9247bb680e5fe0c8.jpg",
            "67e55044-10b1-426f-9247-bb680e5fe0c8.jpg/../x",
            "../../etc/passwd.jpg",
        ] {
            assert!(bad.parse::<MediaKey>().is_err(), "{bad}");
        }
        let page = MediaKey::fresh("html").expect("valid");
        assert_eq!(page.content_type(), "application/octet-stream");
        assert_eq!(MediaKey::fresh("a b"), None);
    }
}
