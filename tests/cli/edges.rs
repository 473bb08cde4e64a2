//! What lies at the edges: values that can't be, files that can't be written, signals, servers that do not answer, results of
//! unknown origin.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chatctl::runtime::clock;
use rustix::process::{Pid, Signal, kill_process};

use crate::{TINY, run, scenario};

/// Longest that anything expected may take.
const LIMIT: Duration = Duration::from_mins(1);

// ---- refused before anything runs

/// Both refuse a scenario, with the same words and exit code 2; returns them.
fn refused_alike(text: &str, more: &[&str]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), text);
    let refused = |check: &[&str]| {
        let (code, out, err) = run(&[&["load", &path, "--ui", "plain"], check, more].concat());
        assert_eq!(code, Some(2), "{out}{err}");
        assert_eq!(out, "", "nothing began");
        err.replace(&path, "x.yaml")
    };
    let by_load = refused(&[]);
    assert_eq!(refused(&["--check"]), by_load);
    by_load
}

#[test]
fn the_screen_is_refused_where_there_is_no_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let (code, out, err) = run(&["load", &path, "--ui", "tui"]);
    assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
    assert!(err.contains("--ui tui: standard output is no terminal; use --ui plain"), "{err}");
}

#[test]
fn check_refuses_what_load_refuses_with_the_same_words() {
    for (from, to, more, wanted) in [
        (
            "connect_over: 100ms",
            "faults: [{at: 100ms, do: kill chat-9}]",
            &[][..],
            "x.yaml:5:22: faults[0].do: fault \"kill chat-9\": there is no server chat-9: there are",
        ),
        ("connect_over: 100ms", "faults: [{at: 100ms, do: pause redis 100ms}]", &[], "set stack.engines to real"),
        (
            "connect_over: 100ms",
            "faults: [{at: 100ms, do: kill chat-1}]",
            &["--target", "http://127.0.0.1:9"],
            "not started by chatctl",
        ),
        (
            "connect_over: 100ms",
            "stack: {chat_servers: 0}",
            &[],
            "x.yaml:5:9: stack.chat_servers: 0: valid are 1 to 64",
        ),
        ("connect_over: 100ms", "stack: {partitions: 0}", &[], "x.yaml:5:9: stack.partitions: 0: valid are 1 to 16384"),
        (
            "connect_over: 100ms",
            "churn: {every: 0s, back_after: 1s}",
            &[],
            "x.yaml:5:9: churn.every: 0s: valid are 10ms to",
        ),
        (
            "connect_over: 100ms",
            "flapper: {online: 0s, away: 0s}",
            &[],
            "x.yaml:5:11: flapper.online: 0s: valid are 100ms to",
        ),
        ("connect_over: 100ms", "thresholds: ['ack_ms.p50 < nan']", &[], "\"nan\" is not a finite number"),
        ("duration: 1s", "duration: 9999999h", &[], "x.yaml:6:26: phases[0].duration: "),
        ("rate: 20", "rate: .inf", &[], "x.yaml:6:40: phases[0].rate: inf: valid are 0 to 1000000"),
        (", rate: 20", "", &[], "phases[0].rate: the phase steady has none"),
        ("one-to-one: 1", "lurker: 1", &[], "phases[0].rate: 20 messages per second, and nobody sends"),
        ("steady", "warm-up", &[], "x.yaml:6:1: phases: a warm-up is not measured"),
        ("name: tiny", "name: ../tiny", &[], "x.yaml:2:1: name: \"../tiny\""),
        ("users: 6", "users: 6", &["--workers", "9"], "x.yaml:3:1: population: 6 users over 9 workers"),
        ("users: 6", "users: 6", &["--workers", "none"], "--workers \"none\""),
        ("users: 6", "users: 6", &["--target", "http://127.0.0.1:99999"], "port \"99999\": valid are 1 to 65535"),
        ("users: 6", "users: 6", &["--target", "https://127.0.0.1:7100"], "TLS is not spoken"),
        ("users: 6", "users: 6", &["--target", "http://::1:7100"], "stands in brackets"),
        ("users: 6", "users: 6", &["--target", "http://:7100"], "it has no host"),
        ("users: 6", "users: 6", &["--target", "http://127.0.0.1:7100/api"], "it has a path"),
    ] {
        assert!(TINY.contains(from), "{from}");
        let err = refused_alike(&TINY.replace(from, to), more);
        assert!(err.contains(wanted), "{wanted}\n{err}");
    }
}

