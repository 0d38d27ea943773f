//! A contender that runs, and what it has shown.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::SLOW;
use super::accuracy::Logits;
use super::contender::{Contender, Program};
use super::network::Made;
use crate::bench::Bench;
use crate::bench::child::Spread;
use crate::bench::dialogue::{Dialogue, milliseconds};
use crate::bench::sampler::Peak;

/// At least how long a turn takes, in milliseconds, unless a single pass takes longer.
const TURN: f64 = 1000.0;
/// Passes of a turn at most.
const PASSES: f64 = 200.0;

/// Passes after the first that show how long one takes and how much memory.
const AGAIN: usize = 2;

/// How passes are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mode {
    pub(super) threads: usize,
    /// Tiles that a pass is over.
    pub(super) batch: usize,
}

impl Mode {
    /// One thread; several, which share a tile; as many tiles as threads.
    pub(super) fn all(threads: usize) -> Vec<Self> {
        let several = [Self { threads, batch: 1 }, Self { threads, batch: threads }];
        let several = several.into_iter().filter(|_| threads > 1);
        [Self { threads: 1, batch: 1 }].into_iter().chain(several).collect()
    }

    pub(super) fn title(self) -> String {
        match self {
            Self { threads: 1, .. } => "1 thread".into(),
            Self { threads, batch: 1 } => format!("{threads} threads, 1 tile"),
            Self { threads, batch } => format!("{threads} threads, {batch} tiles at once"),
        }
    }
}

/// Times in one mode.
#[derive(Debug, Clone, Default)]
pub(super) struct Times {
    /// Milliseconds of the very first pass, over all its tiles.
    pub(super) first: f64,
    /// About how many milliseconds a pass takes.
    estimate: f64,
    /// Milliseconds per tile of each pass of each round.
    pub(super) rounds: Vec<Vec<f64>>,
}

impl Times {
    pub(super) fn passes(&self) -> usize {
        self.rounds.iter().map(Vec::len).sum()
    }

    /// How many passes a turn has.
    fn turn(&self) -> usize {
        (TURN / self.estimate).ceil().clamp(1.0, PASSES) as usize
    }
}

/// A contender that runs.
#[derive(Debug)]
pub(super) struct Player {
    pub(super) contender: Contender,
    pub(super) dialogue: Dialogue,
    pub(super) command: Command,
    /// What it says that it is.
    pub(super) identity: String,
    /// Until it was ready.
    pub(super) loading: Peak,
    /// In its first passes, with one thread over one tile.
    pub(super) pass: Peak,
    /// Bytes of weights and of a pass over one tile, by our own plan.
    pub(super) planned: Option<u64>,
    pub(super) logits: Logits,
    pub(super) modes: Vec<Times>,
}

impl Player {
    /// Starts a contender and has it make its first passes in all modes; or says why it takes no part.
    pub(super) fn enter(
        bench: &Bench<'_>,
        contender: Contender,
        made: &Made,
        modes: &[Mode],
    ) -> Result<Result<Self, String>> {
        if let Some(reason) = contender.pointless() {
            return Ok(Err(reason.to_owned()));
        }
        let mut command = contender.command(bench, &made.folder)?;
        let (mut dialogue, about, loading) = Dialogue::start(&mut command)?;
        if let Some(reason) = about["unsupported"].as_str() {
            dialogue.end()?;
            return Ok(Err(format!("not supported: {reason}")));
        }
        let mut pass = Peak::default();
        let mut times = Vec::new();
        for (index, mode) in modes.iter().enumerate() {
            let mut run = |count: usize| -> Result<f64> {
                let question = format!("run {} {} {count}", mode.threads, mode.batch);
                let (answer, peak) = dialogue.ask_watched(&question)?;
                // What compiles takes more memory in its first pass than ever again.
                let compiles = contender.program == Program::Compiled && count == 1;
                if index == 0 && !compiles && peak.dirty > pass.dirty {
                    pass = peak;
                }
                milliseconds(&answer)?.into_iter().reduce(f64::min).context("no pass was made")
            };
            let first = run(1)?;
            let again = contender.program == Program::Compiled || first <= SLOW;
            let estimate = if again { run(AGAIN)? } else { first };
            times.push(Times { first, estimate, rounds: Vec::new() });
        }
        let path = made.folder.join("contender.logits");
        dialogue.ask(&format!("logits {}", path.display()))?;
        Ok(Ok(Self {
            contender,
            dialogue,
            command,
            identity: about["identity"].as_str().unwrap_or_default().to_owned(),
            loading,
            pass,
            planned: planned(&about),
            logits: Logits::read(&path)?,
            modes: times,
        }))
    }

    /// About how many milliseconds a pass takes in a mode.
    pub(super) fn estimate(&self, mode: usize) -> f64 {
        self.modes[mode].estimate
    }

    /// Makes the passes of a round in a mode.
    pub(super) fn turn(&mut self, modes: &[Mode], mode: usize) -> Result<()> {
        let Mode { threads, batch } = modes[mode];
        let times = &mut self.modes[mode];
        let passes = self.dialogue.run(threads, batch, times.turn())?;
        times.rounds.push(passes.into_iter().map(|pass| pass / batch as f64).collect());
        Ok(())
    }

    /// What one core can do, in GFLOP/s by instruction set, if this is one that can tell.
    pub(super) fn peak(&mut self) -> Result<Option<Vec<(String, f64)>>> {
        if !self.contender.is_ours() {
            return Ok(None);
        }
        let answer = self.dialogue.ask("peak")?;
        let rates = answer.as_object().context("peaks that have no names")?;
        let rate = |(name, rate): (&String, &Value)| Some((name.clone(), rate.as_f64()?));
        Ok(Some(rates.iter().filter_map(rate).collect()))
    }

    /// Milliseconds per tile in a mode.
    pub(super) fn spread(&self, mode: usize) -> Spread {
        Spread::of(self.modes[mode].rounds.iter().flatten().copied())
    }
}

fn planned(about: &Value) -> Option<u64> {
    Some(about["weights_bytes"].as_u64()? + about["activations_bytes"].as_u64()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_named() {
        let titles: Vec<String> = Mode::all(2).into_iter().map(Mode::title).collect();
        assert_eq!(titles, ["1 thread", "2 threads, 1 tile", "2 threads, 2 tiles at once"]);
        assert_eq!(Mode::all(1).len(), 1);
    }

    #[test]
    fn turns_have_passes_for_a_second() {
        let passes = |estimate| Times { estimate, ..Times::default() }.turn();
        assert_eq!(passes(5000.0), 1);
        assert_eq!(passes(300.0), 4);
        assert_eq!(passes(0.001), 200);
    }
}
