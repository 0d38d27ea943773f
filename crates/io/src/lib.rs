//! Bytes in, bytes out: whole-slide images and OME-Zarr stores.
//!
//! This crate opens slides from memory-mapped or positionally read bytes, decodes rectangles of them, and reads and writes
//! OME-Zarr multiscale images and label images.
//! It is the only crate of the workspace that reads or writes slides and stores, and that names `zarrs` or `memmap2`.
//!
//! Slides are Aperio SVS, Hamamatsu NDPI, Leica SCN, Philips TIFF, Ventana BIF, Trestle TIFF, OME-TIFF, PerkinElmer and Akoya
//! QPTIFF, tiled pyramids and plain TIFF without a vendor, DICOM whole slides (a folder, or any file of a series), OME-Zarr stores
//! (a folder or a ZIP archive), and plain pictures: PNG, JPEG and WebP. With the feature `openslide`, OpenSlide 4 reads what of its
//! formats is left: MIRAX, Hamamatsu VMS and VMU, Sakura, Zeiss CZI.
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
//! A path may be a URL of an object store, such as `s3://bucket/image.ome.zarr`, if the feature `remote` is on ([`remote`]).
//!
//! It never resamples for a target grid, never knows a network, never guesses a missing resolution, and never returns black or
//! partial pixels in place of a tile that cannot be decoded: such a read is an [`Error`] that names level, column and row.
//! Levels of an NDPI that its file does not hold are averaged from finer ones, as OpenSlide has them too, and say so:
//! [`LevelInfo::stored`](slide::LevelInfo::stored) is false.
#![warn(missing_docs)]

mod archive;
pub mod base64;
pub mod bytes;
mod classes;
mod error;
mod geometry;
mod pixels;
pub mod remote;
pub mod slide;
pub mod store;

#[doc(hidden)]
pub mod fuzz;

pub use archive::Archive;
pub use classes::Class;
pub use error::{Error, Result};
pub use geometry::{Downsample, Level, Microns, Point, Rect, Size, TileCoord};
pub use pixels::{Pixels, SampleType, Samples};
