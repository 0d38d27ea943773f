//! A model on one device of candle's: samples in, logits out, and nothing in between.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
#[cfg(test)]
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use microtome_io::Size;

use super::convolution::Convolver;
use super::lowering::Lowering;
use super::pool::{Batch, Computed, Input, InputSamples, Session};
use crate::ensemble::passes;
use crate::model::Model;
use crate::network::{Layer, Operation};
use crate::weights::Weight;
use crate::{Error, Execution, MirrorAxes, Network, Precision, Result};

/// A model before it is put on a device.
#[derive(Debug)]
pub(super) struct Recipe {
    network: Network,
    tile: Size,
    folds: Vec<BTreeMap<String, Weight>>,
    passes: Vec<MirrorAxes>,
    heads: usize,
    pub(super) precision: Precision,
}

impl Recipe {
    pub(super) fn new(model: &Model, execution: &Execution) -> Self {
        let card = model.card();
        Self {
            network: model.network(),
            tile: card.tile,
            // The values are shared.
            folds: model.folds().iter().map(|fold| fold.weights.clone()).collect(),
            passes: passes(card, execution),
            heads: card.heads(),
            precision: execution.precision,
        }
    }

    fn dtype(&self) -> DType {
        crate::candle::dtype(self.precision)
    }

    /// Bytes that a tile takes on a device.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))] // Only a GPU is asked for its free memory.
    pub(super) fn tile_bytes(&self) -> u64 {
        let width = self.dtype().size_in_bytes() as u64;
        let area = self.tile.area();
        // Samples, their places in the table, normalised and mirrored input in f32; sums over passes and folds.
        let around = area * (self.network.channels() as u64 * 20 + self.heads as u64 * 16);
        crate::candle::activation_bytes(&self.network, self.tile, width).saturating_add(around)
    }

    /// The most values that an operation reads or writes for a tile.
    fn widest(&self) -> u64 {
        let shapes = self.network.shapes(self.tile);
        let input = self.tile.area().saturating_mul(self.network.channels().next_multiple_of(8) as u64);
        let values = shapes.iter().map(|shape| shape.elements()).fold(input, u64::max);
        // Without cuDNN each value is copied once for each place in a kernel.
        let kernel = |layer: &Layer| match &layer.operation {
            Operation::Convolution { kernel, .. } | Operation::Upsampling { kernel, .. } => kernel.area() as u64,
            _ => 1,
        };
        let copies =
            if cfg!(feature = "cudnn") { 1 } else { self.network.layers().iter().map(kernel).fold(1, u64::max) };
        values.saturating_mul(copies)
    }
}

/// Values that a tensor may have at most: cuDNN refuses larger ones, and candle's kernels count in 32 bits.
const MOST_VALUES: u64 = (1 << 31) - 1;

/// The memory that samples and logits pass through on their way.
pub(super) trait Transport {
    /// Brings bytes to the device. `fill` writes them.
    fn upload(&mut self, length: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<Tensor>;
    /// Notes that a batch begins here.
    fn begin(&mut self) -> Result<()>;
    /// Begins to bring the logits of the batch back.
    fn download(&mut self, logits: Tensor) -> Result<()>;
    /// Waits for the oldest that were begun, and says how long the batch took on the device.
    fn arrived(&mut self, take: &mut dyn FnMut(&[f32])) -> Result<Duration>;
    /// Forgets everything that is on its way, and gives kept memory back.
    fn release(&mut self);
}

/// A model on a device.
pub(super) struct NetworkSession<T> {
    device: Device,
    dtype: DType,
    tile: Size,
    channels: usize,
    heads: usize,
    /// The most values that an operation reads or writes for a tile.
    widest: u64,
    folds: Vec<Lowering>,
    passes: Vec<MirrorAxes>,
    /// Indices of rows and of columns from last to first.
    backwards: [Tensor; 2],
    convolver: Convolver,
    transport: T,
    /// The last table that was brought to the device.
    table: Option<(Arc<[f32]>, Tensor)>,
    /// Tiles of the batches that are under way, but for the filling.
    under_way: VecDeque<usize>,
}

impl<T: Transport> NetworkSession<T> {
    pub(super) fn new(recipe: &Recipe, device: &Device, convolver: Convolver, transport: T) -> Result<Self> {
        let Size { width, height } = recipe.tile;
        let dtype = recipe.dtype();
        let lower = |weights| Lowering::new(&recipe.network, recipe.tile, weights, dtype, device);
        let backwards = |n: u64| Tensor::from_vec((0..n as u32).rev().collect(), n as usize, device);
        Ok(Self {
            device: device.clone(),
            dtype,
            tile: recipe.tile,
            channels: recipe.network.channels(),
            heads: recipe.heads,
            widest: recipe.widest(),
            folds: recipe.folds.iter().map(lower).collect::<Result<_, _>>()?,
            passes: recipe.passes.clone(),
            backwards: [backwards(height)?, backwards(width)?],
            convolver,
            transport,
            table: None,
            under_way: VecDeque::new(),
        })
    }

