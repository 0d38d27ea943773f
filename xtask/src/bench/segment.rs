//! `cargo xtask bench segment`: a slide from file to mask, beside nnU-Net and beside the network alone.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::child::{self, Run, Spread};
use super::dialogue::Dialogue;
use super::report::{Relation, Report, Table};
use super::{Bench, Extent, python};
use crate::crosscheck::{NNUNET, NNUNET_FOLDER};
use crate::shell;

const TITLE: &str = "\
A slide from file to mask: CMU-1-Small-Region.svs by an nnU-Net checkpoint, microtome beside nnU-Net 2.8.1 and beside the network alone.

PlainConvUNet 2D, tiles of 128 x 128; no mirroring, step of half a tile, Gaussian window, every tile. microtome segments the slide, and its seconds are
those of the whole process; nnU-Net has the same pixels, as OpenSlide decodes them, in a TIFF, and its seconds are those of
predict_single_npy_array alone. The network alone makes as many passes over tiles as the run did, in the same batches and with as many threads.
Masks are compared with nnU-Net's: from that TIFF, and from the slide, which our decoder makes the same pixels of. To judge the differences: where
JPEG decoders differ by one level on 0.44 % of the samples, 0.23 % of the pixels of nnU-Net's own mask change (docs/formats.md). PyTorch's threads wait
for each other in every layer: where other programs want the processors, its times are many times as long and say nothing.";

/// Under the folder of real files.
const SLIDE: &str = "slides/svs/CMU-1-Small-Region.svs";
const ROUNDS: usize = 5;
/// Tiles per batch, of microtome and of the network alone.
const BATCH: usize = 4;
/// How many times nnU-Net's rate ours should be.
const RATE: f64 = 6.0;
/// What is aimed at beyond that.
const AIM: f64 = 8.0;
/// How many times as long as the network alone the run should take.
const OVERHEAD: f64 = 1.15;
/// Least Dice, and largest share of pixels that differ, from nnU-Net's mask of the same pixels, as `cargo xtask check --full` asks.
const DICE: f64 = 0.9995;
const DIFFERENT: f64 = 0.0001;

/// How microtome computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arithmetic {
    Fast,
    Exact,
}

impl Arithmetic {
    const ALL: [Self; 2] = [Self::Fast, Self::Exact];

    fn name(self) -> &'static str {
        match self {
            Self::Fast => "microtome",
            Self::Exact => "microtome --exact",
        }
    }

    /// By its name on the command line of `time_network`.
    fn word(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Exact => "exact",
        }
    }

    fn command(self, bench: &Bench<'_>, model: &Path, picture: &Path, mask: &Path) -> Command {
        let mut command = bench.segment();
        command.arg(picture).arg("-m").arg(model).arg("-o").arg(mask).args(["--overwrite", "--no-tta"]);
        command.args(["--tissue", "none", "--model-mpp", "native", "--batch"]).arg(BATCH.to_string());
        if self == Self::Exact {
            command.arg("--exact");
        }
        command
    }
}

/// What one arithmetic has shown.
#[derive(Debug)]
struct Entry {
    arithmetic: Arithmetic,
    /// The network alone.
    network: Dialogue,
    runs: Vec<Run>,
    /// Seconds of the network alone on as many tiles.
    alone: Vec<f64>,
}

