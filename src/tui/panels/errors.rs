//! The ledger's counts, errors by code, and the newest events.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;

use super::{State, bad, block, good};

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let [left, right] = Layout::horizontal([Constraint::Percentage(50); 2]).areas(area);
    let [ledger, errors] = Layout::vertical([Constraint::Percentage(45), Constraint::Percentage(55)]).areas(left);
    let s = &state.snapshot;
    let violations: Vec<Line<'_>> = if s.violations.is_empty() {
        vec![
            Line::styled("clean: nothing lost, repeated,", good(state)),
            Line::styled("reordered or leaked", good(state)),
        ]
    } else {
        s.violations.iter().map(|(kind, n)| Line::styled(format!("{kind:<16}{n}"), bad(state))).collect()
    };
    frame.render_widget(Paragraph::new(violations).block(block(state, " LEDGER ")), ledger);
    let codes: Vec<Line<'_>> = s.errors.iter().map(|(code, n)| Line::raw(format!("{code:<20}{n}"))).collect();
    frame.render_widget(Paragraph::new(codes).block(block(state, " errors by code ")), errors);
    let fits = right.height.saturating_sub(2) as usize;
    let skip = s.events.len().saturating_sub(fits);
    let events: Vec<Line<'_>> = s.events.iter().skip(skip).map(|e| Line::raw(e.as_str())).collect();
    frame.render_widget(Paragraph::new(events).block(block(state, " events ")), right);
}
