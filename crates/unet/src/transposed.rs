//! A transposed convolution seen from what it makes: each input position becomes a block of pixels, and every pixel of that block
//! is a sum over the same few neighbours of the position, its taps.
//!
//! So it is a convolution of taps whose output channels are pixels. Taps that the kernel does not reach from a pixel weigh nothing.

use crate::network::{Extent, Padding};

/// `ConvTranspose2d(kernel, stride, padding, output_padding=2 * padding + stride - kernel)`: the output is the input times the stride.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transposed {
    pub(crate) kernel: Extent,
    pub(crate) stride: Extent,
    pub(crate) padding: Padding,
}

impl Transposed {
    fn axes(&self) -> [Axis; 2] {
        let Self { kernel, stride, padding } = *self;
        [
            Axis { kernel: kernel.height, stride: stride.height, padding: padding.height },
            Axis { kernel: kernel.width, stride: stride.width, padding: padding.width },
        ]
    }

    /// Whether there is an output padding, smaller than the stride, that makes the output the input times the stride;
    /// and whether the kernel leaves at most one pixel of a block untouched.
    pub(crate) fn is_possible(&self) -> bool {
        self.axes().iter().all(|axis| {
            let twice = axis.padding.saturating_mul(2);
            twice < axis.kernel
                && axis.kernel <= twice.saturating_add(axis.stride)
                && axis.stride <= axis.kernel.saturating_add(1)
        })
    }

    /// Whether every position makes a block of its own, which is a product of matrices.
    pub(crate) fn is_blocks(&self) -> bool {
        self.kernel == self.stride && self.padding == Padding::default()
    }

    /// How many neighbours each position reads.
    pub(crate) fn taps(&self) -> Extent {
        let [height, width] = self.axes().map(|axis| axis.before() + axis.after() + 1);
        Extent { height, width }
    }

    /// How many of them lie before the position.
    pub(crate) fn before(&self) -> Padding {
        let [height, width] = self.axes().map(|axis| axis.before());
        Padding { height, width }
    }

    /// Where in the kernel the weight from a tap (row and column) to a pixel of the block lies, if there is one.
    pub(crate) fn weight(&self, tap: (usize, usize), pixel: (usize, usize)) -> Option<(usize, usize)> {
        let [down, across] = self.axes();
        Some((down.weight(tap.0, pixel.0)?, across.weight(tap.1, pixel.1)?))
    }
}

/// Position `i` touches the pixels `i * stride - padding + k` for all `k` of the kernel.
struct Axis {
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl Axis {
    fn before(&self) -> usize {
        (self.kernel - 1 - self.padding) / self.stride
    }

    fn after(&self) -> usize {
        self.padding.div_ceil(self.stride)
    }

    fn weight(&self, tap: usize, pixel: usize) -> Option<usize> {
        (pixel + self.padding + self.before() * self.stride).checked_sub(tap * self.stride).filter(|k| *k < self.kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn along_x(kernel: usize, stride: usize, padding: usize) -> Transposed {
        Transposed {
            kernel: Extent { height: 1, width: kernel },
            stride: Extent { height: 1, width: stride },
            padding: Padding { height: 0, width: padding },
        }
    }

    #[test]
    fn every_weight_is_used_once() {
        let mut possible = Vec::new();
        for (kernel, stride, padding) in
            (1..=7).flat_map(|k| (1..=7).flat_map(move |s| (0..=4).map(move |p| (k, s, p))))
        {
            let transposed = along_x(kernel, stride, padding);
            if !transposed.is_possible() {
                continue;
            }
            possible.push((kernel, stride, padding));
            let mut used = vec![0; kernel];
            for (tap, pixel) in (0..transposed.taps().width).flat_map(|t| (0..stride).map(move |x| (t, x))) {
                let Some((0, k)) = transposed.weight((0, tap), (0, pixel)) else { continue };
                used[k] += 1;
                // The tap's position touches this pixel of the block at 0.
                let position = tap as isize - transposed.before().width as isize;
                assert_eq!(position * stride as isize - padding as isize + k as isize, pixel as isize);
            }
            assert_eq!(used, vec![1; kernel], "{kernel}, {stride}, {padding}");
        }
        let of = |k| possible.iter().filter(|p| p.0 == k).map(|(_, s, p)| (*s, *p)).collect::<Vec<_>>();
        assert_eq!(of(1), [(1, 0), (2, 0)]);
        assert_eq!(of(2), [(2, 0), (3, 0)]);
        assert_eq!(of(3), [(1, 1), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1)]);
        assert_eq!(of(4), [(2, 1), (3, 1), (4, 0), (4, 1), (5, 0), (5, 1)]);
    }

    #[test]
    fn taps_are_as_few_as_can_be() {
        let taps = |k, s, p| (along_x(k, s, p).before().width, along_x(k, s, p).taps().width);
        assert_eq!([taps(2, 2, 0), taps(3, 2, 1), taps(4, 2, 1)], [(0, 1), (0, 2), (1, 3)]);
        assert_eq!([taps(3, 1, 1), taps(5, 2, 2), taps(3, 4, 1)], [(1, 3), (1, 3), (0, 2)]);
    }
}
