//! `microtome postprocess`

use std::io::Write;

use anyhow::{Context, Result, bail};
use microtome::unet::{Model, ModelOptions, Postprocessing};
use microtome::{Error, Existing};
use serde_json::json;

use crate::args;
use crate::progress::{Progress, Quiet};
use crate::signals;

pub(crate) fn run(args: &args::Postprocess) -> Result<()> {
    signals::watch().context("signals cannot be watched")?;
    if args.model.is_none() && args.keep_largest.is_empty() {
        bail!("say what to apply: -m MODEL, or --keep-largest VALUES");
    }
    let steps = match &args.model {
        Some(path) => of_model(path)?,
        None => args.keep_largest.iter().map(|v| Postprocessing::KeepLargest { values: v.0.clone() }).collect(),
    };
    let name = args.mask.file_name().unwrap_or(args.mask.as_os_str()).to_string_lossy().into_owned();
    let progress = Progress::new(name, if args.quiet { Quiet::Yes } else { Quiet::No });
    let existing = if args.overwrite { Existing::Replace } else { Existing::Keep };
    let done = microtome::postprocess(&args.mask, &args.output, &steps, existing, &progress);
    progress.finish();
    let done = done?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(
            out,
            "{}",
            json!({ "mask": args.mask.to_string_lossy(), "output": args.output.to_string_lossy(), "steps": done })
        )?;
    } else {
        for step in &done {
            let (components, largest, cleared) = (step.components, step.largest, step.cleared);
            writeln!(
                out,
                "{}: {components} components, the largest of {largest} pixels; {cleared} pixels cleared",
                step.step
            )?;
        }
        writeln!(out, "{}: written", args.output.display())?;
    }
    Ok(())
}

/// What the model comes with.
fn of_model(path: &std::path::Path) -> Result<Vec<Postprocessing>> {
    let model = Model::open(path, &ModelOptions::default()).map_err(Error::Model)?;
    let why = match &model.card().postprocessing {
        Some(steps) if !steps.is_empty() => return Ok(steps.clone()),
        Some(_) => "its authors found no post-processing that helps",
        None => model.postprocessing_fault().unwrap_or("it comes with none"),
    };
    Err(Error::Usage(format!("{}: there is nothing to apply: {why}; --keep-largest asks for it", path.display()))
        .into())
}
