//! `microtome preview`

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use microtome::io::slide::SlideReader;
use microtome::io::store::{Content, OmeZarr};
use microtome::io::{Class, Size};
use microtome::preview::{
    self, DeepZoomOptions, LabelPicture, PreviewOptions, Shown, Style, Subsampling, TileFormat, TileSource,
};
use microtome::{Error, Existing, RegionOrigin, RoiSource};

use crate::info::STORE;
use crate::progress::{Progress, Quiet};
use crate::{args, signals};

pub(crate) fn run(args: &args::Preview) -> Result<()> {
    args::is_file(&args.output)?;
    let is_deep_zoom = args.output.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("dzi"));
    if is_deep_zoom {
        refuse(args.picture.given(), "belongs to pictures, not to a DeepZoom image")?;
        return deep_zoom(args);
    }
    refuse(args.deep_zoom.given(), "belongs to a DeepZoom image (.dzi), not to a picture")?;
    picture(args)
}

fn refuse(flag: Option<&str>, why: &str) -> Result<()> {
    match flag {
        Some(flag) => bail!("{flag} {why}"),
        None => Ok(()),
    }
}

impl args::Picture {
    /// The first of these flags that was given.
    fn given(&self) -> Option<&'static str> {
        let Self { size, overlay, style, opacity, legend, scale_bar, roi, roi_value: _ } = self;
        let flags = [
            ("--size", size.is_some()),
            ("--overlay", overlay.is_some()),
            ("--style", style.is_some()),
            ("--opacity", opacity.is_some()),
            ("--legend", *legend),
            ("--scale-bar", *scale_bar),
            ("--roi", roi.is_some()),
        ];
        flags.into_iter().find_map(|(flag, given)| given.then_some(flag))
    }
}

impl args::DeepZoom {
    /// The first of these flags that was given.
    fn given(&self) -> Option<&'static str> {
        let Self { tile_size, overlap_pixels, tile_format, subsampling, copy_tiles, threads, overwrite } = self;
        let flags = [
            ("--tile-size", tile_size.is_some()),
            ("--overlap-pixels", overlap_pixels.is_some()),
            ("--tile-format", tile_format.is_some()),
            ("--subsampling", subsampling.is_some()),
            ("--copy-tiles", *copy_tiles),
            ("--threads", threads.is_some()),
            ("--overwrite", *overwrite),
        ];
        flags.into_iter().find_map(|(flag, given)| given.then_some(flag))
    }
}

/// Refuses to write where something lies that is read: pictures take the place of what is there.
fn distinct(output: &Path, args: &args::Preview) -> Result<()> {
    let args::Picture { overlay, roi, .. } = &args.picture;
    let region = roi.as_deref().filter(|path| *path != Path::new(AUTO));
    let inputs = [Some(args.source.as_path()), overlay.as_deref(), region];
    Ok(microtome::distinct(output, inputs.into_iter().flatten())?)
}

/// The source as a mask, if it is one.
fn mask(args: &args::Preview, slide: &dyn SlideReader) -> Result<Option<OmeZarr>> {
    let store = (slide.info().format == STORE).then(|| OmeZarr::open(&args.source).map_err(Error::Read)).transpose()?;
    Ok(store.filter(|store| matches!(store.info().content, Content::Labels { .. })))
}

fn picture(args: &args::Preview) -> Result<()> {
    let wanted = &args.picture;
    let mut options = PreviewOptions::default();
    options.size = wanted.size.unwrap_or(options.size);
    options.quality = args.quality;
    let slide = args.opening.open(&args.source)?;
    distinct(&args.output, args)?;
    let style = match (wanted.style, wanted.opacity) {
        (Some(args::Style::Fill), opacity) => Style::Fill { opacity: opacity.unwrap_or(0.5) },
        (_, Some(_)) => bail!("--opacity is that of --style fill"),
        (_, None) => Style::Outline,
    };
    let (mut picture, classes, mpp) = if let Some(mask) = mask(args, slide.as_ref())? {
        if wanted.overlay.is_some() || wanted.roi.is_some() {
            return Err(Error::Usage("--overlay and --roi draw on a slide, not on a mask".into()).into());
        }
        let labels = LabelPicture::read(&mask, options)?;
        if !wanted.legend && !wanted.scale_bar {
            return Ok(labels.save(&args.output, options)?);
        }
        let classes = mask.info().content.classes().to_vec();
        (labels.colored(), Some(classes), preview::mask_resolution(&mask, options))
    } else {
        let mut picture = preview::overview(slide.as_ref(), options)?;
        let mut classes: Option<Vec<Class>> = None;
        if let Some(path) = &wanted.overlay {
            let mask = OmeZarr::open(path).map_err(Error::Read)?;
            picture = preview::overlay(&picture, slide.as_ref(), &mask, style)?;
            classes = Some(mask.info().content.classes().to_vec());
        }
        if let Some(path) = &wanted.roi {
            picture = preview::outline_region(&picture, slide.as_ref(), &region(path, &wanted.roi_value)?, options)?;
        }
        (picture, classes, preview::resolution(slide.as_ref(), options))
    };
    if wanted.scale_bar {
        let Some(mpp) = mpp else {
            bail!(
                "{}: its resolution is not known, so that a scale bar would be of no known length",
                args.source.display()
            );
        };
        picture = preview::with_scale_bar(&picture, mpp.x)?;
    }
    if wanted.legend {
        let Some(classes) = classes else { bail!("--legend names the classes of a mask: --overlay gives one") };
        picture = preview::with_legend(&picture, &classes)?;
    }
    preview::save(&picture, &args.output, options)?;
    Ok(())
}

