//! Channels that are stored each in a raster of its own.

use std::path::Path;

use super::pyramid::check_limit;
use super::raster::{Raster, Shape};
use crate::{Error, Pixels, Result, SampleType, Samples, Size, TileCoord};

/// Channels of one picture. A cyclic stain has some sixty; what has thousands is no slide.
pub(super) const MOST_CHANNELS: usize = 4096;

/// Planes that are decoded before they are put into the stack: what decoding a cell takes besides the stack itself.
const GROUP: usize = 16;

/// A raster whose channels are rasters: planes of one size, one type of sample and one grid of cells.
///
/// A cell of it is the same cell of each plane, its samples side by side. A cell that only some planes leave out has the
/// background of those. Decoding takes the memory of the cell and of [`GROUP`] planes of it.
#[derive(Debug)]
pub(super) struct Planes<R> {
    planes: Vec<R>,
    shape: Shape,
}

impl<R: Raster> Planes<R> {
    /// Stacks planes in the order of their channels.
    ///
    /// # Errors
    /// [`Error::Format`] if they differ in size, [`Error::Unsupported`] if they differ in cells or samples,
    /// [`Error::Limits`] if a cell of all of them would take more than `decoded_bytes`.
    pub(super) fn new(path: &Path, planes: Vec<R>, decoded_bytes: u64) -> Result<Self> {
        let Some(first) = planes.first().map(|plane| plane.shape().clone()) else {
            return Err(Error::format(path, "a picture has no channel"));
        };
        if planes.len() > MOST_CHANNELS {
            return Err(Error::limits(
                path,
                format!("{} channels are more than {MOST_CHANNELS}, which is the limit", planes.len()),
            ));
        }
        for (number, plane) in planes.iter().enumerate().skip(1) {
            let shape = plane.shape();
            if shape.size != first.size {
                return Err(Error::format(
                    path,
                    format!("channel {number} has {} pixels where channel 0 has {}", shape.size, first.size),
                ));
            }
            let differs = if shape.cell != first.cell {
                "tiles"
            } else if shape.sample != first.sample || shape.channels != first.channels {
                "samples"
            } else {
                continue;
            };
            return Err(Error::unsupported(
                path,
                format!("channels that differ in their {differs} cannot be read: channel {number} is not as channel 0"),
            ));
        }
        let background: Vec<u16> = planes.iter().flat_map(|plane| plane.shape().background.iter().copied()).collect();
        let shape = Shape { channels: background.len(), background, ..first };
        check_limit(path, &shape, shape.cell, decoded_bytes)?;
        Ok(Self { planes, shape })
    }
}

impl<R: Raster> Raster for Planes<R> {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn decode(&self, cell: TileCoord) -> Result<Option<Pixels>> {
        let mut stacked: Option<Pixels> = None;
        let mut channel = 0;
        for group in self.planes.chunks(GROUP) {
            let mut decoded = Vec::with_capacity(group.len());
            for plane in group {
                if let Some(pixels) = plane.decode(cell)? {
                    decoded.push((channel, pixels));
                }
                channel += plane.shape().channels;
            }
            if let Some((_, pixels)) = decoded.first() {
                let size = pixels.size();
                let stacked =
                    stacked.get_or_insert_with(|| Pixels::filled(size, self.shape.sample, &self.shape.background));
                interleave(stacked, &decoded);
            }
        }
        Ok(stacked)
    }

    fn prefetch(&self, cell: TileCoord) {
        for plane in &self.planes {
            plane.prefetch(cell);
        }
    }
}

/// Writes the samples of planes into a stack, those of each from its first channel on.
///
/// Planes may be cut in different ways into cells of one size (the last strip is lower, the last tile is not); what lies
/// outside of one of the two lies outside of the picture.
fn interleave(stack: &mut Pixels, planes: &[(usize, Pixels)]) {
    let (size, channels) = (stack.size(), stack.channels());
    match stack.samples_mut() {
        Samples::U8(samples) => interleave_samples(samples, size, channels, planes, |plane| match plane.samples() {
            Samples::U8(samples) => samples,
            Samples::U16(_) => unreachable!("planes of one stack have one sample type"),
        }),
        Samples::U16(samples) => interleave_samples(samples, size, channels, planes, |plane| match plane.samples() {
            Samples::U16(samples) => samples,
            Samples::U8(_) => unreachable!("planes of one stack have one sample type"),
        }),
    }
}

