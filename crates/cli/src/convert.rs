//! `microtome convert`

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use microtome::io::Level;
use microtome::io::remote::is_remote;
use microtome::io::store::Encoding;
use microtome::{Conversion, ConvertOptions, Existing, LabelImage, OnBadPicture};
use serde_json::json;

use crate::args;
use crate::failure;
use crate::progress::{Progress, Quiet};
use crate::signals;

pub(crate) fn run(args: &args::Convert) -> Result<()> {
    signals::watch().context("signals cannot be watched")?;
    let (source, output) = (&args.source, &args.output);
    let slide = args.opening.open(source)?;
    let name = source.file_name().unwrap_or(source.as_os_str()).to_string_lossy().into_owned();
    let progress = Progress::new(name, if args.quiet { Quiet::Yes } else { Quiet::No });
    let existing = match (args.overwrite, args.no_resume) {
        (true, _) => Existing::Replace,
        (false, true) => Existing::Restart,
        (false, false) => Existing::Keep,
    };
    let converted = microtome::convert(slide.as_ref(), output, &options(args), existing, &progress);
    progress.finish();
    let converted = converted.map_err(|error| {
        let error = anyhow::Error::from(error);
        let line = failure::line(&error);
        // Whatever names neither file is about the slide.
        let named = [source, output].iter().any(|path| line.contains(&*path.to_string_lossy()));
        if named { error } else { error.context(source.display().to_string()) }
    })?;
    if let (Conversion::Done(summary), false) = (&converted, args.quiet) {
        summary.notes.iter().for_each(|note| failure::say(&format!("note: {}: {note}", source.display())));
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(
            out,
            "{}",
            json!({ "slide": source.to_string_lossy(), "output": output.to_string_lossy(), "outcome": converted })
        )?;
    } else if !args.quiet {
        match &converted {
            Conversion::Done(summary) => {
                writeln!(out, "{}\n{summary}\n{}", source.display(), written(output))?;
            }
            Conversion::AlreadyDone => {
                writeln!(out, "{}: done already, in {}", source.display(), output.display())?;
            }
        }
    }
    Ok(())
}

/// Where the result is, and where what belongs to the run is if nobody would look for it there.
pub(crate) fn written(output: &Path) -> String {
    let run = is_remote(output).then(|| format!("\nreport in    {}", microtome::run_folder(output).display()));
    format!("written to {}{}", output.display(), run.unwrap_or_default())
}

fn options(args: &args::Convert) -> ConvertOptions {
    let mut options = ConvertOptions::default();
    options.encoding = Encoding { format: args.format, compression: args.compression };
    options.chunk = args.chunk;
    options.shard = args.shard.unwrap_or_else(|| {
        // A chunk of 0 pixels is refused with the others.
        let even = args.chunk.checked_mul(1 + args.chunk % 2).unwrap_or_default();
        options.shard.checked_next_multiple_of(even).unwrap_or(args.chunk)
    });
    options.reduction = args.reduction.map(Into::into);
    options.levels = args.levels.unwrap_or_default();
    options.level = Level(args.level);
    options.rect = args.rect;
    options.mpp = args.mpp;
    options.associated = !args.no_associated;
    options.label_image = if args.label_image { LabelImage::Kept } else { LabelImage::LeftOut };
    options.on_bad_picture = match args.on_bad_picture {
        args::OnBadPicture::Fail => OnBadPicture::Fail,
        args::OnBadPicture::Skip => OnBadPicture::LeaveOut,
    };
    options.name.clone_from(&args.name);
    if let Some(memory) = args.memory {
        options.memory = memory.0;
    }
    options.threads = args.threads;
    options.sync_every = args.sync_every;
    options
}
