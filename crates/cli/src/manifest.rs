//! `microtome manifest`

use std::io::Write;

use anyhow::{Context, Result, bail};
use microtome::batch::{ScanOptions, scan};

use crate::{args, failure};

pub(crate) fn run(args: &args::Manifest) -> Result<u8> {
    if let Some(output) = args.output.as_ref().filter(|output| !args.overwrite && output.exists()) {
        bail!("{}: is there already (--overwrite replaces it)", output.display());
    }
    let mut options = ScanOptions::default();
    options.open = args.opening.options();
    options.pictures = args.pictures;
    options.numbers = args.numbers;
    let found = scan(&args.folder, &options)?;
    let text = found.manifest(args.output.as_deref())?;
    for passed in &found.passed_over {
        failure::say(&format!("note: {}", passed.message));
    }
    for (path, why) in found.without_mpp() {
        failure::say(&format!("note: {}: {why}; its mpp is left empty", path.display()));
    }
    for bad in &found.unreadable {
        failure::say(&format!("error: {}", bad.message.replace('\n', " ")));
    }
    if found.is_empty() {
        bail!("{}: there is no slide in it that can be read", args.folder.display());
    }
    match &args.output {
        Some(output) => std::fs::write(output, text).with_context(|| output.display().to_string())?,
        None => std::io::stdout().write_all(text.as_bytes())?,
    }
    Ok(if found.unreadable.is_empty() { 0 } else { 3 })
}
