//! `microtome info`

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::Result;
use microtome::Error;
use microtome::io::slide::{self, OpenOptions, SlideInfo, SlideReader};
use microtome::io::store::OmeZarr;

use crate::args;

pub(crate) fn run(args: &args::Info) -> Result<()> {
    let text = if args.source.is_dir() {
        let store = OmeZarr::open(&args.source).map_err(Error::Read)?;
        if args.json { serde_json::to_string_pretty(store.info())? } else { describe(SlideReader::info(&store))? }
    } else {
        let slide = slide::open(&args.source, &OpenOptions::default()).map_err(Error::Read)?;
        if args.json { serde_json::to_string_pretty(slide.info())? } else { describe(slide.info())? }
    };
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(())
}

fn describe(info: &SlideInfo) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "{}", info.path.display())?;
    writeln!(text, "format       {}", info.format)?;
    let bits = info.sample.bytes() * 8;
    writeln!(text, "pixels       {} of {} x {bits} bits", info.size(), info.channels)?;
    match &info.resolution {
        Some(r) => writeln!(text, "resolution   {} x {} um per pixel ({})", r.mpp.x, r.mpp.y, r.source)?,
        None => writeln!(text, "resolution   unknown")?,
    }
    if let Some(power) = info.objective_power {
        writeln!(text, "objective    {power}x")?;
    }
    for (n, level) in info.levels.iter().enumerate() {
        let d = level.downsample;
        writeln!(text, "level {n:<6} {}, {:.3} x {:.3} times coarser, stored in {}", level.size, d.x, d.y, level.tile)?;
    }
    for picture in &info.associated {
        writeln!(text, "picture      {}: {}", picture.name, picture.size)?;
    }
    if let Some(bytes) = info.icc_profile_bytes {
        writeln!(text, "ICC profile  {bytes} bytes")?;
    }
    for (name, value) in &info.properties {
        writeln!(text, "  {name} = {}", value.trim().replace(['\r', '\n'], " "))?;
    }
    Ok(text)
}
