//! Sums that round as nnU-Net's.

use std::collections::BTreeMap;
use std::sync::Arc;

use half::f16;
use microtome_io::{Rect, Size, TileCoord};
use rayon::prelude::*;

use crate::accumulator::{
    Accumulation, Accumulator, BlockSums, Blocks, Sums, TileLogits, Wanted, WeightSum, check, runs,
};
use crate::window::Window;
use crate::{Error, Result};

/// Sums in main memory, f16, for comparison with nnU-Net on the CPU: where two classes are nearly equal, its rounding decides.
///
/// After each tile `sum = f16(sum + logit * weight)` and `weights = f16(weights + weight)`, computed in f32; in the end
/// `f16(sum / weights)`, which is what [`take`](Accumulator::take) gives, as f32. Labels are decided on these quotients.
/// Source: nnU-Net 2.8.1, `nnUNetPredictor._internal_predict_sliding_window_return_logits`, with the types that torch's
/// arithmetic in place implies.
///
/// Only the windows that nnU-Net has are its: [`Gaussian`](crate::WindowShape::Gaussian), whose weights are f16 already, and
/// [`Constant`](crate::WindowShape::Constant).
///
/// Every logit is summed, also where a difference is asked for; the sum of weights of what is taken is 1.
#[derive(Debug)]
pub struct HalfAccumulator {
    blocks: Blocks,
    /// What is given away.
    taken: Sums,
    window: Arc<Window>,
    halves: BTreeMap<TileCoord, Halves>,
}

/// The sums of one block.
#[derive(Debug)]
struct Halves {
    /// Plane by plane, row by row.
    logits: Vec<f16>,
    /// Row by row.
    weights: Vec<f16>,
}

impl HalfAccumulator {
    /// No sums yet, for tiles weighted by `window`, over an image of `image` pixels in blocks of `block`.
    #[must_use]
    pub fn new(image: Size, block: Size, sums: Sums, window: Arc<Window>, wanted: Wanted) -> Self {
        let taken = Accumulation::F16Nnunet.taken(sums);
        Self { blocks: Blocks::new(image, block, wanted), taken, window, halves: BTreeMap::new() }
    }
}

