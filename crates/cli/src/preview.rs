//! `microtome preview`

use std::path::Path;

use anyhow::{Result, bail};
use microtome::io::store::{Content, OmeZarr};
use microtome::preview::{self, PreviewOptions};
use microtome::{Error, RegionOrigin, RoiSource};

use crate::args;
use crate::info::STORE;

pub(crate) fn run(args: &args::Preview) -> Result<()> {
    let mut options = PreviewOptions::default();
    options.size = args.size;
    options.quality = args.quality;
    let slide = args.opening.open(&args.source)?;
    let store = (slide.info().format == STORE).then(|| OmeZarr::open(&args.source).map_err(Error::Read)).transpose()?;
    let picture = if let Some(mask) = store.filter(|store| matches!(store.info().content, Content::Labels { .. })) {
        if args.overlay.is_some() || args.roi.is_some() {
            return Err(Error::Usage("--overlay and --roi draw on a slide, not on a mask".into()).into());
        }
        preview::mask_overview(&mask, options)?
    } else {
        let mut picture = preview::overview(slide.as_ref(), options)?;
        if let Some(mask) = &args.overlay {
            picture = preview::outline(&picture, slide.as_ref(), &OmeZarr::open(mask).map_err(Error::Read)?)?;
        }
        if let Some(path) = &args.roi {
            picture = preview::outline_region(&picture, slide.as_ref(), &region(path, &args.roi_value)?, options)?;
        }
        picture
    };
    preview::save(&picture, &args.output, options)?;
    Ok(())
}

fn region(path: &Path, values: &[String]) -> Result<RegionOrigin> {
    if path != Path::new("auto") {
        return Ok(RegionOrigin::File(RoiSource { path: path.into(), values: values.to_vec() }));
    }
    if !values.is_empty() {
        bail!("--roi-value chooses values of a file, and --roi auto has none");
    }
    Ok(RegionOrigin::Tissue)
}
