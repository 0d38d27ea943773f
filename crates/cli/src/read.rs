//! `microtome read`

use anyhow::{Result, bail};
use microtome::io::Level;
use microtome::io::slide::SlideReader;
use microtome::preview::{self, PreviewOptions};
use microtome::{Error, io};

use crate::args;

pub(crate) fn run(args: &args::Read) -> Result<()> {
    args::is_file(&args.output)?;
    if args.output.extension().is_none_or(|ending| !ending.eq_ignore_ascii_case("png")) {
        bail!("{}: rectangles are written as .png", args.output.display());
    }
    if args.output.exists() && !args.overwrite {
        bail!("{}: is there already (--overwrite replaces it)", args.output.display());
    }
    let slide = args.opening.open(&args.source)?;
    let pixels = pixels(slide.as_ref(), args).map_err(|error| match error {
        // A level or a picture that the slide does not have is a mistake of whoever asks.
        io::Error::Usage { .. } => Error::Usage(error.to_string()),
        error => Error::Read(error),
    })?;
    let pixels = match args.channel {
        Some(channel) if channel < pixels.channels() => pixels.channel(channel),
        Some(channel) => bail!("there is no channel {channel}: there are {}", pixels.channels()),
        None if matches!(pixels.channels(), 1 | 3) => pixels,
        None => bail!("a PNG has one channel or three, and here are {}: choose one by --channel", pixels.channels()),
    };
    preview::save(&pixels, &args.output, PreviewOptions::default())?;
    Ok(())
}

fn pixels(slide: &dyn SlideReader, args: &args::Read) -> io::Result<io::Pixels> {
    if let Some(name) = &args.associated {
        return slide.read_associated(name);
    }
    let level = Level(args.level);
    let rect = match args.rect {
        Some(rect) => rect,
        None => slide.info().level(level)?.size.rect(),
    };
    slide.read_region(level, rect)
}
