//! `cargo xtask bench memory`: peak memory stays under the budget and does not grow with the slide.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use super::child::Run;
use super::report::{Report, Table, mebibytes};
use super::slide::{Slide, Tiles};
use super::{Bench, Extent, child};

const TITLE: &str = "\
Peak memory under a stated budget, by the width of the slide.

Memory is anonymous memory plus dirty file pages of the process and its children, sampled from outside every 10 ms; RSS includes pages of
the mapped slide, which the kernel drops when memory is short. The cheap model is a formula of the pixel, run over the tissue of the whole
slide. The nuclei model is tests/models/nnunet-nuclei, run in a square of 8192 x 8192 level-0 pixels (16.8 Mpx at its 0.5 um per pixel), with the
image's statistics taken over the whole slide. Mpx/s are those of the slide's level 0. Each row is one run; where there are several of
a slide (--rounds), its highest peak counts.";

/// Widths of the slides, in pixels.
const WIDTHS: [u64; 3] = [20_000, 100_000, 200_000];
/// Width of the slide whose tiles all differ.
const DISTINCT_WIDTH: u64 = 100_000;
/// Budgets, in MiB.
const BUDGETS: [u64; 2] = [512, 2048];
/// The square in which the nuclei model runs, in level-0 pixels.
const SQUARE: u64 = 8192;
/// The most by which the largest peak may exceed the smallest.
const RATIO: f64 = 1.05;
/// The hard limit, in per cent of the budget.
const LIMIT_PERCENT: u64 = 110;

/// What runs over a slide.
#[derive(Debug, Clone, Copy)]
enum Subject {
    Cheap,
    Nuclei,
}

impl Subject {
    const ALL: [Self; 2] = [Self::Cheap, Self::Nuclei];

    fn name(self) -> &'static str {
        match self {
            Self::Cheap => "cheap model",
            Self::Nuclei => "nuclei model",
        }
    }

    fn command(self, bench: &Bench<'_>, slide: &Slide, budget: u64) -> Result<Command> {
        let mut command = match self {
            Self::Cheap => bench.cheap_model(&slide.path),
            Self::Nuclei => nuclei(bench, &slide.path, &slide.square(bench, SQUARE.min(slide.height))?),
        };
        command.arg("--memory").arg(format!("{budget}MiB"));
        Ok(command)
    }
}

fn nuclei(bench: &Bench<'_>, slide: &Path, square: &Path) -> Command {
    let mut command = bench.segment();
    command.arg(slide).arg("-m").arg(bench.workspace.nnunet_model()).arg("-o").arg(bench.output());
    command.arg("--no-tta").arg("--roi").arg(square);
    command
}

pub(super) fn run(bench: &Bench<'_>) -> Result<()> {
    let (widths, budgets) = match bench.options.extent {
        Extent::Full => (&WIDTHS[..], &BUDGETS[..]),
        Extent::Quick => (&WIDTHS[..2], &BUDGETS[..1]),
    };
    let mut slides = Vec::new();
    for width in bench.options.sizes(widths) {
        slides.push(Slide::make(bench, width, Tiles::Repeated)?);
    }
    if bench.options.extent == Extent::Full {
        slides.push(Slide::make(bench, DISTINCT_WIDTH, Tiles::Distinct)?);
    }
    let mut report = bench.report("memory", TITLE);
    for subject in Subject::ALL {
        for &budget in budgets {
            one_budget(bench, &mut report, subject, &slides, budget)?;
        }
    }
    for slide in slides.iter().filter(|slide| slide.tiles == Tiles::Distinct) {
        let size = slide.bytes()? as f64 / (1 << 20) as f64;
        report.say("");
        report.at_least("size of the slide of distinct tiles, MiB", size, budgets[0] as f64);
    }
    if let Some(largest) = slides.iter().filter(|slide| slide.tiles == Tiles::Repeated).max_by_key(|slide| slide.width)
    {
        for subject in Subject::ALL {
            hard_limit(bench, &mut report, subject, largest, budgets[0])?;
        }
    }
    bench.clear()?;
    bench.finish(report)
}

