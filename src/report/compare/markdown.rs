//! A comparison for a pull request, as Markdown.

use std::fmt::Write;

use super::{Answer, Comparison, Side, Weight, change, interval, value};
use crate::report::counted;
use crate::telemetry::printable;

/// Problems that are listed one by one.
const LISTED_MAX: usize = 10;

const fn mark(answer: Answer) -> &'static str {
    match answer {
        Answer::Same => "➖",
        Answer::NotWorse | Answer::Better => "✅",
        Answer::SlightlyWorse => "🔸",
        Answer::BaselineMade => "🆕",
        Answer::NotEnoughData => "❔",
        Answer::Worse => "❌",
        Answer::UnsoundBaseline | Answer::Invalid | Answer::NotRun => "⚠️",
        Answer::Failed | Answer::Violated => "⛔",
    }
}

/// What the answer means for the reader of a pull request.
const fn meaning(answer: Answer) -> &'static str {
    match answer {
        Answer::Same => "Every change lies within its limit.",
        Answer::NotWorse => "Nothing is worse by as much as its limit; something may be better.",
        Answer::Better => "Something is better by more than its limit, and nothing is worse.",
        Answer::SlightlyWorse => "Something became worse, by less than its limit.",
        Answer::BaselineMade => {
            "There was no baseline: **nothing was compared**. This build is the baseline from now on."
        }
        Answer::NotEnoughData => {
            "**This is no regression that was found, and no \"same\" either**: an interval reaches past its limit, or the runs are too few for one. More runs, or a quieter machine, would settle it."
        }
        Answer::Worse => "**A regression**: something is worse by more than its limit, and not by chance.",
        Answer::UnsoundBaseline => {
            "**The baseline is unsound**: its own runs broke a guarantee or are inconclusive. Make one from a sound build."
        }
        Answer::Invalid => "Runs of the new build are inconclusive: the generator or its machine was the limit.",
        Answer::NotRun => "Runs could not be done.",
        Answer::Failed => "**The new build failed** a threshold of the scenario, whatever the figures are.",
        Answer::Violated => "**The new build broke a guarantee**, whatever the figures are.",
    }
}

/// The comparison as Markdown.
#[must_use]
pub fn render(c: &Comparison) -> String {
    let mut out = format!(
        "### chatctl: {} — {} {}\n\n{}\n",
        escape(&c.scenario),
        mark(c.answer),
        c.answer.word(),
        meaning(c.answer)
    );
    for (side, name) in [(Side::New, "new build"), (Side::Base, "baseline")] {
        if let Some(defects) = c.defects(side) {
            let _ = writeln!(out, "\nRuns of the {name}: {defects}.");
        }
    }
    if !c.problems.is_empty() {
        out.push('\n');
    }
    for problem in c.problems.iter().take(LISTED_MAX) {
        let _ = writeln!(out, "- {}", escape(&problem.text()));
    }
    if !c.findings.is_empty() {
        out.push_str("\n| figure | base | new | change | 90 % interval | limit | |\n| --- | ---: | ---: | ---: | ---: | ---: | --- |\n");
    }
    for f in &c.findings {
        let watched = if f.weight == Weight::Watch { " (watched)" } else { "" };
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} {}{watched} |",
            escape(&f.name),
            value(f.unit, f.base),
            value(f.unit, f.new),
            f.change.map_or("–".to_owned(), |c| change(f.unit, c)),
            interval(f),
            change(f.unit, f.limit),
            mark(f.answer),
            f.answer.word()
        );
    }
    let how = if c.are_interleaved { "in turn" } else { "**not in turn**" };
    let _ = writeln!(out, "\n{} of base and {} of new, {how}.", counted(c.runs.0 as u64, "run"), c.runs.1);
    for note in &c.notes {
        let _ = writeln!(out, "\n> {}", escape(note));
    }
    out
}

/// Text that may stand in a line or a table's cell, and is nothing but text there.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '@' => out.push_str("&#64;"),
            '|' | '`' | '*' | '_' | '[' | ']' | '\\' | '#' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}
