//! Blobs in a local folder or in a bucket of S3 or of anything that speaks its protocol, both through `object_store`.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::aws::{AmazonS3Builder, AwsAuthorizer};
use object_store::buffered::BufWriter;
use object_store::client::{ClientOptions, HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};
use object_store::local::LocalFileSystem;
use object_store::{Attribute, Attributes, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig};
use tokio::io::AsyncWriteExt;

use super::{Media, MediaBody, MediaInfo, MediaKey, MediaUpload};
use crate::backends::error::{BackendError, BackendResult, ErrorKind};
use crate::backends::without_password;
use crate::runtime::error_chain;

/// Bytes of one part of a large blob, and the size up to which a blob is written in one piece: the least that S3 takes as
/// a part.
const PART_BYTES: usize = 5 << 20;

/// Parts of one upload that are under way at once.
const PARTS_AT_ONCE: usize = 2;

/// Longest wait for a connection to S3, and between two pieces of an answer. A whole blob has no limit: readers are slow.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest that a request is repeated for. Under the deadline that every call to a port has.
const RETRY_FOR: Duration = Duration::from_secs(2);

const REGION: &str = "us-east-1";

/// Blobs in a folder or a bucket. Clones share the connections.
#[derive(Clone)]
pub struct ObjectMedia {
    store: Arc<dyn ObjectStore>,
    /// Buckets are told the content type, for whoever reads them without us. A folder has no place for it.
    keeps_content_type: bool,
    server: Arc<str>,
}

impl ObjectMedia {
    /// Blobs in a folder, which is made when it is missing.
    ///
    /// # Errors
    /// Names the folder.
    pub fn open_folder(folder: &Path) -> BackendResult<Self> {
        let refused = |e: String| {
            let text = format!("{}: {e}; check that it may be written to", folder.display());
            BackendError::not_applied("open media", ErrorKind::Unavailable, text)
        };
        std::fs::create_dir_all(folder).map_err(|e| refused(e.to_string()))?;
        let store = LocalFileSystem::new_with_prefix(folder).map_err(|e| refused(error_chain(&e)))?;
        Ok(Self { store: Arc::new(store.with_fsync(true)), keeps_content_type: false, server: "folder".into() })
    }

    /// What the server calls itself. The protocol has no question for a version.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Blobs in the bucket of an address such as `s3://KEY:SECRET@s3.eu-central-1.amazonaws.com/bucket?region=eu-central-1`
    /// (TLS) or `s3+http://…` (plain). Makes a bucket that is missing.
    ///
    /// # Errors
    /// Names the address and the fix.
    pub async fn open_bucket(url: &str) -> BackendResult<Self> {
        let shown = without_password(url);
        let refused = |kind, text: String| BackendError::not_applied("open media", kind, format!("{shown}: {text}"));
        let Some(address) = Address::parse(url) else {
            let valid = "valid is s3://[KEY:SECRET@]HOST[:PORT]/BUCKET[?region=REGION], or s3+http://… without TLS; without \
                         KEY:SECRET the environment's AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are taken";
            return Err(refused(ErrorKind::Rejected, valid.to_owned()));
        };
        let store = address.builder().build().map_err(|e| refused(ErrorKind::Rejected, error_chain(&e)))?;
        match store.list(None).next().await.transpose() {
            Ok(_) => {}
            Err(e) if is_missing_bucket(&e) => {
                let made = address.make_bucket(&store).await;
                made.map_err(|e| refused(ErrorKind::Rejected, format!("making bucket {}: {e}", address.bucket)))?;
            }
            Err(e) => {
                let said = said(&e);
                let is_about_account = said.starts_with("403") || said.starts_with("401");
                return Err(if is_about_account {
                    refused(
                        ErrorKind::Rejected,
                        format!("{said}; check key, secret and region, and what the key may do"),
                    )
                } else {
                    refused(ErrorKind::Unavailable, format!("{said}; check host and port, and that the server is up"))
                });
            }
        }
        let server = address.server_name().await.unwrap_or_else(|| "S3".to_owned()).into();
        Ok(Self { store: Arc::new(store), keeps_content_type: true, server })
    }
}

