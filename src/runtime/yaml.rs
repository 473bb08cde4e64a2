//! YAML that people write: scenarios and settings. An error says where it is, what stands there, and what may.

use serde::de::DeserializeOwned;
use serde_saphyr::Error;

use super::spelling::did_you_mean;
use super::unclosed::{Unclosed, unclosed};
use crate::telemetry::printable;

/// Columns of a line that are shown under an error.
const SHOWN_MAX: usize = 100;

/// Reads a text; `origin` names it in errors.
///
/// # Errors
/// `file:line:column: what is wrong`, and below it the line with a mark.
pub fn parse<T: DeserializeOwned>(text: &str, origin: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| told(text, origin, error.without_snippet()))
}

fn told(text: &str, origin: &str, error: &Error) -> String {
    let is_empty = text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
    if is_empty {
        return format!("{origin}: the file is empty");
    }
    let at_end = matches!(error, Error::Eof { .. });
    let place = error.location().map(|at| (at.line() as usize, at.column() as usize));
    // A list where none belongs is that, whether it is closed or not.
    let is_of_another_kind = matches!(error, Error::Unexpected { .. } | Error::SerdeInvalidType { .. });
    let is_cause = |open: &Unclosed| {
        let begin = (open.line, open.column);
        at_end || place.is_none_or(|place| begin < place || (begin == place && !is_of_another_kind))
    };
    let open = unclosed(text).filter(is_cause);
    if let Some(open) = open {
        let whole = text.lines().nth(open.line - 1).unwrap_or_default();
        return format!(
            "{origin}:{}:{}: {}{}",
            open.line,
            open.column,
            words_of_unclosed(open),
            mark(open.line, open.column, whole)
        );
    }
    let Some((line, column)) = place.filter(|(line, column)| *line > 0 && *column > 0) else {
        return format!("{origin}: {}", printable(&words(error, "")));
    };
    let whole = text.lines().nth(line - 1).unwrap_or_default();
    let rest: String = whole.chars().skip(column - 1).collect();
    let what = words(error, &rest);
    format!("{origin}:{line}:{column}: {}{}", printable(&what), mark(line, column, whole))
}

/// What is wrong where a bracket or a quote is not closed.
fn words_of_unclosed(open: Unclosed) -> String {
    let (what, close) = match open.mark {
        '[' => ("the list that begins here", "]"),
        '{' => ("the mapping that begins here", "}"),
        '"' => ("the text that begins here", "\""),
        _ => ("the text that begins here", "'"),
    };
    match open.instead {
        Some((other, line, column)) => {
            format!("{what} is closed by `{other}` at {line}:{column}, and wanted is `{close}`")
        }
        None => format!("{what} is not closed: `{close}` is missing"),
    }
}

/// The line, and a mark below the place.
fn mark(line: usize, column: usize, whole: &str) -> String {
    let is_shown = column <= SHOWN_MAX && !whole.trim().is_empty();
    let shown: String = whole.chars().take(SHOWN_MAX).collect();
    let number = line.to_string();
    let (margin, before) = (" ".repeat(number.len()), " ".repeat(column - 1));
    if is_shown { format!("\n  {number} | {}\n  {margin} | {before}^", printable(&shown)) } else { String::new() }
}

/// What is wrong. `rest` is the line from the place on.
fn words(error: &Error, rest: &str) -> String {
    match error {
        Error::Message { msg, .. } => msg.clone(),
        Error::SerdeUnknownField { field, expected, .. } => {
            let near = did_you_mean(field, expected.iter().copied());
            let valid = expected.join(", ");
            if near.is_empty() {
                format!("there is no key {field:?} here: valid are {valid}")
            } else {
                format!("there is no key {field:?} here{near} Valid are {valid}")
            }
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            format!("there is no {variant:?} here: valid are {}", expected.join(", "))
        }
        Error::SerdeMissingField { field, .. } => format!("the key {field:?} is missing"),
        Error::DuplicateMappingKey { key, .. } => match key {
            Some(key) => format!("the key {key:?} stands here a second time: keep one of them"),
            None => "a key stands here a second time: keep one of them".to_owned(),
        },
        Error::SerdeInvalidValue { unexpected, expected, .. }
        | Error::SerdeInvalidType { unexpected, expected, .. } => {
            wanted(expected, unexpected.strip_prefix("string ").unwrap_or(unexpected))
        }
        Error::SerdeInvalidLength { len, expected, .. } => {
            format!("{len} entries stand here, and wanted is {expected}")
        }
        Error::InvalidScalar { ty, .. } => wanted(ty, &format!("{:?}", scalar(rest))),
        Error::NonFiniteFloat { value, .. } => format!("{value} is no finite number"),
        Error::NullIntoString { .. } => "nothing stands here, and a text is wanted".to_owned(),
        Error::Unexpected { expected, .. } => wanted(expected, &found(rest)),
        Error::Eof { .. } | Error::UnexpectedMappingEnd { .. } | Error::UnexpectedSequenceEnd { .. } => {
            "it ends in the middle: a bracket, a quote or a value is missing".to_owned()
        }
        Error::MultipleDocuments { .. } => "a second document begins here: a file holds one".to_owned(),
        Error::UnknownAnchor { .. } => format!("{:?} stands for nothing: no anchor has that name", scalar(rest)),
        other => plain(&other.to_string()),
    }
}

