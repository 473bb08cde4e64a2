//! The command as a person meets it: messages and exit codes.

mod edges;
mod processes;
mod regressions;
mod scale;
#[path = "../bench/up.rs"]
#[allow(dead_code, reason = "the suite of hostile clients uses the rest")]
mod up;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use self::up::Up;

const TINY: &str = "
name: tiny
population: {users: 6, direct_per_user: 2}
behaviors: {one-to-one: 1}
connect_over: 100ms
phases: [{phase: steady, duration: 1s, rate: 20}]
generator_lag_max: 10s
";

fn chatctl(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatctl"));
    command.args(args).stdin(Stdio::null()).env_remove("CHATCTL_TARGET");
    command.output().expect("runs")
}

/// Exit code, standard output, standard error.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = chatctl(args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn scenario(folder: &Path, text: &str) -> String {
    let path = folder.join("scenario.yaml");
    std::fs::write(&path, text).expect("writes");
    path.display().to_string()
}

#[test]
fn help_names_the_verbs_and_the_exit_codes() {
    let (code, out, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    for wanted in ["load", "up", "serve", "130", "ledger"] {
        assert!(out.contains(wanted), "{wanted}: {out}");
    }
    assert_eq!(run(&["load", "--help"]).0, Some(0));
    assert_eq!(run(&["--version"]).0, Some(0));
}

#[test]
fn wrong_usage_is_exit_2_with_the_fix() {
    assert_eq!(run(&[]).0, Some(2));
    assert_eq!(run(&["lod"]).0, Some(2));
    let (code, _, err) = run(&["serve", "--role", "chat,chef"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("chef") && err.contains("presence"), "{err}");
    let (code, _, err) = run(&["load", "nowhere.yaml"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("nowhere.yaml") && err.contains("scenarios/"), "{err}");
}

#[test]
fn a_bad_scenario_is_exit_2_with_file_line_and_valid_values() {
    let folder = tempfile::tempdir().expect("a folder");
    for (from, to, wanted) in [
        ("connect_over", "conect_over", ":5:"),
        ("one-to-one: 1", "gossip: 1", "group-talker"),
        ("phase: steady", "phase: stormy", "warm-up"),
        ("rate: 20", "rate: fast", ":6:"),
        ("users: 6", "users: 1", "valid are 2 to"),
    ] {
        let path = scenario(folder.path(), &TINY.replace(from, to));
        let (code, _, err) = run(&["load", &path]);
        assert_eq!(code, Some(2), "{to}: {err}");
        assert!(err.contains("scenario.yaml") && err.contains(wanted), "{to}: {err}");
    }
}

#[test]
fn nobody_at_the_target_is_exit_3_with_the_address() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let (code, _, err) = run(&["load", &path, "--target", "http://127.0.0.1:9"]);
    assert_eq!(code, Some(3), "{err}");
    assert!(err.contains("127.0.0.1:9") && err.contains("chatctl up"), "{err}");
    let (code, _, err) = run(&["load", &path, "--target", "127.0.0.1"]);
    assert_eq!(code, Some(2), "{err}");
}

#[test]
fn an_engine_that_is_wrong_is_named_with_its_setting() {
    let folder = tempfile::tempdir().expect("a folder");
    let up = |engines: &str| {
        let path = folder.path().join("stack.yaml");
        std::fs::write(&path, format!("engines: {{{engines}}}\n")).expect("writes");
        run(&["up", "--config", &path.display().to_string(), "--api-port", "0", "--chat-port", "0"])
    };
    for (engines, wanted_code, wanted) in [
        ("sequence: 'redis://127.0.0.1:9/'", 3, ["engines.sequence", "redis://127.0.0.1:9/"]),
        ("registry: 'zookeeper://127.0.0.1:9'", 3, ["engines.registry", "is ZooKeeper listening"]),
        ("registry: 'etcd://127.0.0.1:9'", 3, ["engines.registry", "is etcd 3.4"]),
        (
            "directory: 'postgres://u:secret@127.0.0.1:9/d'",
            3,
            ["engines.directory", "check address, name and password"],
        ),
        ("log: 'redis://127.0.0.1:9/'", 2, ["engines.log", "kafka://"]),
        ("messages: cassandra", 2, ["stack.yaml", "embedded"]),
        ("message: embedded", 2, ["stack.yaml", "messages"]),
    ] {
        let (code, _, err) = up(engines);
        assert_eq!(code, Some(wanted_code), "{engines}: {err}");
        assert!(wanted.iter().all(|text| err.contains(text)) && !err.contains("secret"), "{engines}: {err}");
        assert!(!err.contains('\x1b'), "colour where there is no terminal: {err}");
    }
}

#[test]
fn migrate_makes_what_is_missing_and_says_where() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, data) = (folder.path().join("stack.yaml"), folder.path().join("data"));
    std::fs::write(&path, "partitions: 4\n").expect("writes");
    let (path, data) = (path.display().to_string(), data.display().to_string());
    let (code, _, err) = run(&["migrate", "--config", &path]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("--data"), "{err}");
    for _ in 0..2 {
        let (code, out, err) = run(&["migrate", "--config", &path, "--data", &data]);
        assert_eq!(code, Some(0), "{err}");
        assert!(out.contains("directory    ready at embedded"), "{out}");
    }
}

