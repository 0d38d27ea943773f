//! `cargo xtask bench net`: the network alone, ours beside candle's operations and PyTorch.

mod accuracy;
mod contender;
mod network;
mod player;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use self::accuracy::Logits;
use self::contender::Contender;
use self::network::{Made, Network, Target};
use self::player::{Mode, Player};
use super::dialogue::Dialogue;
use super::report::{Relation, Report, Table};
use super::{Bench, Extent, machine, python};

const TITLE: &str = "\
The network alone: milliseconds of a forward pass, ours beside candle's operations and PyTorch, by the same weights on the same tile.

Networks have random weights (tests/python/bench_network.py). Every contender is a process that stays; they take turns, in each round every one
of them with one thread and with several. Times are per tile; with several tiles at once a pass is divided by them. Ours begin with 8-bit pixels and
end with checked logits in f32, PyTorch's begin with a normalised tensor. `first s` is the first pass: PyTorch compiles in it
(torch.compile, freezing, fixed shapes). `ours` is how many times as long it takes as ours with as many bits and the same instructions: by the
least times, and by the medians. GFLOP/s are two for each multiplication of the network's convolutions, over the least time. AVX2: ours with
MICROTOME_ISA=avx2, PyTorch with ATEN_CPU_CAPABILITY=avx2 and ONEDNN_MAX_CPU_ISA=AVX2. PyTorch's threads wait for each other in every
layer: where other programs want the processors, its times with several threads are many times as long and say nothing.
Memory is anonymous memory and dirty file pages of the process, in megabytes, with one thread and one tile: `loading` until it is ready, `pass` in a pass,
`planned` what our plan says. Logits are compared with those of PyTorch in f64 and in f32 (eager): the largest difference, and the share
of pixels that become another class.";

const ROUNDS: usize = 5;
const QUICK_ROUNDS: usize = 2;
/// A contender whose pass takes longer, in milliseconds, has only [`QUICK_ROUNDS`].
const SLOW: f64 = 8000.0;

pub(super) fn run(bench: &Bench<'_>) -> Result<()> {
    let networks = Network::chosen(bench.options.nets.as_deref())?;
    let mut report = bench.report("net", TITLE);
    for network in networks {
        measure(bench, &mut report, network)?;
    }
    bench.finish(report)
}

fn measure(bench: &Bench<'_>, report: &mut Report, network: Network) -> Result<()> {
    let made = Made::make(bench, network)?;
    let Made { description, side, parameters, .. } = &made;
    report.say(&format!(
        "\n\n{}: {description}, {parameters} parameters, tile of {side} x {side} pixels, {:.2} GFLOP",
        network.name(),
        made.gflop(),
    ));
    let modes = Mode::all(bench.options.threads);
    // The time to compile is reported.
    let compiled = contender::compiled(&made.folder);
    if compiled.exists() {
        std::fs::remove_dir_all(&compiled).with_context(|| compiled.display().to_string())?;
    }
    let f64_logits = reference(bench, &made)?;
    let mut players = Vec::new();
    let mut absent = Vec::new();
    for contender in Contender::ALL {
        match Player::enter(bench, contender, &made, &modes)? {
            Ok(player) => players.push(player),
            Err(reason) => absent.push((contender, reason)),
        }
    }
    let rounds = bench.options.rounds.unwrap_or(match bench.options.extent {
        Extent::Full => ROUNDS,
        Extent::Quick => QUICK_ROUNDS,
    });
    let mut peaks = std::collections::BTreeMap::<String, f64>::new();
    let mut busiest = 0.0_f64;
    for round in 0..rounds {
        let busy = Busy::now(&players);
        for (name, rate) in
            players.iter_mut().find_map(|player| player.peak().transpose()).transpose()?.unwrap_or_default()
        {
            let peak = peaks.entry(name).or_default();
            *peak = peak.max(rate);
        }
        for mode in 0..modes.len() {
            for player in &mut players {
                if round < QUICK_ROUNDS || player.estimate(mode) <= SLOW {
                    player.turn(&modes, mode)?;
                }
            }
        }
        busiest = busiest.max(busy.others(&players));
        eprintln!("  {}, round {} of {rounds}", network.name(), round + 1);
    }
    report.note_others(busiest);
    report.say(&format!("rounds: {rounds}; other programs kept at most {busiest:.1} processors busy in one of them"));
    if !peaks.is_empty() {
        let shown: Vec<String> = peaks.iter().map(|(name, rate)| format!("{name} {rate:.0}")).collect();
        report.say(&format!("one core, multiply-adds of vectors in registers, GFLOP/s: {}", shown.join(", ")));
        report.record("peak", json!({ "network": network.name(), "gflops": peaks }));
    }
    for (contender, reason) in &absent {
        report.say(&format!("{}: {reason}", contender.name()));
    }
    for (index, mode) in modes.iter().enumerate() {
        report.say(&format!("\n{}", times(&players, index, *mode, &made)));
    }
    let table = memory_and_accuracy(report, &players, &made, &f64_logits)?;
    report.say(&format!("\n{table}\n"));
    for player in &players {
        record(report, network, player, &made, &modes);
    }
    for target in network.targets() {
        judge(report, network, &players, &modes, target, busiest);
    }
    if let (Some(bound), Some(ours)) = (network.memory(), find(&players, Contender::ALL[0])) {
        report.at_most(&format!("{}, f32: memory in a pass, MB", network.name()), megabytes(ours.pass.dirty), bound);
    }
    players.into_iter().try_for_each(|player| player.dialogue.end())
}

