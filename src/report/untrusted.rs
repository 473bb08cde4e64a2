//! Results of unknown origin: files of another build, another machine, or of somebody who wants to do harm.

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use crate::loadgen::RunResult;
use crate::loadgen::result::Verdict;
use crate::loadgen::scenario::check_name;
use crate::telemetry::{Latency, printable};

/// Largest number that a result may hold. Sums of a thousand such still fit 64 bits; in µs it is 300 years.
const NUMBER_MAX: f64 = 1e16;

/// The one number that may be any.
const SEED: &str = "seed";

/// Parses JSON whose numbers are bounded and whose texts are fit for a terminal.
///
/// # Errors
/// Says what is wrong, by the path of the value.
pub(super) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    let mut value: Value = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    check_numbers(&value, "")?;
    clean(&mut value);
    // Each becomes the name of a file.
    let histograms = value.get("histograms").and_then(Value::as_object);
    for (name, text) in histograms.into_iter().flatten() {
        check_name(name).map_err(|problem| format!("histograms: {problem}"))?;
        // An error of the whole would not say which it is.
        Latency::deserialize(text).map_err(|e| format!("histograms.{name}: {}", printable(&e.to_string())))?;
    }
    serde_json::from_value(value).map_err(|e| printable(&e.to_string()).into_owned())
}

/// What every result has. What is absent would read as its default: a pass with nothing lost.
#[derive(Deserialize)]
#[expect(dead_code, reason = "it is enough that they are there")]
struct MustHave {
    schema: IgnoredAny,
    scenario: IgnoredAny,
    verdict: IgnoredAny,
    counts: IgnoredAny,
    duration_s: IgnoredAny,
}

/// Parses a result whose verdict is there, and is what its counts and thresholds allow.
///
/// # Errors
/// Says what is wrong, by the path of the value.
pub(super) fn parse_result(json: &[u8]) -> Result<RunResult, String> {
    serde_json::from_slice::<MustHave>(json).map_err(|error| {
        let text = printable(&error.to_string()).into_owned();
        let absent = text.strip_prefix("missing field ").and_then(|rest| rest.split(" at ").next());
        absent.map_or_else(|| text.clone(), |name| format!("it has no {name}"))
    })?;
    let result: RunResult = parse(json)?;
    let broken = result.counts.violations();
    if let Some((kind, n)) = broken.iter().next().filter(|_| result.verdict != Verdict::LedgerViolated) {
        let word = result.verdict.word();
        return Err(format!("it contradicts itself: its verdict is {word}, and counts.{kind} is {n}"));
    }
    let failed = result.thresholds.iter().find(|outcome| !outcome.passed && result.verdict == Verdict::Pass);
    if let Some(failed) = failed {
        return Err(format!("it contradicts itself: its verdict is PASS, and {} failed", failed.threshold));
    }
    Ok(result)
}

/// A result in which no name and no word of a server is obeyed by a terminal.
#[must_use]
pub fn cleaned(mut result: RunResult) -> RunResult {
    // Large, and without texts.
    let histograms = std::mem::take(&mut result.histograms);
    let read_back = serde_json::to_value(&result).and_then(|mut value| {
        clean(&mut value);
        serde_json::from_value(value)
    });
    // What can't be written as JSON is left as it is: the figures matter more.
    let mut result: RunResult = read_back.unwrap_or(result);
    result.histograms = histograms;
    result
}

