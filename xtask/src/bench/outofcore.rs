//! `cargo xtask bench outofcore`: microtome beside nnU-Net and MONAI, the same checkpoint on the same pixels.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::child::{Run, Spread, alternate};
use super::report::{Report, Table, mebibytes};
use super::{Bench, python};
use crate::crosscheck::{NNUNET, NNUNET_FOLDER};
use crate::shell;

const TITLE: &str = "\
Peak memory and time against the side of the picture: microtome, nnU-Net's nnUNetPredictor and MONAI's sliding_window_inference.

The same nnU-Net checkpoint (PlainConvUNet 2D, tiles of 128 x 128) on the same pixels, repeats of the demo slide in a lossless tiled TIFF;
no mirroring, step of half a tile, Gaussian window, every tile. Each run is a process of its own. Memory is anonymous memory
plus dirty file pages, sampled from outside every 10 ms; `before` is what the process held when its libraries and the network were
loaded, before it read a pixel. `seconds` are those of the segmentation itself: for the Python programs without imports, loading of the
network, and reading and writing of pictures; for microtome the whole process. Dice and equal pixels are against nnU-Net's mask. MONAI
lays its windows in fixed steps from the corner and pushes the last one back, where nnU-Net spreads them evenly: its mask differs by that.
It runs 4 windows at a time, as microtome does; nnU-Net runs one. PyTorch's threads wait for each other in every layer: where other
programs want the processors too, its times are many times as long and say nothing.";

const SIDES: [u64; 3] = [2048, 4096, 8192];
/// Of microtome, in MiB.
const BUDGET: u64 = 512;
/// Least Dice between the masks of nnU-Net and of microtome with `--exact`: they are the same work.
const DICE: f64 = 0.999;

/// What segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    NnUnet,
    Monai,
    Exact,
    Microtome,
}

impl Program {
    /// The one that masks are compared with comes first.
    const ALL: [Self; 4] = [Self::NnUnet, Self::Monai, Self::Exact, Self::Microtome];

    fn name(self) -> &'static str {
        match self {
            Self::NnUnet => "nnU-Net",
            Self::Monai => "MONAI",
            Self::Exact => "microtome --exact",
            Self::Microtome => "microtome",
        }
    }

    /// Where its mask goes.
    fn mask(self, bench: &Bench<'_>, side: u64) -> PathBuf {
        let name = match self {
            Self::NnUnet => "nnunet.png",
            Self::Monai => "monai.png",
            Self::Exact => "exact.ome.zarr",
            Self::Microtome => "microtome.ome.zarr",
        };
        bench.work.join(format!("masks-{side}-{name}"))
    }

    fn command(self, bench: &Bench<'_>, model: &Path, picture: &Path, mask: &Path) -> Result<Command> {
        let python = |script: &str| -> Result<Command> {
            let mut command = python::script(bench, script)?;
            command.arg(model).arg(picture).arg(mask).arg("--threads").arg(bench.threads());
            Ok(command)
        };
        let microtome = || {
            let mut command = bench.segment();
            command.arg(picture).arg("-m").arg(model).arg("-o").arg(mask).args(["--overwrite", "--no-tta"]);
            command.args(["--tissue", "none", "--model-mpp", "native", "--memory"]).arg(format!("{BUDGET}MiB"));
            command
        };
        match self {
            Self::NnUnet => python("bench_nnunet.py"),
            Self::Monai => python("bench_monai.py"),
            Self::Microtome => Ok(microtome()),
            Self::Exact => {
                let mut command = microtome();
                command.arg("--exact");
                Ok(command)
            }
        }
    }

    /// Seconds of the segmentation.
    fn seconds(self, run: &Run) -> Result<f64> {
        match self {
            Self::NnUnet | Self::Monai => {
                run.summary()?["seconds"].as_f64().context("a Python program said no seconds")
            }
            Self::Exact | Self::Microtome => Ok(run.wall.as_secs_f64()),
        }
    }
}