/// PyTorch's logits in f64.
fn reference(bench: &Bench<'_>, made: &Made) -> Result<Logits> {
    let mut command = python::script(bench, "bench_torch.py")?;
    let (mut dialogue, ..) = Dialogue::start(command.arg(&made.folder).args(["--precision", "f64"]))?;
    let path = made.folder.join("f64.logits");
    dialogue.ask(&format!("logits {}", path.display()))?;
    dialogue.end()?;
    Logits::read(&path)
}

fn find(players: &[Player], contender: Contender) -> Option<&Player> {
    players.iter().find(|player| player.contender == contender)
}

/// Times of all in one mode.
fn times(players: &[Player], index: usize, mode: Mode, made: &Made) -> Table {
    let title = mode.title();
    let mut table =
        Table::new(&[&title, "first s", "passes", "min ms", "median ms", "GFLOP/s", "ours, min", "ours, median"]);
    for player in players {
        let spread = player.spread(index);
        let ours = find(players, player.contender.ours()).map(|ours| ours.spread(index));
        let ratio = |of: f64, to: Option<f64>| to.map_or("-".into(), |to| format!("{:.2} x", of / to));
        table.row(vec![
            player.contender.name(),
            format!("{:.1}", player.modes[index].first / 1e3),
            player.modes[index].passes().to_string(),
            format!("{:.2}", spread.min),
            format!("{:.2}", spread.median),
            format!("{:.1}", made.gflop() / spread.min * 1e3),
            ratio(spread.min, ours.map(|ours| ours.min)),
            ratio(spread.median, ours.map(|ours| ours.median)),
        ]);
    }
    table
}

fn memory_and_accuracy(report: &mut Report, players: &[Player], made: &Made, reference: &Logits) -> Result<Table> {
    let pixels = made.side * made.side;
    let torch = players.iter().find(|p| p.contender.name() == "PyTorch eager").map(|p| &p.logits);
    let mut table = Table::new(&[
        "memory and logits",
        "loading MB",
        "pass MB",
        "planned MB",
        "max from f64",
        "other class",
        "max from PyTorch",
        "other class",
    ]);
    for player in players {
        let from = player.logits.difference(reference, pixels)?;
        let from_torch = torch.map(|torch| player.logits.difference(torch, pixels)).transpose()?;
        let percent = |share: f64| format!("{:.4} %", share * 100.0);
        table.row(vec![
            player.contender.name(),
            format!("{:.0}", megabytes(player.loading.dirty)),
            format!("{:.0}", megabytes(player.pass.dirty)),
            player.planned.map_or("-".into(), |bytes| format!("{:.0}", megabytes(bytes))),
            format!("{:.1e}", from.largest),
            percent(from.flips),
            from_torch.map_or("-".into(), |d| format!("{:.1e}", d.largest)),
            from_torch.map_or("-".into(), |d| percent(d.flips)),
        ]);
        let difference = json!({
            "contender": player.contender.name(),
            "side": made.side,
            "from_f64": {"largest": from.largest, "other_class": from.flips},
            "from_torch": from_torch.map(|d| json!({"largest": d.largest, "other_class": d.flips})),
        });
        report.record("logits", difference);
    }
    Ok(table)
}

fn record(report: &mut Report, network: Network, player: &Player, made: &Made, modes: &[Mode]) {
    for (mode, times) in modes.iter().zip(&player.modes) {
        let record = json!({
            "network": network.name(),
            "contender": player.contender.name(),
            "identity": player.identity,
            "command": report.shorten(&player.command),
            "threads": mode.threads,
            "tiles_at_once": mode.batch,
            "multiplications": made.multiplications,
            "first_pass_milliseconds": times.first,
            "milliseconds_per_tile": times.rounds,
            "peak_loading_bytes": player.loading.dirty,
            "peak_pass_bytes": player.pass.dirty,
            "planned_bytes": player.planned,
        });
        report.record("network", record);
    }
}

/// Says of each mode whether ours is as many times as fast as is aimed at, by the least times of both.
fn judge(report: &mut Report, network: Network, players: &[Player], modes: &[Mode], target: &Target, busiest: f64) {
    let theirs = target.theirs[0];
    let (name, ours) = (theirs.name(), theirs.ours());
    for (index, mode) in modes.iter().enumerate() {
        let claim = format!("{}, {}: times as fast as {name}", network.name(), mode.title());
        let least = |contender| Some(find(players, contender)?.spread(index).min);
        let fastest = target.theirs.iter().filter_map(|theirs| least(*theirs)).reduce(f64::min);
        let (Some(ours), Some(fastest)) = (least(ours), fastest) else {
            report.say(&format!("-       {claim}: one of both did not run, target at least {}", target.times));
            continue;
        };
        if mode.threads > 1 && busiest > super::report::QUIET {
            let times = fastest / ours;
            report.say(&format!(
                "-       {claim}: {times:.2} on a busy machine, which says nothing; target {}",
                target.times
            ));
            continue;
        }
        report.target(&claim, fastest / ours, Relation::AtLeast, target.times);
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// What had been used when a round began.
#[derive(Debug)]
struct Busy {
    at: Instant,
    all: Duration,
    ours: Duration,
}

impl Busy {
    fn now(players: &[Player]) -> Self {
        let own = machine::cpu(std::process::id());
        Self {
            at: Instant::now(),
            all: machine::busy(),
            ours: players.iter().map(|p| p.dialogue.cpu()).sum::<Duration>() + own,
        }
    }

    /// How many processors other programs have kept busy since, on average.
    fn others(&self, players: &[Player]) -> f64 {
        let now = Self::now(players);
        let others = now.all.saturating_sub(self.all).saturating_sub(now.ours.saturating_sub(self.ours));
        others.as_secs_f64() / (now.at - self.at).as_secs_f64()
    }
}
