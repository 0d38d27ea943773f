//! What a user may decide about a conversion.

use std::time::Duration;

use microtome_io::store::Encoding;
use microtome_io::{Level, Rect};
use microtome_tile::pyramid::Reduction;

use crate::memory;

/// Which levels are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Levels {
    /// Each half of the one before, until the longer side is no more than a chunk.
    #[default]
    Enough,
    /// So many, each half of the one before.
    Count(usize),
    /// As many as [`Enough`](Self::Enough). Where the slide stores a level of the same ratio and exactly the size that a level has here,
    /// its pixels are copied; the other levels are computed, each from the one before.
    Source,
}

/// What becomes of the picture of the slide's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LabelImage {
    /// It is left out: it can carry a patient's name.
    #[default]
    LeftOut,
    /// It is kept, like the other pictures that travel along.
    Kept,
}

/// What to do about a picture that travels along and cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnBadPicture {
    /// The conversion fails, and says which, before anything of the slide's own pixels is converted: nothing is lost unasked.
    #[default]
    Fail,
    /// It is left out, and the summary says so.
    LeaveOut,
}

/// Settings of a conversion.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ConvertOptions {
    /// Version of OME-Zarr, and how chunks are compressed.
    pub encoding: Encoding,
    /// Side of a chunk, in pixels: the smallest piece that a reader decodes, of one channel.
    pub chunk: u64,
    /// Side of a shard, in pixels: the piece that is converted at once. An even multiple of 1 pixel and a whole multiple of the chunk.
    pub shard: u64,
    /// How a level is made of the one before. `None`: by the [mode](Reduction::Mode) of labels, by the [mean](Reduction::Mean) of anything else.
    pub reduction: Option<Reduction>,
    /// Which levels are written.
    pub levels: Levels,
    /// The slide's level that becomes the finest one.
    pub level: Level,
    /// The part of that level that is converted, in its pixels; `None`: all of it.
    pub rect: Option<Rect>,
    /// Micrometres per level-0 pixel of the slide, in place of what the slide says.
    pub mpp: Option<f64>,
    /// Write the pictures that travel with the slide, too.
    pub associated: bool,
    /// What becomes of the picture of the slide's label.
    pub label_image: LabelImage,
    /// What to do about one of them that cannot be read.
    pub on_bad_picture: OnBadPicture,
    /// The name of the image within its metadata. Not taken from the slide: the name of its file can be a patient's.
    pub name: String,
    /// Bytes that the conversion may use: anonymous memory plus dirty file pages. The default is half of what the control group or the
    /// machine allows ([`Allowance`](crate::Allowance)).
    pub memory: u64,
    /// Threads that decode, reduce and encode. Never changes the result. `None`: one per core.
    pub threads: Option<usize>,
    /// How much time a crash may cost at most, besides what is in flight: finished shards are made durable this often, and sooner where more of
    /// them wait for the disk than its pages may take.
    pub sync_every: Duration,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self {
            encoding: Encoding::default(),
            chunk: 512,
            shard: 1024,
            reduction: None,
            levels: Levels::Enough,
            level: Level::FINEST,
            rect: None,
            mpp: None,
            associated: true,
            label_image: LabelImage::LeftOut,
            on_bad_picture: OnBadPicture::Fail,
            name: "image".into(),
            memory: memory::allowance().budget(),
            threads: None,
            sync_every: Duration::from_secs(2),
        }
    }
}