#[test]
fn a_seed_that_draws_no_talker_is_refused() {
    let text = TINY
        .replace("direct_per_user: 2", "groups: [{count: 1, members: {min: 2, max: 2}}]")
        .replace("one-to-one: 1", "group-talker: 1, lurker: 1000000");
    let err = refused_alike(&text, &[]);
    assert!(err.contains("behaviors: with seed 1 none of 6 users"), "{err}");
}

#[test]
fn a_valid_scenario_is_valid_for_both() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!("{TINY}\nfaults: [{{at: 300ms, do: drain chat-3}}]\n");
    let (code, out, err) = run(&["load", &scenario(folder.path(), &text), "--check"]);
    assert_eq!((code, out.contains("valid, 1 s")), (Some(0), true), "{out}{err}");
}

#[test]
fn a_password_in_an_address_reaches_no_output() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let target = "http://user:hunter2@127.0.0.1:9";
    for (verb, more) in [("load", &["--check"][..]), ("load", &[]), ("capacity", &[])] {
        let (code, out, err) = run(&[&[verb, path.as_str(), "--target", target], more].concat());
        assert_eq!(code, Some(2), "{verb}: {out}{err}");
        assert!(!out.contains("hunter2") && !err.contains("hunter2"), "{verb}: {out}{err}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatctl"));
    let output = command.args(["load", &path]).env("CHATCTL_TARGET", target).output().expect("runs");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(!err.contains("hunter2") && err.contains("password does not belong"), "{err}");
}

#[test]
fn a_name_that_would_leave_its_folder_writes_nothing_anywhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (folder.path().join("one.yaml"), folder.path().join("two.yaml"));
    std::fs::write(&one, TINY).expect("writes");
    std::fs::write(&two, TINY.replace("name: tiny", "name: ../../escaped")).expect("writes");
    let out = folder.path().join("a").join("b");
    let shown = [&one, &two, &out].map(|path| path.display().to_string());
    for flag in ["--out", "--history"] {
        let (code, _, err) = run(&["load", &shown[0], &shown[1], flag, &shown[2]]);
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains("two.yaml:2:1: name: \"../../escaped\": it contains '/'"), "{err}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("is there").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn what_is_no_scenario_is_refused_and_not_read_for_ever() {
    for path in ["/dev/zero", "/", "/dev/null"] {
        let (code, _, err) = run(&["load", path, "--check"]);
        assert_eq!(code, Some(2), "{path}: {err}");
        assert!(err.starts_with(&format!("chatctl: {path}")), "{err}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), &TINY.replace("tiny", "\"\u{9b}31m\u{202e}\""));
    let (code, _, err) = run(&["load", &path, "--check"]);
    assert!(code == Some(2) && !err.contains(['\u{9b}', '\u{202e}']), "{err}");
}

#[test]
fn files_and_values_without_an_end_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let config = folder.path().join("stack.yaml");
    std::fs::write(&config, "drain_timeout: 9999999h\n").expect("writes");
    let config = config.display().to_string();
    for (args, wanted) in [
        (&["up", "--config", "/dev/zero"][..], "/dev/zero: larger than"),
        (&["up", "--config", config.as_str()], "drain_timeout is 1140years"),
        (&["plan", "--constants", "/dev/zero"], "/dev/zero: larger than"),
        (&["plan", "--memory", "0.0000001"], "chat servers"),
        (&["plan", "--connections", "100G", "--peak", "100G"], "chat servers"),
        (&["load", &path, "--secret-file", "/dev/zero", "--workers", "127.0.0.1:9"], "/dev/zero: larger than"),
    ] {
        let (code, out, err) = run(args);
        assert_eq!(code, Some(2), "{args:?}: {out}{err}");
        assert!(err.contains(wanted), "{args:?}: {err}");
    }
}

// ---- files

#[test]
fn files_that_can_not_be_written_are_found_before_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("writes");
    let folder_as_result = folder.path().join("out");
    std::fs::create_dir_all(folder_as_result.join("result.json")).expect("makes");
    for (flag, place) in [
        ("--out", file.clone()),
        ("--out", file.join("deeper")),
        ("--out", PathBuf::from("/proc/nothing")),
        ("--out", folder_as_result),
        ("--history", folder.path().to_owned()),
        ("--history", folder.path().join("nowhere").join("file")),
    ] {
        let (code, out, err) = run(&["load", &path, "--ui", "plain", flag, &place.display().to_string()]);
        assert_eq!(code, Some(3), "{flag} {}: {out}{err}", place.display());
        assert_eq!(out, "", "nothing began");
        assert!(err.starts_with(&format!("chatctl: {flag} {}", place.display())), "{err}");
    }
}