/// `s3://KEY:SECRET@HOST:PORT/BUCKET?region=R`, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    account: Option<(String, String)>,
    endpoint: String,
    bucket: String,
    region: String,
}

impl Address {
    fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = match url.split_once("://")? {
            ("s3", rest) => ("https", rest),
            ("s3+http", rest) => ("http", rest),
            _ => return None,
        };
        let (rest, region) = match rest.split_once('?') {
            Some((rest, query)) => (rest, query.strip_prefix("region=").filter(|region| !region.is_empty())?),
            None => (rest, REGION),
        };
        // A secret may hold slashes and at-signs; a host and a bucket don't.
        let (rest, bucket) = rest.rsplit_once('/')?;
        let (account, host) = match rest.rsplit_once('@') {
            Some((account, host)) => {
                let (key, secret) = account.split_once(':')?;
                (Some((key.to_owned(), secret.to_owned())), host)
            }
            None => (None, rest),
        };
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        let is_valid = (3..=63).contains(&bucket.len())
            && bucket.chars().all(is_name)
            && !host.is_empty()
            && !host.contains(|c: char| c.is_whitespace() || c == '/');
        is_valid.then(|| Self {
            account,
            endpoint: format!("{scheme}://{host}"),
            bucket: bucket.to_owned(),
            region: region.to_owned(),
        })
    }

    fn builder(&self) -> AmazonS3Builder {
        let builder = match &self.account {
            Some((key, secret)) => AmazonS3Builder::new().with_access_key_id(key).with_secret_access_key(secret),
            None => AmazonS3Builder::from_env(),
        };
        builder
            .with_endpoint(&self.endpoint)
            .with_bucket_name(&self.bucket)
            .with_region(&self.region)
            .with_allow_http(self.endpoint.starts_with("http:"))
            .with_client_options(self.options())
            .with_retry(RetryConfig { max_retries: 3, retry_timeout: RETRY_FOR, ..RetryConfig::default() })
    }

    fn options(&self) -> ClientOptions {
        ClientOptions::new()
            .with_allow_http(self.endpoint.starts_with("http:"))
            .with_connect_timeout(STEP_TIMEOUT)
            .with_read_timeout(STEP_TIMEOUT)
            .with_timeout_disabled()
    }

    /// What the server's answers call it, such as `AmazonS3` or `MinIO`.
    async fn server_name(&self) -> Option<String> {
        let client = ReqwestConnector::default().connect(&self.options()).ok()?;
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = self.endpoint.parse().ok()?;
        let answer = tokio::time::timeout(STEP_TIMEOUT, client.execute(request)).await.ok()?.ok()?;
        let name = answer.headers().get(hyper::header::SERVER)?.to_str().ok()?;
        Some(format!("S3 ({name})"))
    }

    /// Asks for the bucket to be made, which `object_store` does not do: a signed PUT of its address.
    async fn make_bucket(&self, store: &object_store::aws::AmazonS3) -> Result<(), String> {
        let client = ReqwestConnector::default().connect(&self.options()).map_err(|e| error_chain(&e))?;
        let credential = store.credentials().get_credential().await.map_err(|e| error_chain(&e))?;
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = hyper::Method::PUT;
        let uri = format!("{}/{}", self.endpoint, self.bucket);
        *request.uri_mut() = uri.parse().map_err(|e| format!("{uri}: {e}"))?;
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .try_authorize(&mut request, None)
            .map_err(|e| error_chain(&e))?;
        let answer = client.execute(request).await.map_err(|e| error_chain(&e))?;
        let status = answer.status();
        // Another server that starts at the same time may have been first.
        if status.is_success() || status == hyper::StatusCode::CONFLICT {
            return Ok(());
        }
        let text = answer.into_body().bytes().await.unwrap_or_default();
        Err(format!("{status}: {}; make it by hand", String::from_utf8_lossy(&text)))
    }
}

