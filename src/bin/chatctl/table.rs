//! Columns of text, for answers that people read.

use std::fmt;

use chatctl::report::{counted, human_count};
use chatctl::runtime::limits::Limit;
use chatctl::telemetry::printable;

/// A table with a heading.
pub(crate) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned)] }
    }

    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| printable(&cell).into_owned()));
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..N).map(width).collect();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
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
}
