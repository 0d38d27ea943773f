//! One strip of the mask: from logits of tiles to finished shards of labels.

use std::collections::BTreeMap;
use std::ops::Range;

use microtome_io::{Pixels, Rect, Samples, Size, TileCoord};
use microtome_tile::pyramid::Shard;
use microtome_tile::{Roi, Strip};
use rayon::prelude::*;

use crate::accumulator::{Accumulator, TileLogits};
use crate::labels::Decision;
use crate::product::{MeanProbabilities, Product};
use crate::{Error, Result};

/// Where labels are kept from block to shard, and how they come about.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    /// The mask.
    pub image: Size,
    /// The part of it that the model sees. What lies outside is background for certain: that is nnU-Net's word for what it cropped away.
    pub covered: Rect,
    /// The accumulator's unit.
    pub block: Size,
    /// The unit of writing: a whole multiple of `block`.
    pub shard: Size,
    /// Pixels outside are background, whatever the network says.
    pub roi: Option<&'a Roi>,
    /// From logits to labels.
    pub decision: &'a Decision,
    /// What is made of the sums, in ascending order.
    pub products: &'a [Product],
}

/// Blends one strip. Rows of blocks are finished from top to bottom; a shard is given away with its last row.
///
/// Memory: the accumulators' blocks, of several models their mean for a block per thread, and the pixels of the shards of one row of shards that are not background.
#[derive(Debug)]
pub struct Blender<'a, A> {
    layout: Layout<'a>,
    strip: Strip,
    /// One for each model.
    accumulators: Vec<A>,
    shards: BTreeMap<(Product, TileCoord), Pixels>,
    /// Tiles that could not be read: what they touch is background.
    excluded: Vec<Rect>,
    next_block_row: u64,
    peak_bytes: u64,
}

impl<'a, A: Accumulator> Blender<'a, A> {
    /// A blender for `strip`, whose edges must be edges of shards (or of the image), with an accumulator for each model.
    /// Of several models the sums of the weights are needed, because probabilities are: see [`MeanProbabilities`].
    ///
    /// # Errors
    /// [`Error::Usage`] if they are not, a shard is not made of whole blocks, or there is no accumulator.
    pub fn new(layout: Layout<'a>, strip: Strip, accumulators: Vec<A>) -> Result<Self> {
        let Layout { image, block, shard, .. } = layout;
        if !shard.width.is_multiple_of(block.width) || !shard.height.is_multiple_of(block.height) {
            return Err(Error::Usage(format!("shards of {shard} pixels are not made of whole blocks of {block}")));
        }
        let aligned = |x: i64| (x as u64).is_multiple_of(shard.width) || x as u64 == image.width;
        if !aligned(strip.rect.x) || !aligned(strip.rect.right()) {
            return Err(Error::Usage(format!("the strip {} cuts a shard of {shard} pixels", strip.rect)));
        }
        if accumulators.is_empty() {
            return Err(Error::Usage("there is no model to blend the tiles of".into()));
        }
        Ok(Self {
            layout,
            strip,
            accumulators,
            shards: BTreeMap::new(),
            excluded: Vec::new(),
            next_block_row: 0,
            peak_bytes: 0,
        })
    }

