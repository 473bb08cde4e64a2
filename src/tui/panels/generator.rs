//! Whether the generator itself can be trusted.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::Paragraph;

use super::{State, block, us};

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let s = &state.snapshot;
    let lines = vec![
        Line::raw(format!("late, p99 of the interval    {}", us(s.generator_lag_us_p99))),
        Line::raw(format!("late, worst so far           {}", us(s.generator_lag_us_max))),
        Line::raw(format!("processor                    {:.2} cores", s.generator_cores)),
        Line::raw(format!("resident memory              {:.1} MiB", s.resident_bytes as f64 / 1_048_576.0)),
        Line::raw(""),
        Line::raw("A generator that is late measures itself: past the limit the run is INVALID."),
    ];
    frame.render_widget(Paragraph::new(lines).block(block(state, " generator ")), area);
}
