//! The message store in `HBase`, through its REST gateway.
//!
//! One row for each message, newest first within a conversation; one row for each conversation, with its head and its void
//! ranges. `HBase` forgets its own delete markers when it compacts, so that a row that lands late would come up again: voids
//! are therefore data, and readers leave out what lies in them (docs/adr/0014).

mod rows;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use self::rows::{
    Cells, MESSAGE, Order, Rows, Span, VOID, conversation_row, decode_row, head_text, message_of, message_row,
    parse_head, row_body, void_column, void_range,
};
use super::{ConversationHead, Messages, Newest, STATUS_SENT, StoredMessage};
use crate::backends::error::{BackendError, BackendResult, ErrorKind};
use crate::backends::json_http::{JsonHttp, NoAnswer};
use crate::backends::version;
use crate::protocol::{ConversationId, MessageId};
use crate::runtime::clock;

/// The first version with `checkAndPut` of what is not there through its gateway.
const VERSION_MIN: version::Version = (2, 0);

/// Longest that a new table may take.
const TABLES_TIMEOUT: Duration = Duration::from_secs(30);

/// Rows that one scan asks for at most.
const SCAN_ROWS_MAX: usize = 1_000;

/// Conversations whose voids are asked for in one request: a row takes 25 bytes of its address.
const VOIDS_AT_ONCE: usize = 100;

/// Scans of one call that are under way at once.
const AT_ONCE: usize = 8;

/// Family and column of a conversation's head: its epoch and the end of its block, in one cell, which is compared and set.
const HEAD: &str = "h:head";
/// Its family, where the store's marks are too: one column for each.
const HEAD_FAMILY: &str = "h";
/// Row of the store's marks: no conversation's, which begin with a digit.
const MARKS_ROW: &str = "marks";

/// Messages in two tables. Clones share the connections.
#[derive(Clone)]
pub struct HBaseMessages {
    inner: Arc<Inner>,
}

struct Inner {
    http: JsonHttp,
    messages: String,
    conversations: String,
    /// Product and version, as of the opening.
    version: String,
}

/// The void ranges of each conversation that has any.
type Voids = HashMap<ConversationId, Vec<RangeInclusive<u64>>>;

/// `hbase://host:8080,host:8080/PREFIX`, taken apart.
fn parse(url: &str) -> Option<(JsonHttp, String)> {
    let rest = url.strip_prefix("hbase://")?;
    let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, "chatctl"));
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let (namespace, name) = prefix.split_once(':').unwrap_or(("default", prefix));
    let is_valid = [namespace, name].iter().all(|part| !part.is_empty() && part.chars().all(is_name));
    let http = JsonHttp::new(hosts)?;
    is_valid.then(|| (http, prefix.to_owned()))
}

