//! How a convolution reads a view: rows of blocks of channels, normalised, bent and padded with zero.

use microtome_io::Size;

use super::kernel::{Block, Kernels};

/// One part of a view with everything that happens to it on the way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    /// Channels last.
    pub(super) values: &'a [f32],
    pub(super) channels: usize,
    pub(super) size: Size,
    /// Factors of all channels, then summands of all channels; none where nothing is to be done.
    pub(super) affine: Option<&'a [f32]>,
    /// Factor for negative values; 1 leaves them.
    pub(super) slope: f32,
}

/// The pixels that are read: rows one after the other, columns every `step` pixels, once for each of `phases` first columns.
///
/// A convolution with a stride of `step` thus finds what neighbouring output pixels read at one position of its kernel side by side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// The first row and column; negative and others outside of the tensor are read as 0.
    pub(super) y: isize,
    pub(super) x: isize,
    pub(super) rows: usize,
    pub(super) step: usize,
    pub(super) phases: usize,
    pub(super) columns: usize,
}

impl Window {
    /// Blocks in one row of the scratch.
    pub(super) fn row(&self) -> usize {
        self.phases * self.columns
    }
}

/// Fills `target`, rows × phases × columns × block, with up to a block of channels from `first` on.
pub(super) fn load(
    kernels: &Kernels,
    block: Block,
    source: &Source<'_>,
    first: usize,
    window: Window,
    target: &mut [f32],
) {
    let words = block.words();
    let channels = (source.channels - first).min(words);
    let mut affine = [0.0; 32];
    match source.affine {
        Some(values) => {
            affine[..channels].copy_from_slice(&values[first..][..channels]);
            affine[words..][..channels].copy_from_slice(&values[source.channels + first..][..channels]);
        }
        None => affine[..channels].fill(1.0),
    }
    let (width, height) = (source.size.width as usize, source.size.height as usize);
    for (row, line) in target.chunks_exact_mut(window.row() * words).take(window.rows).enumerate() {
        let Some(y) = window.y.checked_add_unsigned(row).and_then(|y| usize::try_from(y).ok()).filter(|y| *y < height)
        else {
            line.fill(0.0);
            continue;
        };
        for (phase, line) in line.chunks_exact_mut(window.columns * words).enumerate() {
            let x = window.x + phase as isize;
            // Column j lies at x + j * step: those inside begin at the first that is not negative.
            let before = x.min(0).unsigned_abs().div_ceil(window.step).min(window.columns);
            let start = (x + (before * window.step) as isize).unsigned_abs();
            let inside = width.saturating_sub(start).div_ceil(window.step).min(window.columns - before);
            let (left, rest) = line.split_at_mut(before * words);
            let (middle, right) = rest.split_at_mut(inside * words);
            left.fill(0.0);
            right.fill(0.0);
            if inside > 0 {
                let from = &source.values[(y * width + start) * source.channels + first..];
                let stride = window.step * source.channels;
                kernels.load_row(block, (from, stride, channels), middle, &affine[..2 * words], source.slope);
            }
        }
    }
}
