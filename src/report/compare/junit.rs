//! A comparison for a CI server, as `JUnit` XML: one test case per figure.

use std::fmt::Write;

use super::{Answer, Comparison, human, percent};
use crate::report::escape;

/// The comparison as `JUnit` XML. Worse is a failure, not enough data is an error.
#[must_use]
pub fn render(c: &Comparison) -> String {
    let count = |answer| c.findings.iter().filter(|f| f.answer == answer).count();
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n  <testsuite name=\"chatctl {}\" tests=\"{}\" failures=\"{}\" \
         errors=\"{}\">\n",
        escape(&c.scenario),
        c.findings.len(),
        count(Answer::Worse),
        count(Answer::NotEnoughData)
    );
    for f in &c.findings {
        let message = format!(
            "{}: {} to {}, {} ({} to {})",
            f.answer.word(),
            human(f.base_us),
            human(f.new_us),
            percent(f.change),
            percent(f.interval.0),
            percent(f.interval.1)
        );
        let (class, name, message) = (escape(&c.scenario), f.figure.name(), escape(&message));
        let inside = match f.answer {
            Answer::Worse => format!("<failure message=\"{message}\"/>"),
            Answer::NotEnoughData => format!("<error message=\"{message}\"/>"),
            Answer::Same | Answer::Better => format!("<system-out>{message}</system-out>"),
        };
        let _ = writeln!(out, "    <testcase classname=\"chatctl.{class}\" name=\"{name}\">{inside}</testcase>");
    }
    out.push_str("  </testsuite>\n</testsuites>\n");
    out
}
