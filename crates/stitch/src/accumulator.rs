//! Weighted sums of logits, in blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use microtome_io::{Rect, Size, TileCoord};
use rayon::prelude::*;

use crate::window::Window;
use crate::{Error, Result};

/// The logits of one tile, and where it lies.
#[derive(Debug, Clone, Copy)]
pub struct TileLogits<'a> {
    /// The tile, in target pixels; it may stick out of the image where that is smaller than a tile.
    pub rect: Rect,
    /// Planes × height × width values: plane by plane, row by row.
    pub values: &'a [f32],
}

/// What is summed at every pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planes {
    /// Each of so many logits.
    Each(usize),
    /// The second of two logits less the first: all that a choice between two classes needs, and half the memory.
    Difference,
}

impl Planes {
    /// Logits per pixel that come in.
    #[must_use]
    pub fn logits(self) -> usize {
        match self {
            Self::Each(n) => n,
            Self::Difference => 2,
        }
    }

    /// Sums per pixel that are kept.
    #[must_use]
    pub fn sums(self) -> usize {
        match self {
            Self::Each(n) => n,
            Self::Difference => 1,
        }
    }
}

/// Whether the weights themselves are summed, which a mean needs and a label does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightSum {
    /// They are not.
    Omitted,
    /// They are, on a plane behind the others.
    Kept,
}

/// What an accumulator keeps of every pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sums {
    /// Of the logits.
    pub planes: Planes,
    /// Of the weights.
    pub weights: WeightSum,
}

impl Sums {
    /// Values per pixel.
    #[must_use]
    pub fn values(self) -> usize {
        self.planes.sums() + usize::from(self.weights == WeightSum::Kept)
    }
}

/// The finished sums of a block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockSums {
    /// The block's pixels that lie inside the image.
    pub size: Size,
    /// What the planes are.
    pub sums: Sums,
    /// `sums.values()` × `size.height` × `size.width` values: sums of weight × logit, plane by plane, and behind them those of the weights.
    pub values: Vec<f32>,
}

impl BlockSums {
    /// The sums of weight × logit, one slice per plane.
    pub fn planes(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.area().max(1)).take(self.sums.planes.sums())
    }

    /// The sums of the weights, where they are kept.
    #[must_use]
    pub fn weights(&self) -> Option<&[f32]> {
        (self.sums.weights == WeightSum::Kept).then(|| &self.values[self.area() * self.sums.planes.sums()..])
    }

    fn area(&self) -> usize {
        self.size.area() as usize
    }
}

/// Adds weighted logits of tiles into blocks, and gives finished blocks away.
///
/// At every pixel, tiles are added in the order in which they are passed. Implementations may live on a device, so that
/// only finished blocks come back.
pub trait Accumulator: Send + std::fmt::Debug {
    /// Adds tiles, in order.
    ///
    /// # Errors
    /// [`Error::Shape`] if a tile has not the window's size and the accumulator's planes.
    fn add(&mut self, tiles: &[TileLogits<'_>]) -> Result<()>;

    /// Removes a block and gives its sums; `None` if no tile touched it.
    fn take(&mut self, block: TileCoord) -> Option<BlockSums>;

    /// Takes sums back that are not needed any more, so that their memory serves the next block.
    fn recycle(&mut self, sums: BlockSums) {
        drop(sums);
    }

    /// Bytes held now.
    fn bytes(&self) -> u64;
}

/// Sums in main memory, f32.
#[derive(Debug)]
pub struct CpuAccumulator {
    image: Rect,
    block: Size,
    sums: Sums,
    window: Arc<Window>,
    /// Blocks that are wanted: those of the strip at hand that touch the region of interest.
    wanted: Wanted,
    blocks: BTreeMap<TileCoord, Vec<f32>>,
    /// Memory of blocks that are gone.
    spare: Vec<Vec<f32>>,
}

/// Which blocks to keep.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Target pixels; blocks outside are left out.
    pub rect: Rect,
    /// Row by row, one entry per block of the whole image; `None` keeps all.
    pub blocks: Option<Arc<Vec<bool>>>,
}

impl CpuAccumulator {
    /// No sums yet, for tiles weighted by `window`, over an image of `image` pixels in blocks of `block`.
    #[must_use]
    pub fn new(image: Size, block: Size, sums: Sums, window: Arc<Window>, wanted: Wanted) -> Self {
        Self { image: image.rect(), block, sums, window, wanted, blocks: BTreeMap::new(), spare: Vec::new() }
    }

