//! A level that the file does not hold, made of a finer one while reading.

use std::sync::Arc;

use super::raster::{Raster, Shape};
use crate::{Pixels, Result, Samples, Size, TileCoord};

/// A raster at a half, a quarter, ... of its size. Each pixel is the average of those that it covers, rounded; pixels at the
/// right and at the bottom that do not fill one are left out.
#[derive(Debug)]
pub(super) struct Reduced<T> {
    finer: Arc<T>,
    by: u64,
    shape: Shape,
}

impl<T: Raster> Reduced<T> {
    /// The raster at `1 / by` of its size, in as many cells, or `None` where cells cannot be divided like that or nothing would be left.
    pub(super) fn new(finer: &Arc<T>, by: u64) -> Option<Self> {
        let shape = finer.shape();
        let divided = shape.cell.width.is_multiple_of(by) && shape.cell.height.is_multiple_of(by);
        let divide = |size: Size| Size::new(size.width / by, size.height / by);
        let shape = Shape { size: divide(shape.size), cell: divide(shape.cell), ..shape.clone() };
        (divided && !shape.size.is_empty()).then(|| Self { finer: Arc::clone(finer), by, shape })
    }
}

impl<T: Raster> Raster for Reduced<T> {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn decode(&self, cell: TileCoord) -> Result<Option<Pixels>> {
        Ok(self.finer.decode(cell)?.map(|pixels| average(&pixels, self.by as usize)))
    }

    fn prefetch(&self, cell: TileCoord) {
        self.finer.prefetch(cell);
    }
}

/// Averages of squares of `by` pixels, halves rounded up.
fn average(pixels: &Pixels, by: usize) -> Pixels {
    let size = Size::new(pixels.size().width / by as u64, pixels.size().height / by as u64);
    let (stride, channels) = (pixels.size().width as usize * pixels.channels(), pixels.channels());
    match pixels.samples() {
        Samples::U8(samples) => {
            Pixels::from_u8(size, channels, averages(samples, stride, channels, size, by, |mean| mean as u8))
        }
        Samples::U16(samples) => {
            Pixels::from_u16(size, channels, averages(samples, stride, channels, size, by, |mean| mean as u16))
        }
    }
}

fn averages<T: Copy + Into<u32>>(
    samples: &[T],
    stride: usize,
    channels: usize,
    size: Size,
    by: usize,
    sample: impl Fn(u32) -> T,
) -> Vec<T> {
    let of = (by * by) as u32;
    let mut averages = Vec::with_capacity(size.area() as usize * channels);
    let mut sums = vec![0_u32; size.width as usize * channels];
    for rows in samples.chunks_exact((stride * by).max(1)).take(size.height as usize) {
        sums.fill(of / 2);
        for row in rows.chunks_exact(stride) {
            for (sums, square) in sums.chunks_exact_mut(channels).zip(row.chunks_exact(channels * by)) {
                for pixel in square.chunks_exact(channels) {
                    for (sum, &value) in sums.iter_mut().zip(pixel) {
                        *sum += value.into();
                    }
                }
            }
        }
        averages.extend(sums.iter().map(|&sum| sample(sum / of)));
    }
    averages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_rounded_and_rests_left_out() {
        let pixels = Pixels::from_u8(Size::new(5, 3), 1, vec![0, 1, 10, 10, 99, 0, 1, 10, 11, 99, 99, 99, 99, 99, 99]);
        assert_eq!(average(&pixels, 2), Pixels::from_u8(Size::new(2, 1), 1, vec![1, 10]));
        let pixels = Pixels::from_u16(Size::new(2, 2), 2, vec![0, 65535, 0, 65535, 0, 65535, 2, 65535]);
        assert_eq!(average(&pixels, 2), Pixels::from_u16(Size::new(1, 1), 2, vec![1, 65535]));
    }
}
