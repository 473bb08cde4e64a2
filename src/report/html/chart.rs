//! Charts as inline SVG. Shapes scale with the page; every word is HTML beside or over them, so that it keeps its size on a
//! phone.

use std::fmt::Write;

use crate::report::escape;

/// The drawing's own units; the page stretches them.
const WIDTH: f64 = 1_000.0;
const HEIGHT: f64 = 260.0;

/// Most columns that a chart draws; more are merged.
const COLUMNS_MAX: usize = 400;

/// From values to places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) is_log: bool,
}

impl Axis {
    /// From zero to somewhat above the largest value.
    pub(super) fn from_zero(values: impl Iterator<Item = f64>) -> Self {
        let max = values.filter(|v| v.is_finite()).fold(0.0, f64::max);
        Self { min: 0.0, max: if max > 0.0 { max * 1.05 } else { 1.0 }, is_log: false }
    }

    /// Whole powers of ten around all values above zero.
    pub(super) fn decades(values: impl Iterator<Item = f64> + Clone) -> Self {
        let positive = values.filter(|v| *v > 0.0 && v.is_finite());
        let (min, max) = positive.fold((f64::INFINITY, 0.0_f64), |(min, max), v| (min.min(v), max.max(v)));
        if max == 0.0 {
            return Self { min: 1.0, max: 10.0, is_log: true };
        }
        let (min, max) = (10_f64.powf(min.log10().floor()), 10_f64.powf(max.log10().ceil()));
        Self { min, max: if max > min { max } else { min * 10.0 }, is_log: true }
    }

    /// 0 at the lower end, 1 at the upper one.
    pub(super) fn place(self, value: f64) -> f64 {
        let share = if self.is_log {
            (value.max(self.min) / self.min).log10() / (self.max / self.min).log10()
        } else {
            (value - self.min) / (self.max - self.min)
        };
        share.clamp(0.0, 1.0)
    }

    /// Round values to write beside the axis.
    pub(super) fn ticks(self) -> Vec<f64> {
        if self.is_log {
            let (from, to) = (self.min.log10().round() as i32, self.max.log10().round() as i32);
            return (from..=to).map(|exponent| 10_f64.powi(exponent)).collect();
        }
        let rough = (self.max - self.min) / 4.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|s| s * power).into_iter().find(|s| *s >= rough).unwrap_or(rough);
        let (first, last) = ((self.min / step).ceil() as i64, (self.max / step).floor() as i64);
        (first..=last).map(|n| n as f64 * step).collect()
    }
}

/// One line of a chart. Its colour is its place in the list.
pub(super) struct Line {
    pub(super) name: String,
    /// Rising in x.
    pub(super) points: Vec<(f64, f64)>,
}

/// A chart of lines.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    /// What the reader should see in it, in a sentence; may be empty.
    pub(super) note: &'a str,
    pub(super) x: Axis,
    pub(super) y: Axis,
    /// Values of x with their words.
    pub(super) x_ticks: Vec<(f64, String)>,
    pub(super) y_text: fn(f64) -> String,
    pub(super) lines: Vec<Line>,
    /// Places in x with their words, such as faults.
    pub(super) marks: &'a [(f64, String)],
}

impl Chart<'_> {
    pub(super) fn render(&self) -> String {
        let mut svg = String::new();
        self.grid(&mut svg);
        for (number, line) in self.lines.iter().enumerate() {
            let points = thinned(&line.points);
            let places = points.iter().map(|(x, y)| {
                let (x, y) = (self.x.place(*x) * WIDTH, HEIGHT - self.y.place(*y) * HEIGHT);
                format!("{x:.1},{y:.1}")
            });
            let places = places.collect::<Vec<_>>().join(" ");
            let colour = number % 6;
            let _ = write!(svg, "<polyline class=\"l{colour}\" points=\"{places}\"/>");
        }
        self.hints(&mut svg);
        figure(self.title, self.note, &self.legend(), &svg, &self.labels())
    }

    fn grid(&self, svg: &mut String) {
        for tick in self.y.ticks() {
            let y = HEIGHT - self.y.place(tick) * HEIGHT;
            let _ = write!(svg, "<line class=\"grid\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
        }
        for (at, what) in self.marks {
            let x = self.x.place(*at) * WIDTH;
            let title = format!("<title>{}</title>", escape(what));
            let _ =
                write!(svg, "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{HEIGHT}\">{title}</line>");
        }
    }

    /// What the pointer shows: every line's value at its place.
    fn hints(&self, svg: &mut String) {
        let Some(longest) = self.lines.iter().max_by_key(|line| line.points.len()) else { return };
        let stride = longest.points.len().div_ceil(COLUMNS_MAX).max(1);
        let width = WIDTH / (longest.points.len().div_ceil(stride)).max(1) as f64;
        for (x, _) in longest.points.iter().step_by(stride) {
            let mut words = self.x_word(*x);
            for line in &self.lines {
                let at = line.points.partition_point(|(px, _)| px < x);
                if let Some((_, y)) = line.points.get(at).filter(|(px, _)| (px - x).abs() < f64::EPSILON) {
                    let _ = write!(words, "\n{}: {}", line.name, (self.y_text)(*y));
                }
            }
            let left = self.x.place(*x) * WIDTH - width / 2.0;
            let _ = write!(
                svg,
                "<rect class=\"hint\" x=\"{left:.1}\" y=\"0\" width=\"{width:.1}\" height=\"{HEIGHT}\"><title>{}</title></rect>",
                escape(&words)
            );
        }
    }

    fn x_word(&self, x: f64) -> String {
        if self.x.is_log { format!("{:.3} %", 100.0 - 100.0 / x) } else { format!("{x:.0} s") }
    }

    fn legend(&self) -> String {
        let mut legend: String = (0..).zip(&self.lines).fold(String::new(), |mut out, (n, line)| {
            let colour = n % 6;
            let _ = write!(out, "<span class=\"k{colour}\">{}</span>", escape(&line.name));
            out
        });
        if !self.marks.is_empty() {
            legend.push_str("<span class=\"kmark\">fault</span>");
        }
        legend
    }

    fn labels(&self) -> String {
        let y = self.y.ticks().into_iter().map(|tick| (self.y.place(tick), (self.y_text)(tick)));
        let x = self.x_ticks.iter().map(|(at, word)| (self.x.place(*at), word.clone()));
        axis_labels(x, y)
    }
}