fn check_numbers(value: &Value, path: &str) -> Result<(), String> {
    match value {
        Value::Number(number) if path != SEED => {
            let is_odd = number.as_f64().is_none_or(|number| number.is_nan() || number.abs() > NUMBER_MAX);
            if is_odd { Err(format!("{}: {number}: no figure of a run", printable(path))) } else { Ok(()) }
        }
        Value::Array(items) => {
            items.iter().enumerate().try_for_each(|(n, item)| check_numbers(item, &format!("{path}[{n}]")))
        }
        Value::Object(entries) => entries.iter().try_for_each(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            check_numbers(value, &path)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

fn clean(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let std::borrow::Cow::Owned(clean) = printable(text) {
                *text = clean;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(clean),
        Value::Object(entries) => {
            if entries.keys().any(|key| printable(key) != key.as_str()) {
                let taken = std::mem::take(entries);
                entries.extend(taken.into_iter().map(|(key, value)| (printable(&key).into_owned(), value)));
            }
            entries.values_mut().for_each(clean);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadgen::result::SCHEMA_VERSION;
    use crate::report;
    use crate::telemetry::{Latency, LatencyPath, LiveSnapshot};

    /// A result with something of everything.
    fn full() -> Value {
        let mut latency = Latency::default();
        latency.record_us(1_500);
        let mut result = RunResult { scenario: "full".to_owned(), schema: SCHEMA_VERSION, ..RunResult::default() };
        result.histograms.insert(LatencyPath::Ack, latency.clone());
        result.latency.insert(LatencyPath::Ack, latency.summary());
        result.reasons.push("because".to_owned());
        result.violations.push("m1 of c1".to_owned());
        result.errors.insert("overloaded".to_owned(), 3);
        result
            .faults
            .push(crate::loadgen::result::FaultRecord { what: "kill chat-1".to_owned(), ..Default::default() });
        result.faults[0].recovered_99_s = Some(1.0);
        result.faults[0].calm_after_s = Some(1.0);
        result.processes.push(crate::loadgen::result::ProcessUsage { name: "chat-1".to_owned(), ..Default::default() });
        result.workers.push(crate::loadgen::result::WorkerRecord { name: "pid 1".to_owned(), ..Default::default() });
        result.memory = Some(crate::loadgen::result::ConnectionMemory::default());
        serde_json::to_value(result).expect("plain data")
    }

    /// The paths of all leaves and lists, as JSON pointers.
    fn pointers(value: &Value, at: &str, out: &mut Vec<String>) {
        match value {
            Value::Object(entries) => {
                for (key, value) in entries {
                    pointers(value, &format!("{at}/{key}"), out);
                }
            }
            Value::Array(items) => {
                out.push(at.to_owned());
                for (n, item) in items.iter().enumerate() {
                    pointers(item, &format!("{at}/{n}"), out);
                }
            }
            _ => out.push(at.to_owned()),
        }
    }

    /// Everything that is made of a result.
    fn all_of(result: &RunResult) -> String {
        let series = [
            LiveSnapshot { elapsed_s: 1.0, ..Default::default() },
            LiveSnapshot { elapsed_s: 2.0, ..Default::default() },
        ];
        let mut out = report::json::render(result);
        out += &report::html::render(result, &series);
        out += &report::csv(result);
        out += &report::summary::render(result, report::summary::Style::Plain);
        for (path, histogram) in &result.histograms {
            out += &String::from_utf8_lossy(&report::hlog::render(path, histogram, result).unwrap_or_default());
        }
        out
    }

    #[test]
    fn odd_results_are_refused_or_shown_and_never_a_panic() {
        let odd = [
            serde_json::json!(1e300),
            serde_json::json!(-1e300),
            serde_json::json!(u64::MAX),
            serde_json::json!(1e16),
            serde_json::json!(10_000_000_000_000_000_u64),
            serde_json::json!(-10_000_000_000_000_000_i64),
            serde_json::json!(-1),
            serde_json::json!(-0.5),
            serde_json::json!(0),
            serde_json::json!("\u{1b}[2J\r\n<script>&\"',=cmd|\u{202e}\u{ffff}"),
            serde_json::json!([]),
            serde_json::json!({}),
            Value::Null,
        ];
        let good = full();
        let mut all = Vec::new();
        pointers(&good, "", &mut all);
        assert!(all.len() > 60, "{}", all.len());
        let mut taken = 0;
        for pointer in &all {
            for value in &odd {
                let mut changed = good.clone();
                *changed.pointer_mut(pointer).expect("is there") = value.clone();
                let Ok(result) = parse::<RunResult>(changed.to_string().as_bytes()) else { continue };
                taken += 1;
                let shown = all_of(&result);
                let bad = shown.chars().find(|c| *c != '\n' && (c.is_control() || *c == '\u{202e}'));
                let page = report::html::render(&result, &[]);
                assert!(bad.is_none() && !page.contains("<script>"), "{pointer} = {value}: {bad:?}");
            }
        }
        assert!(taken > 200, "{taken}");
    }

    #[test]
    fn absurd_numbers_are_named_and_any_seed_is_taken() {
        let mut value = full();
        value["seed"] = serde_json::json!(u64::MAX);
        assert!(parse::<RunResult>(value.to_string().as_bytes()).is_ok());
        value["faults"][0]["at_s"] = serde_json::json!(1e300);
        let refused = parse::<RunResult>(value.to_string().as_bytes()).expect_err("absurd");
        assert!(refused.starts_with("faults[0].at_s: 1e+300: no figure of a run"), "{refused}");
    }

    #[test]
    fn absence_is_no_pass_and_a_verdict_agrees_with_its_counts() {
        let refused = |change: fn(&mut Value)| {
            let mut value = full();
            change(&mut value);
            parse_result(value.to_string().as_bytes()).map(|_| ()).expect_err("refused")
        };
        assert!(parse_result(full().to_string().as_bytes()).is_ok());
        for name in ["schema", "scenario", "verdict", "counts", "duration_s"] {
            let mut value = full();
            value.as_object_mut().expect("an object").remove(name);
            let problem = parse_result(value.to_string().as_bytes()).expect_err("it lacks something");
            assert_eq!(problem, format!("it has no `{name}`"));
        }
        let lost = refused(|value| value["counts"]["lost"] = 5.into());
        assert_eq!(lost, "it contradicts itself: its verdict is PASS, and counts.lost is 5");
        let failed = refused(|value| {
            value["thresholds"] = serde_json::json!([{"threshold": "lost == 0", "passed": false}]);
        });
        assert_eq!(failed, "it contradicts itself: its verdict is PASS, and lost == 0 failed");
        assert!(parse_result(b"[]").is_err() && parse_result(b"{}").is_err());
    }

    #[test]
    fn a_histogram_can_not_name_a_file_elsewhere() {
        let mut value = full();
        value["histograms"]["../../escaped"] = value["histograms"]["ack"].clone();
        let refused = parse::<RunResult>(value.to_string().as_bytes()).expect_err("a path");
        assert!(refused.contains("histograms: \"../../escaped\""), "{refused}");
    }

    #[test]
    fn cleaning_keeps_the_figures_and_changes_the_words() {
        let mut result = RunResult { duration_s: 0.1 + 0.2, ..RunResult::default() };
        result.histograms.insert(LatencyPath::Ack, Latency::default());
        result.errors.insert("a\u{1b}b".to_owned(), 1);
        result.reasons.push("c\r".to_owned());
        let clean = cleaned(result);
        assert_eq!((clean.duration_s, clean.histograms.len()), (0.1 + 0.2, 1));
        assert_eq!(
            (clean.errors.keys().next().map(String::as_str), clean.reasons[0].as_str()),
            (Some("a\\u{1b}b"), "c\\u{d}")
        );
    }
}
