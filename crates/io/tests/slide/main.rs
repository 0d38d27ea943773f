//! Slides as their users see them: through the public interface, on real and on synthetic files.

mod backends;
mod check;
mod colors;
mod corpus;
mod dicom;
mod jpeg;
mod jpeg2000;
mod jpeg_tiles;
mod ndpi;
mod ome;
mod openslide;
mod pictures;
mod reference;
mod refusals;
mod robustness;
mod synthetic;
mod vendors;

use std::path::Path;

use microtome_io::slide::{OpenOptions, SlideReader, open};

/// Opens a slide that must open.
fn slide(path: impl AsRef<Path>) -> Box<dyn SlideReader> {
    open(path, &OpenOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}