    /// The normalised samples, 0 where tiles hold no pixels.
    fn normalized(&mut self, batch: &Batch<'_>) -> Result<Tensor> {
        let Size { width, height } = self.tile;
        let (height, width) = (height as usize, width as usize);
        let shape = (batch.size, height, width, self.channels);
        let each = height * width * self.channels;
        let values = batch.table.len() / self.channels;
        let samples = match &batch.tiles[0].samples {
            InputSamples::U8(_) => {
                let bytes = self.transport.upload(batch.size * each, &mut |bytes| {
                    let (tiles, filling) = bytes.split_at_mut(batch.tiles.len() * each);
                    for (to, tile) in tiles.chunks_exact_mut(each).zip(batch.tiles) {
                        if let InputSamples::U8(samples) = &tile.samples {
                            to.copy_from_slice(samples);
                        }
                    }
                    filling.fill(0);
                })?;
                bytes.to_dtype(DType::U32)?
            }
            InputSamples::U16(_) => {
                let mut all: Vec<u32> = Vec::with_capacity(batch.size * each);
                for tile in batch.tiles {
                    if let InputSamples::U16(samples) = &tile.samples {
                        all.extend(samples.iter().map(|&sample| u32::from(sample)));
                    }
                }
                all.resize(batch.size * each, 0);
                Tensor::from_vec(all, batch.size * each, &self.device)?
            }
        };
        let places: Vec<u32> = (0..self.channels as u32).map(|c| c * values as u32).collect();
        let places = Tensor::from_vec(places, (1, 1, 1, self.channels), &self.device)?;
        let places = samples.reshape(shape)?.broadcast_add(&places)?.flatten_all()?;
        let input = self.table(batch.table)?.index_select(&places, 0)?.reshape(shape)?;
        let full = |tile: &Arc<Input>| tile.rows == (0..height) && tile.columns == (0..width);
        if batch.tiles.iter().all(full) {
            return Ok(input);
        }
        let mut mask = vec![0_f32; batch.size * height * width];
        for (mask, tile) in mask.chunks_exact_mut(height * width).zip(batch.tiles) {
            for row in mask.chunks_exact_mut(width).take(tile.rows.end).skip(tile.rows.start) {
                row[tile.columns.clone()].fill(1.0);
            }
        }
        Ok(input.broadcast_mul(&Tensor::from_vec(mask, (batch.size, height, width, 1), &self.device)?)?)
    }

    fn table(&mut self, table: &Arc<[f32]>) -> Result<Tensor> {
        if let Some((known, tensor)) = &self.table
            && (Arc::ptr_eq(known, table) || known == table)
        {
            return Ok(tensor.clone());
        }
        let tensor = Tensor::from_slice(table, table.len(), &self.device)?;
        self.table = Some((table.clone(), tensor.clone()));
        Ok(tensor)
    }