fn deep_zoom(args: &args::Preview) -> Result<()> {
    signals::watch().context("signals cannot be watched")?;
    let slide = args.opening.open(&args.source)?;
    distinct(&args.output, args)?;
    if let Some(tiles) = tiles(&args.output) {
        distinct(&tiles, args)?;
    }
    let mask = mask(args, slide.as_ref())?;
    let options = options(args, slide.info().levels[0].tile, mask.is_some());
    let shown = mask.as_ref().map_or(Shown::Colors, |mask| Shown::Labels(mask.info().content.classes()));
    let name = args.source.file_name().unwrap_or(args.source.as_os_str()).to_string_lossy().into_owned();
    let progress = Progress::new(name, if args.quiet { Quiet::Yes } else { Quiet::No });
    let existing = if args.deep_zoom.overwrite { Existing::Replace } else { Existing::Keep };
    let made = preview::deep_zoom(slide.as_ref(), shown, &args.output, &options, existing, &progress);
    progress.finish();
    let summary = match made {
        Ok(summary) => summary,
        Err(error @ (Error::Usage(_) | Error::OutputExists { .. } | Error::InUse { .. })) => return Err(error.into()),
        Err(error) => {
            let error = anyhow::Error::new(error);
            return Err(match unfinished(&args.output) {
                Some(left) => error.context(left),
                None => error,
            });
        }
    };
    if !args.quiet {
        writeln!(std::io::stdout(), "{}: {summary}", args.output.display())?;
    }
    Ok(())
}

/// The folder of a DeepZoom image's tiles.
fn tiles(output: &Path) -> Option<PathBuf> {
    let mut name = output.file_stem()?.to_os_string();
    name.push("_files");
    Some(output.with_file_name(name))
}

/// What is left of an image that was not finished, and how to go on; nothing if nothing is left.
fn unfinished(output: &Path) -> Option<String> {
    let folder = tiles(output)?;
    folder.is_dir().then(|| {
        let (output, folder) = (output.display(), folder.display());
        format!(
            "{output} was not made: {folder} holds a part of its tiles; the same command with --overwrite begins again"
        )
    })
}

fn options(args: &args::Preview, stored: Size, is_mask: bool) -> DeepZoomOptions {
    let wanted = &args.deep_zoom;
    let mut options = DeepZoomOptions::default();
    options.quality = args.quality;
    options.threads = wanted.threads;
    if wanted.copy_tiles {
        options.tiles = TileSource::Copy;
        options.overlap = 0;
        if stored.width == stored.height && (1..=4096).contains(&stored.width) {
            options.tile_size = stored.width as u32;
        }
    }
    options.tile_size = wanted.tile_size.unwrap_or(options.tile_size);
    options.overlap = wanted.overlap_pixels.unwrap_or(options.overlap);
    options.format = match wanted.tile_format {
        Some(args::TileFormat::Png) => TileFormat::Png,
        Some(args::TileFormat::Webp) => TileFormat::WebP,
        // Colours that mean something must not be blurred.
        None if is_mask => TileFormat::Png,
        Some(args::TileFormat::Jpg) | None => TileFormat::Jpeg,
    };
    options.subsampling = match wanted.subsampling {
        Some(args::Subsampling::Full) => Subsampling::Full,
        Some(args::Subsampling::Halved) | None => Subsampling::Halved,
    };
    options
}

/// What `--roi` takes for the tissue, in place of a file.
const AUTO: &str = "auto";

fn region(path: &Path, values: &[String]) -> Result<RegionOrigin> {
    if path != Path::new(AUTO) {
        return Ok(RegionOrigin::File(RoiSource { path: path.into(), values: values.to_vec() }));
    }
    if !values.is_empty() {
        bail!("--roi-value chooses values of a file, and --roi auto has none");
    }
    Ok(RegionOrigin::Tissue)
}
