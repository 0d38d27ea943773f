//! A bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use microtome::{Forecast, Observer, Phase};

use crate::failure::say;

/// How often a plain line is printed.
const LINES_EVERY: Duration = Duration::from_secs(10);

/// Shows one slide's progress.
#[derive(Debug)]
pub(crate) struct Progress {
    name: String,
    show: Show,
    phase: Mutex<(Phase, Instant, Instant)>,
}

#[derive(Debug)]
enum Show {
    Nothing,
    Lines,
    Bar(ProgressBar),
}

impl Progress {
    /// Progress of the slide of this name; nothing at all if `quiet`.
    pub(crate) fn new(name: String, quiet: Quiet) -> Self {
        let show = match quiet {
            Quiet::Yes => Show::Nothing,
            Quiet::No if std::io::stderr().is_terminal() => {
                let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(5));
                let template = "{prefix} {msg:<12} {wide_bar} {percent:>3} %  {per_sec}  {eta} left";
                let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
                bar.set_style(style.with_key(
                    "per_sec",
                    |state: &indicatif::ProgressState, w: &mut dyn std::fmt::Write| {
                        // Nothing can be done about a bar that cannot be drawn.
                        let _ = write!(w, "{:.2} Mpx/s", state.per_sec() / 1e6);
                    },
                ));
                bar.set_prefix(name.clone());
                Show::Bar(bar)
            }
            Quiet::No | Quiet::NoBar => Show::Lines,
        };
        let now = Instant::now();
        Self { name, show, phase: Mutex::new((Phase::Tissue, now, now)) }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Show::Bar(bar) = &self.show {
            bar.finish_and_clear();
        }
    }
}

/// Whether to show progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quiet {
    Yes,
    /// Plain lines, also on a terminal: several things happen at once.
    NoBar,
    No,
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Crop => "crop",
        Phase::Tissue => "tissue",
        Phase::Statistics => "statistics",
        Phase::Segmentation => "segmentation",
        Phase::Validation => "validation",
        Phase::Conversion => "conversion",
        Phase::Postprocessing => "postprocessing",
        Phase::Tiles => "tiles",
    }
}

impl Observer for Progress {
    fn phase(&self, phase: Phase) {
        let now = Instant::now();
        if let Ok(mut state) = self.phase.lock() {
            *state = (phase, now, now);
        }
        match &self.show {
            Show::Nothing => {}
            Show::Lines => say(&format!("{}: {}", self.name, name(phase))),
            Show::Bar(bar) => {
                bar.reset();
                bar.set_message(name(phase));
            }
        }
    }

    fn planned(&self, forecast: &Forecast) {
        let text = forecast.to_string();
        match &self.show {
            Show::Nothing => {}
            Show::Lines => text.lines().for_each(|line| say(&format!("{}: {line}", self.name))),
            Show::Bar(bar) => bar.println(text),
        }
    }

    fn progress(&self, done: u64, total: u64) {
        match &self.show {
            Show::Nothing => {}
            Show::Lines => {
                let Ok(mut state) = self.phase.lock() else { return };
                let (phase, begun, ref mut last) = *state;
                if last.elapsed() < LINES_EVERY || done == 0 {
                    return;
                }
                *last = Instant::now();
                let seconds = begun.elapsed().as_secs_f64();
                let rate = done as f64 / seconds;
                say(&format!(
                    "{}: {} {:.0} %, {:.2} Mpx/s, {:.0} s left",
                    self.name,
                    name(phase),
                    done as f64 / total as f64 * 100.0,
                    rate / 1e6,
                    (total - done) as f64 / rate
                ));
            }
            Show::Bar(bar) => {
                bar.set_length(total);
                bar.set_position(done);
            }
        }
    }

    fn cancelled(&self) -> bool {
        crate::signals::received()
    }
}
