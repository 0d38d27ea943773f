//! `microtome validate`

use std::io::Write;

use anyhow::{Context, Result};
use serde_json::json;

use crate::args;
use crate::progress::{Progress, Quiet};
use crate::signals;

pub(crate) fn run(args: &args::Validate) -> Result<u8> {
    signals::watch().context("signals cannot be watched")?;
    let slide = args.opening.open(&args.source)?;
    let name = args.source.file_name().unwrap_or(args.source.as_os_str()).to_string_lossy().into_owned();
    let progress = Progress::new(name, if args.quiet { Quiet::Yes } else { Quiet::No });
    let found = microtome::validate(slide.as_ref(), args.threads, &progress);
    progress.finish();
    let found = found?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let resolution = &slide.info().resolution;
        writeln!(
            out,
            "{}",
            json!({ "slide": args.source.to_string_lossy(), "resolution": resolution, "validation": found })
        )?;
    } else {
        for fault in &found.faults {
            writeln!(out, "{fault}")?;
        }
        let resolution = if slide.info().resolution.is_some() { "" } else { "; its resolution is not known" };
        let (tiles, faulty) = (found.tiles, found.faults.len());
        writeln!(out, "{}: {tiles} tiles tried, {faulty} faults{resolution}", args.source.display())?;
    }
    Ok(if found.faults.is_empty() { 0 } else { 3 })
}
