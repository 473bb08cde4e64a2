//! What servers have not read from the log yet, in records and in seconds.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::widgets::{Row, Table};

use super::{State, block, heading, warn};

/// Age of unread records from which a row is marked.
const OLD_S: f64 = 1.0;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let servers = state.snapshot.servers.iter().filter(|(_, s)| matches!(&*s.role, "chat" | "push") && !s.gone);
    let rows = servers.map(|(name, s)| {
        let row = Row::new(vec![name.clone(), s.lag_records.to_string(), format!("{:.3} s", s.lag_s)]);
        if s.lag_s >= OLD_S { row.style(warn(state)) } else { row }
    });
    let widths = [Constraint::Length(12), Constraint::Length(14), Constraint::Min(10)];
    let header = Row::new(["server", "lag, records", "lag, age of the oldest"]).style(heading());
    frame.render_widget(Table::new(rows, widths).header(header).block(block(state, " queue lag ")), area);
}
