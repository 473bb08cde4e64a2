//! `chatctl report` and `chatctl replay`: a finished run once more, as files and on the screen.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chatctl::report::{self, series, summary};
use chatctl::run::runner;
use chatctl::runtime::Tasks;
use chatctl::telemetry::LiveSnapshot;
use tokio::sync::watch;

use crate::cli::Ui;
use crate::display::Display;
use crate::exit::{self, Failure};
use crate::output::outln;
use crate::signals;

#[derive(clap::Args)]
pub(crate) struct ReportArgs {
    /// Folder of a run, as given to `chatctl load --out`
    folder: PathBuf,
    /// Folder to write to; the run's own without it
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct ReplayArgs {
    /// Folder of a run, as given to `chatctl load --out`
    folder: PathBuf,
    /// How many times faster than it was
    #[arg(long, value_name = "FACTOR", default_value_t = 4.0, value_parser = parse_speed)]
    speed: f64,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Ui::Auto)]
    ui: Ui,
}

fn parse_speed(text: &str) -> Result<f64, String> {
    let speed: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    (0.01..=1_000.0).contains(&speed).then_some(speed).ok_or_else(|| "valid are 0.01 to 1000".to_owned())
}

/// The seconds of a run; none where it has no file of them, as with runs of older versions.
fn read_series(folder: &Path) -> Result<Vec<LiveSnapshot>, Failure> {
    match series::read(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result.map_err(Failure::usage),
    }
}

pub(crate) fn run_report(args: ReportArgs) -> Result<u8, Failure> {
    let result = report::read(&args.folder).map_err(Failure::usage)?;
    let series = read_series(&args.folder)?;
    let out = args.out.as_deref().unwrap_or(&args.folder);
    report::write_all(out, &result, &series).map_err(Failure::environment)?;
    outln!("{}", summary::render(&result, summary::Style::of_output()).trim_end());
    outln!("\nwritten to {}", out.display());
    Ok(exit::PASS)
}

pub(crate) fn run_replay(args: ReplayArgs) -> Result<u8, Failure> {
    let series = series::read(&args.folder).map_err(Failure::usage)?;
    if series.is_empty() {
        return Err(Failure::usage(format!("{}: the run has no seconds to show", args.folder.display())));
    }
    // Where a run was cut short there is a series and no result.
    let verdict = match report::read(&args.folder) {
        Ok(result) => result.verdict.word(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "CUT SHORT",
        Err(error) => return Err(Failure::usage(error)),
    };
    let display = Display::choose(args.ui)?;
    let interrupt = Tasks::new();
    let runtime = runner::runtime()?;
    runtime.block_on(async {
        signals::watch(&interrupt)?;
        let (live, shown) = watch::channel(LiveSnapshot::default());
        let play = async {
            let mut events: Vec<String> = Vec::new();
            let mut before_s = series[0].elapsed_s;
            for mut snapshot in series {
                let wait_s = (snapshot.elapsed_s - before_s).clamp(0.0, 10.0) / args.speed;
                before_s = snapshot.elapsed_s;
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs_f64(wait_s)) => {}
                    () = interrupt.stopped() => break,
                }
                // The file holds each event once, the screen shows all so far.
                events.append(&mut snapshot.events);
                snapshot.events.clone_from(&events);
                live.send_replace(snapshot);
            }
            live.send_modify(|snapshot| verdict.clone_into(&mut snapshot.verdict));
            // The last second stays until the reader has seen it.
            tokio::time::sleep(Duration::from_secs_f64((1.0 / args.speed).min(1.0))).await;
            drop(live);
        };
        let observer = display.observer(&interrupt);
        tokio::join!(play, observer.live(shown));
        outln!("verdict    {verdict}");
        Ok(if interrupt.is_stopped() { exit::INTERRUPTED } else { exit::PASS })
    })
}
