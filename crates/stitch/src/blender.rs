//! One strip of the mask: from logits of tiles to finished shards of labels.

use std::collections::BTreeMap;
use std::ops::Range;

use microtome_io::{Pixels, Rect, Samples, Size, TileCoord};
use microtome_tile::pyramid::Shard;
use microtome_tile::{Roi, Strip};
use rayon::prelude::*;

use crate::accumulator::{Accumulator, TileLogits};
use crate::labels::Decision;
use crate::{Error, Result};

/// Where labels are kept from block to shard, and how they come about.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    /// The mask.
    pub image: Size,
    /// The accumulator's unit.
    pub block: Size,
    /// The unit of writing: a whole multiple of `block`.
    pub shard: Size,
    /// Pixels outside are background, whatever the network says.
    pub roi: Option<&'a Roi>,
    /// From logits to labels.
    pub decision: &'a Decision,
}

/// Blends one strip. Rows of blocks are finished from top to bottom; a shard is given away with its last row.
///
/// Memory: the accumulator's blocks, and the labels of the shards of one row of shards that are not background.
#[derive(Debug)]
pub struct Blender<'a, A> {
    layout: Layout<'a>,
    strip: Strip,
    accumulator: A,
    shards: BTreeMap<TileCoord, Pixels>,
    next_block_row: u64,
    peak_bytes: u64,
}

impl<'a, A: Accumulator> Blender<'a, A> {
    /// A blender for `strip`, whose edges must be edges of shards (or of the image).
    ///
    /// # Errors
    /// [`Error::Usage`] if they are not, or a shard is not made of whole blocks.
    pub fn new(layout: Layout<'a>, strip: Strip, accumulator: A) -> Result<Self> {
        let Layout { image, block, shard, .. } = layout;
        if !shard.width.is_multiple_of(block.width) || !shard.height.is_multiple_of(block.height) {
            return Err(Error::Usage(format!("shards of {shard} pixels are not made of whole blocks of {block}")));
        }
        let aligned = |x: i64| (x as u64).is_multiple_of(shard.width) || x as u64 == image.width;
        if !aligned(strip.rect.x) || !aligned(strip.rect.right()) {
            return Err(Error::Usage(format!("the strip {} cuts a shard of {shard} pixels", strip.rect)));
        }
        Ok(Self { layout, strip, accumulator, shards: BTreeMap::new(), next_block_row: 0, peak_bytes: 0 })
    }

    /// Adds the logits of tiles, in ascending order of their index.
    ///
    /// # Errors
    /// The accumulator's; [`Error::Usage`] if a tile reaches into rows that are finished.
    pub fn add(&mut self, tiles: &[TileLogits<'_>]) -> Result<()> {
        let finished = (self.next_block_row * self.layout.block.height) as i64;
        if let Some(tile) = tiles.iter().find(|t| t.rect.y.max(0) < finished) {
            return Err(Error::Usage(format!("the tile {} reaches into finished rows", tile.rect)));
        }
        self.accumulator.add(tiles)?;
        self.peak_bytes = self.peak_bytes.max(self.bytes());
        Ok(())
    }

    /// Turns rows of blocks into labels, and hands out the shards that are complete with them, from left to right.
    ///
    /// # Errors
    /// [`Error::Usage`] if the rows do not follow those finished before; whatever `emit` returns.
    pub fn finish_rows<E: From<Error>>(
        &mut self,
        rows: Range<u64>,
        mut emit: impl FnMut(TileCoord, Shard) -> Result<(), E>,
    ) -> Result<(), E> {
        if rows.start != self.next_block_row {
            return Err(
                Error::Usage(format!("rows of blocks from {} on, not {}", self.next_block_row, rows.start)).into()
            );
        }
        for row in rows {
            self.finish_row(row)?;
            self.next_block_row = row + 1;
            let bottom = (row + 1) * self.layout.block.height;
            if bottom.is_multiple_of(self.layout.shard.height) || bottom >= self.layout.image.height {
                let shard_row = row * self.layout.block.height / self.layout.shard.height;
                let first = self.strip.rect.x as u64 / self.layout.shard.width;
                let last = (self.strip.rect.right() as u64).div_ceil(self.layout.shard.width);
                for column in first..last {
                    let at = TileCoord { row: shard_row, column };
                    emit(at, self.shards.remove(&at).map_or(Shard::Background, Shard::Pixels))?;
                }
            }
        }
        Ok(())
    }

    fn finish_row(&mut self, row: u64) -> Result<()> {
        let Layout { image, block, shard, roi, decision } = self.layout;
        let sums: Vec<_> = self
            .strip
            .block_columns
            .clone()
            .map(|column| TileCoord { row, column })
            .filter_map(|at| {
                let rect = at.rect(block).intersect(image.rect())?;
                Some(self.accumulator.take(at).transpose()?.map(|sums| (rect, sums)))
            })
            .collect::<Result<_>>()?;
        let labels: Vec<Option<Pixels>> = sums
            .par_iter()
            .map(|(rect, sums)| {
                let mut labels = decision.decide(sums);
                if let Some(roi) = roi {
                    clear_outside(&mut labels, roi, *rect);
                }
                (!is_background(&labels)).then_some(labels)
            })
            .collect();
        for ((rect, sums), labels) in sums.into_iter().zip(labels) {
            self.accumulator.recycle(sums);
            let Some(labels) = labels else { continue };
            let at = TileCoord { row: rect.y as u64 / shard.height, column: rect.x as u64 / shard.width };
            let Some(shard_rect) = at.rect(shard).intersect(image.rect()) else { continue };
            self.shards
                .entry(at)
                .or_insert_with(|| Pixels::filled(shard_rect.size(), labels.sample_type(), &[0]))
                .blit(shard_rect, &labels, rect);
        }
        self.peak_bytes = self.peak_bytes.max(self.bytes());
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.accumulator.bytes() + self.shards.values().map(|p| p.bytes() as u64).sum::<u64>()
    }

    /// The most bytes held at once, sums and labels together.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }
}

fn clear_outside(labels: &mut Pixels, roi: &Roi, rect: Rect) {
    let width = rect.width as usize;
    match labels.samples_mut() {
        Samples::U8(v) => roi.for_each_outside(rect, |y, run| v[y * width + run.start..y * width + run.end].fill(0)),
        Samples::U16(v) => roi.for_each_outside(rect, |y, run| v[y * width + run.start..y * width + run.end].fill(0)),
    }
}

/// True if every label is 0.
fn is_background(labels: &Pixels) -> bool {
    match labels.samples() {
        Samples::U8(v) => v.iter().all(|&l| l == 0),
        Samples::U16(v) => v.iter().all(|&l| l == 0),
    }
}
