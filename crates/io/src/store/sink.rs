//! The boundary between those who make pixels and those who keep them.

use serde_json::{Map, Value};

use super::StoredImage;
use crate::{Level, Pixels, Result, Samples, TileCoord};

/// Takes the pixels of an image, one shard at a time, from any number of threads.
///
/// The contract, which every implementation is tested against:
/// - each shard is written at most once, in any order, and different shards at the same time from different threads;
/// - a shard that was never written is background (0);
/// - a shard of nothing but background counts as written, but nothing is stored for it;
/// - nobody sees an image before [`finish`](Self::finish) has returned.
pub trait ImageSink: Send + Sync + std::fmt::Debug {
    /// What is being written.
    fn image(&self) -> &StoredImage;

    /// Writes a shard.
    ///
    /// `pixels` has as many channels as the image (labels have one), the image's sample type, and exactly the pixels of the shard's rectangle clipped to
    /// the level ([`StoredImage::shard_rect`]).
    ///
    /// # Errors
    /// [`Error::Usage`](crate::Error::Usage) for a shard that does not exist, was written before or comes after
    /// `finish`, and for pixels of another size or type; [`Error::Io`](crate::Error::Io) if it cannot be stored, after
    /// which it may be tried again.
    fn write_shard(&self, level: Level, shard: TileCoord, pixels: &Pixels) -> Result<Stored>;

    /// Gives a shard back that this sink has written, or background if it has not.
    ///
    /// # Errors
    /// [`Error::Usage`](crate::Error::Usage) for a shard that does not exist, [`Error::Io`](crate::Error::Io) or
    /// [`Error::Format`](crate::Error::Format) if it cannot be read again.
    fn read_shard(&self, level: Level, shard: TileCoord) -> Result<Pixels>;

    /// Returns once every shard whose write has returned would survive a crash of the machine.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the disk refuses.
    fn sync(&self) -> Result<()>;

    /// True if half as much waits for [`sync`](Self::sync) as may: who syncs now keeps those who write from waiting for the disk.
    fn is_half_full(&self) -> bool {
        false
    }

    /// Makes what was written durable, then visible. To be called once, after the last `write_shard` has returned.
    ///
    /// `notes` is what is known only now; it stands beside the [`attributes`](StoredImage::attributes) of the image, under names of
    /// its own, and like those it is part of the result: no times, no machine.
    ///
    /// # Errors
    /// [`Error::Usage`](crate::Error::Usage) if a write is under way, the image is finished already, or a note has the name of an
    /// attribute; [`Error::Io`](crate::Error::Io) if it cannot be stored: it then stays invisible.
    fn finish(&self, notes: &Map<String, Value>) -> Result<()>;
}

/// What became of a shard that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is all background, so nothing is stored.
    Background,
    /// It is stored as bytes with this SHA-256.
    Sha256([u8; 32]),
}

/// True where there is nothing but 0.
pub(super) fn is_background(pixels: &Pixels) -> bool {
    match pixels.samples() {
        Samples::U8(v) => v.iter().all(|&sample| sample == 0),
        Samples::U16(v) => v.iter().all(|&sample| sample == 0),
    }
}
