//! Bytes in, bytes out: whole-slide images and OME-Zarr stores.
//!
//! This crate opens slides (TIFF family, plain pictures) from memory-mapped or positionally read bytes, decodes
//! rectangles of them, and reads and writes OME-Zarr multiscale images and label images.
//! It is the only crate of the workspace that names a file format, a codec, `zarrs` or `memmap2`.
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

pub use classes::Class;
pub use error::{Error, Result};
pub use geometry::{Downsample, Level, Microns, Point, Rect, Size, TileCoord};
pub use pixels::{Pixels, SampleType, Samples};
