//! Delivery latency over time, and percentiles by path.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Color;
use ratatui::symbols::Marker;
use ratatui::widgets::{Axis, Chart, Dataset, GraphType, Row, Table};

use super::{State, block, coloured, dim, heading, us};
use crate::telemetry::{LatencyPath, LatencySummary, PathName, Percentile};

/// A figure: its name, whether it is on narrow screens too, and its text of a summary.
type Column = (&'static str, bool, fn(&LatencySummary) -> String);

const COLUMNS: [Column; 7] = [
    ("p50", true, |s| s.shown(Percentile::P50)),
    ("p75", false, |s| s.shown(Percentile::P75)),
    ("p90", true, |s| s.shown(Percentile::P90)),
    ("p95", false, |s| s.shown(Percentile::P95)),
    ("p99", true, |s| s.shown(Percentile::P99)),
    ("p99.9", true, |s| s.shown(Percentile::P999)),
    ("max", true, |s| us(s.max_us)),
];

/// Columns of a screen that has room for all.
const WIDTH_OF_ALL: u16 = 98;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let rows = state.snapshot.overall.len() as u16 + 3;
    let [chart, table] =
        Layout::vertical([Constraint::Min(5), Constraint::Length(rows.min(area.height / 2 + 2))]).areas(area);
    draw_chart(frame, chart, state);
    draw_table(frame, table, state);
}

fn draw_chart(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let p50: Vec<(f64, f64)> = state.points.iter().map(|p| (p.at_s, p.p50_ms)).collect();
    let p99: Vec<(f64, f64)> = state.points.iter().map(|p| (p.at_s, p.p99_ms)).collect();
    let top = p99.iter().map(|p| p.1).fold(1.0, f64::max) * 1.1;
    let from = state.points.front().map_or(0.0, |p| p.at_s);
    let to = state.points.back().map_or(1.0, |p| p.at_s).max(from + 1.0);
    let set = |name, data, colour| {
        let line = Dataset::default().name(name).marker(Marker::Braille).graph_type(GraphType::Line);
        line.style(coloured(state, colour)).data(data)
    };
    let chart = Chart::new(vec![set("p99", &p99, Color::Yellow), set("p50", &p50, Color::Cyan)])
        .block(block(state, " delivery, ms "))
        .x_axis(
            Axis::default().bounds([from, to]).labels([format!("{from:.0} s"), format!("{to:.0} s")]).style(dim(state)),
        )
        .y_axis(Axis::default().bounds([0.0, top]).labels(["0".to_owned(), format!("{top:.1}")]).style(dim(state)));
    frame.render_widget(chart, area);
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let is_wide = area.width >= WIDTH_OF_ALL;
    let columns = || COLUMNS.iter().filter(|column| is_wide || column.1);
    let row = |(name, s): (&PathName, &LatencySummary)| {
        let figures = columns().map(|(_, _, of)| of(s));
        Row::new([name.to_string(), s.count.to_string()].into_iter().chain(figures).collect::<Vec<_>>())
    };
    // What is looked at first comes first: on a short screen the end is cut off.
    let rank = |name: &PathName| match name {
        PathName::Path(LatencyPath::Delivery) => 0,
        PathName::Path(LatencyPath::Ack) => 1,
        PathName::Path(path) if path.is_delivery() => 2,
        PathName::Path(_) | PathName::GeneratorLag | PathName::Other(_) => 3,
    };
    let mut paths: Vec<_> = state.snapshot.overall.iter().collect();
    paths.sort_by_key(|(name, _)| rank(name));
    let widths = [24, 8].into_iter().chain(columns().map(|_| 8)).map(Constraint::Length);
    let header = Row::new(["path", "samples"].into_iter().chain(columns().map(|(name, _, _)| *name))).style(heading());
    let table = Table::new(paths.into_iter().map(row), widths).header(header);
    frame.render_widget(table.block(block(state, " since the warm-up, from due time ")), area);
}
