//! A comparison for people, as plain text.

use std::fmt::Write;

use super::{Answer, Comparison, Side, Weight, change, interval, value};
use crate::report::counted;
use crate::telemetry::printable;

/// Problems that are listed one by one.
const LISTED_MAX: usize = 5;

/// The comparison as text, its answer last.
#[must_use]
pub fn render(c: &Comparison) -> String {
    let how = if c.answer == Answer::BaselineMade {
        "nothing to compare with"
    } else if c.are_interleaved {
        "in turn"
    } else {
        "not in turn: what the machine did meanwhile is in the change"
    };
    let base = counted(c.runs.0 as u64, "run");
    let mut out = format!("scenario   {}; {base} of base, {} of new, {how}\n\n", printable(&c.scenario), c.runs.1);
    if !c.findings.is_empty() {
        let _ = writeln!(
            out,
            "{:<34}{:>10} {:>10} {:>10} {:>24} {:>10} {:>8} {:>8}  answer",
            "figure", "base", "new", "change", "90 % interval", "limit", "chance", "noise"
        );
    }
    for f in &c.findings {
        let watched = if f.weight == Weight::Watch { " (watched)" } else { "" };
        let _ = writeln!(
            out,
            "{:<34}{:>10} {:>10} {:>10} {:>24} {:>10} {:>8.4} {:>8}  {}{watched}",
            f.name,
            value(f.unit, f.base),
            value(f.unit, f.new),
            f.change.map_or("–".to_owned(), |c| change(f.unit, c)),
            interval(f),
            change(f.unit, f.limit),
            f.chance_of_rise.min(f.chance_of_fall),
            f.noise.map_or("–".to_owned(), |n| format!("{:.1} %", n * 100.0)),
            f.answer.word()
        );
    }
    for problem in c.problems.iter().take(LISTED_MAX) {
        let _ = writeln!(out, "problem    {}", printable(&problem.text()));
    }
    if c.problems.len() > LISTED_MAX {
        let _ = writeln!(out, "           and {} more", c.problems.len() - LISTED_MAX);
    }
    for note in &c.notes {
        let _ = writeln!(out, "note       {}", printable(note));
    }
    for side in [Side::Base, Side::New] {
        if let Some(defects) = c.defects(side) {
            let _ = writeln!(out, "runs       of {}: {defects}", side.word());
        }
    }
    let _ = writeln!(out, "\nanswer     {}", c.answer.word());
    out
}
