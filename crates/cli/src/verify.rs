//! `microtome verify`

use std::io::Write;

use anyhow::Result;

use crate::args;

pub(crate) fn run(args: &args::Verify) -> Result<u8> {
    let found = microtome::verify(&args.store)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?;
    } else {
        for fault in &found.faults {
            writeln!(out, "{fault}")?;
        }
        let state = if found.unfinished { "unfinished; " } else { "" };
        writeln!(
            out,
            "{}: {state}{} shards intact, {} background, {} faulty",
            args.store.display(),
            found.intact,
            found.background,
            found.faults.len()
        )?;
    }
    Ok(if found.faults.is_empty() { 0 } else { 3 })
}
