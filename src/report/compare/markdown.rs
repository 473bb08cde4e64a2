//! A comparison for a pull request, as Markdown.

use std::fmt::Write;

use super::{Answer, Comparison, human, percent};

/// The comparison as Markdown.
#[must_use]
pub fn render(c: &Comparison) -> String {
    let mark = |answer: Answer| match answer {
        Answer::Same => "➖ same",
        Answer::Better => "✅ better",
        Answer::Worse => "❌ worse",
        Answer::NotEnoughData => "❔ not enough data",
    };
    let mut out = format!(
        "### chatctl: {} — {}\n\n| figure | base | new | change | 95 % interval | would have seen | |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | --- |\n",
        c.scenario.replace('|', "\\|"),
        mark(c.answer)
    );
    for f in &c.findings {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} … {} | ±{:.1} % | {} |",
            f.figure.name(),
            human(f.base_us),
            human(f.new_us),
            percent(f.change),
            percent(f.interval.0),
            percent(f.interval.1),
            f.detectable * 100.0,
            mark(f.answer)
        );
    }
    let how = if c.are_interleaved { "in turn" } else { "**not in turn**" };
    let _ = writeln!(
        out,
        "\n{} runs of base and {} of new, {how}. A change matters from {:.0} % on; a build against itself raises at most 1 \
         false alarm in 100.",
        c.runs.0,
        c.runs.1,
        c.rules.min_effect * 100.0
    );
    for note in &c.notes {
        let _ = writeln!(out, "\n> {note}");
    }
    out
}
