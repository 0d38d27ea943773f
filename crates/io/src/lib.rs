//! Bytes in, bytes out: whole-slide images and OME-Zarr stores.
//!
//! This crate opens slides (TIFF family, plain pictures) from memory-mapped or positionally read bytes, decodes
//! rectangles of them, and reads and writes OME-Zarr multiscale images and label images.
//! It is the only crate of the workspace that reads or writes slides and stores, and that names `zarrs` or `memmap2`.
//!
//! ```
//! use microtome_io::slide::{OpenOptions, open};
//! use microtome_io::{Level, Rect};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A picture is a slide of one level.
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("tissue.png");
//! image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8, y as u8, 7])).save(&path)?;
//!
//! let slide = open(&path, &OpenOptions::default())?;
//! assert_eq!(slide.info().size().to_string(), "40 x 30");
//! assert_eq!(slide.info().resolution, None, "a PNG does not say how large a pixel is");
//!
//! // Rectangles may stick out of the slide: there they have the background, white here.
//! let pixels = slide.read_region(Level::FINEST, Rect::new(39, 29, 2, 1))?;
//! assert_eq!(pixels.as_u8(), Some(&[39, 29, 7, 255, 255, 255][..]));
//! # Ok(())
//! # }
//! ```
//!
//! It never resamples, never knows a network, never guesses a missing resolution, and never returns black or partial
//! pixels in place of a tile that cannot be decoded: such a read is an [`Error`] that names level, column and row.
#![warn(missing_docs)]

pub mod bytes;
mod classes;
mod error;
mod geometry;
mod pixels;
pub mod slide;
pub mod store;

#[doc(hidden)]
pub mod fuzz;

pub use classes::Class;
pub use error::{Error, Result};
pub use geometry::{Downsample, Level, Microns, Point, Rect, Size, TileCoord};
pub use pixels::{Pixels, SampleType, Samples};