/// A map of colours: columns over time, rows over latency.
pub(super) struct HeatMap<'a> {
    pub(super) title: &'a str,
    pub(super) note: &'a str,
    pub(super) x: Axis,
    pub(super) x_ticks: Vec<(f64, String)>,
    /// Names of the rows' upper ends, from below.
    pub(super) rows: Vec<String>,
    /// Time and the numbers by row.
    pub(super) columns: Vec<(f64, &'a [u64])>,
    pub(super) marks: &'a [(f64, String)],
}

impl HeatMap<'_> {
    pub(super) fn render(&self) -> String {
        let stride = self.columns.len().div_ceil(COLUMNS_MAX).max(1);
        let merged: Vec<(f64, Vec<u64>)> = self
            .columns
            .chunks(stride)
            .map(|chunk| {
                let mut sums = vec![0; self.rows.len()];
                for (row, n) in chunk.iter().flat_map(|(_, rows)| rows.iter().enumerate()) {
                    sums[row.min(self.rows.len() - 1)] += n;
                }
                (chunk[0].0, sums)
            })
            .collect();
        let most = merged.iter().flat_map(|(_, rows)| rows).copied().max().unwrap_or(0).max(1);
        let (width, height) = (WIDTH / merged.len().max(1) as f64, HEIGHT / self.rows.len() as f64);
        let mut svg = String::new();
        for (at, rows) in &merged {
            for (row, n) in rows.iter().enumerate().filter(|(_, n)| **n > 0) {
                // By logarithm, so that a single slow message is seen beside ten thousand fast ones.
                let strength = 0.15 + 0.85 * (1.0 + *n as f64).ln() / (1.0 + most as f64).ln();
                let (x, y) = (self.x.place(*at) * (WIDTH - width), HEIGHT - (row + 1) as f64 * height);
                let _ = write!(
                    svg,
                    "<rect class=\"heat\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
                     fill-opacity=\"{strength:.2}\"><title>{at:.0} s, up to {}: {n}</title></rect>",
                    width + 0.3,
                    height + 0.3,
                    self.rows[row]
                );
            }
        }
        for (at, what) in self.marks {
            let x = self.x.place(*at) * WIDTH;
            let title = format!("<title>{}</title>", escape(what));
            let _ =
                write!(svg, "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{HEIGHT}\">{title}</line>");
        }
        let count = self.rows.len() as f64;
        let y = self.rows.iter().enumerate().step_by(6).map(|(row, word)| ((row as f64 + 0.5) / count, word.clone()));
        let x = self.x_ticks.iter().map(|(at, word)| (self.x.place(*at), word.clone()));
        figure(self.title, self.note, "", &svg, &axis_labels(x, y))
    }
}

/// Every point, or the highest of each stretch: a peak is never thinned out.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stride = points.len().div_ceil(COLUMNS_MAX).max(1);
    let highest = |chunk: &[(f64, f64)]| chunk.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
    points.chunks(stride).filter_map(highest).collect()
}

fn axis_labels(x: impl Iterator<Item = (f64, String)>, y: impl Iterator<Item = (f64, String)>) -> String {
    let mut out = String::new();
    for (share, word) in y {
        let _ = write!(out, "<span class=\"y\" style=\"bottom:{:.2}%\">{}</span>", share * 100.0, escape(&word));
    }
    for (number, (share, word)) in x.enumerate() {
        // Every second one is left out where there is little room.
        let even = if number % 2 == 1 { " even" } else { "" };
        let _ = write!(out, "<span class=\"x{even}\" style=\"left:{:.2}%\">{}</span>", share * 100.0, escape(&word));
    }
    out
}

fn figure(title: &str, note: &str, legend: &str, svg: &str, labels: &str) -> String {
    let (title, note) = (escape(title), escape(note));
    let note = if note.is_empty() { String::new() } else { format!("<p class=\"note\">{note}</p>") };
    format!(
        "<figure><figcaption>{title}</figcaption>{note}<div class=\"legend\">{legend}</div><div class=\"plot\">\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{title}\">{svg}</svg>\
         {labels}</div></figure>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = Axis { min: 0.0, max: 73.0, is_log: false };
        assert_eq!(axis.ticks(), [0.0, 20.0, 40.0, 60.0]);
        let axis = Axis::decades([3.0, 450.0].into_iter());
        assert_eq!(axis.ticks(), [1.0, 10.0, 100.0, 1_000.0]);
        assert!((axis.place(31.622_776_6) - 0.5).abs() < 1e-6);
        assert_eq!(Axis::decades(std::iter::empty()).ticks(), [1.0, 10.0]);
        assert!((Axis::from_zero([f64::NAN].into_iter()).place(0.5) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_peak_survives_thinning() {
        let points: Vec<(f64, f64)> = (0..10_000).map(|n| (f64::from(n), f64::from(u8::from(n == 7_777)))).collect();
        let thin = thinned(&points);
        assert!(thin.len() <= COLUMNS_MAX && thin.contains(&(7_777.0, 1.0)));
    }
}
