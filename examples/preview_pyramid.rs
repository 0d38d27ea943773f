//! Makes a preview pyramid: pictures of a slide or mask with 256, 512, 1024 and 2048 pixels along the longer side.
//!
//! ```sh
//! cargo run --release -p microtome --example preview_pyramid -- slide.svs previews mask.ome.zarr
//! ```
//!
//! The mask is optional; its regions are then outlined on the slide.

use std::error::Error;
use std::path::PathBuf;

use microtome::io::Pixels;
use microtome::io::slide::{OpenOptions, open};
use microtome::io::store::{Content, OmeZarr};
use microtome::preview::{self, PreviewOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let (source, folder, mask) = match arguments.as_slice() {
        [source, folder] => (source, folder, None),
        [source, folder, mask] => (source, folder, Some(OmeZarr::open(mask)?)),
        _ => return Err("usage: preview_pyramid SLIDE|STORE FOLDER [MASK]".into()),
    };

    // A slide is a file and a store a folder. Opened once, either is asked for each size: a stored level is read that is
    // just fine enough, so that small pictures of large slides are cheap.
    let draw: Box<dyn Fn(PreviewOptions) -> microtome::Result<Pixels>> = if source.is_dir() {
        if mask.is_some() {
            return Err("a mask is drawn on a slide, not on a store".into());
        }
        let store = OmeZarr::open(source)?;
        Box::new(move |options| match store.info().content {
            // Labels are picked, never averaged, and shown in the colours of their classes.
            Content::Labels { .. } => preview::mask_overview(&store, options),
            Content::Image { .. } => preview::overview(&store, options),
        })
    } else {
        let slide = open(source, &OpenOptions::default())?;
        Box::new(move |options| {
            let picture = preview::overview(slide.as_ref(), options)?;
            match &mask {
                Some(mask) => preview::outline(&picture, slide.as_ref(), mask),
                None => Ok(picture),
            }
        })
    };

    std::fs::create_dir_all(folder)?;
    for size in [256, 512, 1024, 2048] {
        let mut options = PreviewOptions::default();
        options.size = size;
        let picture = draw(options)?;
        let path = folder.join(format!("{size}.png"));
        preview::save(&picture, &path, options)?;
        println!("{}: {} pixels", path.display(), picture.size());
    }
    Ok(())
}
