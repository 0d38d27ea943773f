//! OME-Zarr stores: images and label images, written and read.
//!
//! A [`StoredImage`] describes an image before its first pixel exists; a [`ImageSink`] takes the pixels, shard by shard
//! and from any thread, and [`ImageSink::finish`] makes the whole visible at once.
//! [`ZarrImage`] is the sink on disk, [`MemoryImage`] the one in memory; [`OmeZarr`] reads. A [`LabelledImage`] is one that labels are put into,
//! and [`pack`] makes one ZIP file of a finished store.
//!
//! Memory: a write holds one chunk and the encoded shard; a read holds its result and, per working thread,
//! one encoded and one decoded chunk and the index of one shard.

mod array;
mod codec;
mod collection;
mod compressor;
mod content;
mod description;
mod encoding;
pub(crate) mod entries;
mod files;
mod folder;
mod found;
mod labels;
mod ledger;
#[cfg(test)]
mod measurements;
mod memory;
mod multiscale;
mod ngff;
mod node;
mod open_shards;
mod pack;
mod raster;
mod reader;
mod region;
mod shard;
mod sink;
mod zarr;

pub use content::{Channel, Content};
pub use description::{AxisUnit, LabelSource, StoreLevel, StoredImage, Translation};
pub use encoding::{Compression, Encoding, Format};
pub use files::stored_shard;
pub use found::{ASSOCIATED, Found, inspect, remove, reopen};
pub use labels::LabelledImage;
pub use memory::MemoryImage;
pub use pack::pack;
pub use reader::{OmeZarr, StoreInfo};
pub use sink::{ImageSink, Stored};
pub use zarr::ZarrImage;
