//! `cargo xtask bench batch`: twelve slides, one after the other, two at once, and with TIAToolbox.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::child::{Run, Spread, alternate};
use super::report::{Relation, Report, Table, mebibytes};
use super::slide::{Slide, Tiles};
use super::{Bench, Extent};
use crate::crosscheck::{NNUNET, NNUNET_FOLDER};
use crate::venv::Venv;
use crate::{shell, tree};

const TITLE: &str = "\
Twelve slides by an nnU-Net checkpoint: microtome one slide after the other, two at once (batch --jobs 2), and TIAToolbox's SemanticSegmentor.

PlainConvUNet 2D, tiles of 128 x 128, step of half a tile, no mirroring, every tile, level 0 as it is. All programs have the same threads, and each is one
process for all slides; seconds are those of the whole process. microtome weights tiles by a Gaussian and takes statistics of each slide in a first
pass; TIAToolbox averages patches without weights, has fixed numbers in place of the statistics, and keeps probabilities, so that its masks are others
and are not compared. Masks of microtome are compared byte by byte. PyTorch's threads wait for each other in every layer: where other programs
want the processors, its times are many times as long and say nothing.";

/// Of microtome, in MiB, for all slides that run at once.
const BUDGET: u64 = 2048;
/// Tiles per call of the network, of both programs.
const BATCH: usize = 4;
const ROUNDS: usize = 3;
/// Widths of the slides, in pixels; each four times, five to four.
const WIDTHS: [u64; 3] = [1536, 2048, 2560];
const EACH: usize = 4;
/// How much more two slides at once should get done than one.
const GAIN: f64 = 1.0;

/// What runs over the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    /// `microtome segment` with all slides: no batch at all.
    Segment,
    /// `microtome batch --jobs N`.
    Batch(usize),
    TiaToolbox,
}

impl Program {
    fn name(self) -> String {
        match self {
            Self::Segment => "microtome segment A B ..".into(),
            Self::Batch(jobs) => format!("microtome batch --jobs {jobs}"),
            Self::TiaToolbox => "TIAToolbox".into(),
        }
    }

    fn out(self, bench: &Bench<'_>) -> PathBuf {
        let name = match self {
            Self::Segment => "segment".into(),
            Self::Batch(jobs) => format!("jobs-{jobs}"),
            Self::TiaToolbox => "tiatoolbox".into(),
        };
        bench.work.join("batch").join(name)
    }

    /// Where it puts the mask of a slide.
    fn mask(self, bench: &Bench<'_>, id: &str) -> PathBuf {
        match self {
            Self::Batch(_) => self.out(bench).join(id).join("mask.ome.zarr"),
            Self::Segment | Self::TiaToolbox => self.out(bench).join(format!("{id}.ome.zarr")),
        }
    }
}

/// The slides, and who may run over them.
struct Archive<'b> {
    bench: &'b Bench<'b>,
    model: PathBuf,
    manifest: PathBuf,
    slides: Vec<(String, PathBuf)>,
    megapixels: f64,
    /// A Python with TIAToolbox, if it can be had.
    tiatoolbox: Option<PathBuf>,
}

impl Archive<'_> {
    fn command(&self, program: Program) -> Result<Command> {
        let bench = self.bench;
        let out = program.out(bench);
        let flags = ["--no-tta", "--tissue", "none", "--model-mpp", "native"];
        let paths = self.slides.iter().map(|(_, path)| path);
        Ok(match program {
            Program::Segment => {
                let mut command = bench.segment();
                command.args(paths).arg("-m").arg(&self.model).arg("-o").arg(out).args(flags);
                command.arg("--memory").arg(format!("{BUDGET}MiB")).arg("--batch").arg(BATCH.to_string());
                command
            }
            Program::Batch(jobs) => {
                let mut command = bench.microtome("batch");
                command.arg(&self.manifest).arg("-m").arg(&self.model).arg("-o").arg(out).args(flags);
                command.arg("--memory").arg(format!("{BUDGET}MiB")).arg("--batch").arg(BATCH.to_string());
                command.arg("--jobs").arg(jobs.to_string());
                command
            }
            Program::TiaToolbox => {
                let mut command = Command::new(self.tiatoolbox.as_ref().context("there is no TIAToolbox")?);
                command.arg(bench.workspace.root.join("tests/python/bench_tiatoolbox.py"));
                command.arg(&self.model).arg(out).args(["--threads", &bench.threads()]);
                command.args(["--batch", &BATCH.to_string()]).args(paths);
                command
            }
        })
    }

    fn measure(&self, program: Program) -> Result<Run> {
        let out = program.out(self.bench);
        if out.exists() {
            std::fs::remove_dir_all(&out).with_context(|| out.display().to_string())?;
        }
        let run = super::child::measure(&mut self.command(program)?)?;
        ensure!(run.status.success(), "{} failed ({})", program.name(), run.status);
        Ok(run)
    }

    /// Whether the masks of two runs are the same, byte by byte.
    fn compare(&self, a: Program, b: Program) -> Result<()> {
        for (id, _) in &self.slides {
            let [one, other] = [a, b].map(|program| tree::files(&program.mask(self.bench, id)));
            if one? != other? {
                bail!("{} and {} give different masks of {id}", a.name(), b.name());
            }
        }
        Ok(())
    }
}