/// Runs over all slides with one budget, their table, and what is claimed of them.
fn one_budget(bench: &Bench<'_>, report: &mut Report, subject: Subject, slides: &[Slide], budget: u64) -> Result<()> {
    let mut table = Table::new(&["slide", "peak MiB", "of budget", "RSS MiB", "strip px", "wall s", "CPU s", "Mpx/s"]);
    report.say(&format!("\n{}, --memory {budget}MiB", subject.name()));
    let mut peaks = Vec::new();
    let mut failed = 0;
    for slide in slides {
        let mut command = subject.command(bench, slide, budget)?;
        report.say_command(&command);
        let mut highest = 0;
        for _ in 0..bench.options.rounds.unwrap_or(1) {
            let run = bench.measure(&mut command)?;
            record(report, &command, subject, slide, budget, &run, None);
            failed += u32::from(!run.status.success());
            table.row(row(slide, budget, &run, &run.summary().unwrap_or_default()));
            highest = highest.max(run.peak.dirty);
        }
        peaks.push(highest);
    }
    report.say(&table.to_string());
    report.at_most("runs that failed", f64::from(failed), 0.0);
    let (Some(&largest), Some(&smallest)) = (peaks.iter().max(), peaks.iter().min()) else { return Ok(()) };
    // The peak of a run that failed says nothing.
    if failed == 0 {
        report.at_most("largest peak, MiB", largest as f64 / (1 << 20) as f64, budget as f64);
        if slides.len() > 1 {
            report.at_most("largest to smallest peak", largest as f64 / smallest as f64, RATIO);
        }
    }
    Ok(())
}

/// A run that must pass under a hard limit a little above the budget.
fn hard_limit(bench: &Bench<'_>, report: &mut Report, subject: Subject, slide: &Slide, budget: u64) -> Result<()> {
    let limit = budget * LIMIT_PERCENT / 100;
    let enforcer = bench.options.enforcer();
    let command = subject.command(bench, slide, budget)?;
    report.say(&format!(
        "\n{}, --memory {budget}MiB, under a hard limit of {limit} MiB by {}",
        subject.name(),
        enforcer.name()
    ));
    report.say_command(&command);
    let run = enforcer.limited(limit << 20, &command, |limited| {
        bench.clear()?;
        child::measure(limited)
    })?;
    record(report, &command, subject, slide, budget, &run, Some(json!({"mebibytes": limit, "by": enforcer.name()})));
    report.say(&format!(
        "{}: {}, peak {} MiB, {:.1} s",
        slide.name(),
        run.status,
        mebibytes(run.peak.dirty),
        run.wall.as_secs_f64()
    ));
    report.at_most("runs that failed under the limit", if run.status.success() { 0.0 } else { 1.0 }, 0.0);
    Ok(())
}

fn row(slide: &Slide, budget: u64, run: &Run, summary: &Value) -> Vec<String> {
    let wall = run.wall.as_secs_f64();
    let mut row = vec![
        slide.name(),
        mebibytes(run.peak.dirty),
        format!("{:.0} %", run.peak.dirty as f64 / (budget << 20) as f64 * 100.0),
        mebibytes(run.peak.resident),
        summary["memory_plan"]["strip_width"].to_string(),
        format!("{wall:.1}"),
        format!("{:.1}", run.cpu().as_secs_f64()),
    ];
    row.push(match run.status.code() {
        Some(0) => format!("{:.0}", slide.megapixels() / wall),
        _ => run.status.to_string(),
    });
    row
}

fn record(
    report: &mut Report,
    command: &Command,
    subject: Subject,
    slide: &Slide,
    budget: u64,
    run: &Run,
    limit: Option<Value>,
) {
    let record = json!({
        "command": report.shorten(command),
        "subject": subject.name(),
        "width": slide.width,
        "height": slide.height,
        "distinct_tiles": slide.tiles == Tiles::Distinct,
        "budget_bytes": budget << 20,
        "hard_limit": limit,
    });
    report.record_run(run, record);
}
