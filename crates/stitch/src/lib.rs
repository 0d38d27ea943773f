//! Weighted fusion of overlapping tiles, in bounded memory, and the label pyramid over the result.
//!
//! A [`Blender`] adds weighted logits of tiles into blocks (through an [`Accumulator`], on the CPU or on a device), turns
//! blocks that no further tile touches into labels, and gives away shards; a [`LabelPyramid`] writes them, level by level.
//!
//! This crate never runs a network, and never holds more than the blocks under the tiles in flight and one row of shards
//! of a strip. Only the [`LabelPyramid`] writes masks.
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//! use microtome_io::{Rect, Size};
//! use microtome_stitch::{Accumulator, CpuAccumulator, TileLogits, Wanted, Window, WindowShape};
//!
//! // Two overlapping tiles of one plane that say 3 everywhere: so does their weighted mean.
//! let window = Arc::new(Window::new(WindowShape::Gaussian, Size::new(8, 8)));
//! let image = Size::new(12, 8);
//! let wanted = Wanted { rect: image.rect(), blocks: None };
//! let mut sums = CpuAccumulator::new(image, Size::new(12, 8), 1, window.clone(), wanted.clone());
//! let mut weights = CpuAccumulator::new(image, Size::new(12, 8), 1, window, wanted);
//! for x in [0, 4] {
//!     let rect = Rect::new(x, 0, 8, 8);
//!     sums.add(&[TileLogits { rect, values: &[3.0; 64] }])?;
//!     weights.add(&[TileLogits { rect, values: &[1.0; 64] }])?;
//! }
//! let block = microtome_io::TileCoord { row: 0, column: 0 };
//! let (sums, weights) = (sums.take(block).unwrap(), weights.take(block).unwrap());
//! assert!(sums.values.iter().zip(&weights.values).all(|(s, w)| (s / w - 3.0).abs() < 1e-6));
//! # Ok::<(), microtome_stitch::Error>(())
//! ```

mod accumulator;
mod blender;
mod error;
mod journal;
mod labels;
mod window;
mod writer;

pub use accumulator::{Accumulator, BlockSums, CpuAccumulator, TileLogits, Wanted};
pub use blender::{Blender, Layout};
pub use error::{Error, Result};
pub use journal::{Entry, Journal, Record};
pub use labels::Decision;
pub use window::{Window, WindowShape};
pub use writer::LabelPyramid;