pub(super) fn run(bench: &Bench<'_>) -> Result<()> {
    let data = bench.workspace.data().context("the nnU-Net folder that all run is under MICROTOME_DATA: set it")?;
    let archive = prepare(bench, data.join(NNUNET).join(NNUNET_FOLDER))?;
    let mut report = bench.report("batch", TITLE);
    let mut programs = vec![Program::Segment, Program::Batch(1), Program::Batch(2)];
    if archive.tiatoolbox.is_some() {
        programs.push(Program::TiaToolbox);
    }
    report.say("");
    for &program in &programs {
        report.say_command(&archive.command(program)?);
    }
    let rounds = bench.options.rounds.unwrap_or(if bench.options.extent == Extent::Quick { 1 } else { ROUNDS });
    let runs = alternate(rounds, &programs, |&program| archive.measure(program))?;
    for other in [Program::Batch(1), Program::Batch(2)] {
        archive.compare(Program::Segment, other)?;
    }

    let mut table =
        Table::new(&["program", "seconds", "fastest", "Mpx/s", "slides/h", "times one by one", "CPU s", "peak MiB"]);
    let wall = |runs: &[Run]| Spread::of(runs.iter().map(|run| run.wall.as_secs_f64()));
    let one_by_one = wall(&runs[1]).median;
    for (program, runs) in programs.iter().zip(&runs) {
        let seconds = wall(runs);
        let peak = runs.iter().map(|run| run.peak.dirty).max().unwrap_or(0);
        table.row(vec![
            program.name(),
            format!("{:.2}", seconds.median),
            format!("{:.2}", seconds.min),
            format!("{:.3}", archive.megapixels / seconds.median),
            format!("{:.0}", archive.slides.len() as f64 * 3600.0 / seconds.median),
            format!("{:.3}", one_by_one / seconds.median),
            format!("{:.1}", Spread::of(runs.iter().map(|run| run.cpu().as_secs_f64())).median),
            mebibytes(peak),
        ]);
        for run in runs {
            record(&mut report, &archive, *program, run)?;
        }
    }
    report.say(&format!(
        "\n{} slides, {:.1} Mpx, medians and minima of {rounds}:\n{table}\n",
        archive.slides.len(),
        archive.megapixels
    ));
    if archive.tiatoolbox.is_none() {
        report.say("without TIAToolbox, which could not be installed");
    }
    report.say("masks of all three ways of microtome are the same, byte by byte");
    let most = runs[..3].iter().flatten().map(|run| run.peak.dirty).max().unwrap_or(0);
    report.at_most("largest peak of microtome, MiB", most as f64 / (1 << 20) as f64, BUDGET as f64);
    let others = runs.iter().flatten().map(|run| run.others).fold(0.0, f64::max);
    let gain = one_by_one / wall(&runs[2]).median;
    if others > super::report::QUIET {
        report.say(&format!(
            "-       two at once get {gain:.3} times as much done, on a busy machine, which says nothing"
        ));
    } else {
        report.target("two at once, times one by one", gain, Relation::AtLeast, GAIN);
    }
    bench.finish(report)
}

fn record(report: &mut Report, archive: &Archive<'_>, program: Program, run: &Run) -> Result<()> {
    let command = report.shorten(&archive.command(program)?);
    report.note_others(run.others);
    report.record(
        "run",
        json!({
            "command": command,
            "program": program.name(),
            "slides": archive.slides.len(),
            "megapixels": archive.megapixels,
            "run": run.record(),
        }),
    );
    Ok(())
}

/// Makes the slides and their manifest.
fn prepare<'b>(bench: &'b Bench<'b>, model: PathBuf) -> Result<Archive<'b>> {
    let folder = bench.work.join("batch");
    std::fs::create_dir_all(folder.join("slides")).with_context(|| folder.display().to_string())?;
    let (mut slides, mut megapixels, mut manifest) = (Vec::new(), 0.0, "slide,id\n".to_owned());
    for width in bench.options.sizes(&WIDTHS) {
        let slide = Slide::make(bench, width, Tiles::Distinct)?;
        for copy in 0..EACH {
            let id = format!("{width}-{copy}");
            let path = folder.join("slides").join(format!("{id}.svs"));
            // A copy, so that no slide is in the cache because it was another one.
            std::fs::copy(&slide.path, &path).with_context(|| path.display().to_string())?;
            writeln!(manifest, "slides/{id}.svs,{id}")?;
            slides.push((id, path));
            megapixels += slide.megapixels();
        }
    }
    let path = folder.join("manifest.csv");
    std::fs::write(&path, manifest).with_context(|| path.display().to_string())?;
    Ok(Archive { bench, model, manifest: path, slides, megapixels, tiatoolbox: tiatoolbox(bench) })
}

/// A Python with TIAToolbox: the one that was given, or that of an environment that is made here. Nothing depends on it.
fn tiatoolbox(bench: &Bench<'_>) -> Option<PathBuf> {
    let python = match &bench.options.python {
        Some(python) => python.clone(),
        None => match Venv::prepare(bench.workspace, "venv-tiatoolbox", "requirements-tiatoolbox.txt") {
            Ok(venv) => venv.python().get_program().into(),
            Err(error) => {
                eprintln!("without TIAToolbox: {error:#}");
                return None;
            }
        },
    };
    let found = shell::succeeds(Command::new(&python).args(["-c", "import tiatoolbox.models"]));
    if !found {
        eprintln!("without TIAToolbox: {} cannot import it", python.display());
    }
    found.then_some(python)
}
