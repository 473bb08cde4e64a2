//! `compare`, `check` and `capacity`: what they answer, and that nothing unsound is called the same.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use chatctl::loadgen::result::{RunResult, SCHEMA_VERSION, Verdict};
use chatctl::telemetry::{Latency, LatencyPath};

use super::{TINY, run, scenario};

/// A result of a run that is no other than the rest but for a little noise.
fn result(number: u32) -> RunResult {
    let mut result = RunResult {
        schema: SCHEMA_VERSION,
        scenario: "t".to_owned(),
        scenario_hash: "h".to_owned(),
        seed: 1,
        ..RunResult::default()
    };
    for path in [LatencyPath::Ack, LatencyPath::Delivery] {
        let mut latency = Latency::default();
        for (us, count) in [(2_000, 9_000), (5_000, 850), (12_000, 150)] {
            latency.record_many_us(us + u64::from(number % 5) * us / 500, count);
        }
        result.histograms.insert(path, latency);
    }
    let counts = &mut result.counts;
    (counts.intended, counts.acked, counts.delivered, counts.clients) = (10_000, 10_000, 20_000, 300);
    result
}

/// Twelve runs in a folder, each changed as it is wanted.
fn side(folder: &Path, name: &str, change: impl Fn(u32, &mut RunResult)) -> String {
    let side = folder.join(name);
    for number in 0..12 {
        let run = side.join(format!("run-{number:02}"));
        fs::create_dir_all(&run).expect("a folder");
        let mut result = result(number);
        change(number, &mut result);
        fs::write(run.join("result.json"), serde_json::to_string(&result).expect("plain")).expect("writes");
    }
    side.display().to_string()
}

/// Exit code and output of a comparison, `JUnit`, Markdown.
fn compared(folder: &Path, base: &str, new: &str, more: &[&str]) -> (Option<i32>, String, String, String) {
    let at = |name: &str| folder.join(name).display().to_string();
    let (junit, markdown) = (at("compare.xml"), at("compare.md"));
    let args = [&["compare", base, new, "--junit", &junit, "--markdown", &markdown], more].concat();
    let (code, out, err) = run(&args);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    (code, out + &err, read(&junit), read(&markdown))
}

#[test]
fn runs_that_are_no_pass_are_never_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let good = side(path, "good", |_, _| ());
    let (code, out, junit, markdown) = compared(path, &good, &good, &[]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("answer     same") && markdown.contains("➖ same"), "{out}{markdown}");
    assert!(!junit.contains("<failure") && !junit.contains("<error"), "{junit}");
    let violated = side(path, "violated", |_, r| {
        r.verdict = Verdict::LedgerViolated;
        r.counts.lost = 9;
        r.reasons = vec!["lost: 9".to_owned()];
    });
    let failed = side(path, "failed", |n, r| r.verdict = if n == 4 { Verdict::ThresholdFailed } else { Verdict::Pass });
    let invalid = side(path, "invalid", |n, r| r.verdict = if n == 4 { Verdict::Invalid } else { Verdict::Pass });
    let refusing = side(path, "refusing", |_, r| (r.counts.acked, r.counts.refused) = (8_000, 2_000));
    for (base, new, code, answer, case) in [
        (&good, &violated, 4, "broke a guarantee", "<failure"),
        (&violated, &violated, 4, "broke a guarantee", "<failure"),
        (&violated, &good, 5, "unsound baseline", "<error"),
        (&good, &failed, 1, "failed a threshold", "<failure"),
        (&good, &invalid, 5, "invalid", "<error"),
        (&invalid, &good, 5, "unsound baseline", "<error"),
        (&good, &refusing, 6, "worse", "<failure"),
    ] {
        let (was, out, junit, markdown) = compared(path, base, new, &[]);
        assert_eq!(was, Some(code), "{out}");
        assert!(out.contains(&format!("answer     {answer}")), "{out}");
        assert!(markdown.lines().next().is_some_and(|title| title.contains(answer)), "{markdown}");
        assert!(junit.contains(case), "{junit}");
    }
}

