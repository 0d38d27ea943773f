//! Weighted sums of logits, in blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use microtome_io::{Rect, Size, TileCoord};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::window::Window;
use crate::{Error, Result};

/// The logits of one tile, or of a part of it, and where they lie.
#[derive(Debug, Clone, Copy)]
pub struct TileLogits<'a> {
    /// The tile, in target pixels; it may stick out of the image where that is smaller than a tile.
    pub tile: Rect,
    /// The part of it that the logits are for.
    pub part: Rect,
    /// Planes × height × width values of the part: plane by plane, row by row.
    pub values: &'a [f32],
}

impl<'a> TileLogits<'a> {
    /// All logits of a tile.
    #[must_use]
    pub fn whole(tile: Rect, values: &'a [f32]) -> Self {
        Self { tile, part: tile, values }
    }

    /// A copy of what is said of the pixels from column `x` of the image on, if there are any.
    #[must_use]
    pub fn from_column(&self, x: i64) -> Option<(Rect, Vec<f32>)> {
        let left = x.max(self.part.x);
        let width = u64::try_from(self.part.right() - left).ok().filter(|&width| width > 0)?;
        let skipped = (left - self.part.x) as usize;
        let rows = self.values.chunks_exact(self.part.width as usize);
        let values = rows.flat_map(|row| &row[skipped..]).copied().collect();
        Some((Rect::new(left, self.part.y, width, self.part.height), values))
    }
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
    /// `sums.values()` × `size.height` × `size.width` values: sums of weight × logit, plane by plane, and behind them those of the weights;
    /// or both divided by the latter, which changes neither labels nor means.
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
    ///
    /// # Errors
    /// [`Error::Overflow`] if the sums do not fit the accumulator's numbers.
    fn take(&mut self, block: TileCoord) -> Result<Option<BlockSums>>;

    /// Takes sums back that are not needed any more, so that their memory serves the next block.
    fn recycle(&mut self, sums: BlockSums) {
        drop(sums);
    }

    /// Bytes held now.
    fn bytes(&self) -> u64;
}

impl<T: Accumulator + ?Sized> Accumulator for Box<T> {
    fn add(&mut self, tiles: &[TileLogits<'_>]) -> Result<()> {
        (**self).add(tiles)
    }

    fn take(&mut self, block: TileCoord) -> Result<Option<BlockSums>> {
        (**self).take(block)
    }

    fn recycle(&mut self, sums: BlockSums) {
        (**self).recycle(sums);
    }

    fn bytes(&self) -> u64 {
        (**self).bytes()
    }
}

/// With which numbers logits are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accumulation {
    /// f32: [`CpuAccumulator`].
    #[default]
    F32,
    /// f16, rounded after each tile as nnU-Net does: [`HalfAccumulator`](crate::HalfAccumulator).
    F16Nnunet,
}

impl Accumulation {
    /// Bytes held for each pixel under the tiles in flight, where `sums` are asked for.
    #[must_use]
    pub fn bytes_per_pixel(self, sums: Sums) -> u64 {
        match self {
            Self::F32 => sums.values() as u64 * 4,
            Self::F16Nnunet => (sums.planes.logits() as u64 + 1) * 2,
        }
    }

    /// What the blocks hold that are taken, where `sums` are asked for.
    #[must_use]
    pub fn taken(self, sums: Sums) -> Sums {
        match self {
            Self::F32 => sums,
            // nnU-Net rounds each class.
            Self::F16Nnunet => Sums { planes: Planes::Each(sums.planes.logits()), ..sums },
        }
    }
}

/// Sums in main memory, f32.
#[derive(Debug)]
pub struct CpuAccumulator {
    blocks: Blocks,
    sums: Sums,
    window: Arc<Window>,
    values: BTreeMap<TileCoord, Vec<f32>>,
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
        let blocks = Blocks::new(image, block, wanted);
        Self { blocks, sums, window, values: BTreeMap::new(), spare: Vec::new() }
    }
}

