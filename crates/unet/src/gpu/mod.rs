//! The network on GPUs.
//!
//! Tiles go to a device as they were read, a byte per sample, and come back as logits. In between everything happens there: normalisation by
//! a table, mirroring, the network of each fold, and the mean over passes and folds, without waiting for the host until the batch is done, but
//! for samples of 16 bits and tiles with borders, which are copied from ordinary memory ([`session`]).
//! Tensors lie channels last, as the fast kernels of cuDNN want them, and what follows a convolution
//! (instance normalisation, a residual sum, leaky ReLU) is one pass over memory after another for the statistics ([`norm`]), and so is what
//! follows the product of a transposed one ([`blocks`]).
//! One thread drives each device ([`pool`]).
//!
//! All but the kernels themselves runs on candle's CPU device too, and is tested there.

mod blocks;
mod convolution;
#[cfg(feature = "cuda")]
pub(crate) mod driver;
mod lowering;
mod norm;
mod pool;
mod session;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use microtome_io::{Samples, Size};

use crate::ensemble::{check_tile, passes};
use crate::model::Model;
use crate::{
    Card, DeviceUse, Error, Execution, Logits, MemoryEstimate, Normalizer, Precision, Predictor, Result, Tile,
};
#[cfg(test)]
pub(crate) use lowering::run_on_cpu;
use pool::{Batches, Input, InputSamples, Open, Pool};
#[cfg(feature = "cuda")]
use session::Recipe;

/// Calls that should be under way at once for each device: one whose batch it computes, one whose batch is queued behind, and one whose
/// tiles are made ready or whose logits are looked at.
const LANES: usize = 3;
/// Pixels that a device computes at once at most where nobody asks for another number: more keep no GPU busier.
const MOST_PIXELS: u64 = 16 * 512 * 512;

/// A model on GPUs.
#[derive(Debug)]
pub(crate) struct GpuPredictor {
    card: Card,
    passes: usize,
    precision: Precision,
    pool: Pool,
}

/// A model on these GPUs.
///
/// # Errors
/// If a device does not answer or has no room for a tile, or if devices are not alike.
#[cfg(feature = "cuda")]
pub(crate) fn predictor(model: &Model, execution: &Execution, gpus: crate::Gpus) -> Result<GpuPredictor> {
    let recipe = Arc::new(Recipe::new(model, execution));
    let open = |number: usize| -> Open {
        let recipe = recipe.clone();
        Box::new(move || driver::open(number, &recipe))
    };
    let devices = gpus.numbers().map(open).collect();
    drop(recipe);
    GpuPredictor::new(model, execution, devices, gpus.batch())
}

impl GpuPredictor {
    fn new(model: &Model, execution: &Execution, devices: Vec<Open>, batch: Option<usize>) -> Result<Self> {
        let card = model.card().clone();
        let most = (MOST_PIXELS / card.tile.area().max(1)).clamp(1, 1024) as usize;
        let (pattern, table) = pattern(card.tile, card.channels.len());
        let pool = Pool::start(devices, batch, most, &Arc::new(pattern), &table)?;
        let passes = passes(&card, execution).len();
        Ok(Self { card, passes, precision: execution.precision, pool })
    }
}

/// A tile of noise and a normalisation to try a device with.
fn pattern(tile: Size, channels: usize) -> (Input, Arc<[f32]>) {
    let mut state = 7_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let samples = (0..tile.area() as usize * channels).map(|_| next()).collect();
    let (rows, columns) = (0..tile.height as usize, 0..tile.width as usize);
    let table = (0..channels).flat_map(|_| (0..256).map(|v| (v as f32 - 128.0) / 64.0)).collect();
    (Input { samples: InputSamples::U8(samples), rows, columns }, table)
}

