//! A comparison for a CI server, as `JUnit` XML: one test case per figure, and one for the runs of each side.
//!
//! A failure is something that is known to be wrong with the new build; an error is that nothing is known; skipped is what was
//! not compared, or is only watched.

use std::fmt::Write;

use super::{Answer, Comparison, Finding, Side, Weight, sentence};

/// How a case went.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Passed,
    Failure,
    Error,
    Skipped,
}

/// One test case.
struct Case {
    name: String,
    kind: Kind,
    message: String,
}

const fn kind(answer: Answer) -> Kind {
    match answer {
        Answer::Same | Answer::NotWorse | Answer::Better | Answer::SlightlyWorse => Kind::Passed,
        Answer::BaselineMade => Kind::Skipped,
        Answer::Worse | Answer::Failed | Answer::Violated => Kind::Failure,
        Answer::NotEnoughData | Answer::UnsoundBaseline | Answer::Invalid | Answer::NotRun => Kind::Error,
    }
}

fn of_finding(f: &Finding) -> Case {
    let kind = match (f.weight, f.answer) {
        (Weight::Watch, Answer::NotEnoughData) => Kind::Skipped,
        (_, answer) => kind(answer),
    };
    Case { name: f.name.clone(), kind, message: sentence(f) }
}

/// The case of a side's runs: were they a pass by themselves?
fn of_runs(c: &Comparison, side: Side) -> Case {
    let problems: Vec<_> = c.problems.iter().filter(|p| p.side == side).collect();
    let is_known_wrong = side == Side::New && kind(c.answer) == Kind::Failure && c.answer != Answer::Worse;
    let runs = if side == Side::Base { c.runs.0 } else { c.runs.1 };
    let kind = match (problems.is_empty(), side, c.answer) {
        (true, _, Answer::BaselineMade) => Kind::Skipped,
        (true, ..) if runs == 0 => Kind::Skipped,
        (true, ..) => Kind::Passed,
        _ if is_known_wrong => Kind::Failure,
        // A threshold that the baseline failed is a note.
        (false, Side::Base, answer) if answer != Answer::UnsoundBaseline && answer != Answer::NotRun => Kind::Skipped,
        _ => Kind::Error,
    };
    let message = match kind {
        Kind::Passed => "each passed by itself".to_owned(),
        Kind::Skipped if problems.is_empty() => "there are none to compare".to_owned(),
        _ => problems.iter().map(|p| p.text()).collect::<Vec<_>>().join("\n"),
    };
    Case { name: format!("runs of {}", side.word()), kind, message }
}

/// The comparison as `JUnit` XML.
#[must_use]
pub fn render(c: &Comparison) -> String {
    let mut cases = vec![of_runs(c, Side::Base), of_runs(c, Side::New)];
    cases.extend(c.findings.iter().map(of_finding));
    // The answer itself, so that whatever makes it is a case.
    let message = [&[c.answer.word().to_owned()], c.notes.as_slice()].concat().join("\n");
    cases.push(Case { name: "answer".to_owned(), kind: kind(c.answer), message });
    let count = |kind| cases.iter().filter(|case| case.kind == kind).count();
    let scenario = xml(&c.scenario);
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n  <testsuite name=\"chatctl {scenario}\" tests=\"{}\" \
         failures=\"{}\" errors=\"{}\" skipped=\"{}\">\n",
        cases.len(),
        count(Kind::Failure),
        count(Kind::Error),
        count(Kind::Skipped)
    );
    for case in &cases {
        let message = xml(&case.message);
        let inside = match case.kind {
            Kind::Failure => format!("<failure message=\"{message}\"/>"),
            Kind::Error => format!("<error message=\"{message}\"/>"),
            Kind::Skipped => format!("<skipped message=\"{message}\"/>"),
            Kind::Passed => format!("<system-out>{message}</system-out>"),
        };
        let name = xml(&case.name);
        let _ = writeln!(out, "    <testcase classname=\"chatctl.{scenario}\" name=\"{name}\">{inside}</testcase>");
    }
    out.push_str("  </testsuite>\n</testsuites>\n");
    out
}

/// Text that may stand in an attribute or an element. What XML 1.0 does not allow at all, not even as a reference, is replaced.
/// Source: Extensible Markup Language 1.0, fifth edition, production 2, Char.
fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\t' | '\n' | '\r' => {
                let _ = write!(out, "&#{};", c as u32);
            }
            '\u{20}'..='\u{7e}' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'.. => out.push(c),
            _ => out.push('\u{fffd}'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_breaks_the_xml() {
        let all: String = (0..=0x2_ffff).filter_map(char::from_u32).collect();
        let text = xml(&all);
        let is_allowed =
            |c: char| matches!(c, '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..='\u{10ffff}');
        assert!(text.chars().all(is_allowed));
        assert!(!text.contains('<') && !text.contains('"') && text.starts_with('\u{fffd}'));
        assert_eq!(xml("a\u{1b}[31m\n\"b\""), "a\u{fffd}[31m&#10;&quot;b&quot;");
    }
}
