//! The pyramid tiler: between a slide's stored levels and a network's tiles.
//!
//! - [`TargetGrid`] decides which virtual image a model works on, and [`Reader`] computes any rectangle of it;
//! - [`TileGrid`] places tiles as nnU-Net or MONAI does, [`Roi`] and [`tissue`] say which are wanted, [`Schedule`] in which order they run,
//!   [`Lockstep`] in which order those of several models do, and [`Shares`] which of several workers runs which;
//! - a [`Roi`] is built row by row, from [`Polygon`]s, or from the rows of a mask by its [`Placement`];
//! - [`nonzero`] finds the part of an image that is not black, for models that were trained on no more;
//! - [`ImageStatistics`] streams over the whole image for the normalizations that need it;
//! - [`pyramid`] turns level n into level n + 1, for masks and for pictures, and [`z_order`] is the order of cells in which that holds least.
//!
//! This crate never runs a network, never writes a file, and holds no more than what it is asked for and a few megapixels a thread.
//!
//! # Example
//!
//! ```
//! use microtome_io::Size;
//! use microtome_tile::{Schedule, TileGrid};
//!
//! // Tiles of 512 pixels that overlap by half over a slide of 20000 x 15000 pixels,
//! // blended in blocks of 512 pixels, in strips of 4096 pixels.
//! let grid = TileGrid::new(Size::new(20_000, 15_000), Size::new(512, 512), 0.5)?;
//! let schedule = Schedule::new(&grid, None, Size::new(512, 512), 8)?;
//! assert_eq!(grid.len(), 78 * 58);
//! // Two columns of tiles reach into two strips at each of the four places where strips meet.
//! assert_eq!(schedule.count().repeated, 8 * 58);
//! # Ok::<(), microtome_tile::Error>(())
//! ```

mod crop;
mod error;
mod grid;
mod lockstep;
mod order;
mod placement;
mod polygon;
pub mod pyramid;
mod reader;
mod roi;
mod schedule;
mod shares;
mod statistics;
mod target;
pub mod tissue;

pub use crop::nonzero;
pub use error::{Error, Result};
pub use grid::{StepRule, TileGrid, TileIndex};
pub use lockstep::Lockstep;
pub use order::{row_order, z_order};
pub use placement::{PlacedRoi, Placement};
pub use polygon::{Polygon, Vertex};
pub use reader::{Reader, check_channels};
pub use roi::{Roi, RoiBuilder};
pub use schedule::{Finished, Schedule, ScheduledTile, Strip, TileCount, TileRow};
pub use shares::Shares;
pub use statistics::{ChannelSums, Damage, ImageStatistics};
pub use target::{Resampling, TargetGrid, TargetOptions, TargetResolution};