/// Row by row, so that a row of the stack stays in the processor's cache until all planes have written to it.
fn interleave_samples<T: Copy>(
    stack: &mut [T],
    size: Size,
    channels: usize,
    planes: &[(usize, Pixels)],
    samples: impl Fn(&Pixels) -> &[T],
) {
    for (y, row) in stack.chunks_exact_mut(size.width as usize * channels).enumerate() {
        for (first, plane) in planes {
            let own = plane.channels();
            let stride = plane.size().width as usize * own;
            let Some(from) = samples(plane).chunks_exact(stride).nth(y) else { continue };
            for (to, from) in row.chunks_exact_mut(channels).zip(from.chunks_exact(own)) {
                match from {
                    [sample] => to[*first] = *sample,
                    samples => to[*first..first + own].copy_from_slice(samples),
                }
            }
        }
    }
}

/// The name of a sample type, as OME has it.
pub(super) fn sample_name(sample: SampleType) -> &'static str {
    match sample {
        SampleType::U8 => "uint8",
        SampleType::U16 => "uint16",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plane of one value, which leaves one of its two cells out.
    #[derive(Debug)]
    struct Plane {
        value: u16,
        left_out: u64,
        shape: Shape,
    }

    fn plane(value: u16, left_out: u64) -> Plane {
        let (size, cell) = (Size::new(3, 2), Size::new(2, 2));
        let shape = Shape { size, cell, channels: 1, sample: SampleType::U16, background: vec![value + 1] };
        Plane { value, left_out, shape }
    }

    impl Raster for Plane {
        fn shape(&self) -> &Shape {
            &self.shape
        }

        fn decode(&self, cell: TileCoord) -> Result<Option<Pixels>> {
            let pixels = Pixels::filled(self.shape.cell, self.shape.sample, &[self.value]);
            Ok((cell.column != self.left_out).then_some(pixels))
        }
    }

    #[test]
    fn cells_are_stacked_and_planes_left_out_are_background() {
        let planes = Planes::new(Path::new("x"), vec![plane(100, 9), plane(200, 1), plane(300, 9)], 1 << 10).unwrap();
        assert_eq!((planes.shape().channels, &planes.shape().background[..]), (3, &[101, 201, 301][..]));
        let cell = |column| planes.decode(TileCoord { column, row: 0 }).unwrap().unwrap();
        assert_eq!(cell(0).samples(), &Samples::U16([100, 200, 300].repeat(4)));
        assert_eq!(cell(1).samples(), &Samples::U16([100, 201, 300].repeat(4)));
        let empty = Planes::new(Path::new("x"), vec![plane(1, 0), plane(2, 0)], 1 << 10).unwrap();
        assert_eq!(empty.decode(TileCoord { column: 0, row: 0 }).unwrap(), None);
    }

    #[test]
    fn planes_that_do_not_fit_are_refused() {
        let refused = |second: Shape| {
            let second = Plane { shape: second, ..plane(2, 9) };
            Planes::new(Path::new("x"), vec![plane(1, 9), second], 1 << 10).unwrap_err().to_string()
        };
        let shape = plane(1, 9).shape;
        assert!(refused(Shape { size: Size::new(3, 3), ..shape.clone() }).contains("3 x 3 pixels where"));
        assert!(refused(Shape { cell: Size::new(1, 2), ..shape.clone() }).contains("differ in their tiles"));
        assert!(refused(Shape { sample: SampleType::U8, ..shape.clone() }).contains("differ in their samples"));
        let many = || (0..5000).map(|_| plane(1, 9)).collect();
        let limit = Planes::new(Path::new("x"), many(), u64::MAX).unwrap_err();
        assert!(matches!(limit, Error::Limits { .. }), "{limit}");
        let limit = Planes::new(Path::new("x"), vec![plane(1, 9), plane(1, 9)], 15).unwrap_err();
        assert!(matches!(limit, Error::Limits { .. }), "{limit}");
    }
}
