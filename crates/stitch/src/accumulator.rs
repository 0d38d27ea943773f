//! Weighted sums of logits, in blocks.

use std::collections::BTreeMap;
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

/// The finished sums of a block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockSums {
    /// The block's pixels that lie inside the image.
    pub size: Size,
    /// `planes` × `size.height` × `size.width` sums of weight × logit.
    pub values: Vec<f32>,
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

    /// Bytes held now.
    fn bytes(&self) -> u64;
}

/// Sums in main memory, f32.
#[derive(Debug)]
pub struct CpuAccumulator {
    image: Rect,
    block: Size,
    planes: usize,
    window: Arc<Window>,
    /// Blocks that are wanted: those of the strip at hand that touch the region of interest.
    wanted: Wanted,
    blocks: BTreeMap<TileCoord, Vec<f32>>,
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
    /// No sums yet, for tiles weighted by `window` with `planes` planes, over an image of `image` pixels in blocks of `block`.
    #[must_use]
    pub fn new(image: Size, block: Size, planes: usize, window: Arc<Window>, wanted: Wanted) -> Self {
        Self { image: image.rect(), block, planes, window, wanted, blocks: BTreeMap::new() }
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
        let expected = self.window.size().area() as usize * self.planes;
        for tile in tiles {
            if tile.values.len() != expected || tile.rect.size() != self.window.size() {
                return Err(Error::Shape { rect: tile.rect, found: tile.values.len(), expected });
            }
            for block in self.touched(tile.rect) {
                if self.keeps(block) && !self.blocks.contains_key(&block) {
                    let size = self.rect(block).size();
                    self.blocks.insert(block, vec![0.0; size.area() as usize * self.planes]);
                }
            }
        }
        // Blocks share nothing, and within each the tiles are added in order: any number of threads gives the same sums.
        let (image, block_size, window, planes) = (self.image, self.block, &self.window, self.planes);
        self.blocks.par_iter_mut().for_each(|(at, sums)| {
            let cell = at.rect(block_size);
            let rect = cell.intersect(image).unwrap_or(cell);
            for tile in tiles {
                add_tile(tile, window, planes, rect, sums);
            }
        });
        Ok(())
    }

    fn take(&mut self, block: TileCoord) -> Option<BlockSums> {
        let values = self.blocks.remove(&block)?;
        Some(BlockSums { size: self.rect(block).size(), values })
    }

    fn bytes(&self) -> u64 {
        self.blocks.values().map(|b| b.len() as u64 * 4).sum()
    }
}

/// Adds what a tile and a block share.
fn add_tile(tile: &TileLogits<'_>, window: &Window, planes: usize, block: Rect, sums: &mut [f32]) {
    let Some(common) = tile.rect.intersect(block) else { return };
    let n = common.width as usize;
    let tile_area = tile.rect.size().area() as usize;
    let block_area = block.size().area() as usize;
    for plane in 0..planes {
        for y in common.y..common.bottom() {
            let (ty, tx) = ((y - tile.rect.y) as usize, (common.x - tile.rect.x) as usize);
            let from = plane * tile_area + ty * tile.rect.width as usize + tx;
            let to = plane * block_area + (y - block.y) as usize * block.width as usize + (common.x - block.x) as usize;
            let weights = &window.row(ty)[tx..tx + n];
            for ((sum, &weight), &logit) in sums[to..to + n].iter_mut().zip(weights).zip(&tile.values[from..from + n]) {
                *sum += weight * logit;
            }
        }
    }
}
