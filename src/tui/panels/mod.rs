//! The screen: a header, one panel chosen by tab or digit, a footer. One file per panel.

mod errors;
mod generator;
mod header;
mod latency;
mod queues;
mod servers;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};

use super::state::{PANELS, State};
use crate::telemetry::human::human_us as us;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let [head, tabs, body, foot] =
        Layout::vertical([Constraint::Length(4), Constraint::Length(1), Constraint::Min(3), Constraint::Length(1)])
            .areas(frame.area());
    header::draw(frame, head, state);
    frame.render_widget(tab_line(state), tabs);
    match state.panel {
        0 => latency::draw(frame, body, state),
        1 => servers::draw(frame, body, state),
        2 => queues::draw(frame, body, state),
        3 => errors::draw(frame, body, state),
        _ => generator::draw(frame, body, state),
    }
    let keys = " q quit  ? help  space freeze  tab/1-5 panels";
    frame.render_widget(Line::styled(keys, dim(state)), foot);
    if state.shows_help {
        draw_help(frame, state);
    }
}

fn tab_line(state: &State) -> Line<'static> {
    let tab = |(n, name): (usize, &&str)| {
        let style = if n == state.panel { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        [Span::styled(format!(" {} {name} ", n + 1), style), Span::raw(" ")]
    };
    let mut spans: Vec<Span<'static>> = PANELS.iter().enumerate().flat_map(tab).collect();
    if state.is_frozen {
        spans.push(Span::styled(" FROZEN ", warn(state).add_modifier(Modifier::REVERSED)));
    }
    Line::from(spans)
}

fn draw_help(frame: &mut Frame<'_>, state: &State) {
    let lines = [
        "q, ctrl-c    stop the run; results are written all the same",
        "space        freeze the screen; the run goes on",
        "tab, 1-5     choose a panel",
        "?, esc       close this help",
        "",
        "Latency counts from the time at which a message was due.",
        "Lag is what servers have not read from the log yet.",
        "Any count under LEDGER other than 0 is a broken guarantee.",
    ];
    let area = frame.area();
    let width = area.width.min(66);
    let height = area.height.min(lines.len() as u16 + 2);
    let popup = Rect::new((area.width - width) / 2, (area.height - height) / 2, width, height);
    frame.render_widget(Clear, popup);
    let text: Vec<Line<'_>> = lines.iter().map(|l| Line::raw(*l)).collect();
    let block = Block::bordered().title(" Keys ").border_style(dim(state));
    frame.render_widget(Paragraph::new(text).block(block), popup);
}

fn coloured(state: &State, colour: Color) -> Style {
    if state.use_colour { Style::new().fg(colour) } else { Style::new() }
}

fn dim(state: &State) -> Style {
    coloured(state, Color::DarkGray)
}

fn good(state: &State) -> Style {
    coloured(state, Color::Green)
}

fn warn(state: &State) -> Style {
    coloured(state, Color::Yellow)
}

fn bad(state: &State) -> Style {
    coloured(state, Color::Red).add_modifier(Modifier::BOLD)
}

fn block<'a>(state: &State, title: &'a str) -> Block<'a> {
    Block::bordered().title(title).border_style(dim(state))
}

/// A heading of a table.
fn heading() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}
