//! The boundary between a network and everything that feeds it.

use microtome_io::{Pixels, Rect, Size};
use serde::{Deserialize, Serialize};

use crate::{Card, Device, DeviceUse, Normalizer, Profile, Result};

/// Something that turns the pixels of tiles into logits.
///
/// The logits of a tile depend on its pixels, the normaliser, the model and the execution settings, and on nothing else:
/// not on the other tiles of the batch, not on the number of threads.
pub trait Predictor: Send + Sync + std::fmt::Debug {
    /// What the model says about itself.
    fn card(&self) -> &Card;

    /// The logits of each tile, in the order of `tiles`: the mean over mirrorings and folds.
    ///
    /// # Errors
    /// If a tile has not the card's channels or sticks out of the card's tile, if the device fails, or if a logit is not finite.
    fn predict(&self, tiles: &[Tile<'_>], normalizer: &Normalizer) -> Result<Vec<Logits>>;

    /// Everything besides the model and the pixels that can change a bit of the logits, in one line: mirroring,
    /// precision, device or instruction set, and the arithmetic. Part of a run's fingerprint; never batch size or threads.
    fn identity(&self) -> String;

    /// What whoever chose the settings may want to know, in one line.
    fn advice(&self) -> Option<&str> {
        None
    }

    /// What calls with so many tiles need of main memory.
    fn memory(&self, batch: usize) -> MemoryEstimate;

    /// Calls of [`predict`](Self::predict) that should be under way at once, from as many threads, so that a device never waits for
    /// the next tiles: 1 on the CPU, which one call keeps busy.
    fn lanes(&self) -> usize {
        1
    }

    /// Tiles of a call where nobody asks for another number; `None`: as many as keep the threads busy.
    fn batch(&self) -> Option<usize> {
        None
    }

    /// What GPUs have done so far, one entry for each.
    fn devices(&self) -> Vec<DeviceUse> {
        Vec::new()
    }

    /// Where the time has gone so far, if that is known.
    fn profile(&self) -> Option<Profile> {
        None
    }
}

/// The pixels of one network input.
#[derive(Debug, Clone, Copy)]
pub struct Tile<'a> {
    /// The pixels, with the card's channels.
    pub pixels: &'a Pixels,
    /// Where they lie inside the network's tile: all of it, but for images smaller than a tile.
    /// The rest of the tile is 0 after normalisation, as nnU-Net pads.
    pub at: Rect,
}

impl<'a> Tile<'a> {
    /// A tile that is full of pixels.
    #[must_use]
    pub fn full(pixels: &'a Pixels) -> Self {
        Self { pixels, at: pixels.size().rect() }
    }
}

/// The network's output for one tile, before any activation.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    /// Number of planes.
    pub heads: usize,
    /// Size of each plane: the network's tile.
    pub size: Size,
    /// `heads` × `size.height` × `size.width` values: plane by plane, row by row.
    pub values: Vec<f32>,
}

/// Bytes of main memory that inference takes. What a GPU holds is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Resident for as long as the predictor lives: the weights of all folds.
    pub weights: u64,
    /// At most in use while [`Predictor::lanes`] calls are under way: inputs, activations, scratch and the logits that are returned.
    pub activations: u64,
}

/// How a model is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Execution {
    /// Where.
    pub device: Device,
    /// With or without test-time mirroring.
    pub mirroring: Mirroring,
    /// With how many bits.
    pub precision: Precision,
    /// With which algorithms.
    pub arithmetic: Arithmetic,
}

/// Which algorithms the CPU may use. On other devices all are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// The fastest ones, whose rounding errors are larger: Winograd's for convolutions of 3 x 3.
    #[default]
    Fast,
    /// Convolutions as they are defined: a sum of products.
    Exact,
    /// candle's operations one after the other: slow, to compare with.
    Reference,
}

impl std::fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fast => "fast",
            Self::Exact => "exact",
            Self::Reference => "reference",
        })
    }
}

/// Whether the network also sees mirrored tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mirroring {
    /// Along all axes that the network was trained to be mirrored along; the logits are averaged.
    #[default]
    AsTrained,
    /// Not at all: up to four times faster.
    Off,
}

/// The type of what convolutions multiply. Normalisation statistics and the sums over passes are f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floating point.
    #[default]
    F32,
    /// bfloat16: on CUDA devices all weights and activations; on the CPU weights and what convolutions read,
    /// while their sums and all tensors are f32. Fast on CPUs with AVX512_BF16, slower than f32 on others.
    Bf16,
    /// 16-bit floating point, on CUDA devices.
    F16,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}