#[test]
fn a_pass_is_exit_0_with_plain_lines_and_all_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let (out_folder, history) = (folder.path().join("out"), folder.path().join("history.jsonl"));
    let (code, out, err) =
        run(&["load", &path, "--out", &out_folder.display().to_string(), "--history", &history.display().to_string()]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("verdict    PASS") && !out.contains('\x1b'), "{out}");
    for file in ["result.json", "summary.txt", "ack.hlog", "delivery.hlog"] {
        assert!(out_folder.join(file).exists(), "{file}");
    }
    let history = std::fs::read_to_string(history).expect("is there");
    for event in ["meta", "join", "send", "ack", "recv", "sync", "final", "end", "conn", "hb"] {
        assert!(history.contains(&format!("{{\"e\":\"{event}\"")), "{event}");
    }
}

#[test]
fn a_threshold_too_low_is_exit_1_and_names_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), &format!("{TINY}\nthresholds: ['ack_ms.p50 < 0.001']\n"));
    let (code, out, _) = run(&["load", &path, "--ui", "none"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("FAIL (threshold)") && out.contains("ack_ms.p50 < 0.001"), "{out}");
}

#[test]
fn a_generator_that_is_late_is_exit_5() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), &TINY.replace("generator_lag_max: 10s", "generator_lag_max: 0s"));
    let (code, out, _) = run(&["load", &path, "--ui", "none"]);
    assert_eq!(code, Some(5), "{out}");
    assert!(out.contains("INVALID") && out.contains("the generator was late"), "{out}");
}

/// A load that would go on for ten minutes, under way.
struct Endless {
    child: Child,
    /// Its standard output; nobody reads it any more once this is dropped.
    lines: std::io::Lines<BufReader<ChildStdout>>,
    /// Where its results go.
    out: PathBuf,
    _folder: tempfile::TempDir,
}

impl Endless {
    /// `log` is what it logs; `reads_errors` is false when nobody reads its standard error from the start.
    fn start(log: &str, reads_errors: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = scenario(folder.path(), &TINY.replace("duration: 1s", "duration: 600s"));
        let out = folder.path().join("out");
        let mut child = Command::new(env!("CARGO_BIN_EXE_chatctl"))
            .args(["load", &path, "--ui", "plain", "--out", &out.display().to_string()])
            .env("CHATCTL_LOG", log)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        if !reads_errors {
            drop(child.stderr.take());
        }
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        assert!(lines.any(|line| line.expect("text").starts_with("steady")), "the load begins");
        Self { child, lines, out, _folder: folder }
    }
}

#[test]
fn an_interrupted_run_is_exit_130_and_its_results_are_written() {
    let mut load = Endless::start("warn", true);
    let pid = rustix::process::Pid::from_child(&load.child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signals");
    assert_eq!(load.child.wait().expect("ends").code(), Some(130));
    assert!(load.out.join("result.json").exists());
}

#[test]
fn a_run_whose_reader_went_away_is_interrupted_and_says_so() {
    let Endless { child, lines, out, _folder } = Endless::start("warn", true);
    drop(lines);
    let output = child.wait_with_output().expect("ends");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains("standard output can't be written any more") && !err.contains("panicked"), "{err}");
    assert!(out.join("result.json").exists());
}

