//! Kernels between pages that may not be touched: a read or write outside of what they were given ends the test.

use std::ops::Range;

use super::*;

/// Values with a page that may not be touched right after the last one, or right before the first one.
struct Guarded {
    mapping: *mut libc::c_void,
    bytes: usize,
    range: Range<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Guard {
    Before,
    After,
}

const PAGE: usize = 4096;

impl Guarded {
    fn new(length: usize, guard: Guard) -> Self {
        let inner = (length * size_of::<f32>()).next_multiple_of(PAGE);
        let bytes = inner + 2 * PAGE;
        // SAFETY: a new mapping, of which the pages between the first and the last are made accessible.
        let mapping = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let mapping = libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(mapping, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(mapping.byte_add(PAGE), inner, libc::PROT_READ | libc::PROT_WRITE), 0);
            mapping
        };
        let start = if guard == Guard::Before { PAGE } else { PAGE + inner - length * size_of::<f32>() };
        Self { mapping, bytes, range: start..start + length * size_of::<f32>() }
    }

    fn values(&mut self) -> &mut [f32] {
        let length = self.range.len() / size_of::<f32>();
        // SAFETY: the range lies inside the accessible pages, is aligned to four bytes, and was zeroed by the system.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.byte_add(self.range.start).cast(), length) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nothing refers to it any more.
        unsafe { libc::munmap(self.mapping, self.bytes) };
    }
}

fn guards() -> impl Iterator<Item = (&'static Kernels, Guard)> {
    let sets = InstructionSet::available();
    let kernels = sets.flat_map(|set| [Words::F32, Words::Bf16].map(|words| Kernels::of(set, words)));
    kernels.flat_map(|kernels| [Guard::Before, Guard::After].map(|guard| (kernels, guard)))
}

#[test]
fn rows_touch_nothing_outside() {
    for (kernels, guard) in guards() {
        let forms = [Lanes::Paired, Lanes::Single, Lanes::Double];
        let has = |form: &&Lanes| match form {
            Lanes::Paired => kernels.paired.is_some(),
            Lanes::Single => true,
            Lanes::Double => kernels.double.is_some(),
        };
        for &form in forms.iter().filter(has) {
            for block in Block::ALL {
                let runs = Runs::new([0, 3 * block.words(), 7 * block.words()], 2 * block.words());
                let lanes = kernels.group_lanes(form);
                let mut weights = Guarded::new(runs.words() / Kernels::step(form) * lanes, guard);
                let mut bias = Guarded::new(lanes, guard);
                let mut statistics = Guarded::new(3 * lanes, guard);
                for pixels in 1..=14 {
                    for channels in 1..=kernels.channels(form) {
                        let stride = channels + pixels % 2 * 3;
                        let (count, row_stride, output_stride) = (1 + pixels % 4, 5 * block.words(), 20 * stride);
                        let read = (count - 1) * row_stride + (pixels - 1) * block.words() + runs.reach;
                        let written = (count - 1) * output_stride + (pixels - 1) * stride + channels;
                        let mut input = Guarded::new(read, guard);
                        let mut output = Guarded::new(written, guard);
                        let rows = Rows {
                            rows: count,
                            pixels,
                            input: input.values(),
                            from: 0,
                            row_stride,
                            runs: &runs,
                            weights: weights.values(),
                            bias: bias.values(),
                            output: output.values(),
                            to: 0,
                            pixel_stride: stride,
                            output_stride,
                            channels,
                            statistics: (pixels % 3 > 0).then(|| statistics.values()),
                        };
                        kernels.rows(form, block, rows);
                    }
                }
            }
        }
    }
}

