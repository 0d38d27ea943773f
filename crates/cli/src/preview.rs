//! `microtome preview`

use anyhow::Result;
use microtome::Error;
use microtome::io::slide::{self, OpenOptions};
use microtome::io::store::{Content, OmeZarr};
use microtome::preview::{self, PreviewOptions};

use crate::args;

pub(crate) fn run(args: &args::Preview) -> Result<()> {
    let mut options = PreviewOptions::default();
    options.size = args.size;
    options.quality = args.quality;
    let picture = if args.source.is_dir() {
        let store = OmeZarr::open(&args.source).map_err(Error::Read)?;
        if args.overlay.is_some() {
            return Err(Error::Usage("--overlay draws on a slide, not on a store".into()).into());
        }
        match store.info().content {
            Content::Labels { .. } => preview::mask_overview(&store, options)?,
            Content::Image { .. } => preview::overview(&store, options)?,
        }
    } else {
        let slide = slide::open(&args.source, &OpenOptions::default()).map_err(Error::Read)?;
        let picture = preview::overview(slide.as_ref(), options)?;
        match &args.overlay {
            None => picture,
            Some(mask) => preview::outline(&picture, slide.as_ref(), &OmeZarr::open(mask).map_err(Error::Read)?)?,
        }
    };
    preview::save(&picture, &args.output, options)?;
    Ok(())
}
