//! `cargo xtask bench seams`: what the seams between strips cost, computed twice or kept in a scratch file.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::Bench;
use super::child::{Run, Spread, alternate};
use super::report::{Table, mebibytes};
use super::slide::{Slide, Tiles};

const TITLE: &str = "\
Seams between strips: tiles that lie on one are run once for each strip, or their logits are kept in a scratch file (--scratch).

The model tests/models/nnunet-nuclei at its 0.5 um per pixel over the tissue of a slide, without mirroring, with the least memory that both ways can
do with, so that strips are one shard wide and seams are as many as can be. Bytes are those that the process handed to the file
system, its mask included; runs alternate.";

const WIDTH: u64 = 20_000;
const ROUNDS: usize = 3;

/// How seams are closed.
#[derive(Debug, Clone, Copy)]
enum Way {
    Twice,
    Scratch,
}

impl Way {
    const ALL: [Self; 2] = [Self::Twice, Self::Scratch];

    fn name(self) -> &'static str {
        match self {
            Self::Twice => "computed twice",
            Self::Scratch => "scratch file",
        }
    }

    fn command(self, bench: &Bench<'_>, slide: &Slide, memory: &str) -> Command {
        let mut command = bench.segment();
        command.arg(&slide.path).arg("-m").arg(bench.workspace.nnunet_model()).arg("-o").arg(bench.output());
        command.args(["--no-tta", "--memory", memory]);
        if let Self::Scratch = self {
            // Beside the mask: the folder is emptied before each run.
            command.arg("--scratch").arg(bench.output().with_file_name("scratch"));
        }
        command
    }
}

pub(super) fn run(bench: &Bench<'_>) -> Result<()> {
    let mut report = bench.report("seams", TITLE);
    for width in bench.options.sizes(&[WIDTH]) {
        let slide = Slide::make(bench, width, Tiles::Repeated)?;
        let mut memory = 0;
        for way in Way::ALL {
            memory = memory.max(least_memory(bench, &slide, way)?);
        }
        let memory = format!("{memory}MiB");
        report.say("");
        for way in Way::ALL {
            report.say_command(&way.command(bench, &slide, &memory));
        }
        let rounds = bench.options.rounds.unwrap_or(ROUNDS);
        let runs = alternate(rounds, &Way::ALL, |way| {
            let mut command = way.command(bench, &slide, &memory);
            bench.clear()?;
            std::fs::create_dir(bench.output().with_file_name("scratch"))?;
            let run = super::child::measure(&mut command)?;
            ensure!(run.status.success(), "the run with seams {} failed ({})", way.name(), run.status);
            Ok(run)
        })?;
        let mut table = Table::new(&[
            "seams",
            "wall s",
            "fastest s",
            "CPU s",
            "written MiB",
            "peak MiB",
            "strip px",
            "tiles run",
            "run again",
        ]);
        for (way, runs) in Way::ALL.into_iter().zip(&runs) {
            let summaries = runs.iter().map(Run::summary).collect::<Result<Vec<Value>>>()?;
            let wall = Spread::of(runs.iter().map(|run| run.wall.as_secs_f64()));
            let cpu = Spread::of(runs.iter().map(|run| run.cpu().as_secs_f64()));
            let most = |figure: fn(&Run) -> u64| mebibytes(runs.iter().map(figure).max().unwrap_or(0));
            table.row(vec![
                way.name().into(),
                format!("{:.1}", wall.median),
                format!("{:.1}", wall.min),
                format!("{:.1}", cpu.median),
                most(|run| run.usage.written),
                most(|run| run.peak.dirty),
                summaries[0]["memory_plan"]["strip_width"].to_string(),
                summaries[0]["tiles"]["run"].to_string(),
                summaries[0]["tiles"]["repeated"].to_string(),
            ]);
            let command = report.shorten(&way.command(bench, &slide, &memory));
            for run in runs {
                let record = json!({
                    "command": command,
                    "way": way.name(),
                    "width": slide.width,
                    "height": slide.height,
                });
                report.record_run(run, record);
            }
        }
        report.say(&format!("\n{}, --memory {memory}, medians and minima of {rounds}:\n{table}", slide.name()));
    }
    bench.clear()?;
    bench.finish(report)
}

/// The least memory, in MiB, with which a run is not refused: what the refusal of a run with too little advises.
fn least_memory(bench: &Bench<'_>, slide: &Slide, way: Way) -> Result<u64> {
    bench.clear()?;
    let mut command = way.command(bench, slide, "1MiB");
    let output = command.stdin(Stdio::null()).output().context("cannot start microtome")?;
    let error = String::from_utf8_lossy(&output.stderr);
    if output.status.code() != Some(6) {
        bail!("a run in 1 MiB was not refused for its memory ({}): {}", output.status, error.trim());
    }
    advised(&error).with_context(|| format!("the refusal names no --memory that would do: {}", error.trim()))
}

/// The number in `--memory 123MiB`.
fn advised(refusal: &str) -> Option<u64> {
    refusal.split("--memory ").skip(1).find_map(|rest| rest.split_once("MiB")?.0.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_of_a_refusal_is_found() {
        let refusal =
            "error: the run needs 122.0 MiB, --memory allows 1.0 MiB: allow it with --memory 123MiB, or --batch 1";
        assert_eq!(advised(refusal), Some(123));
        assert_eq!(advised("error: no such file"), None);
    }
}
