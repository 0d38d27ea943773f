//! `microtome report`

use anyhow::Result;
use microtome::batch::{Identify, Merged, report};
use serde_json::json;

use crate::segment::{print, println};
use crate::{args, failure};

pub(crate) fn run(args: &args::Report) -> Result<u8> {
    let merged = report(&args.folder, if args.identify { Identify::Yes } else { Identify::No })?;
    let Merged { done, with_faults, failed, waiting, identified } = merged;
    if args.identify && identified == 0 {
        failure::say("note: no report of this batch holds what can name a person: it was not run with --identify");
    }
    if args.json {
        print(&json!(merged))?;
    } else {
        let html = args.folder.join("summary.html");
        println(&format!(
            "{done} done, {with_faults} of them with faults, {failed} failed, {waiting} waiting; {}",
            html.display()
        ))?;
    }
    Ok(0)
}