#[test]
fn ten_percent_are_not_the_same_and_another_scenario_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let good = side(path, "good", |_, _| ());
    let slower = side(path, "slower", |n, r| {
        let mut latency = Latency::default();
        for (us, count) in [(2_200, 9_000), (5_500, 850), (13_200, 150)] {
            latency.record_many_us(us + u64::from(n % 7) * us / 500, count);
        }
        r.histograms.insert(LatencyPath::Delivery, latency);
    });
    let (code, out, ..) = compared(path, &good, &slower, &[]);
    assert_eq!(code, Some(6), "{out}");
    let (code, out, ..) =
        compared(path, &good, &slower, &["--limit", "p50=30", "--limit", "p95=30", "--limit", "p99=30"]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("answer     slightly worse"), "{out}");
    let (code, out, ..) = compared(path, &good, &slower, &["--limit", "p98=5"]);
    assert!(code == Some(2) && out.contains("p50, p95, p99, cpu"), "{out}");
    let other = side(path, "other", |_, r| r.scenario_hash = "another".to_owned());
    let (code, out, junit, markdown) = compared(path, &good, &other, &[]);
    assert_eq!(code, Some(2), "{out}");
    assert!(out.contains("different scenarios") && out.contains("--different-scenarios"), "{out}");
    assert!(junit.contains("<error") && markdown.contains("different scenarios"), "{junit}{markdown}");
    assert_eq!(compared(path, &good, &other, &["--different-scenarios"]).0, Some(0));
}

#[test]
fn one_run_against_one_is_not_enough_data_however_far_off_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, us: u64, has_own_stack: bool| {
        let mut login = Latency::default();
        login.record_many_us(us, 12);
        let mut result = RunResult { has_own_stack: Some(has_own_stack), ..result(0) };
        result.histograms.insert(LatencyPath::Login, login);
        result.generator.stack_cpu_s = if has_own_stack { 2.0 } else { 0.0 };
        let path = folder.path().join(name);
        fs::write(&path, serde_json::to_string(&result).expect("plain")).expect("writes");
        path.display().to_string()
    };
    let (base, new) = (write("base.json", 8_300, true), write("new.json", 700_000, false));
    let (code, out, junit, markdown) = compared(folder.path(), &base, &new, &[]);
    assert_eq!(code, Some(7), "{out}");
    assert!(out.contains("answer     not enough data") && out.contains("one run of a side says nothing"), "{out}");
    assert!(out.contains("the stacks differ") && !out.contains("worse"), "{out}");
    let cpu = out.lines().find(|line| line.starts_with("stack CPU per delivery")).expect("is listed");
    assert!(cpu.contains("+5.0 %"), "{cpu}");
    assert!(junit.contains("<error") && !junit.contains("<failure"), "{junit}");
    assert!(markdown.contains("not enough data") && !markdown.contains("❌"), "{markdown}");
}

#[test]
fn no_name_breaks_the_xml_or_the_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    let odd = side(folder.path(), "odd", |_, r| r.scenario = "a\u{1b}]0;x\u{7}<&\"\u{0}\u{fffe}|b".to_owned());
    let (code, out, junit, markdown) = compared(folder.path(), &odd, &odd, &[]);
    assert_eq!(code, Some(0), "{out}");
    for form in [&out, &junit, &markdown] {
        assert!(form.chars().all(|c| c == '\n' || !c.is_control()), "{form:?}");
    }
    assert!(junit.contains("&lt;&amp;&quot;") && !junit.contains('\u{fffe}'), "{junit}");
}

#[test]
fn runs_that_left_no_result_are_problems_of_their_side() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = side(folder.path(), "good", |_, _| ());
    let crashed = side(folder.path(), "crashed", |_, _| ());
    let left = Path::new(&crashed).join("run-12");
    fs::create_dir(&left).expect("a folder");
    fs::write(left.join("series.jsonl"), "").expect("writes");
    for (base, new, side) in [(&good, &crashed, "new"), (&crashed, &good, "base")] {
        let (code, out, junit, _) = compared(folder.path(), base, new, &[]);
        assert_eq!(code, Some(3), "{out}");
        assert!(out.contains(&format!("run 13 of {side} could not be done: {}", left.display())), "{out}");
        assert!(junit.contains("<error"), "{junit}");
    }
}

#[test]
fn a_report_of_an_earlier_command_does_not_stay_green() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = side(folder.path(), "good", |_, _| ());
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (junit, nowhere) = (at("compare.xml"), at("nowhere"));
    let path = scenario(folder.path(), &TINY.replace("users: 6", "users: 1"));
    let unwritable = at("nowhere/check.md");
    for (args, wanted) in [
        (&["compare", &good, &nowhere, "--junit", &junit][..], 2),
        (&["check", &path, "--baseline", &nowhere, "--junit", &junit], 2),
        (&["check", &nowhere, "--baseline", &nowhere, "--junit", &junit], 2),
        (&["compare", &good, &good, "--junit", &junit, "--markdown", &unwritable], 3),
    ] {
        let (code, out, junit, _) = compared(folder.path(), &good, &good, &[]);
        assert!(code == Some(0) && !junit.contains("<error"), "{out}{junit}");
        let (code, out, err) = run(args);
        assert_eq!(code, Some(wanted), "{args:?}: {out}{err}");
        let xml = fs::read_to_string(at("compare.xml")).expect("is there");
        assert!(xml.contains("<error message=\"nothing was run: "), "{args:?}: {xml}");
    }
}

