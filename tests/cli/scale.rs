//! Large runs, and what is made of their results, as a user and CI call them.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::{TINY, run, scenario};

/// A worker of the test's own.
struct Worker(Child, String);

impl Worker {
    fn listen(secret: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_chatctl"))
            .args(["worker", "--listen", "127.0.0.1:0", "--secret-file"])
            .arg(secret)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        lines.read_line(&mut line).expect("says where it is");
        let address = line.split_whitespace().nth(2).expect("worker at ADDRESS, …").trim_end_matches(',').to_owned();
        // Whoever closes the pipe would end it at its next word.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self(child, address)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn secret(folder: &Path, text: &str) -> String {
    let path = folder.join(format!("secret-{}", text.len()));
    std::fs::write(&path, text).expect("writes");
    path.display().to_string()
}

fn result(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("result.json")).expect("is there");
    serde_json::from_str(&text).expect("is JSON")
}

#[test]
fn doctor_tells_what_fits_and_exits_3_when_it_does_not() {
    let (code, out, err) = run(&["doctor", "--connections", "1000"]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("ulimit -Hn") && out.contains("memory"), "{out}");
    let (code, out, _) = run(&["doctor", "--connections", "90000000", "-o", "json"]);
    assert_eq!(code, Some(3), "{out}");
    let rows: Vec<Value> = serde_json::from_str(&out).expect("is JSON");
    assert!(rows.iter().any(|row| row["what"] == "memory" && row["state"] == "short"), "{out}");
}

#[test]
fn what_does_not_fit_is_said_before_anything_is_started() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), &TINY.replace("users: 6", "users: 9000000"));
    let (code, _, err) = run(&["load", &path]);
    assert_eq!(code, Some(3), "{err}");
    assert!(err.contains("9 000 000 connections do not fit") && err.contains("--force"), "{err}");
    let fitting = TINY.replace("users: 6", "users: 6, groups: [{count: 1, members: {min: 5, max: 5}}]");
    let (code, _, err) = run(&["load", &scenario(folder.path(), &fitting), "--workers", "3"]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("a group of up to 5 members does not fit into one of 3 workers"), "{err}");
}

#[test]
fn workers_share_a_run_and_are_judged_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let out = folder.path().join("out");
    let (code, text, err) = run(&["load", &path, "--workers", "2", "--out", &out.display().to_string()]);
    assert_eq!(code, Some(0), "{text}{err}");
    let result = result(&out);
    assert_eq!(result["counts"]["clients"], 6, "{result}");
    assert_eq!(result["workers"].as_array().map(Vec::len), Some(2));
    assert!(result["counts"]["acked"].as_u64().is_some_and(|n| n > 10), "{result}");
    assert!(text.contains("worker     pid"), "{text}");
}

#[test]
fn workers_that_listen_take_part_and_one_that_is_killed_makes_the_run_invalid() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = secret(folder.path(), "a secret of the test");
    let (a, b) = (Worker::listen(Path::new(&key)), Worker::listen(Path::new(&key)));
    let path = scenario(folder.path(), &TINY.replace("duration: 1s", "duration: 20s"));
    let both = format!("{},{}", a.1, b.1);
    let out = folder.path().join("out");
    let mut child = Command::new(env!("CARGO_BIN_EXE_chatctl"))
        .args(["load", &path, "--workers", &both, "--secret-file", &key, "--ui", "plain", "--out"])
        .arg(&out)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let loading = lines.by_ref().find(|line| line.contains("conns 6/6"));
    assert!(loading.is_some(), "everybody connects");
    drop(b);
    let rest: Vec<String> = lines.collect();
    let code = child.wait().expect("ends").code();
    assert_eq!(code, Some(5), "{rest:?}");
    assert!(rest.iter().any(|l| l.contains("INVALID")) && rest.iter().any(|l| l.contains("was lost")), "{rest:?}");
    let result = result(&out);
    assert!(result["workers"][1]["lost"].as_str().is_some_and(|why| why.contains("into the load")));
    for worker in result["workers"].as_array().expect("a list") {
        // All are on this machine, which has one clock, whenever they were started.
        let (offset, error) = (worker["clock_offset_us"].as_i64(), worker["clock_error_us"].as_u64());
        let (offset, error) = (offset.expect("a number").unsigned_abs(), error.expect("a number"));
        assert!(error > 0 && offset <= 2 * error + 2, "{worker}");
    }
    // The one that is left serves the next run.
    let path = scenario(folder.path(), TINY);
    let (code, text, err) = run(&["load", &path, "--workers", &a.1, "--secret-file", &key]);
    assert_eq!(code, Some(0), "{text}{err}");
}