impl Accumulator for HalfAccumulator {
    fn add(&mut self, tiles: &[TileLogits<'_>]) -> Result<()> {
        check(tiles, &self.window, self.taken.planes)?;
        let (blocks, window, planes) = (&self.blocks, &self.window, self.taken.planes.sums());
        let touched = blocks.touched(tiles);
        for &block in &touched {
            let area = blocks.rect(block).size().area() as usize;
            let zeros = |n| vec![f16::ZERO; n];
            self.halves.entry(block).or_insert_with(|| Halves { logits: zeros(area * planes), weights: zeros(area) });
        }
        // Blocks share nothing, and within each the tiles are added in order: any number of threads gives the same sums.
        let halves: Vec<_> = self.halves.iter_mut().filter(|(at, _)| touched.contains(at)).collect();
        halves.into_par_iter().for_each(|(at, halves)| {
            for tile in tiles {
                add_tile(tile, window, planes, blocks.rect(*at), halves);
            }
        });
        Ok(())
    }

    fn take(&mut self, block: TileCoord) -> Result<Option<BlockSums>> {
        let Some(Halves { logits, weights }) = self.halves.remove(&block) else { return Ok(None) };
        let (rect, sums) = (self.blocks.rect(block), self.taken);
        let mut values = Vec::with_capacity(weights.len() * sums.values());
        for plane in logits.chunks_exact(weights.len().max(1)) {
            for (i, (&sum, &weight)) in (0..).zip(plane.iter().zip(&weights)) {
                // Without weight: no tile touches the pixel.
                let mean = if weight == f16::ZERO { f16::ZERO } else { f16::from_f32(sum.to_f32() / weight.to_f32()) };
                if !mean.is_finite() {
                    let (x, y) = (rect.x + i % rect.width as i64, rect.y + i / rect.width as i64);
                    return Err(Error::Overflow { pixel: Rect::new(x, y, 1, 1) });
                }
                values.push(mean.to_f32());
            }
        }
        if sums.weights == WeightSum::Kept {
            values.extend(weights.iter().map(|&weight| if weight == f16::ZERO { 0.0 } else { 1.0 }));
        }
        Ok(Some(BlockSums { size: rect.size(), sums, values }))
    }

    fn bytes(&self) -> u64 {
        self.halves.values().map(|h| (h.logits.len() + h.weights.len()) as u64 * 2).sum()
    }
}

/// Adds what a tile and a block share.
fn add_tile(tile: &TileLogits<'_>, window: &Window, planes: usize, block: Rect, halves: &mut Halves) {
    let (tile_area, block_area) = (tile.part.size().area() as usize, block.size().area() as usize);
    for run in runs(tile, block) {
        let weights = run.weights(window);
        for plane in 0..planes {
            let logits = &tile.values[plane * tile_area + run.tile..][..run.length];
            let sums = &mut halves.logits[plane * block_area + run.block..][..run.length];
            for ((sum, &weight), &logit) in sums.iter_mut().zip(weights).zip(logits) {
                *sum = f16::from_f32(sum.to_f32() + logit * weight);
            }
        }
        for (sum, &weight) in halves.weights[run.block..][..run.length].iter_mut().zip(weights) {
            *sum = f16::from_f32(sum.to_f32() + weight);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Planes, WindowShape};

    fn accumulator(image: Size, tile: Size, planes: usize, shape: WindowShape) -> HalfAccumulator {
        let wanted = Wanted { rect: image.rect(), blocks: None };
        let sums = Sums { planes: Planes::Each(planes), weights: WeightSum::Omitted };
        HalfAccumulator::new(image, image, sums, Arc::new(Window::new(shape, tile)), wanted)
    }

    const ALL: TileCoord = TileCoord { row: 0, column: 0 };

    // nnU-Net 2.8.1, torch 2.15 CPU, with the loop of `_internal_predict_sliding_window_return_logits`:
    //   g = compute_gaussian((6, 8), sigma_scale=1/8, value_scaling_factor=10, device=torch.device("cpu"))
    //   acc, n = torch.zeros((2, 6, 14), dtype=torch.half), torch.zeros((6, 14), dtype=torch.half)
    //   for x in (0, 3, 6):
    //       p = ((torch.arange(96, dtype=torch.float).reshape(2, 6, 8) * 37 + x * 11) % 101 - 50) * 0.173
    //       p *= g; acc[:, :, x:x+8] += p; n[:, x:x+8] += g
    //   torch.div(acc, n, out=acc); acc.view(torch.int16)[0, 0], acc.view(torch.int16)[1, 5]
    #[test]
    fn quotients_are_nnunets_bit_for_bit() {
        const FIRST: [i16; 14] =
            [-14255, -16256, 17447, -14614, -18533, 17111, -16451, 17664, -15064, 17292, -14739, -20087, 17978, -15144];
        const LAST: [i16; 14] =
            [-15233, 16284, 18471, -15992, 17244, -14666, 16495, -14351, -17404, 18412, -16146, 17398, -14569, -18039];
        let (tile, image) = (Size::new(8, 6), Size::new(14, 6));
        let mut sums = accumulator(image, tile, 2, WindowShape::Gaussian);
        for x in [0, 3, 6] {
            let values: Vec<f32> = (0..96).map(|i| ((i * 37 + x * 11) % 101 - 50) as f32 * 0.173).collect();
            sums.add(&[TileLogits::whole(Rect::new(x, 0, 8, 6), &values)]).unwrap();
        }
        assert_eq!(sums.bytes(), 14 * 6 * 3 * 2);
        let values = sums.take(ALL).unwrap().unwrap().values;
        let bits: Vec<i16> = values.iter().map(|&v| f16::from_f32(v).to_bits() as i16).collect();
        assert_eq!((&bits[..14], &bits[2 * 84 - 14..]), (&FIRST[..], &LAST[..]));
    }

    #[test]
    fn sums_beyond_f16_are_an_error_that_names_the_pixel() {
        let tile = Size::new(8, 8);
        // The Gaussian's largest weight is 10, in column and row 4, and f16 ends at 65504.
        for (logit, fits) in [(6550.0, true), (-6553.0, false), (6600.0, false)] {
            let mut sums = accumulator(tile, tile, 1, WindowShape::Gaussian);
            sums.add(&[TileLogits::whole(tile.rect(), &[logit; 64])]).unwrap();
            match sums.take(ALL) {
                Ok(_) => assert!(fits, "{logit}"),
                Err(error) => {
                    assert!(
                        !fits && matches!(error, Error::Overflow { pixel } if pixel == Rect::new(4, 4, 1, 1)),
                        "{error}"
                    );
                }
            }
        }
    }

    #[test]
    fn pixels_that_no_tile_touches_are_zero() {
        let mut sums = accumulator(Size::new(12, 4), Size::new(4, 4), 1, WindowShape::Constant);
        sums.add(&[TileLogits::whole(Rect::new(4, 0, 4, 4), &[2.0; 16])]).unwrap();
        sums.taken.weights = WeightSum::Kept;
        let taken = sums.take(ALL).unwrap().unwrap();
        assert_eq!(taken.values[..12], [0.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(taken.weights().unwrap()[..9], [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
        assert!(sums.take(ALL).unwrap().is_none());
    }
}