#[test]
fn a_run_whose_every_reader_went_away_is_interrupted_too() {
    // Log lines are many, and none of them can be written.
    let Endless { mut child, lines, out, _folder } = Endless::start("debug", false);
    drop(lines);
    assert_eq!(child.wait().expect("ends").code(), Some(130));
    assert!(out.join("result.json").exists());
}

#[test]
fn what_is_only_printed_ends_as_ever_when_nobody_reads_it() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_chatctl"))
        .args(["plan", "--connections", "1M"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*err), (Some(0), ""));
}

#[test]
fn what_could_not_be_printed_for_want_of_room_is_exit_3() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatctl"));
    let output = command.args(["plan", "--connections", "1M"]).stdout(full).output().expect("runs");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{err}");
    assert!(err.starts_with("chatctl: standard output: "), "{err}");
}

#[test]
fn a_folder_in_use_is_exit_3_and_names_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data").display().to_string();
    let args = ["up", "--data", &data, "--api-port", "0", "--chat-port", "0"];
    let first = Up::start(&args[1..], &folder.path().join("log"));
    let (code, _, err) = run(&args);
    assert_eq!(code, Some(3), "{err}");
    assert_eq!(
        err.lines().next(),
        Some(&*format!(
            "chatctl: data folder {data} is in use by another process: stop it, or give another folder with --data"
        ))
    );
    assert_eq!(first.interrupt(), Some(0), "a clean stop");
}

#[test]
fn what_the_system_says_of_an_error_is_told_in_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().display().to_string();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let (code, _, err) = run(&["up", "--data", &data, "--api-port", &port, "--chat-port", "0"]);
    assert_eq!(code, Some(3), "{err}");
    assert!(err.contains(&format!("127.0.0.1:{port}: another process has this address; ")), "{err}");
    let (_, _, missing) = run(&["load", "nowhere.yaml"]);
    assert!(missing.contains("there is no such file or folder"), "{missing}");
    assert!([err, missing].iter().all(|text| !text.contains("os error")));
}

#[test]
fn several_scenarios_write_files_of_their_own_unless_they_have_one_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| {
        let path = folder.path().join(format!("{name}.yaml"));
        std::fs::write(&path, TINY.replace("name: tiny", &format!("name: {name}"))).expect("writes");
        path.display().to_string()
    };
    let (one, two) = (file("one"), file("two"));
    let history = folder.path().join("histories");
    let told = history.display().to_string();
    let (code, out, err) = run(&["load", &one, &two, "--ui", "none", "--history", &told]);
    assert_eq!(code, Some(0), "{out}\n{err}");
    for name in ["one", "two"] {
        let events = std::fs::read_to_string(history.join(format!("{name}.jsonl"))).expect("written");
        assert!(events.lines().count() > 20, "{name}: {events}");
    }
    let (code, _, err) = run(&["load", &one, &one, "--ui", "none", "--history", &told]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("\"one\"") && err.contains("over each other"), "{err}");
}

#[test]
fn servers_that_die_in_the_same_moment_are_one_fault_and_the_busiest_second_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let longer = TINY.replace("users: 6", "users: 30").replace("duration: 1s", "duration: 6s");
    let text = format!(
        "{longer}\nstack: {{chat_servers: 3}}\nreconnect: {{first: 200ms, max: 1s}}\nfaults:\n  - {{at: 1s, do: kill chat-1}}\n  - {{at: 1s, do: kill chat-2}}\n"
    );
    let (path, out) = (scenario(folder.path(), &text), folder.path().join("out"));
    let (code, shown, errors) = run(&["load", &path, "--out", &out.display().to_string()]);
    assert_eq!(code, Some(0), "{shown}{errors}");
    let read = std::fs::read_to_string(out.join("result.json")).expect("is there");
    let result: serde_json::Value = serde_json::from_str(&read).expect("JSON");
    let faults = result["faults"].as_array().expect("a list");
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!(faults[0]["what"], "kill chat-1 + kill chat-2");
    assert_eq!(faults[0]["disconnected"], faults[0]["recovered"]);
    assert_eq!(faults[0]["disconnected"], result["counts"]["reconnects"]);
    assert!(faults[0]["disconnected"].as_u64() > Some(0), "{faults:?}");
    assert!(shown.contains(" in a second"), "{shown}");
}