#[test]
fn a_worker_serves_only_who_knows_the_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, other) =
        (secret(folder.path(), "a secret of the test"), secret(folder.path(), "another one that is longer"));
    let worker = Worker::listen(Path::new(&ours));
    let path = scenario(folder.path(), TINY);
    let (code, _, err) = run(&["load", &path, "--workers", &worker.1, "--secret-file", &other]);
    assert_eq!(code, Some(3), "{err}");
    assert!(err.contains("the secrets differ") && err.contains("--secret-file"), "{err}");
    let (code, _, err) = run(&["load", &path, "--workers", "127.0.0.1:9", "--secret-file", &ours]);
    assert_eq!(code, Some(3), "{err}");
    assert!(err.contains("127.0.0.1:9") && err.contains("chatctl worker --listen"), "{err}");
    for wrong in ["0", "here", "a:b:c", "1001"] {
        assert_eq!(run(&["load", &path, "--workers", wrong]).0, Some(2), "{wrong}");
    }
    let (code, _, err) = run(&["load", &path, "--source-addresses", "203.0.113.9"]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("203.0.113.9") && err.contains("an address of this machine"), "{err}");
    assert_eq!(run(&["worker", "--listen", "127.0.0.1:0", "--secret-file", "/nowhere/secret"]).0, Some(2));
}

#[test]
fn a_run_is_reported_replayed_and_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (code, text, err) = run(&["load", &path, "--out", &at("a")]);
    assert_eq!(code, Some(0), "{text}{err}");
    for file in ["report.html", "series.jsonl", "series.csv", "latency.csv"] {
        assert!(folder.path().join("a").join(file).exists(), "{file}");
    }
    let (code, out, err) = run(&["report", &at("a"), "--out", &at("again")]);
    assert_eq!(code, Some(0), "{out}{err}");
    let page = |name: &str| std::fs::read_to_string(folder.path().join(name).join("report.html")).expect("is there");
    assert_eq!(page("a"), page("again"), "a report is a function of the run's files");
    let (code, out, err) = run(&["replay", &at("a"), "--speed", "50", "--ui", "plain"]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("verdict    PASS"), "{out}");
    assert_eq!(run(&["replay", &at("nowhere")]).0, Some(2));
    assert_eq!(run(&["report", &at("nowhere")]).0, Some(2));
    let (junit, markdown) = (at("check.xml"), at("check.md"));
    let (code, out, err) = run(&["compare", &at("a"), &at("a"), "--junit", &junit, "--markdown", &markdown]);
    assert_eq!(code, Some(7), "one run of each says little: {out}{err}");
    assert!(out.contains("answer     not enough data") && out.contains("one run of a side"), "{out}");
    assert!(std::fs::read_to_string(junit).expect("is there").contains("<testsuite"));
    assert!(std::fs::read_to_string(markdown).expect("is there").contains("| delivery p50 |"));
    let (code, _, err) = run(&["compare", &at("a"), &at("nowhere")]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("nowhere"), "{err}");
}

