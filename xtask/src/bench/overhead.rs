//! `cargo xtask bench overhead`: what everything but the network costs.

use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Bench;
use super::child::{Run, Spread, alternate};
use super::report::Table;
use super::slide::{Slide, Tiles};

const TITLE: &str = "\
The cost of everything but the network: a slide of which a third is tissue, segmented by a formula of the pixel.

Fixed normalisation reads the tissue once; z-score statistics, as nnU-Net's models of pictures take them, are one more pass over the
whole slide. Mpx/s are those of the slide's level 0. Busy seconds of a stage are summed over its threads, as the program counts them;
medians over the runs, which alternate.";

const WIDTH: u64 = 100_000;
const ROUNDS: usize = 3;
const BUDGET: &str = "2GiB";
/// Stages of the summary.
const STAGES: [&str; 6] = ["tissue", "statistics", "reading", "inference", "blending", "writing"];
/// The variants, and the flags that make them.
const VARIANTS: [(&str, &[&str]); 2] = [("fixed normalisation", &[]), ("z-score statistics", &["--statistics"])];

pub(super) fn run(bench: &Bench<'_>) -> Result<()> {
    let mut report = bench.report("overhead", TITLE);
    for width in bench.options.sizes(&[WIDTH]) {
        let slide = Slide::make(bench, width, Tiles::Repeated)?;
        let command = |flags: &[&str]| -> Command {
            let mut command = bench.cheap_model(&slide.path);
            command.args(["--memory", BUDGET]).args(flags);
            command
        };
        report.say("");
        for (_, flags) in VARIANTS {
            report.say_command(&command(flags));
        }
        let rounds = bench.options.rounds.unwrap_or(ROUNDS);
        let runs = alternate(rounds, &VARIANTS, |(name, flags)| {
            let run = bench.measure(&mut command(flags))?;
            ensure!(run.status.success(), "the run with {name} failed ({})", run.status);
            Ok(run)
        })?;
        let headings = ["wall s", "fastest s", "Mpx/s", "fastest Mpx/s", "CPU s"];
        let headings: Vec<&str> = ["slide"].into_iter().chain(headings).collect();
        let mut times = Table::new(&headings);
        let mut stages =
            Table::new(&["busy seconds", STAGES[0], STAGES[1], STAGES[2], STAGES[3], STAGES[4], STAGES[5]]);
        for ((name, flags), runs) in VARIANTS.iter().zip(&runs) {
            let summaries = runs.iter().map(Run::summary).collect::<Result<Vec<Value>>>()?;
            let wall = Spread::of(runs.iter().map(|run| run.wall.as_secs_f64()));
            let cpu = Spread::of(runs.iter().map(|run| run.cpu().as_secs_f64()));
            let label = format!("{}, {name}", slide.name());
            times.row(vec![
                label.clone(),
                format!("{:.1}", wall.median),
                format!("{:.1}", wall.min),
                format!("{:.0}", slide.megapixels() / wall.median),
                format!("{:.0}", slide.megapixels() / wall.min),
                format!("{:.1}", cpu.median),
            ]);
            let busy = |stage: &str| {
                Spread::of(summaries.iter().map(|s| s["stages"][stage]["busy"].as_f64().unwrap_or(f64::NAN)))
            };
            let busy = STAGES.map(|stage| format!("{:.1}", busy(stage).median));
            stages.row(std::iter::once(label).chain(busy).collect());
            for run in runs {
                let record = json!({
                    "command": report.shorten(&command(flags)),
                    "variant": name,
                    "width": slide.width,
                    "height": slide.height,
                });
                report.record_run(run, record);
            }
        }
        report.say(&format!("\nMedians and minima of {rounds}:\n{times}\n\n{stages}"));
    }
    bench.clear()?;
    bench.finish(report)
}