/// What is wanted instead of something.
fn wanted(expected: &str, instead: &str) -> String {
    let expected = match expected {
        "a duration" => "a time with its unit, such as 500ms, 7s or 2m",
        "mapping start" | "mapping" => "a mapping (`key: value`)",
        "sequence start" | "sequence" => "a list (`- entry`)",
        "string scalar" | "scalar" | "string" => "a single value",
        "floating point" | "f64" | "f32" => "a number",
        "u8" | "u16" | "u32" | "u64" | "usize" | "i32" | "i64" | "integer" => "a whole number",
        "boolean" | "bool" => "true or false",
        other => other,
    };
    format!("{instead} stands here, and wanted is {expected}")
}

/// The plain value that a text begins with.
fn scalar(rest: &str) -> &str {
    let end = rest.find([',', ']', '}', '#']).unwrap_or(rest.len());
    rest[..end].trim()
}

/// What stands at a place, for people.
fn found(rest: &str) -> String {
    match rest.trim() {
        "" => "nothing".to_owned(),
        text if text.starts_with('[') || text.starts_with("- ") => "a list".to_owned(),
        text if text.starts_with('{') => "a mapping".to_owned(),
        text => format!("{:?}", scalar(text)),
    }
}

/// A message of the parser without the place, which is told before it.
fn plain(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let message = message.lines().next().unwrap_or_default();
    let message = message.split_once(" at line ").map_or(message, |(before, _)| before);
    let placed = message.strip_prefix("line ").and_then(|rest| rest.split_once(": "));
    placed.map_or(message, |(_, rest)| rest).to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read")]
    struct Settings {
        name: String,
        #[serde(default, with = "humantime_serde")]
        wait: Duration,
        #[serde(default)]
        rate: f64,
        #[serde(default)]
        count: u32,
        #[serde(default)]
        places: Vec<String>,
        #[serde(default)]
        weights: BTreeMap<String, u32>,
    }

    fn refused(text: &str) -> String {
        parse::<Settings>(text, "x.yaml").map(|_| ()).expect_err(text)
    }

    #[test]
    fn an_error_says_where_what_and_what_is_valid() {
        for (text, wanted) in [
            ("name: a\nwait: 7\n", "x.yaml:2:1: \"7\" stands here, and wanted is a time with its unit, such as 500ms"),
            ("name: a\nrate: 60/s\n", "x.yaml:2:7: \"60/s\" stands here, and wanted is a number"),
            ("name: a\ncount: -1\n", "x.yaml:2:8: \"-1\" stands here, and wanted is a whole number"),
            ("name: a\nname: b\n", "x.yaml:2:1: the key \"name\" stands here a second time"),
            ("name: a\nfrobs: 3\n", "x.yaml:2:1: there is no key \"frobs\" here: valid are name, wait, rate, count"),
            ("count: 3\n", "the key \"name\" is missing"),
            ("name: [\n", "x.yaml:1:7: a list stands here, and wanted is a single value"),
            ("name: a\nplacse: []\n", "there is no key \"placse\" here: did you mean \"places\"? Valid are name, wait"),
            (
                "name: a\nplaces: [b, c\ncount: 3\n",
                "x.yaml:2:9: the list that begins here is not closed: `]` is missing",
            ),
            ("name: a\nweights: {b: 1\n", "x.yaml:2:10: the mapping that begins here is not closed: `}` is missing"),
            ("name: a text\n  [that goes on\nfrobs: 3\n", "x.yaml:3:1: there is no key \"frobs\" here"),
            ("name: \"a\ncount: 3\n", "x.yaml:1:7: the text that begins here is not closed: `\"` is missing"),
            (
                "name: a\nplaces: [b}\n",
                "x.yaml:2:9: the list that begins here is closed by `}` at 2:11, and wanted is `]`",
            ),
            ("name: a\nplaces: {a: 1}\n", "x.yaml:2:9: a mapping stands here, and wanted is a list"),
            ("name: a\nweights: [1]\n", "x.yaml:2:10: a list stands here, and wanted is a mapping"),
            ("- x\n", "a list stands here, and wanted is a mapping (`key: value`)"),
            ("", "x.yaml: the file is empty"),
            ("# only a remark\n\n", "x.yaml: the file is empty"),
            ("name: a\n---\nname: b\n", "a second document begins here"),
            ("name: *gone\n", "no anchor has that name"),
        ] {
            let told = refused(text);
            assert!(told.contains(wanted), "{text:?}: {wanted}\n  but {told}");
            let is_ours = !told.contains("<input>") && !told.contains("Options") && !told.contains("scalar");
            assert!(is_ours, "a library's words: {told}");
        }
    }

    #[test]
    fn the_line_is_shown_with_a_mark_and_no_control_character_is_obeyed() {
        let told = refused("name: a\nrate: 60/s\n");
        assert!(told.ends_with("\n  2 | rate: 60/s\n    |       ^"), "{told}");
        let told = refused("name: a\nrate: \"\\e[2J\"\n");
        assert!(!told.contains('\u{1b}'), "{told:?}");
        let deep = format!("name: a\nplaces: [{}1: 2]\n", " ".repeat(2 * SHOWN_MAX));
        assert_eq!(refused(&deep).lines().count(), 1, "a line that is too long to be shown");
    }

    #[test]
    fn odd_texts_are_refused_without_a_panic() {
        for text in [
            "\t- x\n",
            "{",
            "name: \"a",
            "a: b: c",
            "? x\n: y",
            "!!binary x",
            "\u{feff}",
            "%YAML 9\n---\n",
            "é: ü\n  ß: [\n",
        ] {
            let told = refused(text);
            assert!(told.starts_with("x.yaml"), "{told}");
        }
    }
}
