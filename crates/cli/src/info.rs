//! `microtome info`

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::Result;
use microtome::Error;
use microtome::io::slide::{Colors, SlideInfo};
use microtome::io::store::OmeZarr;

use crate::args;

/// The format of a slide that is a store, which has more to say as JSON.
pub(crate) const STORE: &str = "ome-zarr";

pub(crate) fn run(args: &args::Info) -> Result<()> {
    let slide = args.opening.open(&args.source)?;
    let text = if slide.info().format == STORE && args.json {
        serde_json::to_string_pretty(OmeZarr::open(&args.source).map_err(Error::Read)?.info())?
    } else {
        let id = slide.content_id().map_err(Error::Read)?;
        if args.json {
            serde_json::to_string_pretty(&Described { info: slide.info(), content_id: &id })?
        } else {
            format!("{}content id   {id}\n", describe(slide.info())?)
        }
    };
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(())
}

/// As JSON.
#[derive(serde::Serialize)]
struct Described<'a> {
    #[serde(flatten)]
    info: &'a SlideInfo,
    content_id: &'a str,
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
        let how = if level.stored { "stored" } else { "not stored: made of a finer level" };
        writeln!(text, "level {n:<6} {}, {:.3} x {:.3} times coarser, {how} in {}", level.size, d.x, d.y, level.tile)?;
    }
    if !info.channel_names.is_empty() {
        writeln!(text, "channels     {}", info.channel_names.join(", "))?;
    }
    if let Some(bounds) = info.bounds {
        writeln!(text, "bounds       {bounds}")?;
    }
    for picture in &info.associated {
        writeln!(text, "picture      {}: {}", picture.name, picture.size)?;
    }
    if let Some(bytes) = info.icc_profile_bytes {
        let applied = if info.colors == Colors::Srgb { "applied" } else { "not applied" };
        writeln!(text, "ICC profile  {bytes} bytes, {applied}")?;
    }
    for (name, value) in &info.properties {
        writeln!(text, "  {name} = {}", value.trim().replace(['\r', '\n'], " "))?;
    }
    Ok(text)
}