/// A folder in which a file can be opened and never written, as on a disk that fills up during the run.
fn full_at(folder: &Path, file: &str) -> String {
    let out = folder.join("out");
    std::fs::create_dir_all(&out).expect("makes");
    symlink("/dev/full", out.join(file)).expect("links");
    out.display().to_string()
}

#[test]
fn a_disk_that_is_full_does_not_hide_the_verdict() {
    for (threshold, code_wanted, verdict) in
        [("acked > 0", 3, "verdict    PASS"), ("ack_ms.p50 < 0.001", 1, "verdict    FAIL (threshold)")]
    {
        for file in ["result.json", "series.jsonl", "report.html"] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = scenario(folder.path(), &format!("{TINY}\nthresholds: ['{threshold}']\n"));
            let out = full_at(folder.path(), file);
            let (code, shown, err) = run(&["load", &path, "--ui", "none", "--out", &out]);
            assert_eq!(code, Some(code_wanted), "{file}: {shown}{err}");
            assert!(shown.contains(verdict), "{file}: {shown}{err}");
            assert!(err.contains("not everything was written") && err.contains(file), "{file}: {err}");
            assert!(Path::new(&out).join("summary.txt").exists(), "the others are written");
        }
    }
}

#[test]
fn a_history_that_is_cut_short_is_no_pass_for_a_script() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let (code, out, err) = run(&["load", &path, "--ui", "none", "--history", "/dev/full"]);
    assert_eq!(code, Some(3), "{out}{err}");
    assert!(out.contains("verdict") && err.contains("the history is incomplete"), "{out}{err}");
}

// ---- signals

/// A load that would go on for ten minutes, with a temporary folder of its own.
struct Endless {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    folder: tempfile::TempDir,
}

impl Endless {
    /// `through` is put before the command, as `nohup` would be.
    fn start(through: &[&str], until: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = scenario(folder.path(), &TINY.replace("duration: 1s", "duration: 600s"));
        let (out, temporary) = (folder.path().join("out"), folder.path().join("tmp"));
        std::fs::create_dir(&temporary).expect("makes");
        let program = env!("CARGO_BIN_EXE_chatctl");
        let mut command = match through {
            [] => Command::new(program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        command.args(["load", &path, "--ui", "plain", "--out", &out.display().to_string()]);
        command.env("TMPDIR", &temporary).env_remove("CHATCTL_TARGET").stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        assert!(lines.any(|line| line.expect("text").starts_with(until)), "{until} begins");
        Self { child, lines, folder }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("signals");
    }

    fn left(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("tmp")).expect("is there").count()
    }

    /// Exit code, and whether there is a result.
    fn end(&mut self) -> (Option<i32>, bool) {
        let code = self.child.wait().expect("ends").code();
        (code, self.folder.path().join("out").join("result.json").exists())
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        // It has ended, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_stopping_signal_ends_a_run_with_its_results_and_no_folder_left() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mut load = Endless::start(&[], "steady");
        assert!(load.left() > 0, "the stack has a folder");
        load.signal(signal);
        assert_eq!(load.end(), (Some(130), true), "{signal:?}");
        assert_eq!(load.left(), 0, "{signal:?}");
    }
}

#[test]
fn a_run_that_ignores_hangups_goes_on() {
    let mut load = Endless::start(&["/bin/sh", "-c", "trap '' HUP; exec \"$0\" \"$@\""], "steady");
    load.signal(Signal::HUP);
    for _ in 0..3 {
        let line = load.lines.next().expect("goes on").expect("text");
        assert!(line.starts_with("steady"), "{line}");
    }
    load.signal(Signal::INT);
    assert_eq!(load.end(), (Some(130), true));
}

#[test]
fn a_terminal_that_goes_away_says_so_more_than_once_and_the_results_are_written() {
    let mut load = Endless::start(&[], "steady");
    for _ in 0..3 {
        load.signal(Signal::HUP);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(load.end(), (Some(130), true));
    assert_eq!(load.left(), 0);
}

/// Under the live screen, in a terminal that is closed: input, output and errors are gone, and so is the session.
#[test]
fn a_terminal_that_is_closed_under_the_live_screen_loses_no_results() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), &TINY.replace("duration: 1s", "duration: 600s"));
    let (out, temporary) = (folder.path().join("out"), folder.path().join("tmp"));
    std::fs::create_dir(&temporary).expect("makes");
    let load = format!(
        "stty rows 40 cols 160; exec {} load {path} --ui tui --out {}",
        env!("CARGO_BIN_EXE_chatctl"),
        out.display()
    );
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--flush", "--command", &load, "/dev/null"]).env("TMPDIR", &temporary);
    terminal.env("TERM", "xterm").env("SHELL", "/bin/sh").env_remove("CHATCTL_TARGET");
    let mut terminal = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    let mut screen = terminal.stdout.take().expect("piped");
    let (mut shown, mut bytes) = (Vec::new(), [0; 4_096]);
    // Only what changes is written: `steady` where `setup` was.
    while !String::from_utf8_lossy(&shown).contains("teady") {
        let count = screen.read(&mut bytes).expect("reads");
        assert!(count > 0, "the screen ended: {}", String::from_utf8_lossy(&shown));
        shown.extend_from_slice(&bytes[..count]);
    }
    kill_process(Pid::from_child(&terminal), Signal::KILL).expect("signals");
    terminal.wait().expect("ends");
    let left = || std::fs::read_dir(&temporary).expect("is there").count();
    let is_over = || out.join("result.json").exists() && left() == 0;
    let tries = (0..600).take_while(|_| !is_over()).map(|_| std::thread::sleep(Duration::from_millis(100)));
    tries.for_each(drop);
    assert!(out.join("result.json").exists(), "results are written");
    assert_eq!(left(), 0, "no folder is left");
}

