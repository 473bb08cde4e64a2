//! What is said of a threshold that can't be read: the part that is wrong, what was probably meant, and where the list is.

use super::threshold::{Comparison, Percent, Statistic};
use crate::loadgen::result::Counts;
use crate::runtime::spelling::{did_you_mean, nearest};
use crate::telemetry::LatencyPath;

/// Where every measure is listed.
const LIST: &str = "docs/scenarios.md lists all measures under \"Thresholds\"";

/// Characters that comparisons are written with.
pub(super) const OPERATOR_CHARS: [char; 6] = ['<', '>', '=', '!', '\u{2264}', '\u{2265}'];

/// Of a comparison that there is none, such as `=<`.
pub(super) fn comparison(operator: &str) -> String {
    let meant = match operator {
        "=<" | "\u{2264}" => "<=",
        "=>" | "\u{2265}" => ">=",
        "=" | "===" => "==",
        "<<" => "<",
        ">>" => ">",
        _ => "",
    };
    let meant = if meant.is_empty() { String::new() } else { format!(": did you mean {meant:?}?") };
    let valid: Vec<&str> = Comparison::ALL.iter().map(|(text, _)| *text).collect();
    let valid = valid.join(" ");
    if meant.is_empty() {
        format!("there is no comparison {operator:?}: valid are {valid}")
    } else {
        format!("there is no comparison {operator:?}{meant} Valid are {valid}")
    }
}

/// Of a measure that there is none.
pub(super) fn measure(text: &str) -> String {
    if let Some((path, statistic)) = text.split_once("_ms.")
        && LatencyPath::parse(path).is_some()
    {
        let valid: Vec<&str> = Statistic::ALL.iter().map(|(name, _)| *name).collect();
        let near = nearest_statistic(statistic);
        let near = near.map(|near| format!(": did you mean {near:?}?")).unwrap_or_default();
        let colon = if near.is_empty() { ": valid" } else { " Valid" };
        return format!("a latency has no {statistic:?}{near}{colon} are {}", valid.join(", "));
    }
    let latencies = LatencyPath::ALL
        .iter()
        .flat_map(|path| Statistic::ALL.iter().map(move |(statistic, _)| format!("{}_ms.{statistic}", path.as_str())));
    // A latency without its statistic.
    let begin = text.split(['.', ' ']).next().unwrap_or_default().trim_end_matches("_ms");
    if LatencyPath::parse(begin).is_some() {
        return format!("there is no measure {text:?}: a latency is written as \"{begin}_ms.p99\"; {LIST}");
    }
    let names = Counts::NAMES.iter().copied().chain(Percent::ALL.map(Percent::name)).map(str::to_owned);
    let all: Vec<String> = names.chain(latencies).collect();
    let near = did_you_mean(text, all.iter().map(String::as_str));
    if near.is_empty() {
        format!("there is no measure {text:?}; {LIST}")
    } else {
        format!("there is no measure {text:?}{near} ({LIST})")
    }
}

/// The statistic that was probably meant: of `p96` the percentile next to it.
fn nearest_statistic(text: &str) -> Option<&'static str> {
    match text {
        "median" => return Some("p50"),
        "average" | "avg" => return Some("mean"),
        _ => {}
    }
    let percent = |name: &str| -> Option<f64> {
        let digits = name.strip_prefix('p')?.replace('.', "");
        let whole: f64 = digits.parse().ok().filter(|_| digits.len() < 10)?;
        // p999 is 99.9 %.
        Some(if digits.len() > 2 && digits != "100" { whole / 10_f64.powi(digits.len() as i32 - 2) } else { whole })
    };
    let Some(wanted) = percent(text) else { return nearest(text, Statistic::ALL.iter().map(|(name, _)| *name)) };
    let distances = Statistic::ALL.iter().filter_map(|(name, _)| Some(((percent(name)? - wanted).abs(), *name)));
    distances.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use crate::loadgen::scenario::threshold::Threshold;

    #[test]
    fn what_is_wrong_is_named_with_what_was_meant_and_never_with_all_there_is() {
        for (text, wanted) in [
            ("ack_ms.p99 =< 50", "there is no comparison \"=<\": did you mean \"<=\"? Valid are <= >= == < >"),
            ("ack_ms.p99 => 50", "did you mean \">=\"?"),
            ("lost = 0", "there is no comparison \"=\": did you mean \"==\"?"),
            ("lost != 0", "there is no comparison \"!=\": valid are <= >= == < >"),
            ("ack_ms.p99 \u{2264} 50", "did you mean \"<=\"?"),
            ("ack_ms.p96 < 5", "a latency has no \"p96\": did you mean \"p95\"? Valid are mean, p50"),
            ("ack_ms.p99.9 < 5", "did you mean \"p999\"?"),
            ("ack_ms.median < 5", "a latency has no \"median\": did you mean \"p50\"?"),
            ("ack_ms.sum < 5", "a latency has no \"sum\": valid are mean, p50"),
            ("ack_ms.men < 5", "did you mean \"mean\"?"),
            ("delivry_ms.p99 < 5", "there is no measure \"delivry_ms.p99\": did you mean \"delivery_ms.p99\"?"),
            ("delivery < 5", "a latency is written as \"delivery_ms.p99\""),
            ("delivery.p50 < 5", "a latency is written as \"delivery_ms.p99\""),
            ("dupliacted == 0", "did you mean \"duplicated\"? (docs/scenarios.md lists"),
            ("happiness == 1", "there is no measure \"happiness\"; docs/scenarios.md lists all measures"),
        ] {
            let told = text.parse::<Threshold>().expect_err(text);
            assert!(told.starts_with(&format!("threshold {text:?}: ")) && told.contains(wanted), "{text}: {told}");
            assert!(told.len() < 200 && !told.contains("presence_leaked"), "the whole list: {told}");
        }
    }
}
