//! Converts a slide into an OME-Zarr image, every level of it, in little memory whatever the size of the slide.
//!
//! ```sh
//! cargo run --release -p microtome --example convert_slide -- slide.svs image.ome.zarr
//! ```
//!
//! If it is stopped, the same command goes on where it was.

use std::error::Error;
use std::path::PathBuf;

use microtome::io::slide::{OpenOptions, open};
use microtome::{Conversion, ConvertOptions, Existing, Levels, Silent, convert};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [slide, output] = arguments.as_slice() else {
        return Err("usage: convert_slide SLIDE OUT.ome.zarr|OUT.ome.zarr.zip".into());
    };
    let slide = open(slide, &OpenOptions::default())?;

    // Levels that the scanner has stored are copied where they have the ratio and the size of ours; others are means of 2 x 2 pixels.
    let mut options = ConvertOptions::default();
    options.levels = Levels::Source;
    options.encoding.compression = "zstd:3".parse()?;

    match convert(slide.as_ref(), output, &options, Existing::Keep, &Silent)? {
        Conversion::Done(summary) => {
            println!("{summary}");
            summary.notes.iter().for_each(|note| println!("note: {note}"));
        }
        Conversion::AlreadyDone => println!("{}: done already", output.display()),
    }
    Ok(())
}