impl HBaseMessages {
    /// Opens the store, and makes tables that are missing.
    ///
    /// # Errors
    /// Names the address and the fix.
    pub async fn open(url: &str) -> BackendResult<Self> {
        let refused = |kind, text: String| BackendError::not_applied("open messages", kind, format!("{url}: {text}"));
        let Some((http, prefix)) = parse(url) else {
            let valid =
                "valid is hbase://HOST:PORT[,HOST:PORT…][/[NAMESPACE:]PREFIX], where HOST:PORT is a REST gateway";
            return Err(refused(ErrorKind::Rejected, valid.to_owned()));
        };
        let unavailable = |text: String| {
            refused(
                ErrorKind::Unavailable,
                format!("{text}; is the REST gateway of HBase listening there, and HBase up?"),
            )
        };
        let (status, body) =
            http.request(Method::GET, "/version/cluster", None).await.map_err(|e| unavailable(e.text))?;
        if status != StatusCode::OK {
            return Err(unavailable(format!("{status} for /version/cluster")));
        }
        let found = cluster_version(&body);
        version::at_least("HBase", &found, VERSION_MIN).map_err(|text| refused(ErrorKind::Rejected, text))?;
        let inner = Inner {
            http,
            messages: format!("{prefix}_messages"),
            conversations: format!("{prefix}_conversations"),
            version: format!("HBase {found}"),
        };
        for (table, families) in [(&inner.messages, &[MESSAGE][..]), (&inner.conversations, &[HEAD_FAMILY, VOID])] {
            inner.make_table(table, families).await.map_err(|text| {
                refused(
                    ErrorKind::Unavailable,
                    format!("making table {table}: {text}; make it by hand (docs/engines.md)"),
                )
            })?;
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Product and version, as of the opening.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.inner.version
    }
}

/// The gateway tells the version as an object, and as a bare string before 2.0.
fn cluster_version(body: &[u8]) -> String {
    let told: Value = serde_json::from_slice(body).unwrap_or_default();
    told["Version"].as_str().or(told.as_str()).unwrap_or_default().to_owned()
}

fn no_answer(operation: &'static str) -> impl Fn(NoAnswer) -> BackendError {
    move |e| {
        let kind = if e.timed_out { ErrorKind::TimedOut } else { ErrorKind::Unavailable };
        if e.may_have_arrived {
            BackendError::unknown(operation, kind, e.text)
        } else {
            BackendError::not_applied(operation, kind, e.text)
        }
    }
}

/// What a status other than success means. The gateway tells of trouble behind it with 503 and 500, whatever came of the
/// call.
fn refused(operation: &'static str, status: StatusCode, body: &[u8]) -> BackendError {
    let text = answer_text(status, body);
    if status.is_client_error() {
        BackendError::not_applied(operation, ErrorKind::Rejected, text)
    } else {
        BackendError::unknown(operation, ErrorKind::Unavailable, text)
    }
}

/// An answer in one line: the gateway sends the stack traces of its exceptions.
fn answer_text(status: StatusCode, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let told = text.split("\n\tat ").next().unwrap_or_default();
    format!("{status}: {}", told.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn corrupt(operation: &'static str, what: &str) -> BackendError {
    BackendError::not_applied(operation, ErrorKind::Corrupt, format!("{what} can't be read"))
}

impl Inner {
    /// Sets a cell of the conversations' table if it holds `from`, which is empty where it must not be there. Returns whether it
    /// did.
    async fn check_and_put(
        &self,
        operation: &'static str,
        row: &str,
        column: &str,
        from: &str,
        to: &str,
    ) -> BackendResult<bool> {
        // The last cell is what is compared, the one before what is set.
        let body = row_body(row, &[(column, to.as_bytes()), (column, from.as_bytes())]);
        let path = format!("/{}/{row}/?check=put", self.conversations);
        let (status, answer) =
            self.http.request(Method::PUT, &path, Some(&body)).await.map_err(no_answer(operation))?;
        match status {
            StatusCode::NOT_MODIFIED => Ok(false),
            status if status.is_success() => Ok(true),
            status => Err(refused(operation, status, &answer)),
        }
    }

    async fn has_table(&self, table: &str) -> Result<bool, String> {
        let (status, body) =
            self.http.request(Method::GET, &format!("/{table}/schema"), None).await.map_err(|e| e.text)?;
        match status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(answer_text(status, &body)),
        }
    }

    /// Makes a table that is missing. An existing one is left alone: the gateway would take it out of service to change it.
    async fn make_table(&self, table: &str, families: &[&str]) -> Result<(), String> {
        // Two that both find it missing would get in each other's way for the same reason. (Servers in several processes find
        // the tables that their supervisor or `migrate` made.)
        static MAKING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let _turn = MAKING.lock().await;
        if self.has_table(table).await? {
            return Ok(());
        }
        let families: Vec<Value> = families.iter().map(|name| json!({"name": name, "VERSIONS": "1"})).collect();
        let schema = json!({"name": table, "ColumnSchema": families});
        let failure = match self.http.request(Method::PUT, &format!("/{table}/schema"), Some(&schema)).await {
            // 304: another server that starts at the same time was first.
            Ok((status, _)) if status.is_success() || status == StatusCode::NOT_MODIFIED => return Ok(()),
            Ok((status, body)) => answer_text(status, &body),
            Err(e) => e.text,
        };
        // The gateway may be at it for longer than a request may take.
        let deadline = clock::instant() + TABLES_TIMEOUT;
        while clock::instant() < deadline {
            tokio::time::sleep(TABLES_TIMEOUT / 60).await;
            if self.has_table(table).await == Ok(true) {
                return Ok(());
            }
        }
        Err(failure)
    }

    async fn put(&self, operation: &'static str, table: &str, row: &str, cells: &[(&str, &[u8])]) -> BackendResult<()> {
        let body = row_body(row, cells);
        let (status, answer) = self
            .http
            .request(Method::PUT, &format!("/{table}/{row}"), Some(&body))
            .await
            .map_err(no_answer(operation))?;
        if status.is_success() { Ok(()) } else { Err(refused(operation, status, &answer)) }
    }

    /// Rows of an address; none where the gateway finds none.
    async fn get(&self, operation: &'static str, path: &str) -> BackendResult<Vec<(String, Cells)>> {
        let (status, body) = self.http.request(Method::GET, path, None).await.map_err(no_answer(operation))?;
        let rows = match status {
            StatusCode::OK => serde_json::from_slice::<Rows>(&body).map_err(|_| corrupt(operation, "an answer"))?.rows,
            // No such row.
            StatusCode::NOT_FOUND => Vec::new(),
            _ => return Err(refused(operation, status, &body)),
        };
        rows.iter().map(|row| decode_row(row).ok_or_else(|| corrupt(operation, "a row"))).collect()
    }

    /// The void ranges of each conversation that has any.
    async fn voids(&self, operation: &'static str, conversations: &[ConversationId]) -> BackendResult<Voids> {
        let mut voids = HashMap::new();
        for chunk in conversations.chunks(VOIDS_AT_ONCE) {
            let by_row: HashMap<String, ConversationId> = chunk.iter().map(|c| (conversation_row(c.0), *c)).collect();
            let rows = by_row.keys().map(|row| format!("row={row}")).collect::<Vec<_>>().join("&");
            let found = self.get(operation, &format!("/{}/multiget?{rows}", self.conversations)).await?;
            for (row, cells) in found {
                let ranges = cells.keys().filter_map(|column| void_range(column)).collect();
                by_row.get(&row).map(|conversation| voids.insert(*conversation, ranges));
            }
        }
        Ok(voids)
    }

    /// Messages of a span, void or not, at most `limit`.
    async fn scan(&self, operation: &'static str, span: &Span, limit: usize) -> BackendResult<Vec<StoredMessage>> {
        let (start, stop) = span.rows();
        let reversed = if span.order == Order::OldestFirst { "&reversed=true" } else { "" };
        let path = format!("/{}/*?startrow={start}&endrow={stop}&limit={limit}{reversed}", self.messages);
        let rows = self.get(operation, &path).await?;
        let message = |(row, cells): (String, Cells)| {
            message_of(span.conversation, &row, cells).ok_or_else(|| corrupt(operation, &format!("message {row}")))
        };
        rows.into_iter().map(message).collect()
    }

    /// Messages of a span that are not void, at most `limit`.
    ///
    /// The voids are asked for after the rows: a row that landed behind its void must not be seen, and this way its void is.
    async fn read(&self, operation: &'static str, span: Span, limit: usize) -> BackendResult<Vec<StoredMessage>> {
        let mut out = Vec::new();
        let mut left = Some(span);
        while let Some(span) = left.take().filter(|span| !span.ids.is_empty() && out.len() < limit) {
            let wanted = (limit - out.len()).min(SCAN_ROWS_MAX);
            let rows = self.scan(operation, &span, wanted).await?;
            let Some(end) = rows.last() else { break };
            let voids = self.voids(operation, &[span.conversation]).await?;
            left = if rows.len() == wanted { span.behind(end.id) } else { None };
            out.extend(rows.into_iter().filter(|message| !is_void(&voids, message.conversation, message.id)));
        }
        Ok(out)
    }
}

fn is_void(voids: &Voids, conversation: ConversationId, id: MessageId) -> bool {
    let ranges = voids.get(&conversation);
    ranges.is_some_and(|ranges| ranges.iter().any(|range| range.contains(&id.0)))
}

#[async_trait]
impl Messages for HBaseMessages {
    async fn append(&self, message: &StoredMessage) -> BackendResult<()> {
        let StoredMessage { conversation, id, uuid, sender, kind, body, reply_to, at } = message;
        let (sender, uuid, at) = (sender.0.to_string(), uuid.to_string(), at.to_string());
        let (status, reply_to) = (STATUS_SENT.to_string(), reply_to.map(|id| id.0.to_string()));
        let mut cells = vec![
            ("m:sender_id", sender.as_bytes()),
            ("m:uuid", uuid.as_bytes()),
            ("m:content_type", kind.as_bytes()),
            ("m:content", body.as_bytes()),
            ("m:timestamp", at.as_bytes()),
            ("m:status", status.as_bytes()),
        ];
        cells.extend(reply_to.as_ref().map(|id| ("m:reply_to", id.as_bytes())));
        let row = message_row(conversation.0, id.0);
        self.inner.put("messages.append", &self.inner.messages, &row, &cells).await
    }

    async fn read(
        &self,
        conversation: ConversationId,
        after: MessageId,
        upto: MessageId,
        limit: usize,
    ) -> BackendResult<Vec<StoredMessage>> {
        let Some(first) = after.0.checked_add(1) else { return Ok(Vec::new()) };
        self.inner.read("messages.read", Span::oldest_first(conversation, first..=upto.0), limit).await
    }

    async fn read_back(
        &self,
        conversation: ConversationId,
        before: MessageId,
        limit: usize,
    ) -> BackendResult<Vec<StoredMessage>> {
        let Some(last) = before.0.checked_sub(1) else { return Ok(Vec::new()) };
        self.inner.read("messages.read_back", Span::newest_first(conversation, 0..=last), limit).await
    }

    /// One scan for each, then one question for the voids of many; once more where the newest is void.
    async fn newest(&self, conversations: &[ConversationId]) -> BackendResult<Vec<Option<Newest>>> {
        const OPERATION: &str = "messages.newest";
        let everything = |conversation| Span::newest_first(conversation, 0..=u64::MAX - 1);
        let mut newest: Vec<Option<Newest>> = stream::iter(conversations.iter().copied())
            .map(async |conversation| {
                let rows = self.inner.scan(OPERATION, &everything(conversation), 1).await?;
                Ok::<_, BackendError>(rows.into_iter().next().map(Newest::from))
            })
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        let is_used = |(conversation, found): (&ConversationId, &Option<Newest>)| found.map(|_| *conversation);
        let used: Vec<ConversationId> = conversations.iter().zip(&newest).filter_map(is_used).collect();
        let voids = self.inner.voids(OPERATION, &used).await?;
        for (conversation, found) in conversations.iter().zip(&mut newest) {
            if found.take_if(|found| is_void(&voids, *conversation, found.id)).is_some() {
                *found = self.inner.read(OPERATION, everything(*conversation), 1).await?.pop().map(Newest::from);
            }
        }
        Ok(newest)
    }

    async fn void(&self, conversation: ConversationId, after: MessageId, upto: MessageId) -> BackendResult<()> {
        if upto <= after {
            return Ok(());
        }
        let (row, column) = (conversation_row(conversation.0), void_column(after.0 + 1, upto.0));
        self.inner.put("messages.void", &self.inner.conversations, &row, &[(&column, b"")]).await
    }

    async fn head(&self, conversation: ConversationId) -> BackendResult<ConversationHead> {
        const OPERATION: &str = "messages.head";
        let path = format!("/{}/{}/{HEAD}", self.inner.conversations, conversation_row(conversation.0));
        let rows = self.inner.get(OPERATION, &path).await?;
        let Some(text) = rows.first().and_then(|(_, cells)| cells.get(HEAD)) else {
            return Ok(ConversationHead::default());
        };
        parse_head(text).ok_or_else(|| corrupt(OPERATION, "a head"))
    }

    async fn raise_head(
        &self,
        conversation: ConversationId,
        from: ConversationHead,
        to: ConversationHead,
    ) -> BackendResult<bool> {
        let row = conversation_row(conversation.0);
        let from = if from == ConversationHead::default() { String::new() } else { head_text(from) };
        self.inner.check_and_put("messages.raise_head", &row, HEAD, &from, &head_text(to)).await
    }

    async fn mark(&self, name: &str, value: &str) -> BackendResult<String> {
        const OPERATION: &str = "messages.mark";
        let column = format!("{HEAD_FAMILY}:{name}");
        if self.inner.check_and_put(OPERATION, MARKS_ROW, &column, "", value).await? {
            return Ok(value.to_owned());
        }
        let path = format!("/{}/{MARKS_ROW}/{column}", self.inner.conversations);
        let rows = self.inner.get(OPERATION, &path).await?;
        let found = rows.first().and_then(|(_, cells)| cells.get(&column)).cloned();
        found.and_then(|value| String::from_utf8(value).ok()).ok_or_else(|| corrupt(OPERATION, "a mark"))
    }

    async fn probe(&self) -> BackendResult<()> {
        let column = format!("{HEAD_FAMILY}:probe");
        self.inner.put("messages.probe", &self.inner.conversations, MARKS_ROW, &[(&column, b"1")]).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::contract::{Deployment, Place, engine_address};
    use crate::backends::messages::contract::messages_contract;

    fn tables() -> impl Place<dyn Messages> {
        let url = format!("hbase://{}/chatctl_test", engine_address("CHATCTL_TEST_HBASE"));
        Deployment(move || {
            let url = url.clone();
            async move { Arc::new(HBaseMessages::open(&url).await.expect("opens")) as Arc<dyn Messages> }
        })
    }

    messages_contract!(tables(), ignore = "needs CHATCTL_TEST_HBASE");

    #[test]
    fn a_version_is_read_in_both_shapes() {
        assert_eq!(cluster_version(br#"{"Version":"2.6.1"}"#), "2.6.1");
        assert_eq!(cluster_version(br#""1.4.0""#), "1.4.0");
        assert_eq!(cluster_version(b"<html>"), "");
    }

    #[test]
    fn only_addresses_of_gateways_are_taken() {
        assert!(parse("hbase://a:1,b:2/chat:main").is_some_and(|(_, prefix)| prefix == "chat:main"));
        for bad in ["hbase://", "hbase://a:1/b/c", "hbase://a:1/", "hbase://a:1/x:", "cassandra://a:1"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
