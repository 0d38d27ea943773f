//! `microtome audit`

use anyhow::{Context, Result};
use microtome::batch::{AuditOptions, Entry, Speed, Watcher, audit};
use microtome::unet::{Arithmetic, Execution, Model, ModelOptions};
use microtome::{Error, Observer, Segmenter, Settings, Silent};

use crate::segment::println;
use crate::{args, batch, failure, signals};

pub(crate) fn run(args: &args::Audit) -> Result<u8> {
    let Some(manifest) = batch::read(&args.manifest)? else { return Ok(2) };
    let mut predictors = Vec::new();
    for path in &args.models {
        let model = Model::open(path, &ModelOptions::default()).map_err(Error::Model)?;
        let device = args.device.choose().map_err(Error::Model)?.device;
        let choice = model.card().precision.choose(None, device, Arithmetic::Fast).map_err(Error::Model)?;
        let execution = Execution { device, precision: choice.precision, ..Execution::default() };
        predictors.push(model.predictor(&execution).map_err(Error::Model)?);
    }
    let mut settings = Settings::default();
    settings.model_mpp = args.model_mpp;
    settings.threads = args.threads;
    let predictors: Vec<_> = predictors.iter().map(AsRef::as_ref).collect();
    let segmenter = (!predictors.is_empty()).then(|| Segmenter::ensemble(predictors, settings)).transpose()?;
    let mut options = AuditOptions::default();
    options.open = args.opening.options();
    options.sample = args.sample.0;
    options.threads = args.threads;
    options.speed = args.speed.map(Speed::Pixels);
    signals::watch().context("signals cannot be watched")?;
    let found = audit(&manifest, segmenter.as_ref(), &options, &Lines { quiet: args.quiet })?;
    if let Some(output) = &args.output {
        std::fs::write(output, found.csv()).with_context(|| output.display().to_string())?;
    }
    println(&if args.json { serde_json::to_string_pretty(&found)? } else { found.to_string() })?;
    Ok(found.exit_code())
}

/// Says which slide is looked at.
struct Lines {
    quiet: bool,
}

impl Watcher for Lines {
    fn begins(&self, entry: &Entry) -> Box<dyn Observer + '_> {
        if !self.quiet {
            failure::say(&format!("{}: audit", entry.id));
        }
        Box::new(Silent)
    }

    fn cancelled(&self) -> bool {
        signals::received()
    }
}