fn is_missing_bucket(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. }) || said(error).contains("NoSuchBucket")
}

/// What the server said, or why it said nothing: the library's errors repeat each other and whole pages of XML.
fn said(error: &(dyn std::error::Error + 'static)) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    let text = root.to_string();
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(inside, _)| inside)
    };
    let (Some(code), Some(message)) = (element("Code"), element("Message")) else { return text };
    let status = text.split_once("status code: ").and_then(|(_, rest)| rest.split_once(':'));
    format!("{} {code}: {}", status.map_or("", |(status, _)| status), message.trim_end_matches('.'))
}

/// What an error means: only what surely was not applied says so.
fn failed(operation: &'static str, error: object_store::Error) -> BackendError {
    use object_store::Error;
    let text = said(&error);
    match error {
        Error::PermissionDenied { .. }
        | Error::Unauthenticated { .. }
        | Error::InvalidPath { .. }
        | Error::NotSupported { .. } => BackendError::not_applied(operation, ErrorKind::Rejected, text),
        _ => BackendError::unknown(operation, ErrorKind::Unavailable, text),
    }
}

/// Where a blob lies: spread over folders, so that none of them holds millions.
fn path(key: &MediaKey) -> object_store::path::Path {
    let key = key.to_string();
    object_store::path::Path::from(format!("{}/{key}", &key[..2]))
}

fn info(meta: &ObjectMeta) -> MediaInfo {
    let stored_at = u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or_default();
    let etag = meta.e_tag.clone().unwrap_or_else(|| format!("{}-{stored_at}", meta.size));
    let etag = if etag.starts_with('"') { etag } else { format!("\"{etag}\"") };
    MediaInfo { size: meta.size, etag, stored_at }
}

#[async_trait]
impl Media for ObjectMedia {
    async fn begin(&self, key: &MediaKey) -> BackendResult<Box<dyn MediaUpload>> {
        let mut writer = BufWriter::with_capacity(Arc::clone(&self.store), path(key), PART_BYTES)
            .with_max_concurrency(PARTS_AT_ONCE);
        if self.keeps_content_type {
            let mut attributes = Attributes::new();
            attributes.insert(Attribute::ContentType, key.content_type().into());
            writer = writer.with_attributes(attributes);
        }
        Ok(Box::new(Upload { writer, media: self.clone(), key: key.clone() }))
    }