    fn keeps(&self, block: TileCoord) -> bool {
        let columns = self.image.width.div_ceil(self.block.width);
        block.rect(self.block).intersect(self.wanted.rect).is_some()
            && self.wanted.blocks.as_ref().is_none_or(|w| w[(block.row * columns + block.column) as usize])
    }

    fn rect(&self, block: TileCoord) -> Rect {
        let cell = block.rect(self.block);
        cell.intersect(self.image).unwrap_or(Rect::new(cell.x, cell.y, 0, 0))
    }

    /// The blocks that a rectangle touches.
    fn touched(&self, rect: Rect) -> impl Iterator<Item = TileCoord> + use<> {
        let rect = rect.intersect(self.image);
        let block = self.block;
        rect.into_iter().flat_map(move |rect| {
            let rows = rect.y as u64 / block.height..(rect.bottom() as u64).div_ceil(block.height);
            let columns = rect.x as u64 / block.width..(rect.right() as u64).div_ceil(block.width);
            rows.flat_map(move |row| columns.clone().map(move |column| TileCoord { row, column }))
        })
    }
}

impl Accumulator for CpuAccumulator {
    fn add(&mut self, tiles: &[TileLogits<'_>]) -> Result<()> {
        let expected = self.window.size().area() as usize * self.sums.planes.logits();
        let mut touched = BTreeSet::new();
        for tile in tiles {
            if tile.values.len() != expected || tile.rect.size() != self.window.size() {
                return Err(Error::Shape { rect: tile.rect, found: tile.values.len(), expected });
            }
            touched.extend(self.touched(tile.rect).filter(|&block| self.keeps(block)));
        }
        for &block in &touched {
            if !self.blocks.contains_key(&block) {
                let length = self.rect(block).size().area() as usize * self.sums.values();
                let mut values = self.spare.pop().unwrap_or_default();
                values.clear();
                values.resize(length, 0.0);
                self.blocks.insert(block, values);
            }
        }
        // Blocks share nothing, and within each the tiles are added in order: any number of threads gives the same sums.
        let (image, block_size, window, sums) = (self.image, self.block, &self.window, self.sums);
        let blocks: Vec<_> = self.blocks.iter_mut().filter(|(at, _)| touched.contains(at)).collect();
        blocks.into_par_iter().for_each(|(at, values)| {
            let cell = at.rect(block_size);
            let rect = cell.intersect(image).unwrap_or(cell);
            for tile in tiles {
                add_tile(tile, window, sums, rect, values);
            }
        });
        Ok(())
    }

    fn take(&mut self, block: TileCoord) -> Option<BlockSums> {
        let values = self.blocks.remove(&block)?;
        Some(BlockSums { size: self.rect(block).size(), sums: self.sums, values })
    }

    fn recycle(&mut self, sums: BlockSums) {
        self.spare.push(sums.values);
    }

    fn bytes(&self) -> u64 {
        let spare: usize = self.spare.iter().map(Vec::capacity).sum();
        let blocks: usize = self.blocks.values().map(Vec::capacity).sum();
        (spare + blocks) as u64 * 4
    }
}

/// Adds what a tile and a block share.
fn add_tile(tile: &TileLogits<'_>, window: &Window, sums: Sums, block: Rect, values: &mut [f32]) {
    let Some(common) = tile.rect.intersect(block) else { return };
    let n = common.width as usize;
    let tile_area = tile.rect.size().area() as usize;
    let block_area = block.size().area() as usize;
    for y in common.y..common.bottom() {
        let (ty, tx) = ((y - tile.rect.y) as usize, (common.x - tile.rect.x) as usize);
        let from = ty * tile.rect.width as usize + tx;
        let to = (y - block.y) as usize * block.width as usize + (common.x - block.x) as usize;
        let weights = &window.row(ty)[tx..tx + n];
        let logits = |plane: usize| &tile.values[plane * tile_area + from..][..n];
        match sums.planes {
            Planes::Each(planes) => {
                for plane in 0..planes {
                    let sums = &mut values[plane * block_area + to..][..n];
                    for ((sum, &weight), &logit) in sums.iter_mut().zip(weights).zip(logits(plane)) {
                        *sum += weight * logit;
                    }
                }
            }
            Planes::Difference => {
                let sums = &mut values[to..][..n];
                for (((sum, &weight), &first), &second) in sums.iter_mut().zip(weights).zip(logits(0)).zip(logits(1)) {
                    *sum += weight * (second - first);
                }
            }
        }
        if sums.weights == WeightSum::Kept {
            let sums = &mut values[sums.planes.sums() * block_area + to..][..n];
            sums.iter_mut().zip(weights).for_each(|(sum, &weight)| *sum += weight);
        }
    }
}