pub(super) fn run(bench: &Bench<'_>) -> Result<()> {
    let data =
        bench.workspace.data().context("the nnU-Net folder that all three run is under MICROTOME_DATA: set it")?;
    let model = data.join(NNUNET).join(NNUNET_FOLDER);
    let sides = bench.options.sizes(&SIDES);
    let mut report = bench.report("outofcore", TITLE);
    let mut table = Table::new(&[
        "side",
        "program",
        "peak MiB",
        "before",
        "RSS MiB",
        "seconds",
        "process s",
        "CPU s",
        "Mpx/s",
        "Dice",
        "equal %",
    ]);
    let mut exact_dice = f64::INFINITY;
    let mut largest = 0;
    for &side in &sides {
        let picture = picture(bench, side)?;
        let rounds = bench.options.rounds.unwrap_or(1);
        let runs = alternate(rounds, &Program::ALL, |program| {
            let mut command = program.command(bench, &model, &picture, &program.mask(bench, side))?;
            let run = super::child::measure(&mut command)?;
            ensure!(run.status.success(), "{} failed on {side} x {side} pixels ({})", program.name(), run.status);
            Ok(run)
        })?;
        for (program, runs) in Program::ALL.into_iter().zip(&runs) {
            let mask = program.mask(bench, side);
            let (equal, dice) = python::compare(bench, &mask, &Program::NnUnet.mask(bench, side))?;
            match program {
                Program::Exact => exact_dice = exact_dice.min(dice),
                Program::Microtome => {
                    largest = runs.iter().map(|run| run.peak.dirty).max().map_or(largest, |peak| largest.max(peak));
                }
                Program::NnUnet | Program::Monai => {}
            }
            let seconds = runs.iter().map(|run| program.seconds(run)).collect::<Result<Vec<_>>>()?;
            let seconds = Spread::of(seconds).median;
            table.row(row(side, program, runs, seconds, equal, dice)?);
            let command = program.command(bench, &model, &picture, &mask)?;
            for run in runs {
                record(&mut report, &command, side, program, run, equal, dice)?;
            }
        }
    }
    if let Some(&side) = sides.first() {
        report.say("");
        for program in Program::ALL {
            let picture = picture(bench, side)?;
            report.say_command(&program.command(bench, &model, &picture, &program.mask(bench, side))?);
        }
    }
    report.say(&format!("\n{table}\n"));
    report.at_least("least Dice of microtome --exact against nnU-Net", exact_dice, DICE);
    report.at_most("largest peak of microtome, MiB", largest as f64 / (1 << 20) as f64, BUDGET as f64);
    let written = bench.finish(report);
    plot(bench)?;
    written
}

/// The picture of so many pixels a side.
fn picture(bench: &Bench<'_>, side: u64) -> Result<PathBuf> {
    let path = bench.work.join(format!("picture-{side}.tif"));
    if !path.exists() {
        let mut command = python::script(bench, "bench_picture.py")?;
        shell::run(command.arg(bench.workspace.demo_slide()?).arg(side.to_string()).arg(&path))?;
    }
    Ok(path)
}

fn row(side: u64, program: Program, runs: &[Run], seconds: f64, equal: f64, dice: f64) -> Result<Vec<String>> {
    let median = |figure: fn(&Run) -> f64| Spread::of(runs.iter().map(figure)).median;
    let most = |figure: fn(&Run) -> u64| mebibytes(runs.iter().map(figure).max().unwrap_or(0));
    let before = match program {
        Program::NnUnet | Program::Monai => {
            let summary = runs[0].summary()?;
            mebibytes(summary["before_bytes"].as_u64().context("a Python program said no before_bytes")?)
        }
        Program::Exact | Program::Microtome => "-".into(),
    };
    Ok(vec![
        side.to_string(),
        program.name().into(),
        most(|run| run.peak.dirty),
        before,
        most(|run| run.peak.resident),
        format!("{seconds:.1}"),
        format!("{:.1}", median(|run| run.wall.as_secs_f64())),
        format!("{:.1}", median(|run| run.cpu().as_secs_f64())),
        format!("{:.2}", (side * side) as f64 / 1e6 / seconds),
        format!("{dice:.5}"),
        format!("{:.4}", equal * 100.0),
    ])
}

fn record(
    report: &mut Report,
    command: &Command,
    side: u64,
    program: Program,
    run: &Run,
    equal: f64,
    dice: f64,
) -> Result<()> {
    let record = json!({
        "command": report.shorten(command),
        "program": program.name(),
        "side": side,
        "seconds": program.seconds(run)?,
        "dice": dice,
        "equal": equal,
    });
    report.record_run(run, record);
    Ok(())
}

/// Draws the records of the report.
fn plot(bench: &Bench<'_>) -> Result<()> {
    let out = bench.options.out.clone().unwrap_or_else(|| bench.workspace.root.join("docs/benchmarks"));
    let mut command = python::script(bench, "plot_outofcore.py")?;
    shell::run(command.arg(out.join("outofcore.jsonl")).arg(out.join("outofcore.svg")))
}
