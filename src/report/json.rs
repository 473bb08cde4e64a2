//! `result.json`: the whole result, for programs. Its form is versioned by `schema`.

use crate::loadgen::RunResult;

/// The result as indented JSON.
#[must_use]
pub fn render(result: &RunResult) -> String {
    let mut text = serde_json::to_string_pretty(result).expect("string keys and finite numbers");
    text.push('\n');
    text
}