    async fn info(&self, key: &MediaKey) -> BackendResult<Option<MediaInfo>> {
        match self.store.head(&path(key)).await {
            Ok(meta) => Ok(Some(info(&meta))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(failed("media.info", e)),
        }
    }

    async fn read(&self, key: &MediaKey, range: Option<Range<u64>>) -> BackendResult<Option<(MediaInfo, MediaBody)>> {
        const OPERATION: &str = "media.read";
        // Engines refuse a range of nothing, and one that begins beyond the end: what exists of it is nothing.
        let nothing = |info: MediaInfo| Some((info, stream::empty().boxed()));
        if range.as_ref().is_some_and(Range::is_empty) {
            return Ok(self.info(key).await?.and_then(nothing));
        }
        let options = GetOptions { range: range.clone().map(GetRange::Bounded), ..GetOptions::default() };
        match self.store.get_opts(&path(key), options).await {
            Ok(got) => {
                let info = info(&got.meta);
                Ok(Some((info, got.into_stream().map_err(|e| failed(OPERATION, e)).boxed())))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => match (range, self.info(key).await?) {
                (Some(range), Some(info)) if range.start >= info.size => Ok(nothing(info)),
                _ => Err(failed(OPERATION, e)),
            },
        }
    }

    async fn remove(&self, key: &MediaKey) -> BackendResult<()> {
        match self.store.delete(&path(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(failed("media.remove", e)),
        }
    }
}

struct Upload {
    writer: BufWriter,
    media: ObjectMedia,
    key: MediaKey,
}

#[async_trait]
impl MediaUpload for Upload {
    async fn write(&mut self, bytes: Bytes) -> BackendResult<()> {
        self.writer.put(bytes).await.map_err(|e| failed("media.write", e))
    }

    async fn finish(mut self: Box<Self>) -> BackendResult<MediaInfo> {
        const OPERATION: &str = "media.finish";
        let unknown = |text: String| BackendError::unknown(OPERATION, ErrorKind::Unavailable, text);
        self.writer.shutdown().await.map_err(|e| unknown(said(&e)))?;
        let info = self.media.info(&self.key).await?;
        info.ok_or_else(|| unknown("the blob is not there".to_owned()))
    }

    async fn abort(mut self: Box<Self>) -> BackendResult<()> {
        self.writer.abort().await.map_err(|e| failed("media.abort", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::contract::{Deployment, Place, engine_address};
    use crate::backends::media::contract::media_contract;

    mod folder {
        use super::*;

        fn place() -> impl Place<dyn Media> {
            let folder = tempfile::tempdir().expect("a temporary folder");
            Deployment(move || {
                let media = ObjectMedia::open_folder(&folder.path().join("media")).expect("opens");
                std::future::ready(Arc::new(media) as Arc<dyn Media>)
            })
        }

        media_contract!(place());
    }

    mod s3 {
        use super::*;

        fn place() -> impl Place<dyn Media> {
            bucket("chatctl-test")
        }

        /// A bucket of a running server.
        fn bucket(name: &str) -> impl Place<dyn Media> + use<> {
            let url = format!("{}/{name}", engine_address("CHATCTL_TEST_S3"));
            Deployment(move || {
                let url = url.clone();
                async move { Arc::new(ObjectMedia::open_bucket(&url).await.expect("opens")) as Arc<dyn Media> }
            })
        }

        media_contract!(place(), ignore = "needs CHATCTL_TEST_S3");

        #[tokio::test]
        #[ignore = "needs CHATCTL_TEST_S3"]
        async fn a_missing_bucket_is_made_and_a_wrong_secret_is_named_without_showing_it() {
            let address = engine_address("CHATCTL_TEST_S3");
            let name = format!("chatctl-{}", uuid::Uuid::new_v4().simple());
            bucket(&name).open().await;
            bucket(&name).open().await;
            let (_, host) = address.rsplit_once('@').expect("an account");
            let wrong = format!("s3+http://chatctl:not-the-secret@{host}/{name}");
            let error = ObjectMedia::open_bucket(&wrong).await.map(|_| ()).expect_err("refused").to_string();
            assert!(error.contains(host) && error.contains("SignatureDoesNotMatch"), "{error}");
            assert!(error.contains("check key, secret") && !error.contains("not-the-secret"), "{error}");
            assert!(error.len() < 400, "{error}");
        }
    }

    #[test]
    fn an_address_is_taken_apart() {
        let address = Address::parse("s3+http://key:se/cr@t@127.0.0.1:9000/bucket").expect("valid");
        let account = Some(("key".to_owned(), "se/cr@t".to_owned()));
        let endpoint = "http://127.0.0.1:9000".to_owned();
        assert_eq!(address, Address { account, endpoint, bucket: "bucket".to_owned(), region: REGION.to_owned() });
        let address = Address::parse("s3://s3.eu-central-1.amazonaws.com/media?region=eu-central-1").expect("valid");
        assert_eq!((address.account, address.region.as_str()), (None, "eu-central-1"));
        for bad in
            ["s3://", "s3://host", "s3://host/B", "s3://key@host/bucket", "s3://host/bucket?x=1", "http://host/bucket"]
        {
            assert_eq!(Address::parse(bad), None, "{bad}");
        }
    }
}
