use super::*;

fn refused(status: u16, header: Option<&str>, body: &str) -> Error {
    let mut headers = HeaderMap::new();
    if let Some(value) = header {
        headers.insert(RETRY_AFTER, value.parse().expect("a header"));
    }
    Error::refused(StatusCode::from_u16(status).expect("a status"), &headers, body.as_bytes())
}

const OVERLOADED: &str = r#"{"code":"overloaded","message":"busy","retry_after_ms":1500}"#;

#[test]
fn the_later_of_both_retry_times_counts_and_a_date_does_not() {
    let after = |header, body| refused(503, header, body).retry_after();
    assert_eq!(after(None, OVERLOADED), Some(Duration::from_millis(1_500)));
    assert_eq!(after(Some("1"), OVERLOADED), Some(Duration::from_millis(1_500)));
    assert_eq!(after(Some("2"), OVERLOADED), Some(Duration::from_secs(2)));
    assert_eq!(after(Some("2"), "<html>busy</html>"), Some(Duration::from_secs(2)));
    assert_eq!(after(Some("Fri, 31 Dec 2999 23:59:59 GMT"), "busy"), None);
    assert_eq!(after(Some("-1"), "busy"), None);
    assert_eq!(after(None, "busy"), None);
}

#[test]
fn backpressure_refusals_and_faults_are_told_apart() {
    let busy = refused(503, None, OVERLOADED);
    assert!(busy.is_throttled() && busy.is_retryable() && !busy.is_local());
    assert_eq!((busy.code(), busy.status()), (Some(ErrorCode::Overloaded), Some(StatusCode::SERVICE_UNAVAILABLE)));
    let plain = refused(503, None, "no upstream");
    assert!(!plain.is_throttled() && plain.is_retryable() && plain.code().is_none());
    assert!(refused(429, Some("1"), "").is_throttled());
    assert!(!refused(500, Some("1"), "").is_throttled(), "a fault, whatever it asks for");
    let expired = refused(401, None, r#"{"code":"unauthorized","message":"the token has expired"}"#);
    assert!(expired.is_unauthorized() && !expired.is_retryable());
    assert!(refused(401, None, "login").is_unauthorized());
    assert!(!refused(409, None, r#"{"code":"conflict","message":"taken"}"#).is_retryable());
    assert!(!Error::Unreadable("x".to_owned()).is_retryable());
}

/// What never comes ends the test.
async fn soon<T>(awaited: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_mins(1), awaited).await.expect("it comes")
}

/// A server that takes connections and never answers.
async fn silent() -> (tokio::net::TcpListener, Api) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let api = Api::new(&format!("http://{}", listener.local_addr().expect("has one"))).expect("an address");
    (listener, api)
}

#[tokio::test]
async fn a_look_at_the_stack_waits_for_no_device_and_a_devices_wait_is_told() {
    let (listener, api) = silent().await;
    let waits: Arc<std::sync::Mutex<Vec<SlotWait>>> = Arc::default();
    let told = Arc::clone(&waits);
    api.on_turn(move |wait| told.lock().expect("no panic").push(wait));
    let mut all = Vec::new();
    for _ in 0..REQUESTS_AT_ONCE {
        all.push(api.turns.take().await.expect("open"));
    }
    let (mut waiting, mut looking) = (Box::pin(api.inbox_sync("t", None, 1)), Box::pin(api.metrics()));
    tokio::select! {
        _ = &mut waiting => panic!("no turn was free"),
        _ = &mut looking => panic!("nobody answered"),
        accepted = soon(listener.accept()) => drop(accepted.expect("the look came through")),
    }
    assert!(waits.lock().expect("no panic").is_empty());
    drop(all);
    tokio::select! {
        _ = &mut waiting => panic!("nobody answered"),
        accepted = soon(listener.accept()) => drop(accepted.expect("the device had its turn")),
    }
    let waits = waits.lock().expect("no panic").clone();
    assert!(matches!(*waits, [wait] if wait.us() > 0 && wait.lag_us <= wait.us()), "{waits:?}");
}

#[test]
fn a_servers_words_are_short_and_not_obeyed() {
    let text = refused(500, None, &format!("\u{1b}[2J{}", "x".repeat(10_000))).to_string();
    assert!(text.starts_with("500 Internal Server Error: \\u{1b}[2Jx") && text.ends_with('…'), "{text}");
    assert!(text.len() < 400, "{}", text.len());
}