#[test]
fn what_lies_between_pixels_is_left_alone() {
    for (kernels, _) in guards() {
        for (form, channels) in kernels.groups(kernels.lanes() / 2 - 1) {
            let (runs, lanes) = (Runs::new([0], 4), kernels.group_lanes(form));
            let mut output = vec![7.0; 4 * 40];
            let rows = Rows {
                rows: 1,
                pixels: 4,
                input: &[1.0; 64],
                from: 0,
                row_stride: 0,
                runs: &runs,
                weights: &vec![0.0; 4 * lanes],
                bias: &vec![0.0; lanes],
                output: &mut output,
                to: 0,
                pixel_stride: 40,
                output_stride: 0,
                channels,
                statistics: None,
            };
            kernels.rows(form, Block::Four, rows);
            for pixel in output.chunks(40) {
                assert!(pixel[..channels].iter().all(|v| *v == 0.0) && pixel[channels..].iter().all(|v| *v == 7.0));
            }
        }
    }
}

#[test]
fn transforms_touch_nothing_outside() {
    for (kernels, guard) in guards() {
        let (sides, row, position) = (kernels.sides(), 7 * 16, 3 * 16);
        let mut input = Guarded::new((sides.input - 1) * row + sides.input * 16, guard);
        let words = 16 / kernels.words().channels();
        let mut output = Guarded::new((sides.positions() - 1) * position + words, guard);
        let (from, to) = (0, 0);
        let (row_stride, position_stride) = (row, position);
        let (source, target) = (input.values(), output.values());
        kernels.input_tile(InputTile { input: source, from, row_stride, output: target, to, position_stride });
        for (rows, columns) in
            (1..=sides.output).flat_map(|rows| (1..=sides.output).map(move |columns| (rows, columns)))
        {
            for channels in 1..=kernels.lanes() {
                let (pixel_stride, row_stride) = (channels, 5 * channels);
                let mut input = Guarded::new((sides.positions() - 1) * position_stride + kernels.lanes(), guard);
                let mut bias = Guarded::new(kernels.lanes(), guard);
                let mut statistics = Guarded::new(3 * kernels.lanes(), guard);
                let mut output = Guarded::new((rows - 1) * row_stride + (columns - 1) * pixel_stride + channels, guard);
                kernels.output_tile(OutputTile {
                    input: input.values(),
                    from,
                    position_stride,
                    bias: bias.values(),
                    output: output.values(),
                    to,
                    row_stride,
                    pixel_stride,
                    rows,
                    columns,
                    channels,
                    statistics: (rows > 1).then(|| statistics.values()),
                });
            }
        }
    }
}

#[test]
fn loaders_touch_nothing_outside() {
    for (kernels, guard) in guards() {
        for block in Block::ALL {
            let words = block.words();
            let room = words * kernels.words().channels();
            for (pixels, channels) in (1..=9).flat_map(|pixels| (1..=3 * room).map(move |c| (pixels, c))) {
                let (stride, blocks) = (channels + pixels % 2 * 5, channels.div_ceil(room));
                let plane = pixels * words + pixels % 3;
                let mut source = Guarded::new((pixels - 1) * stride + channels, guard);
                let mut target = Guarded::new((blocks - 1) * plane + pixels * words, guard);
                let [mut factors, mut summands, mut slopes] = [0; 3].map(|_| Guarded::new(blocks * room, guard));
                kernels.load_row(
                    block,
                    LoadedRow {
                        source: source.values(),
                        stride,
                        row_stride: pixels * stride,
                        pixels,
                        channels,
                        target: target.values(),
                        plane,
                        factors: factors.values(),
                        summands: summands.values(),
                        slopes: slopes.values(),
                    },
                );
            }
        }
    }
}

#[test]
#[should_panic(expected = "12 of 11 words are read")]
fn what_sticks_out_is_refused() {
    let kernels = Kernels::of(InstructionSet::Portable, Words::F32);
    let rows = Rows {
        rows: 1,
        pixels: 3,
        input: &[0.0; 11],
        from: 0,
        row_stride: 0,
        runs: &Runs::new([0], 4),
        weights: &[0.0; 32],
        bias: &[0.0; 8],
        output: &mut [0.0; 24],
        to: 0,
        pixel_stride: 8,
        output_stride: 0,
        channels: 8,
        statistics: None,
    };
    kernels.rows(Lanes::Single, Block::Four, rows);
}