pub(super) fn run(bench: &Bench<'_>) -> Result<()> {
    let data = bench.workspace.data().context("the nnU-Net folder that both run is under MICROTOME_DATA: set it")?;
    let model = data.join(NNUNET).join(NNUNET_FOLDER);
    let slide = data.join(SLIDE);
    let picture = bench.work.join("cmu-1-small-region.tif");
    if !picture.exists() {
        shell::run(python::script(bench, "lossless_copy.py")?.arg(&slide).arg(&picture))?;
    }
    let mut report = bench.report("segment", TITLE);
    let mask = |name: &str| bench.work.join(format!("segment-{name}"));
    let reference = mask("nnunet.png");
    let mut nnunet = python::script(bench, "bench_nnunet.py")?;
    nnunet.arg(&model).arg(&picture).arg(&reference).arg("--threads").arg(bench.threads());
    let from_slide = |a: Arithmetic| a.command(bench, &model, &slide, &mask(&format!("{}-slide.ome.zarr", a.word())));

    report.say("");
    report.say_command(&nnunet);
    let mut entries = Vec::new();
    for arithmetic in Arithmetic::ALL {
        report.say_command(&from_slide(arithmetic));
        entries.push(Entry { arithmetic, network: alone(bench, &model, arithmetic)?, runs: vec![], alone: vec![] });
    }
    let rounds = bench.options.rounds.unwrap_or(if bench.options.extent == Extent::Quick { 1 } else { ROUNDS });
    let mut theirs = Vec::new();
    for _ in 0..rounds {
        theirs.push(measure(&mut nnunet, "nnU-Net")?);
        for entry in &mut entries {
            let run = measure(&mut from_slide(entry.arithmetic), entry.arithmetic.name())?;
            entry.alone.push(passes(&mut entry.network, bench.options.threads, tiles(&run.summary()?)?)?);
            entry.runs.push(run);
        }
    }

    let megapixels = {
        let summary = entries[0].runs[0].summary()?;
        let side = |key: &str| summary["slide"][key].as_f64().with_context(|| format!("no {key} in the summary"));
        side("width")? * side("height")? / 1e6
    };
    let seconds = theirs.iter().map(nnunet_seconds).collect::<Result<Vec<f64>>>()?;
    let theirs_seconds = Spread::of(seconds.iter().copied());
    let mut table = Table::new(&[
        "program",
        "seconds",
        "fastest",
        "Mpx/s",
        "times nnU-Net's",
        "network alone s",
        "end to end / network",
    ]);
    table.row(vec![
        "nnU-Net".into(),
        format!("{:.2}", theirs_seconds.median),
        format!("{:.2}", theirs_seconds.min),
        format!("{:.3}", megapixels / theirs_seconds.median),
        "1".into(),
        "-".into(),
        "-".into(),
    ]);
    for entry in &entries {
        let (wall, alone) = (wall(entry), Spread::of(entry.alone.iter().copied()));
        table.row(vec![
            entry.arithmetic.name().into(),
            format!("{:.2}", wall.median),
            format!("{:.2}", wall.min),
            format!("{:.3}", megapixels / wall.median),
            format!("{:.2}", theirs_seconds.median / wall.median),
            format!("{:.2}", alone.median),
            format!("{:.3}", wall.median / alone.median),
        ]);
    }
    let tiles = tiles(&entries[0].runs[0].summary()?)?;
    report.say(&format!("\n{megapixels:.2} Mpx, {tiles} tiles, medians and minima of {rounds}:\n{table}"));

    let command = report.shorten(&nnunet);
    for (run, seconds) in theirs.iter().zip(&seconds) {
        report.record_run(run, json!({ "command": command, "program": "nnU-Net", "seconds": seconds }));
    }
    for entry in &entries {
        let command = report.shorten(&from_slide(entry.arithmetic));
        for (run, alone) in entry.runs.iter().zip(&entry.alone) {
            let record =
                json!({ "command": command, "program": entry.arithmetic.name(), "network_alone_seconds": alone });
            report.record_run(run, record);
        }
    }

    let mut masks = Table::new(&["mask against nnU-Net's", "pixels that differ", "Dice"]);
    let mut claims = Vec::new();
    for arithmetic in Arithmetic::ALL {
        let same = mask(&format!("{}-picture.ome.zarr", arithmetic.word()));
        measure(&mut arithmetic.command(bench, &model, &picture, &same), arithmetic.name())?;
        let slide = mask(&format!("{}-slide.ome.zarr", arithmetic.word()));
        for (source, path) in [("same pixels", same), ("from the slide", slide)] {
            let (equal, dice) = python::compare(bench, &path, &reference)?;
            let name = format!("{}, {source}", arithmetic.name());
            masks.row(vec![name.clone(), format!("{:.4} %", (1.0 - equal) * 100.0), format!("{dice:.6}")]);
            report.record("mask", json!({ "mask": name, "different": 1.0 - equal, "dice": dice }));
            claims.push((name, 1.0 - equal, dice));
        }
    }
    report.say(&format!("\n{masks}\n"));
    for (name, different, dice) in claims {
        report.at_most(&format!("{name}: share of pixels that differ from nnU-Net's"), different, DIFFERENT);
        report.at_least(&format!("{name}: Dice against nnU-Net's mask"), dice, DICE);
    }
    let runs = theirs.iter().chain(entries.iter().flat_map(|entry| &entry.runs));
    judge(&mut report, &entries[0], theirs_seconds, runs.map(|run| run.others).fold(0.0, f64::max));
    for entry in entries {
        entry.network.end()?;
    }
    bench.finish(report)
}

