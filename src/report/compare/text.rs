//! A comparison for people, as plain text.

use std::fmt::Write;

use super::{Comparison, human, percent};

/// The comparison as text, its answer last.
#[must_use]
pub fn render(c: &Comparison) -> String {
    let how =
        if c.are_interleaved { "in turn" } else { "not in turn: what the machine did meanwhile is in the change" };
    let mut out = format!("scenario   {}; {} runs of base, {} of new, {how}\n\n", c.scenario, c.runs.0, c.runs.1);
    let _ = writeln!(
        out,
        "{:<24}{:>10} {:>10} {:>9} {:>20} {:>10} {:>8} {:>14}  answer",
        "figure", "base", "new", "change", "95 % interval", "chance", "noise", "would have seen"
    );
    for f in &c.findings {
        let interval = format!("{} … {}", percent(f.interval.0), percent(f.interval.1));
        let _ = writeln!(
            out,
            "{:<24}{:>10} {:>10} {:>9} {interval:>20} {:>10.4} {:>6.1} % {:>13.1} %  {}",
            f.figure.name(),
            human(f.base_us),
            human(f.new_us),
            percent(f.change),
            f.chance_of_rise.min(f.chance_of_fall),
            f.noise * 100.0,
            f.detectable * 100.0,
            f.answer.word()
        );
    }
    for note in &c.notes {
        let _ = writeln!(out, "note       {note}");
    }
    let _ = writeln!(
        out,
        "\nanswer     {} (a change matters from {:.0} % on; false alarms at most 1 in 100)",
        c.answer.word(),
        c.rules.min_effect * 100.0
    );
    out
}
