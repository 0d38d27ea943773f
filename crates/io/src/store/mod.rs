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
pub(crate) mod found;
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
pub(crate) mod place;
mod raster;
mod reader;
mod region;
mod shard;
mod sink;
mod zarr;

/// Where an image that was converted from a slide keeps the slide's ICC profile, in base64 (RFC 4648), in the root attribute `microtome`.
pub const ICC_PROFILE: &str = "icc_profile";

/// Where an associated picture says that it shows the label on the glass, in the attribute `microtome` of its group: `true`.
pub const SHOWS_LABEL: &str = "shows_label";

pub use content::{Channel, Content};
pub use description::{AxisUnit, LabelSource, StoreLevel, StoredImage, Translation};
pub use encoding::{Compression, Encoding, Format};
pub use files::{Kept, StoredShards, Survey, stored_shard};
pub use folder::sync_file_system;
pub use found::{ASSOCIATED, Found, inspect, make_group, remove, remove_group, reopen, stored_bytes};
pub use labels::LabelledImage;
pub use memory::MemoryImage;
pub use pack::pack;
pub use reader::{OmeZarr, StoreInfo};
pub use sink::{ImageSink, Stored};
pub use zarr::ZarrImage;
