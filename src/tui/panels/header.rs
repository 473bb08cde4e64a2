//! Scenario, phase, time, verdict so far.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Gauge, Paragraph};

use super::{State, bad, dim, good};

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let s = &state.snapshot;
    let [first, second, third, bar] = Layout::vertical([Constraint::Length(1); 4]).areas(area);
    let verdict = if s.violations.is_empty() {
        Span::styled("clean so far", good(state))
    } else {
        Span::styled("VIOLATED", bad(state))
    };
    let title = Line::from(vec![
        Span::styled(" chatctl ", ratatui::style::Style::new().add_modifier(ratatui::style::Modifier::BOLD)),
        Span::raw(format!("{}  phase {}  {:.0}/{:.0} s  ledger ", s.scenario, s.phase, s.elapsed_s, s.planned_s)),
        verdict,
    ]);
    frame.render_widget(Paragraph::new(title), first);
    let connections = format!(
        " connections {}/{}  sent {:.0}/s  acked {:.0}/s  delivered {:.0}/s  reconnects {:.0}",
        s.connections, s.connections_wanted, s.rates.intended, s.rates.acked, s.rates.delivered, s.totals.reconnects
    );
    frame.render_widget(Line::raw(connections), second);
    let totals = format!(
        " total: due {:.0}   acked {:.0}   delivered {:.0}   repeats on the wire {:.0}",
        s.totals.intended, s.totals.acked, s.totals.delivered, s.totals.repeated_on_wire
    );
    frame.render_widget(Line::styled(totals, dim(state)), third);
    let gauge = Gauge::default().ratio(s.progress.clamp(0.0, 1.0)).label(s.progress_text.clone());
    frame.render_widget(gauge.gauge_style(good(state)), bar);
}