#[test]
fn a_baseline_is_made_kept_and_refused_for_another_scenario() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let baseline = folder.path().join("baseline").display().to_string();
    let (code, out, err) = run(&["check", &path, "--baseline", &baseline, "--runs", "2"]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("answer     baseline made, nothing compared"), "{out}");
    let (code, out, err) = run(&["check", &path, "--baseline", &baseline, "--runs", "2", "--runs-max", "2"]);
    assert!(matches!(code, Some(6 | 7)), "two pairs can't be the same: {code:?} {out}{err}");
    assert!(out.contains("pair 2/2, base") && out.contains("in turn"), "{out}");
    let other = scenario(folder.path(), &TINY.replace("rate: 20", "rate: 21"));
    let (code, _, err) = run(&["check", &other, "--baseline", &baseline, "--runs", "2"]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("--update-baseline"), "{err}");
}

#[test]
fn capacity_ends_at_the_highest_rate_that_may_be_tried() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let json = folder.path().join("capacity.json").display().to_string();
    let args = ["capacity", &path, "--trial", "6s", "--start", "20", "--max", "25", "--repeats", "1", "--json", &json];
    let (code, out, err) = run(&args);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("capacity   25 messages/s") && out.contains("nothing failed up to --max 25"), "{out}");
    let answer: Value = serde_json::from_str(&std::fs::read_to_string(json).expect("is there")).expect("is JSON");
    assert!((answer["messages_per_s"].as_f64().expect("a number") - 25.0).abs() < 1e-9, "{answer}");
    assert_eq!(answer["is_local"], false, "{answer}");
    let (code, _, err) = run(&["capacity", &path, "--trial", "5s"]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("--trial 5s") && err.contains("6s"), "{err}");
    assert_eq!(run(&["capacity", &path, "--start", "-1"]).0, Some(2));
}

#[test]
fn a_plan_has_every_line_with_its_source() {
    let (code, out, err) = run(&["plan", "--connections", "50M", "--messages-per-user-day", "40"]);
    assert_eq!(code, Some(0), "{err}");
    for wanted in [
        "chat servers",
        "presence servers",
        "API servers",
        "gateways",
        "push servers",
        "Kafka records fetched",
        "Cassandra storage",
        "Redis memory",
        "Redis processor, presence",
        "SQL calls",
        "registry entries read",
        "egress",
        "50 KB",
        "2.50 TB",
        "SOURCE",
        "placement",
        "readers per partition",
        "limit  Redis for presence",
    ] {
        assert!(out.contains(wanted), "lacks {wanted}: {out}");
    }
    let long = out.lines().find(|line| line.chars().count() > 100);
    assert_eq!(long, None, "fits a terminal");
    assert!(!out.contains('\u{1b}'), "plain text");
    let (code, out, _) = run(&["plan", "--connections", "1M", "-o", "json"]);
    assert_eq!(code, Some(0));
    let plan: Value = serde_json::from_str(&out).expect("is JSON");
    assert!(plan["plan"]["chat_servers"].as_u64().is_some_and(|n| n >= 2), "{plan}");
    let lines = plan["plan"]["lines"].as_array().expect("lines");
    for line in lines {
        for constant in line["constants"].as_array().expect("names of constants") {
            let name = constant.as_str().expect("a name");
            assert!(plan["constants"][name]["source"].is_string(), "{name}: {plan}");
        }
    }
    assert!(plan["plan"]["placed"]["servers_per_partition"][0].as_f64().is_some_and(|n| n <= 3.0), "{plan}");
    for wrong in [["--connections", "lots"], ["--group-share", "120"], ["--constants", "nowhere.json"]] {
        assert_eq!(run(&["plan", wrong[0], wrong[1]]).0, Some(2), "{wrong:?}");
    }
}

#[test]
fn the_generators_own_figures_can_be_scraped_while_it_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    let mut child = Command::new(env!("CARGO_BIN_EXE_chatctl"))
        .args(["load", &path, "--ui", "none", "--metrics", &free.to_string()])
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    let mut seen = String::new();
    while child.try_wait().expect("can be asked").is_none() && !seen.contains("chatctl_load_latency_seconds_count") {
        seen = scrape(free).unwrap_or_default();
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(seen.contains("chatctl_load_connections{scenario=\"tiny\"}"), "{seen}");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

fn scrape(address: std::net::SocketAddr) -> std::io::Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address)?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
