//! Connections and load by server.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::widgets::{Row, Table};

use super::{State, bad, block, heading};

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let servers = &state.snapshot.servers;
    let most = servers.values().map(|s| s.connections).max().unwrap_or(0).max(1);
    let row = |(name, s): (&String, &crate::telemetry::live::ServerSnapshot)| {
        if s.gone {
            return Row::new(vec![name.clone(), s.role.clone(), "gone".to_owned()]).style(bad(state));
        }
        let bar = "█".repeat((s.connections * 20 / most) as usize);
        Row::new(vec![
            name.clone(),
            s.role.clone(),
            s.connections.to_string(),
            format!("{:.0}", s.acked_per_s),
            format!("{:.0}", s.deliveries_per_s),
            bar,
        ])
    };
    let widths = [
        Constraint::Length(12),
        Constraint::Length(9),
        Constraint::Length(11),
        Constraint::Length(9),
        Constraint::Length(13),
        Constraint::Min(4),
    ];
    let header = Row::new(["server", "role", "connections", "acks/s", "deliveries/s", ""]).style(heading());
    let table = Table::new(servers.iter().map(row), widths).header(header);
    frame.render_widget(table.block(block(state, " servers ")), area);
}