/// For each channel, what every value of a sample becomes.
fn table(samples: &Samples, normalizer: &Normalizer) -> Arc<[f32]> {
    let values = match samples {
        Samples::U8(_) => 1 << 8,
        Samples::U16(_) => 1 << 16,
    };
    (0..normalizer.channels()).flat_map(|c| (0..values).map(move |v| normalizer.apply(c, v as f32))).collect()
}

/// The samples of a tile, with 0 around them.
fn input(tile: &Tile<'_>, size: Size) -> Input {
    fn placed<T: Copy + Default>(samples: &[T], tile: &Tile<'_>, size: Size) -> Vec<T> {
        if tile.at == size.rect() {
            return samples.to_vec();
        }
        let (width, channels) = (size.width as usize, tile.pixels.channels());
        let mut all = vec![T::default(); size.area() as usize * channels];
        let (x, y, columns) = (tile.at.x as usize, tile.at.y as usize, tile.at.width as usize);
        for (row, from) in samples.chunks_exact(columns * channels).enumerate() {
            all[((y + row) * width + x) * channels..][..columns * channels].copy_from_slice(from);
        }
        all
    }
    let samples = match tile.pixels.samples() {
        Samples::U8(samples) => InputSamples::U8(placed(samples, tile, size)),
        Samples::U16(samples) => InputSamples::U16(placed(samples, tile, size)),
    };
    let range = |from: i64, length: u64| from as usize..from as usize + length as usize;
    Input { samples, rows: range(tile.at.y, tile.at.height), columns: range(tile.at.x, tile.at.width) }
}

impl Predictor for GpuPredictor {
    fn card(&self) -> &Card {
        &self.card
    }

    fn predict(&self, tiles: &[Tile<'_>], normalizer: &Normalizer) -> Result<Vec<Logits>> {
        for (index, tile) in tiles.iter().enumerate() {
            check_tile(index, tile, &self.card, normalizer)?;
        }
        let Some(first) = tiles.first() else { return Ok(Vec::new()) };
        if tiles.iter().any(|tile| tile.pixels.sample_type() != first.pixels.sample_type()) {
            return Err(Error::usage("tiles of 8 and of 16 bits in one batch"));
        }
        let size = self.card.tile;
        let inputs: Vec<Arc<Input>> = tiles.iter().map(|tile| Arc::new(input(tile, size))).collect();
        let table = table(first.pixels.samples(), normalizer);
        let heads = self.card.heads();
        let all: Vec<Logits> =
            self.pool.compute(&inputs, &table)?.into_iter().map(|values| Logits { heads, size, values }).collect();
        let finite = |logits: &Logits| logits.values.iter().all(|v| v.is_finite());
        match all.iter().position(|logits| !finite(logits)) {
            Some(index) => Err(Error::NotFinite { index }),
            None => Ok(all),
        }
    }

    /// The size of a batch is part of it only where other sizes do not give the same bits.
    fn identity(&self) -> String {
        let batch = match self.pool.batches {
            Batches::Equal => String::new(),
            Batches::Different => format!(", {} tiles at once", self.pool.batch),
        };
        format!("microtome gpu 1, candle 0.11, {} on {}{batch}, {} passes", self.precision, self.pool.kind, self.passes)
    }

    /// Of main memory; what a device holds is its own.
    fn memory(&self, batch: usize) -> MemoryEstimate {
        let area = self.card.tile.area();
        let (samples, logits) = (2 * area * self.card.channels.len() as u64, 4 * area * self.card.heads() as u64);
        // The tiles of every call, and for each device what is on its way there and back.
        let calls = (self.lanes() * batch) as u64 * samples;
        let staged = (self.pool.devices() * LANES * self.pool.batch) as u64 * (samples + logits);
        MemoryEstimate { weights: 0, activations: calls + staged }
    }

    fn lanes(&self) -> usize {
        LANES * self.pool.devices()
    }

    fn batch(&self) -> Option<usize> {
        Some(self.pool.batch)
    }

    fn devices(&self) -> Vec<DeviceUse> {
        self.pool.uses()
    }
}