#[test]
fn a_baseline_whose_build_and_runs_are_gone_says_what_to_do() {
    use sha2::Digest;
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let hash: Vec<String> = sha2::Sha256::digest(TINY).iter().map(|byte| format!("{byte:02x}")).collect();
    let baseline = folder.path().join("baseline");
    fs::create_dir(&baseline).expect("a folder");
    let about = serde_json::json!({
        "scenario": "tiny", "scenario_hash": "", "file_hash": hash.concat(), "version": "1\u{1b}[31m", "runs": 2,
        "folder": "build-1",
    });
    fs::write(baseline.join("baseline.json"), about.to_string()).expect("writes");
    let (code, out, err) = run(&["check", &path, "--baseline", &baseline.display().to_string()]);
    assert_eq!(code, Some(3), "{out}{err}");
    assert!(err.contains("--update-baseline") && err.contains("can't be read"), "{err}");
    assert!(out.contains("version 1\\u{1b}[31m") && !out.contains('\u{1b}'), "{out}");
    assert!(!baseline.join("last").join("chatctl-new").exists(), "no copy stays");
}

#[test]
fn a_baseline_can_be_demanded() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (baseline, junit) = (at("baseline"), at("check.xml"));
    let (code, out, err) = run(&["check", &path, "--baseline", &baseline, "--require-baseline", "--junit", &junit]);
    assert_eq!(code, Some(3), "{out}{err}");
    assert!(err.contains("no baseline") && err.contains("--update-baseline") && err.contains(&baseline), "{err}");
    assert!(fs::read_to_string(&junit).expect("is there").contains("<error"), "an error, not nothing");
    assert!(!Path::new(&baseline).exists(), "nothing was made");
    let both = ["check", &path, "--baseline", &baseline, "--require-baseline", "--update-baseline"];
    assert_eq!(run(&both).0, Some(2));
}

#[test]
fn a_baseline_is_made_of_sound_runs_and_replaced_in_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (baseline, junit) = (at("baseline"), at("check.xml"));
    let check = |text: &str, more: &[&str]| {
        let path = scenario(folder.path(), text);
        let args = [&["check", &path, "--baseline", &baseline, "--runs", "2", "--junit", &junit], more].concat();
        let (code, out, err) = run(&args);
        (code, out + &err, fs::read_to_string(&junit).unwrap_or_default())
    };
    let failing = TINY.to_owned() + "thresholds: ['acked > 1000000']\n";
    let (code, out, junit) = check(&failing, &[]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("no baseline was made") && junit.contains("<failure"), "{out}{junit}");
    let about = Path::new(&baseline).join("baseline.json");
    assert!(!about.exists(), "a build that fails is no baseline");
    let (code, out, junit) = check(TINY, &[]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("answer     baseline made, nothing compared"), "{out}");
    assert_eq!(junit.matches("<testcase").count(), junit.matches("<skipped").count(), "{junit}");
    let before = fs::read_to_string(&about).expect("is there");
    let (code, out, _) = check(&failing, &["--update-baseline"]);
    assert_eq!(code, Some(1), "{out}");
    assert_eq!(fs::read_to_string(&about).expect("is there"), before, "the old one is as it was");
    // Killed in the middle of its runs.
    let path = scenario(folder.path(), TINY);
    let mut killed = Command::new(env!("CARGO_BIN_EXE_chatctl"))
        .args(["check", &path, "--baseline", &baseline, "--runs", "9", "--update-baseline"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    let lines = std::io::BufRead::lines(std::io::BufReader::new(killed.stdout.take().expect("piped")));
    for line in lines.map_while(Result::ok) {
        if line.starts_with("baseline 1/9") {
            killed.kill().expect("ends");
            break;
        }
    }
    killed.wait().expect("ended");
    assert_eq!(fs::read_to_string(&about).expect("is there"), before, "the old one is as it was");
    let (code, out, _) = check(TINY, &["--runs-max", "2"]);
    assert!(matches!(code, Some(6 | 7)) && out.contains("in turn"), "it is a baseline still: {code:?} {out}");
    let is_told = out.contains("about ") || out.contains("not even 10 000 runs");
    assert!(code == Some(6) || is_told, "how many runs would settle it: {out}");
}

#[test]
fn runs_that_cannot_be_done_are_repeated_and_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (baseline, junit, markdown) = (at("baseline"), at("check.xml"), at("check.md"));
    let (code, out, err) = run(&["check", &path, "--baseline", &baseline, "--runs", "2"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let nobody = ["--target", "http://127.0.0.1:1", "--junit", &junit, "--markdown", &markdown];
    let (code, out, err) = run(&[&["check", &path, "--baseline", &baseline, "--runs", "2"], &nobody[..]].concat());
    assert_eq!(code, Some(3), "{out}{err}");
    assert_eq!(out.matches("could not be done: /").count(), 3, "{out}");
    let (junit, markdown) = (fs::read_to_string(junit), fs::read_to_string(markdown));
    assert!(junit.is_ok_and(|xml| xml.contains("<error message=\"warm-up of new could not be done")), "{out}");
    assert!(markdown.is_ok_and(|text| text.contains("127.0.0.1:1")), "{out}");
}

#[test]
fn capacity_says_by_which_latency_it_judges() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let json = folder.path().join("capacity.json").display().to_string();
    let args = ["capacity", &path, "--trial", "6s", "--start", "60", "--max", "60", "--repeats", "1", "--json", &json];
    let (code, out, err) = run(&args);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("limits no latency: ack_ms.p95 < 500 and delivery_ms.p95 < 500 must hold too"), "{out}");
    assert!(out.contains("held in 1 of 1 trial") && out.contains("too few to bound"), "{out}");
    assert!(fs::read_to_string(&json).expect("is there").contains("delivery_ms.p95 < 500"));
    let (code, out, err) = run(&[&args[..], &["--threshold", "ack_ms.p99 < 400"]].concat());
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("thresholds ack_ms.p99 < 400 must hold too") && !out.contains("limits no latency"), "{out}");
    assert_eq!(run(&["capacity", &path, "--threshold", "happiness > 1"]).0, Some(2));
}

