//! Columns of text, for answers that people read.

use std::fmt;

use chatctl::report::{counted, human_count};
use chatctl::runtime::limits::Limit;
use chatctl::telemetry::printable;

/// A table with a heading.
pub(crate) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
    /// Columns of the screen that the last cells are wrapped at.
    columns: Option<usize>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned)], columns: None }
    }

    /// The same whose last cells go on in lines of their own where they don't fit into so many columns.
    pub(crate) fn wrapped(self, columns: usize) -> Self {
        Self { columns: Some(columns), ..self }
    }

    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| printable(&cell).into_owned()));
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..N).map(width).collect();
        let before: usize = widths.iter().take(N - 1).map(|width| width + GAP.len()).sum();
        let last = self.columns.map_or(usize::MAX, |columns| columns.saturating_sub(before).max(LAST_MIN));
        for row in &self.rows {
            let cells = row.iter().zip(&widths).take(N - 1).map(|(cell, width)| format!("{cell:<width$}{GAP}"));
            let mut line = cells.collect::<String>();
            for part in wrap(&row[N - 1], last) {
                writeln!(f, "{}", (line + &part).trim_end())?;
                line = " ".repeat(before);
            }
        }
        Ok(())
    }
}

/// Between two columns.
const GAP: &str = "  ";

/// Characters of a last column at least, however wide the others are.
const LAST_MIN: usize = 24;

/// The parts of a text that stand on one line: its words, and numbers with the spaces between their digits.
fn unbroken(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match parts.last_mut() {
            Some(before)
                if before.ends_with(|c: char| c.is_ascii_digit()) && word.starts_with(|c: char| c.is_ascii_digit()) =>
            {
                before.push(' ');
                before.push_str(word);
            }
            _ => parts.push(word.to_owned()),
        }
    }
    parts
}

/// The lines of a text, broken between words where it is longer; at least one.
fn wrap(text: &str, width: usize) -> Vec<String> {
    if text.chars().count() <= width {
        return vec![text.to_owned()];
    }
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in unbroken(text) {
        let long = word.chars().count();
        if used > 0 && used + 1 + long > width {
            lines.push(String::new());
            used = 0;
        }
        let line = lines.last_mut().expect("there is one");
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        line.push_str(&word);
        used += long;
    }
    lines
}

/// The limits as a table, for a number of connections.
pub(crate) fn limits_table(limits: &[Limit], connections: u64) -> String {
    let mut table = Table::new(["LIMIT", "NOW", "ENOUGH FOR", "STATE", "WHAT IS DONE, OR WHAT TO DO"]);
    for limit in limits {
        table.row([
            limit.what.to_owned(),
            limit.now.clone(),
            limit.allows.map_or("-".to_owned(), human_count),
            limit.state.to_string(),
            limit.fix.clone(),
        ]);
    }
    format!("{} on this machine\n{table}", counted(connections, "connection"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_their_headings() {
        let mut table = Table::new(["A", "LONG"]);
        table.row(["wide".to_owned(), "x".to_owned()]);
        assert_eq!(table.to_string(), "A     LONG\nwide  x\n");
    }

    #[test]
    fn a_last_cell_goes_on_below_itself() {
        let mut table = Table::new(["A", "WHY"]).wrapped(30);
        table.row(["wide".to_owned(), "one two three four five six".to_owned()]);
        table.row(["b".to_owned(), String::new()]);
        table.row(["c".to_owned(), "numbers such as just 12 345 stay".to_owned()]);
        assert_eq!(
            table.to_string(),
            "A     WHY\nwide  one two three four five\n      six\nb\nc     numbers such as just\n      12 345 stay\n"
        );
    }
}
