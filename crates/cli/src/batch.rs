//! `microtome batch`

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use microtome::batch::{
    Batch, By, Entry, Finished, Identify, Manifest, Options, Outcome, Shard, Stage, Status, Task, Watcher, code_of,
};
use microtome::io::bytes::ByteAccess;
use microtome::{Bytes, Error, Observer, Segmenter};
use serde_json::json;

use crate::args;
use crate::progress::{Progress, Quiet};
use crate::segment::{self, Loaded, print, println};
use crate::{failure, signals};

pub(crate) fn run(args: &args::Batch) -> Result<u8> {
    let shard = match args.shard.as_deref() {
        None => None,
        Some("auto") => Some(Shard::from_environment(|name| std::env::var(name).ok())),
        Some(text) => Some(text.parse()),
    };
    let shard = shard.transpose().map_err(|message: String| anyhow!("--shard: {message}"))?;
    let Some(manifest) = read(&args.manifest)? else { return Ok(2) };
    let Loaded { predictors, precision } = segment::load(&args.running)?;
    let mut settings = segment::settings(&args.running)?;
    settings.precision = Some(precision);
    let segmenter = Segmenter::ensemble(predictors.iter().map(AsRef::as_ref).collect(), settings)?;
    let mut options = Options::default();
    options.shard = shard;
    options.jobs = args.jobs;
    options.stage = args.stage.clone().map(|folder| Stage { folder, limit: args.stage_limit.map(|limit| limit.0) });
    options.identify = if args.identify { Identify::Yes } else { Identify::No };
    options.existing = segment::existing(&args.running);
    options.roi_values.clone_from(&args.roi_value);
    options.lease_expiry = args.lease_expiry;
    // A slide that becomes shorter under a map would end the process, and with it the others.
    options.open = args.opening.options().access(ByteAccess::Read);
    let batch = Batch::new(&manifest, &segmenter, &args.output, options)?;
    signals::watch().context("signals cannot be watched")?;
    let terminal = Terminal { args, several: args.jobs > 1 };
    for fault in batch.missing()? {
        failure::say(&format!("warning: {}: {fault}", args.manifest.display()));
    }
    if args.running.dry_run {
        return plan(&batch, args, &terminal);
    }
    let finished = batch.run(&terminal)?;
    let Some(code) = finished.exit_code() else { return Err(Error::Interrupted.into()) };
    if !args.running.quiet && !args.running.json {
        println(&said(&finished, &args.output, shard))?;
    }
    Ok(code)
}

/// Reads a manifest; where it is wrong, says so line by line.
pub(crate) fn read(path: &Path) -> Result<Option<Manifest>> {
    match Manifest::read(path) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(Error::Manifest { path, faults }) => {
            for fault in faults {
                failure::say(&format!("error: {}: {fault}", path.display()));
            }
            Ok(None)
        }
        // A manifest that cannot be read is a bad one, and no slide that fails.
        Err(error) => Err(Error::Usage(error.to_string()).into()),
    }
}

/// A line for all slides.
fn said(finished: &Finished, folder: &Path, shard: Option<Shard>) -> String {
    let count = |of: &dyn Fn(&Outcome) -> bool| finished.outcomes.iter().filter(|outcome| of(outcome)).count();
    let done = count(&|o| o.status == Status::Done && o.by == By::ThisRun);
    let before = count(&|o| o.status == Status::Done && o.by == By::EarlierRun);
    let others = count(&|o| o.status == Status::Done && o.by == By::OtherProcess);
    let faults = count(&|o| o.status == Status::Done && o.code != 0);
    let failed = count(&|o| o.status != Status::Done);
    let mut parts = vec![format!("{done} done")];
    let more = [(before, "done already"), (others, "done by another process"), (faults, "with unreadable parts")];
    parts.extend(more.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
    parts.push(format!("{failed} failed"));
    let all = finished.outcomes.len();
    match shard {
        None => format!("{all} slides: {}; {}", parts.join(", "), folder.join("summary.html").display()),
        Some(shard) => format!("{all} slides of shard {shard}: {}", parts.join(", ")),
    }
}

fn plan(batch: &Batch<'_>, args: &args::Batch, terminal: &Terminal<'_>) -> Result<u8> {
    let plans = batch.plan(terminal)?;
    let mut codes = Vec::new();
    let mut todo = 0;
    for planned in &plans {
        if args.running.json {
            print(&json!(planned))?;
        }
        let text = match &planned.task {
            Task::Done => "done already".to_owned(),
            Task::Impossible { error, code } => {
                codes.push(*code);
                error.clone()
            }
            Task::Run { size, tiles, memory } => {
                todo += 1;
                format!("{size} pixels, {tiles} tiles at most, {} of memory", Bytes(*memory))
            }
        };
        if !args.running.json {
            println(&format!("line {}: {}: {text}", planned.line, planned.id))?;
        }
    }
    codes.retain(|code| *code != 0);
    if !args.running.json {
        println(&format!("{} slides: {todo} to do, {} cannot be done", plans.len(), codes.len()))?;
    }
    Ok(code_of(&codes, plans.len()).unwrap_or(0))
}

/// Shows what happens.
struct Terminal<'a> {
    args: &'a args::Batch,
    several: bool,
}

impl Watcher for Terminal<'_> {
    fn begins(&self, entry: &Entry) -> Box<dyn Observer + '_> {
        let quiet = match (self.args.running.quiet, self.several) {
            (true, _) => Quiet::Yes,
            (false, true) => Quiet::NoBar,
            (false, false) => Quiet::No,
        };
        Box::new(Shown(Progress::new(entry.id.clone(), quiet)))
    }

    fn ends(&self, outcome: &Outcome) {
        let Outcome { id, line, status, code, error, by, seconds } = outcome;
        let said = match (status, by) {
            _ if self.args.running.json => print(&json!(outcome)),
            (Status::Done, By::ThisRun) if !self.args.running.quiet => {
                println(&format!("{id}: done in {seconds:.1} s"))
            }
            _ => Ok(()),
        };
        if let Err(error) = said {
            failure::say(&format!("warning: {id}: {error}"));
        }
        match (status, error) {
            (Status::Failed, Some(error)) => failure::say(&format!("error: line {line}: {id}: {error}")),
            (Status::Done, _) if *code != 0 => failure::say(&format!(
                "warning: line {line}: {id}: parts of it could not be read; the mask is background there"
            )),
            _ => {}
        }
    }

    fn note(&self, text: &str) {
        if !self.args.running.quiet {
            failure::say(&format!("note: {text}"));
        }
    }

    fn cancelled(&self) -> bool {
        signals::received()
    }
}

/// Progress whose bar goes with it.
struct Shown(Progress);

impl Observer for Shown {
    fn phase(&self, phase: microtome::Phase) {
        self.0.phase(phase);
    }

    fn planned(&self, forecast: &microtome::Forecast) {
        self.0.planned(forecast);
    }

    fn progress(&self, done: u64, total: u64) {
        self.0.progress(done, total);
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.finish();
    }
}