#[test]
fn thresholds_that_a_trial_can_not_settle_are_no_verdict_on_its_rate() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let json = folder.path().join("capacity.json");
    fs::write(&json, "of an earlier search").expect("writes");
    let told = json.display().to_string();
    let args = ["capacity", &path, "--trial", "6s", "--start", "20", "--max", "20", "--json", &told, "--threshold"];
    let (code, out, err) = run(&[&args[..], &["ack_ms.p999 < 50"]].concat());
    assert_eq!(code, Some(2), "{out}{err}");
    assert!(err.contains("needs 1000 samples") && err.contains("--trial") && !out.contains("trial 1"), "{out}{err}");
    assert!(!json.exists(), "it is not the answer of this search");
    // Nothing recovers where there is no fault: known only once a trial ran.
    let (code, out, err) = run(&[&args[..], &["recovery_ms.p50 < 500"]].concat());
    assert_eq!(code, Some(7), "{out}{err}");
    assert!(err.contains("recovery_ms.p50 < 500") && err.contains("raise --trial"), "{err}");
}

#[test]
fn a_run_that_fails_leaves_no_result_of_an_earlier_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let good = side(folder.path(), "good", |_, _| ());
    let out = Path::new(&good).join("run-00");
    let shown = out.display().to_string();
    let (code, _, err) = run(&["load", &path, "--target", "http://127.0.0.1:9", "--out", &shown]);
    assert_eq!(code, Some(3), "{err}");
    assert!(!out.join("result.json").exists(), "{err}");
}

#[test]
fn a_scenario_that_is_scaled_is_checked_as_it_is_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let groups = "users: 16000000, groups: [{count: 1, members: {min: 15000000, max: 15000000}}]";
    let text = TINY.replace("users: 6, direct_per_user: 2", groups).replace("one-to-one", "group-talker");
    let path = scenario(folder.path(), &(text + "scale_to_fit: true\n"));
    for more in [&["--check"][..], &[]] {
        let (code, out, err) = run(&[&["load", path.as_str()], more].concat());
        assert_eq!(code, Some(2), "{out}{err}");
        assert!(err.contains("scenario.yaml:3:") && err.contains("population.groups[0].members"), "{err}");
        assert!(err.contains("users fit on this machine"), "{err}");
    }
}

#[test]
fn two_scenarios_of_one_name_are_refused_by_the_check_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = scenario(folder.path(), TINY);
    let out = folder.path().join("out").display().to_string();
    for more in [&["--check"][..], &[]] {
        let (code, shown, err) = run(&[&["load", path.as_str(), &path, "--out", &out], more].concat());
        assert_eq!((code, shown.as_str()), (Some(2), ""), "{err}");
        assert!(err.contains("two scenarios are named \"tiny\""), "{err}");
    }
    assert!(!Path::new(&out).exists(), "nothing was written");
}