#[test]
fn a_second_signal_ends_at_once_and_leaves_no_folder_either() {
    let mut load = Endless::start(&[], "steady");
    load.signal(Signal::INT);
    std::thread::sleep(Duration::from_millis(200));
    load.signal(Signal::INT);
    assert_eq!(load.end().0, Some(130));
    assert_eq!(load.left(), 0);
}

// ---- servers of tests

/// Answers HTTP requests by a function of path and body; hangs up where the answer is empty.
fn serve(answer: impl Fn(&str, &str) -> String + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || converse(stream, &*answer));
        }
    });
    format!("http://{address}")
}

fn converse(mut stream: TcpStream, answer: &dyn Fn(&str, &str) -> String) {
    let mut reader = BufReader::new(stream.try_clone().expect("clones"));
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
            line.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body");
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let answer = answer(&path, &String::from_utf8_lossy(&body));
        if answer.is_empty() || stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn ctrl_c_is_heard_while_a_server_does_not_answer() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let asked = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&asked);
    let target = serve(move |_, _| {
        *seen.lock().expect("free") += 1;
        std::thread::sleep(LIMIT);
        String::new()
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatctl"));
    let mut child = command
        .args(["load", &path, "--target", &target, "--ui", "none"])
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let started = clock::instant();
    while *asked.lock().expect("free") == 0 {
        assert!(started.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(20));
    }
    kill_process(Pid::from_child(&child), Signal::INT).expect("signals");
    let signalled = clock::instant();
    assert_eq!(child.wait().expect("ends").code(), Some(130));
    assert!(signalled.elapsed() < Duration::from_secs(5), "{:?}", signalled.elapsed());
}

#[test]
fn a_server_that_asks_for_time_gets_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let signups = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&signups);
    let target = serve(move |path, _| {
        if path == "/health/ready" {
            return answer("200 OK", "{}");
        }
        seen.lock().expect("free").push(clock::now_us());
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 4\r\n\r\nbusy".to_owned()
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatctl"));
    let mut child = command
        .args(["load", &path, "--target", &target, "--ui", "none"])
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    std::thread::sleep(Duration::from_secs(5));
    kill_process(Pid::from_child(&child), Signal::INT).expect("signals");
    assert_eq!(child.wait().expect("ends").code(), Some(130));
    let signups = signups.lock().expect("free").len();
    // Six users, each at once and then after a second and more.
    assert!((7..=30).contains(&signups), "{signups} requests");
}

#[test]
fn a_signup_whose_answer_was_lost_goes_on_as_a_login() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let names = Mutex::new(HashMap::<String, u32>::new());
    let target = serve(move |path, body| match path {
        "/health/ready" => answer("200 OK", "{}"),
        "/signup" => {
            let mut names = names.lock().expect("free");
            let tries = names.entry(body.to_owned()).or_default();
            *tries += 1;
            // It was done; the answer is lost.
            if *tries == 1 {
                String::new()
            } else {
                answer("409 Conflict", r#"{"code":"conflict","message":"the name is taken"}"#)
            }
        }
        "/login" => answer(
            "200 OK",
            r#"{"user":"u1","device":"device-1","token":"t","expires_at":9999999999,"server":"chat-1","url":"ws://127.0.0.1:9/ws"}"#,
        ),
        "/conversations" => answer("403 Forbidden", r#"{"code":"forbidden","message":"that far and no further"}"#),
        _ => answer("404 Not Found", r#"{"code":"not_found","message":"what?"}"#),
    });
    let (code, out, err) = run(&["load", &path, "--target", &target]);
    assert_eq!(code, Some(3), "{out}{err}");
    assert!(err.contains("that far and no further"), "{out}{err}");
}

#[test]
fn a_servers_words_do_not_reach_the_terminal_raw() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let target = serve(|path, _| match path {
        "/health/ready" => answer("200 OK", "{}"),
        _ => answer("400 Bad Request", "{\"code\":\"bad_request\",\"message\":\"\\u001b[2J\\u009b31mgone\\n\"}"),
    });
    let (code, out, err) = run(&["load", &path, "--target", &target]);
    assert_eq!(code, Some(3), "{out}{err}");
    assert!(err.contains("\\u{1b}[2J") && !err.contains(['\u{1b}', '\u{9b}']), "{err}");
}

// ---- results of unknown origin

#[test]
fn results_of_unknown_origin_are_refused_or_shown_clean() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let out = folder.path().join("out");
    let shown = out.display().to_string();
    let (code, text, err) = run(&["load", &path, "--ui", "none", "--out", &shown]);
    assert_eq!(code, Some(0), "{text}{err}");
    let good = std::fs::read_to_string(out.join("result.json")).expect("is there");
    let change = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value: serde_json::Value = serde_json::from_str(&good).expect("JSON");
        change(&mut value);
        std::fs::write(out.join("result.json"), value.to_string()).expect("writes");
    };
    let refused = |wanted: &str| {
        for args in [&["report", shown.as_str()][..], &["compare", &shown, &shown]] {
            let (code, text, err) = run(args);
            assert_eq!(code, Some(2), "{args:?}: {text}{err}");
            assert!(err.contains(wanted) && !err.contains("panicked"), "{args:?}: {err}");
        }
    };
    change(&|value| value["duration_s"] = serde_json::json!(1e300));
    refused("duration_s: 1e+300: no figure of a run");
    change(&|value| value["histograms"]["../../escaped"] = value["histograms"]["ack"].clone());
    refused("histograms: \"../../escaped\"");
    change(&|value| value["histograms"]["ack"] = serde_json::json!("AAAA"));
    refused("not a histogram");
    change(&|value| value["schema"] = serde_json::json!(999));
    refused("schema");
    std::fs::write(out.join("result.json"), "{").expect("writes");
    refused("not a result of chatctl load");
    change(&|value| value["scenario"] = serde_json::json!("\u{1b}]0;owned\u{7}"));
    let (code, text, err) = run(&["report", &shown]);
    assert_eq!(code, Some(0), "{text}{err}");
    assert!(text.contains("\\u{1b}]0;owned") && !text.contains('\u{1b}'), "{text}");
    for file in ["report.html", "summary.txt", "ack.hlog"] {
        let content = std::fs::read(out.join(file)).expect("is there");
        assert!(!content.contains(&0x1b), "{file}");
    }
    assert!(!folder.path().join("escaped.hlog").exists());
}

#[test]
fn a_series_that_is_none_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let shown = folder.path().display().to_string();
    let series = folder.path().join("series.jsonl");
    for (content, wanted) in
        [("nonsense\n{}\n", "not a snapshot of a run"), ("{\"elapsed_s\":1e300}\n{}\n", "elapsed_s: 1e+300")]
    {
        std::fs::write(&series, content).expect("writes");
        let (code, out, err) = run(&["replay", &shown, "--ui", "none"]);
        assert_eq!(code, Some(2), "{out}{err}");
        assert!(err.contains(wanted), "{err}");
    }
    std::fs::remove_file(&series).expect("is there");
    symlink("/dev/zero", &series).expect("links");
    let (code, _, err) = run(&["replay", &shown, "--ui", "none"]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("not a file"), "{err}");
}
