//! OME-Zarr stores: images and label images, written and read.
//!
//! A [`StoredImage`] describes an image before its first pixel exists; a [`ImageSink`] takes the pixels, shard by shard
//! and from any thread, and [`ImageSink::finish`] makes the whole visible at once.
//! [`ZarrImage`] is the sink on disk, [`MemoryImage`] the one in memory; [`OmeZarr`] reads.
//!
//! Memory: a write holds one padded shard and twice its encoded form; a read holds its result and, per working thread,
//! one encoded and one decoded chunk and the index of one shard.

mod array;
mod codec;
mod description;
mod folder;
mod found;
mod ledger;
mod memory;
mod multiscale;
mod ngff;
mod reader;
mod sink;
mod zarr;

pub use description::{Content, StoreLevel, StoredImage, Translation};
pub use found::{Found, inspect, remove};
pub use memory::MemoryImage;
pub use reader::{OmeZarr, StoreInfo, StoreKind};
pub use sink::{ImageSink, Stored};
pub use zarr::{ZarrImage, stored_shard};