/// Whether the default is as fast as is aimed at, by medians. On a busy machine nothing can be said of several threads.
fn judge(report: &mut Report, fast: &Entry, theirs: Spread, others: f64) {
    let (wall, alone) = (wall(fast), Spread::of(fast.alone.iter().copied()));
    let (times, overhead) = (theirs.median / wall.median, wall.median / alone.median);
    if others > super::report::QUIET {
        report.say(&format!(
            "-       times nnU-Net's rate: {times:.2}, end to end {overhead:.2} times the network alone, on a busy machine, which says \
             nothing; targets {RATE} and {OVERHEAD}"
        ));
        return;
    }
    report.target("times nnU-Net's rate", times, Relation::AtLeast, RATE);
    report.target("times nnU-Net's rate, as aimed at", times, Relation::AtLeast, AIM);
    report.target("end to end, times the network alone", overhead, Relation::AtMost, OVERHEAD);
}

/// Seconds of whole processes.
fn wall(entry: &Entry) -> Spread {
    Spread::of(entry.runs.iter().map(|run| run.wall.as_secs_f64()))
}

fn measure(command: &mut Command, name: &str) -> Result<Run> {
    let run = child::measure(command)?;
    ensure!(run.status.success(), "{name} failed ({})", run.status);
    Ok(run)
}

fn nnunet_seconds(run: &Run) -> Result<f64> {
    run.summary()?["seconds"].as_f64().context("nnU-Net said no seconds")
}

/// How many times a tile went through the network.
fn tiles(summary: &Value) -> Result<usize> {
    let number = |key: &str| summary["tiles"][key].as_u64().with_context(|| format!("no tiles.{key} in the summary"));
    Ok((number("run")? + number("repeated")?) as usize)
}

/// The network alone, ready and warm.
fn alone(bench: &Bench<'_>, model: &Path, arithmetic: Arithmetic) -> Result<Dialogue> {
    let tile = tile(bench)?;
    let (mut network, about, _) =
        Dialogue::start(bench.network(model, &tile).args(["--arithmetic", arithmetic.word()]))?;
    ensure!(about["unsupported"].is_null(), "the network cannot be run: {}", about["unsupported"]);
    network.run(bench.options.threads, BATCH, 1)?;
    Ok(network)
}

/// A tile for a network of nnunet-v2-plain's size: a pass takes as long whatever it shows.
fn tile(bench: &Bench<'_>) -> Result<PathBuf> {
    const SAMPLES: usize = 128 * 128 * 3;
    let path = bench.work.join("segment-tile.rgb");
    let samples: Vec<u8> = (0..SAMPLES).map(|i| (i * 37 % 251) as u8).collect();
    std::fs::write(&path, samples).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Seconds of passes over so many tiles.
fn passes(network: &mut Dialogue, threads: usize, tiles: usize) -> Result<f64> {
    let mut milliseconds = network.run(threads, BATCH, tiles / BATCH)?;
    if !tiles.is_multiple_of(BATCH) {
        milliseconds.extend(network.run(threads, tiles % BATCH, 1)?);
    }
    Ok(milliseconds.iter().sum::<f64>() / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_that_were_run_again_count() {
        let summary = json!({"tiles": {"grid": 40, "run": 30, "skipped": 10, "repeated": 4}});
        assert_eq!(tiles(&summary).unwrap(), 34);
        assert!(tiles(&json!({"tiles": {"run": 1}})).is_err());
    }

    #[test]
    fn as_many_tiles_are_passed_as_the_run_had() {
        // Answers a question for COUNT passes with the tiles of each, as milliseconds.
        let script = r#"echo '{}'; while read -r _ _ batch count; do
            list=$batch; i=1; while [ $i -lt $count ]; do list=$list,$batch; i=$((i + 1)); done
            echo "{\"milliseconds\": [$list]}"; done"#;
        let (mut network, ..) = Dialogue::start(Command::new("sh").args(["-c", script])).unwrap();
        for tiles in [3 * BATCH, 3 * BATCH + 1, 4 * BATCH - 1] {
            assert_eq!(passes(&mut network, 2, tiles).unwrap(), tiles as f64 / 1e3);
        }
        network.end().unwrap();
    }
}