    /// Adds the logits that a model gives of its tiles, in ascending order of their index.
    ///
    /// # Errors
    /// The accumulator's; [`Error::Usage`] if a tile reaches into rows that are finished, or there is no such model.
    pub fn add(&mut self, model: usize, tiles: &[TileLogits<'_>]) -> Result<()> {
        let finished = (self.next_block_row * self.layout.block.height) as i64;
        if let Some(tile) = tiles.iter().find(|t| t.part.y.max(0) < finished) {
            return Err(Error::Usage(format!("the tile {} reaches into finished rows", tile.tile)));
        }
        let accumulator = self.accumulators.get_mut(model);
        accumulator.ok_or_else(|| Error::Usage(format!("tiles of model {model}, which is not there")))?.add(tiles)?;
        self.peak_bytes = self.peak_bytes.max(self.bytes());
        Ok(())
    }

    /// Makes background of a tile, in place of adding it: it could not be read.
    pub fn exclude(&mut self, tile: Rect) {
        self.excluded.push(tile);
    }

    /// Turns rows of blocks into pixels of every product, and hands out the shards that are complete with them, from left to right,
    /// and of each place in the order of the products.
    ///
    /// # Errors
    /// [`Error::Usage`] if the rows do not follow those finished before; whatever `emit` returns.
    pub fn finish_rows<E: From<Error>>(
        &mut self,
        rows: Range<u64>,
        mut emit: impl FnMut(Product, TileCoord, Shard) -> Result<(), E>,
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
                    for &product in self.layout.products {
                        let pixels = self.shards.remove(&(product, at));
                        emit(product, at, pixels.map_or(Shard::Background, Shard::Pixels))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn finish_row(&mut self, row: u64) -> Result<()> {
        let Layout { image, covered, block, shard, roi, decision, products } = self.layout;
        let top = (row * block.height) as i64;
        self.excluded.retain(|tile| tile.bottom() > top);
        // Where no tile lies, certainty may still have to be written.
        let certain = products.iter().any(|product| product.certain(decision).iter().any(|&sample| sample != 0));
        let mut sums = Vec::new();
        for column in self.strip.block_columns.clone() {
            let at = TileCoord { row, column };
            let Some(rect) = at.rect(block).intersect(image.rect()) else { continue };
            let taken: Vec<_> = self.accumulators.iter_mut().map(|a| a.take(at)).collect::<Result<_>>()?;
            // Where tiles of one model touch a block and those of another do not, none of its pixels is wanted, or all of those tiles could
            // not be read: it is background.
            let taken: Option<Vec<_>> = taken.into_iter().collect();
            if taken.is_some() || (certain && !covered.contains(rect)) {
                sums.push((rect, taken));
            }
        }
        let excluded = &self.excluded;
        let made: Vec<Vec<Option<Pixels>>> = sums
            .par_iter()
            .map(|(rect, sums)| {
                let several = sums.as_deref().filter(|sums| sums.len() > 1);
                let mean = several.map(|sums| MeanProbabilities::of(decision, sums));
                let make = |product: &Product| {
                    let sample = product.sample(decision);
                    let mut pixels = match (sums.as_deref(), &mean) {
                        (_, Some(mean)) => product.of_mean(decision, mean),
                        (Some([sums, ..]), None) => product.of(decision, sums),
                        _ => Pixels::filled(rect.size(), sample, &vec![0; product.channels(decision)]),
                    };
                    let background = vec![0; pixels.channels()];
                    for common in excluded.iter().filter_map(|tile| tile.intersect(*rect)) {
                        let columns = (common.x - rect.x) as usize..(common.right() - rect.x) as usize;
                        for y in common.y - rect.y..common.bottom() - rect.y {
                            fill(&mut pixels, y as usize, columns.clone(), &background);
                        }
                    }
                    let certain = product.certain(decision);
                    for_each_outside(covered, *rect, |y, run| fill(&mut pixels, y, run, &certain));
                    if let Some(roi) = roi {
                        roi.for_each_outside(*rect, |y, run| fill(&mut pixels, y, run, &background));
                    }
                    (!is_background(&pixels)).then_some(pixels)
                };
                products.iter().map(make).collect()
            })
            .collect();
        for ((rect, sums), made) in sums.into_iter().zip(made) {
            for (accumulator, sums) in self.accumulators.iter_mut().zip(sums.into_iter().flatten()) {
                accumulator.recycle(sums);
            }
            let at = TileCoord { row: rect.y as u64 / shard.height, column: rect.x as u64 / shard.width };
            let Some(shard_rect) = at.rect(shard).intersect(image.rect()) else { continue };
            for (&product, pixels) in products.iter().zip(made) {
                let Some(pixels) = pixels else { continue };
                let empty = || Pixels::filled(shard_rect.size(), pixels.sample_type(), &vec![0; pixels.channels()]);
                self.shards.entry((product, at)).or_insert_with(empty).blit(shard_rect, &pixels, rect);
            }
        }
        self.peak_bytes = self.peak_bytes.max(self.bytes());
        Ok(())
    }

    fn bytes(&self) -> u64 {
        let sums: u64 = self.accumulators.iter().map(Accumulator::bytes).sum();
        sums + self.shards.values().map(|p| p.bytes() as u64).sum::<u64>()
    }

    /// The most bytes held at once, sums and labels together.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }
}

/// Gives all pixels of a run of a row the same samples.
fn fill(pixels: &mut Pixels, y: usize, run: Range<usize>, pixel: &[u16]) {
    let (width, channels) = (pixels.size().width as usize, pixels.channels());
    let samples = (y * width + run.start) * channels..(y * width + run.end) * channels;
    match pixels.samples_mut() {
        Samples::U8(v) => v[samples].iter_mut().zip(pixel.iter().cycle()).for_each(|(to, &from)| *to = from as u8),
        Samples::U16(v) => v[samples].iter_mut().zip(pixel.iter().cycle()).for_each(|(to, &from)| *to = from),
    }
}

/// Calls `f` with each run of pixels of `rect` that lie outside of `inside`: its row and columns within `rect`.
fn for_each_outside(inside: Rect, rect: Rect, mut f: impl FnMut(usize, Range<usize>)) {
    let (width, common) = (rect.width as usize, inside.intersect(rect));
    for y in 0..rect.height as usize {
        match common {
            Some(common) if (common.y..common.bottom()).contains(&(rect.y + y as i64)) => {
                let (left, right) = ((common.x - rect.x) as usize, (common.right() - rect.x) as usize);
                for run in [0..left, right..width].into_iter().filter(|run| !run.is_empty()) {
                    f(y, run);
                }
            }
            _ => f(y, 0..width),
        }
    }
}

/// True if every sample is 0.
fn is_background(pixels: &Pixels) -> bool {
    match pixels.samples() {
        Samples::U8(v) => v.iter().all(|&s| s == 0),
        Samples::U16(v) => v.iter().all(|&s| s == 0),
    }
}