    fn mirrored(&self, x: &Tensor, axes: MirrorAxes, first: usize) -> Result<Tensor> {
        let mut x = x.clone();
        for (axis, backwards) in [axes.vertical, axes.horizontal].into_iter().zip(&self.backwards).enumerate() {
            if let (true, indices) = backwards {
                x = x.index_select(indices, first + axis)?;
            }
        }
        Ok(x)
    }

    /// Tiles × heads × rows × columns: the mean over passes and folds, added and divided in the order in which the CPU does it.
    fn logits(&mut self, input: &Tensor) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for pass in self.passes.clone() {
            let input = self.mirrored(input, pass, 1)?.to_dtype(self.dtype)?;
            let mut folds: Option<Tensor> = None;
            for fold in &self.folds {
                let logits = fold.forward(&input, &mut self.convolver)?.to_dtype(DType::F32)?;
                folds = Some(match folds {
                    None => logits,
                    Some(folds) => (folds + logits)?,
                });
            }
            let Some(folds) = folds else { continue };
            let folds = self.mirrored(&folds, pass, 1)?;
            sum = Some(match sum {
                None => folds,
                Some(sum) => (sum + folds)?,
            });
        }
        let mut mean = sum.ok_or_else(|| Error::usage("a model without folds"))?;
        for divisor in [self.passes.len(), self.folds.len()] {
            if divisor > 1 {
                let divisor = Tensor::new(divisor as f32, &self.device)?;
                mean = mean.broadcast_div(&divisor)?;
            }
        }
        Ok(mean.permute((0, 3, 1, 2))?.contiguous()?)
    }
}

impl<T: Transport> Session for NetworkSession<T> {
    fn submit(&mut self, batch: &Batch<'_>) -> Result<()> {
        if (batch.size as u64).saturating_mul(self.widest) > MOST_VALUES {
            let message = format!("{} tiles at once have layers of more than {MOST_VALUES} values", batch.size);
            return Err(Error::DeviceMemory { message });
        }
        self.transport.begin()?;
        let input = self.normalized(batch)?;
        let logits = self.logits(&input)?;
        self.transport.download(logits)?;
        self.under_way.push_back(batch.tiles.len());
        Ok(())
    }

    fn collect(&mut self) -> Result<Computed> {
        let tiles = self.under_way.pop_front().unwrap_or(0);
        let each = self.heads * self.tile.area() as usize;
        let mut logits = Vec::with_capacity(tiles);
        let mut take = |values: &[f32]| logits.extend(values.chunks_exact(each).take(tiles).map(<[f32]>::to_vec));
        let busy = self.transport.arrived(&mut take)?;
        Ok(Computed { logits, busy })
    }

    fn release(&mut self) {
        self.under_way.clear();
        self.table = None;
        self.convolver.release();
        self.transport.release();
    }
}

/// On the CPU nothing has to travel.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct InPlace {
    started: Option<Instant>,
    done: VecDeque<(Vec<f32>, Duration)>,
}

#[cfg(test)]
impl Transport for InPlace {
    fn upload(&mut self, length: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<Tensor> {
        let mut bytes = vec![0; length];
        fill(&mut bytes);
        Ok(Tensor::from_vec(bytes, length, &Device::Cpu)?)
    }

    fn begin(&mut self) -> Result<()> {
        self.started = Some(Instant::now());
        Ok(())
    }

    fn download(&mut self, logits: Tensor) -> Result<()> {
        let values = logits.flatten_all()?.to_vec1()?;
        let busy = self.started.take().map_or(Duration::ZERO, |started| started.elapsed());
        self.done.push_back((values, busy));
        Ok(())
    }

    fn arrived(&mut self, take: &mut dyn FnMut(&[f32])) -> Result<Duration> {
        let lost = || Error::Inference { message: "nothing is under way".into() };
        let (values, busy) = self.done.pop_front().ok_or_else(lost)?;
        take(&values);
        Ok(busy)
    }

    fn release(&mut self) {
        self.done.clear();
    }
}
