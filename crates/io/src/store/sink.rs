//! The boundary between those who make labels and those who keep them.

use super::LabelImage;
use crate::{Level, Pixels, Result, Samples, TileCoord};

/// Takes the labels of an image, one shard at a time, from any number of threads.
///
/// The contract, which every implementation is tested against:
/// - each shard is written at most once, in any order, and different shards at the same time from different threads;
/// - a shard that was never written is background (label 0);
/// - a shard of nothing but background counts as written, but nothing is stored for it;
/// - nobody sees an image before [`finish`](Self::finish) has returned.
pub trait MaskSink: Send + Sync + std::fmt::Debug {
    /// What is being written.
    fn image(&self) -> &LabelImage;

    /// Writes a shard.
    ///
    /// `labels` has one channel, the image's sample type, and exactly the pixels of the shard's rectangle clipped to
    /// the level ([`LabelImage::shard_rect`]).
    ///
    /// # Errors
    /// [`Error::Usage`](crate::Error::Usage) for a shard that does not exist, was written before or comes after
    /// `finish`, and for labels of another size or type; [`Error::Io`](crate::Error::Io) if it cannot be stored, after
    /// which it may be tried again.
    fn write_shard(&self, level: Level, shard: TileCoord, labels: &Pixels) -> Result<Stored>;

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

    /// Makes what was written durable, then visible. To be called once, after the last `write_shard` has returned.
    ///
    /// # Errors
    /// [`Error::Usage`](crate::Error::Usage) if a write is under way or the image is finished already;
    /// [`Error::Io`](crate::Error::Io) if it cannot be stored: it then stays invisible.
    fn finish(&self) -> Result<()>;
}

/// What became of a shard that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is all background, so nothing is stored.
    Background,
    /// It is stored as bytes with this SHA-256.
    Sha256([u8; 32]),
}

/// True where there is no label but 0.
pub(super) fn is_background(labels: &Pixels) -> bool {
    match labels.samples() {
        Samples::U8(v) => v.iter().all(|&label| label == 0),
        Samples::U16(v) => v.iter().all(|&label| label == 0),
    }
}