impl Accumulator for CpuAccumulator {
    fn add(&mut self, tiles: &[TileLogits<'_>]) -> Result<()> {
        check(tiles, &self.window, self.sums.planes)?;
        let (blocks, window, sums) = (&self.blocks, &self.window, self.sums);
        let touched = blocks.touched(tiles);
        for &block in &touched {
            if !self.values.contains_key(&block) {
                let length = blocks.rect(block).size().area() as usize * sums.values();
                let mut values = self.spare.pop().unwrap_or_default();
                values.clear();
                values.resize(length, 0.0);
                self.values.insert(block, values);
            }
        }
        // Blocks share nothing, and within each the tiles are added in order: any number of threads gives the same sums.
        let values: Vec<_> = self.values.iter_mut().filter(|(at, _)| touched.contains(at)).collect();
        values.into_par_iter().for_each(|(at, values)| {
            for tile in tiles {
                add_tile(tile, window, sums, blocks.rect(*at), values);
            }
        });
        Ok(())
    }

    fn take(&mut self, block: TileCoord) -> Result<Option<BlockSums>> {
        let (size, sums) = (self.blocks.rect(block).size(), self.sums);
        Ok(self.values.remove(&block).map(|values| BlockSums { size, sums, values }))
    }

    fn recycle(&mut self, sums: BlockSums) {
        self.spare.push(sums.values);
    }

    fn bytes(&self) -> u64 {
        let spare: usize = self.spare.iter().map(Vec::capacity).sum();
        let blocks: usize = self.values.values().map(Vec::capacity).sum();
        (spare + blocks) as u64 * 4
    }
}

/// Adds what a tile and a block share.
fn add_tile(tile: &TileLogits<'_>, window: &Window, sums: Sums, block: Rect, values: &mut [f32]) {
    let (tile_area, block_area) = (tile.part.size().area() as usize, block.size().area() as usize);
    for run in runs(tile, block) {
        let n = run.length;
        let weights = run.weights(window);
        let logits = |plane: usize| &tile.values[plane * tile_area + run.tile..][..n];
        match sums.planes {
            Planes::Each(planes) => {
                for plane in 0..planes {
                    let sums = &mut values[plane * block_area + run.block..][..n];
                    for ((sum, &weight), &logit) in sums.iter_mut().zip(weights).zip(logits(plane)) {
                        *sum += weight * logit;
                    }
                }
            }
            Planes::Difference => {
                let sums = &mut values[run.block..][..n];
                for (((sum, &weight), &first), &second) in sums.iter_mut().zip(weights).zip(logits(0)).zip(logits(1)) {
                    *sum += weight * (second - first);
                }
            }
        }
        if sums.weights == WeightSum::Kept {
            let sums = &mut values[sums.planes.sums() * block_area + run.block..][..n];
            sums.iter_mut().zip(weights).for_each(|(sum, &weight)| *sum += weight);
        }
    }
}

/// The blocks of an image, and which of them to keep.
#[derive(Debug)]
pub(crate) struct Blocks {
    image: Rect,
    block: Size,
    /// Blocks that are wanted: those of the strip at hand that touch the region of interest.
    wanted: Wanted,
}

impl Blocks {
    pub(crate) fn new(image: Size, block: Size, wanted: Wanted) -> Self {
        Self { image: image.rect(), block, wanted }
    }

    /// The pixels of a block that lie inside the image.
    pub(crate) fn rect(&self, block: TileCoord) -> Rect {
        let cell = block.rect(self.block);
        cell.intersect(self.image).unwrap_or(Rect::new(cell.x, cell.y, 0, 0))
    }

    /// The blocks to keep that tiles touch.
    pub(crate) fn touched(&self, tiles: &[TileLogits<'_>]) -> BTreeSet<TileCoord> {
        tiles.iter().flat_map(|tile| self.under(tile.part)).filter(|&block| self.keeps(block)).collect()
    }

    fn keeps(&self, block: TileCoord) -> bool {
        let columns = self.image.width.div_ceil(self.block.width);
        block.rect(self.block).intersect(self.wanted.rect).is_some()
            && self.wanted.blocks.as_ref().is_none_or(|w| w[(block.row * columns + block.column) as usize])
    }

    /// The blocks that a rectangle touches.
    fn under(&self, rect: Rect) -> impl Iterator<Item = TileCoord> + use<> {
        let rect = rect.intersect(self.image);
        let block = self.block;
        rect.into_iter().flat_map(move |rect| {
            let rows = rect.y as u64 / block.height..(rect.bottom() as u64).div_ceil(block.height);
            let columns = rect.x as u64 / block.width..(rect.right() as u64).div_ceil(block.width);
            rows.flat_map(move |row| columns.clone().map(move |column| TileCoord { row, column }))
        })
    }
}

/// Tiles must have the window's size and the logits that are asked for.
pub(crate) fn check(tiles: &[TileLogits<'_>], window: &Window, planes: Planes) -> Result<()> {
    let expected = |tile: &TileLogits<'_>| tile.part.size().area() as usize * planes.logits();
    let fits = |tile: &&TileLogits<'_>| {
        tile.values.len() == expected(tile) && tile.tile.size() == window.size() && tile.tile.contains(tile.part)
    };
    match tiles.iter().find(|tile| !fits(tile)) {
        Some(tile) => Err(Error::Shape { rect: tile.part, found: tile.values.len(), expected: expected(tile) }),
        None => Ok(()),
    }
}

/// Pixels of one row that a tile and a block share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// Row and first column within the tile.
    row: usize,
    column: usize,
    /// Number of pixels.
    pub(crate) length: usize,
    /// Where they begin in a plane of the logits.
    pub(crate) tile: usize,
    /// Where they begin in a plane of the block.
    pub(crate) block: usize,
}

impl Run {
    /// Their weights.
    pub(crate) fn weights<'w>(&self, window: &'w Window) -> &'w [f32] {
        &window.row(self.row)[self.column..self.column + self.length]
    }
}

/// What a tile's logits and a block share, row by row.
pub(crate) fn runs(logits: &TileLogits<'_>, block: Rect) -> impl Iterator<Item = Run> {
    let TileLogits { tile, part, .. } = *logits;
    part.intersect(block).into_iter().flat_map(move |common| {
        (common.y..common.bottom()).map(move |y| Run {
            row: (y - tile.y) as usize,
            column: (common.x - tile.x) as usize,
            length: common.width as usize,
            tile: (y - part.y) as usize * part.width as usize + (common.x - part.x) as usize,
            block: (y - block.y) as usize * block.width as usize + (common.x - block.x) as usize,
        })
    })
}
