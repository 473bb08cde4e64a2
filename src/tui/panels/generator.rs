//! Whether the generator itself can be trusted.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::Paragraph;

use super::{State, block, us};
use crate::telemetry::human::counted;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let s = &state.snapshot;
    let machine = s.machine.unwrap_or_default();
    let unknown = || "unknown".to_owned();
    let foreign = machine
        .foreign_cores
        .map_or_else(unknown, |n| format!("{n:.2} of {}", counted(machine.cores.round() as u64, "core")));
    let pressure = machine.pressure.map_or_else(unknown, |share| format!("{:.0} % of the time", share * 100.0));
    let lines = vec![
        Line::raw(format!("late, p50 of the interval    {}", us(s.generator_lag_us_p50))),
        Line::raw(format!("late, p99 of the interval    {}", us(s.generator_lag_us_p99))),
        Line::raw(format!("late, worst so far           {}", us(s.generator_lag_us_max))),
        Line::raw(format!("processor                    {:.2} cores", s.generator_cores)),
        Line::raw(format!("other programs               {foreign}")),
        Line::raw(format!("other machines of the host   {:.2} cores", machine.steal_cores)),
        Line::raw(format!("waiting for a processor      {pressure}")),
        Line::raw(format!("resident memory              {:.1} MiB", s.resident_bytes as f64 / 1_048_576.0)),
        Line::raw(""),
        Line::raw("A generator that is late measures itself: past the limit the run is INVALID."),
    ];
    frame.render_widget(Paragraph::new(lines).block(block(state, " generator ")), area);
}
