//! How a convolution reads a view: rows of blocks of channels, normalised, bent and padded with zero.

use microtome_io::Size;

use super::kernel::{Block, Kernels, LoadedRow};

/// At most so many channels are loaded together: they lie side by side in memory, and what they fill fits into second-level caches.
pub(super) const MOST_CHANNELS: usize = 64;

/// One part of a view with everything that happens to it on the way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    /// Channels last.
    pub(super) values: &'a [f32],
    pub(super) channels: usize,
    pub(super) size: Size,
    /// Factors of all channels, then summands of all channels; none where nothing is to be done.
    pub(super) affine: Option<&'a [f32]>,
    /// A factor for negative values for each channel; none where they stay.
    pub(super) slopes: Option<&'a [f32]>,
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

/// The channels that are loaded together: so many from the first one on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Channels {
    pub(super) first: usize,
    pub(super) count: usize,
}

/// Fills `target` with some channels of a source: for each block of them rows × phases × columns × block, `plane` words apart.
pub(super) fn load(
    kernels: &Kernels,
    block: Block,
    source: &Source<'_>,
    channels: Channels,
    window: Window,
    plane: usize,
    target: &mut [f32],
) {
    let words = block.words();
    let Channels { first, count } = channels;
    let room = words * kernels.words().channels();
    let blocks = count.div_ceil(room);
    let [mut factors, mut summands, mut slopes] = [[0.0; MOST_CHANNELS]; 3];
    match source.affine {
        Some(values) => {
            factors[..count].copy_from_slice(&values[first..][..count]);
            summands[..count].copy_from_slice(&values[source.channels + first..][..count]);
        }
        None => factors[..count].fill(1.0),
    }
    match source.slopes {
        Some(values) => slopes[..count].copy_from_slice(&values[first..][..count]),
        None => slopes[..count].fill(1.0),
    }
    let (width, height) = (source.size.width as usize, source.size.height as usize);
    let each_block = |target: &mut [f32], at: usize, length: usize| {
        (0..blocks).for_each(|b| target[b * plane + at..][..length].fill(0.0));
    };
    let row_words = window.row() * words;
    for row in 0..window.rows {
        let at = row * row_words;
        let Some(y) = window.y.checked_add_unsigned(row).and_then(|y| usize::try_from(y).ok()).filter(|y| *y < height)
        else {
            each_block(target, at, row_words);
            continue;
        };
        for phase in 0..window.phases {
            let at = at + phase * window.columns * words;
            let x = window.x + phase as isize;
            // Column j lies at x + j * step: those inside begin at the first that is not negative.
            let before = x.min(0).unsigned_abs().div_ceil(window.step).min(window.columns);
            let start = (x + (before * window.step) as isize).unsigned_abs();
            let inside = width.saturating_sub(start).div_ceil(window.step).min(window.columns - before);
            let after = window.columns - before - inside;
            each_block(target, at, before * words);
            each_block(target, at + (before + inside) * words, after * words);
            if inside > 0 {
                kernels.load_row(
                    block,
                    LoadedRow {
                        source: &source.values[(y * width + start) * source.channels + first..],
                        stride: window.step * source.channels,
                        row_stride: width * source.channels,
                        pixels: inside,
                        channels: count,
                        target: &mut target[at + before * words..],
                        plane,
                        factors: &factors[..blocks * room],
                        summands: &summands[..blocks * room],
                        slopes: &slopes[..blocks * room],
                    },
                );
            }
        }
    }
}
