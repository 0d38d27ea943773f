//! OME-Zarr stores: label images are written here, images and label images are read here.
//!
//! A [`LabelImage`] describes a mask before its first pixel exists; a [`MaskSink`] takes the pixels, shard by shard
//! and from any thread, and [`MaskSink::finish`] makes the whole visible at once.
//! [`ZarrMask`] is the sink on disk, [`MemoryMask`] the one in memory; [`OmeZarr`] reads.
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

pub use description::{LabelImage, StoreLevel, Translation};
pub use found::{Found, inspect, remove};
pub use memory::MemoryMask;
pub use reader::{OmeZarr, StoreInfo, StoreKind};
pub use sink::{MaskSink, Stored};
pub use zarr::{ZarrMask, stored_shard};
