//! Weighted fusion of overlapping tiles, in bounded memory, and the label pyramid over the result.
//!
//! A [`Blender`] adds weighted logits of tiles into blocks (through an [`Accumulator`], on the CPU or on a device), turns
//! blocks that no further tile touches into labels (of several models by the mean of their probabilities), and gives away shards; a [`PyramidWriter`] writes them, level by level.
//!
//! This crate never runs a network, and never holds more than the blocks under the tiles in flight and one row of shards
//! of a strip. Only the [`PyramidWriter`] writes masks.
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//! use microtome_io::{Rect, Size};
//! use microtome_stitch::{Accumulator, CpuAccumulator, Planes, Sums, TileLogits, Wanted, WeightSum, Window, WindowShape};
//!
//! // Two overlapping tiles of one plane that say 3 everywhere: so does their weighted mean.
//! let window = Arc::new(Window::new(WindowShape::Gaussian, Size::new(8, 8)));
//! let image = Size::new(12, 8);
//! let kept = Sums { planes: Planes::Each(1), weights: WeightSum::Kept };
//! let mut sums = CpuAccumulator::new(image, image, kept, window, Wanted { rect: image.rect(), blocks: None });
//! for x in [0, 4] {
//!     sums.add(&[TileLogits::whole(Rect::new(x, 0, 8, 8), &[3.0; 64])])?;
//! }
//! let block = sums.take(microtome_io::TileCoord { row: 0, column: 0 })?.unwrap();
//! let (sums, weights) = (block.planes().next().unwrap(), block.weights().unwrap());
//! assert!(sums.iter().zip(weights).all(|(sum, weight)| (sum / weight - 3.0).abs() < 1e-6));
//! # Ok::<(), microtome_stitch::Error>(())
//! ```

mod accumulator;
mod blender;
mod components;
mod error;
mod half_accumulator;
mod journal;
mod labels;
mod product;
mod scratch;
mod window;
mod writer;

pub use accumulator::{
    Accumulation, Accumulator, BlockSums, CpuAccumulator, Planes, Sums, TileLogits, Wanted, WeightSum,
};
pub use blender::{Blender, Layout};
pub use components::Components;
pub use error::{Error, Result};
pub use half_accumulator::HalfAccumulator;
pub use journal::{Entry, Journal, Line, Record, UnreadableTile};
pub use labels::Decision;
pub use product::{MeanProbabilities, Product};
pub use scratch::{Kept, Scratch};
pub use window::{Window, WindowShape};
pub use writer::PyramidWriter;
