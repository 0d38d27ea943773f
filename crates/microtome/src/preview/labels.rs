//! A mask in small: its labels, and the colours that they are shown in.

use std::collections::HashMap;
use std::path::Path;

use microtome_io::slide::{LevelInfo, SlideReader};
use microtome_io::store::OmeZarr;
use microtome_io::{Class, Downsample, Level, Pixels, Rect, Samples, Size};

use super::{PreviewOptions, save};
use crate::output::put;
use crate::{Error, Result};

/// Samples of the level that are read at a time, at most, unless a row has more.
const BAND_SAMPLES: u64 = 64 << 20;

/// The labels of a mask as a small picture. Reads the level that is just fine enough; labels are picked, never averaged.
#[derive(Debug, Clone)]
pub struct LabelPicture {
    size: Size,
    /// The label under the centre of each pixel, row by row.
    values: Vec<u16>,
    classes: Vec<Class>,
}

impl LabelPicture {
    /// A picture of the whole mask, whose longest side has [`PreviewOptions::size`] pixels, or that of the mask if that is less.
    ///
    /// # Errors
    /// [`Error::Read`] if the mask cannot be read.
    pub fn read(mask: &OmeZarr, options: PreviewOptions) -> Result<Self> {
        let size = shown(mask, options);
        Self::framed(mask, size, Frame::whole(size))
    }

    /// A picture of another size, in which the mask lies somewhere; around it is background.
    ///
    /// Memory: what lies under 256 rows of the picture at a time, or 64 million samples if that is less, besides the result.
    pub(super) fn framed(mask: &OmeZarr, size: Size, frame: Frame) -> Result<Self> {
        let info = mask.info();
        let finest = info.levels[0].size;
        // The coarsest level that still has a pixel for each of the picture's.
        let is_fine = |level: Size| level.width as f64 >= frame.width && level.height as f64 >= frame.height;
        let level = (0..info.levels.len()).rev().find(|&l| is_fine(info.levels[l].size)).unwrap_or(0);
        let level_size = info.levels[level].size;
        let factor = downsample(mask, level);
        let (left, columns) = under(size.width, (frame.left, frame.width), (finest.width, level_size.width), factor.x);
        let (mut line, rows) =
            under(size.height, (frame.top, frame.height), (finest.height, level_size.height), factor.y);
        let mut values = vec![0_u16; size.area() as usize];
        // Bands of rows, so that chunks are decoded few times and little is held.
        let most = (BAND_SAMPLES / level_size.width).max(1) as usize;
        for band in bands(&rows, most) {
            let (first, last) = (band[0], band[band.len() - 1]);
            let rect = Rect::new(0, first as i64, level_size.width, (last - first + 1) as u64);
            let pixels = mask.read_region(Level(level), rect).map_err(Error::Read)?;
            let channels = pixels.channels();
            let width = level_size.width as usize;
            for &row in band {
                let index = |x: usize| ((row - first) * width + x) * channels;
                let covered = values[line * size.width as usize + left..].iter_mut().zip(&columns);
                match pixels.samples() {
                    Samples::U8(v) => covered.for_each(|(value, &x)| *value = u16::from(v[index(x)])),
                    Samples::U16(v) => covered.for_each(|(value, &x)| *value = v[index(x)]),
                }
                line += 1;
            }
        }
        Ok(Self { size, values, classes: info.content.classes().to_vec() })
    }

    /// Width and height in pixels.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// The labels, row by row.
    #[must_use]
    pub fn values(&self) -> &[u16] {
        &self.values
    }

    /// The labels in the colours of their classes, RGB of 8 bits; background (label 0) is black.
    #[must_use]
    pub fn colored(&self) -> Pixels {
        let palette = Palette::new(&self.classes);
        Pixels::from_u8(self.size, 3, self.values.iter().flat_map(|&label| palette.color(label)).collect())
    }

    /// Writes the picture; the ending of `path` decides the format, as in [`save`]. A PNG has a palette: its samples are the labels
    /// themselves, their colours those of the classes, and label 0 is transparent. Where a label is above 255, which no palette holds, and
    /// in the other formats, it is [`colored`](Self::colored).
    ///
    /// # Errors
    /// As [`save`].
    pub fn save(&self, path: &Path, options: PreviewOptions) -> Result<()> {
        let is_png = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png"));
        let largest = self.values.iter().copied().max().unwrap_or(0);
        match u8::try_from(largest) {
            Ok(largest) if is_png => {
                let png = self
                    .png(largest)
                    .map_err(|error| Error::Picture { path: path.into(), message: error.to_string() })?;
                put(path, &png)
            }
            _ => save(&self.colored(), path, options),
        }
    }

    /// A PNG with a palette, whose last entry is that of `largest`, or of a class with a larger value.
    fn png(&self, largest: u8) -> Result<Vec<u8>, png::EncodingError> {
        let named = self.classes.iter().filter_map(|class| u8::try_from(class.value).ok()).max().unwrap_or(0);
        let palette = Palette::new(&self.classes);
        let colors: Vec<u8> = (0..=largest.max(named)).flat_map(|label| palette.color(label.into())).collect();
        let samples: Vec<u8> = self.values.iter().map(|&label| label as u8).collect();
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.size.width as u32, self.size.height as u32);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_palette(colors);
        // One byte for the first entry: those that are not named are opaque.
        encoder.set_trns(vec![0]);
        encoder.write_header()?.write_image_data(&samples)?;
        Ok(bytes)
    }
}

/// Where a mask lies in a picture, in pixels of the picture from its corner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Frame {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

impl Frame {
    /// All over a picture.
    pub(super) fn whole(picture: Size) -> Self {
        Self { left: 0.0, top: 0.0, width: picture.width as f64, height: picture.height as f64 }
    }
}

/// What lies under the centres of a picture's `count` pixels, along one axis of a mask that is `length` of these pixels long from `start` on: the first
/// of them that is on the mask, and for it and those behind it the pixel of a level. The mask has `finest` pixels, the level `n`, each of `factor`
/// of those.
fn under(count: u64, (start, length): (f64, f64), (finest, n): (u64, u64), factor: f64) -> (usize, Vec<usize>) {
    let step = finest as f64 / length;
    let inside = (0..count).map(|i| i as f64 + 0.5 - start).enumerate().filter(|(_, at)| (0.0..length).contains(at));
    let (pixels, found): (Vec<usize>, Vec<usize>) =
        inside.map(|(i, at)| (i, ((at * step / factor) as u64).min(n - 1) as usize)).unzip();
    (pixels.first().copied().unwrap_or(0), found)
}

/// Pixels of the finest level that a pixel of another spans: what the store states, if the sizes do not contradict. Of a store that states
/// nothing, level n has `ceil(size / 2^n)` pixels that each span exactly `2^n`, or is not made by halving: then it is the ratio of the sizes.
fn downsample(mask: &OmeZarr, level: usize) -> Downsample {
    let (finest, level) = (mask.info().levels[0].size, &SlideReader::info(mask).levels[level]);
    let ratio = LevelInfo::new(finest, level.size, level.tile).downsample;
    if level.downsample != ratio {
        return level.downsample;
    }
    let halved = |ratio: f64, finest: u64, n: u64| {
        let power = ratio.log2().round().exp2();
        if (finest as f64 / power).ceil() == n as f64 { power } else { ratio }
    };
    Downsample {
        x: halved(ratio.x, finest.width, level.size.width),
        y: halved(ratio.y, finest.height, level.size.height),
    }
}

/// The rows that are shown, at most 256 at a time, which lie within `most` rows of the level.
fn bands(mut rows: &[usize], most: usize) -> impl Iterator<Item = &[usize]> {
    std::iter::from_fn(move || {
        let first = *rows.first()?;
        let count = rows.iter().take(256).take_while(|&&row| row - first < most).count();
        let (band, rest) = rows.split_at(count);
        rows = rest;
        Some(band)
    })
}

/// The size of a picture of a mask.
pub(super) fn shown(mask: &OmeZarr, options: PreviewOptions) -> Size {
    let size = mask.info().levels[0].size;
    let factor = (size.width.max(size.height) as f64 / options.size.max(1) as f64).max(1.0);
    let scaled = |n: u64| ((n as f64 / factor).round() as u64).max(1);
    Size::new(scaled(size.width), scaled(size.height))
}

/// The colours of labels.
#[derive(Debug)]
pub(super) struct Palette(HashMap<u16, [u8; 3]>);

impl Palette {
    pub(super) fn new(classes: &[Class]) -> Self {
        let mut colors = HashMap::from([(0, [0; 3])]);
        for class in classes {
            // Background stays black, and of two classes with one value, which is a fault of the store's, the first counts.
            colors.entry(class.value).or_insert(class.color);
        }
        Self(colors)
    }

    /// That of the label's class, one of the default palette for a label that the table does not name, black for the background.
    pub(super) fn color(&self, label: u16) -> [u8; 3] {
        self.0.get(&label).copied().unwrap_or_else(|| Class::with_default_color(label, "").color)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::BufReader;

    use super::*;

    fn saved(values: Vec<u16>, name: &str) -> (png::Info<'static>, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let class = |value, color, name: &str| Class { value, name: name.into(), color, code: None };
        let classes = vec![class(0, [7, 7, 7], "background"), class(3, [10, 20, 30], "tumor")];
        let size = Size::new(values.len() as u64, 1);
        LabelPicture { size, values, classes }.save(&path, PreviewOptions::default()).unwrap();
        let mut decoder = png::Decoder::new(BufReader::new(File::open(path).unwrap()));
        decoder.set_transformations(png::Transformations::IDENTITY);
        let mut reader = decoder.read_info().unwrap();
        let mut samples = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut samples).unwrap();
        (reader.info().clone(), samples)
    }

    #[test]
    fn a_png_of_labels_has_a_palette_with_a_transparent_background() {
        let (info, samples) = saved(vec![0, 3, 1, 3, 0], "mask.PNG");
        assert_eq!(samples, [0, 3, 1, 3, 0], "the labels themselves");
        assert_eq!(info.color_type, png::ColorType::Indexed);
        // Black, two colours of the default palette, and that of the class.
        assert_eq!(info.palette.as_deref(), Some(&[0, 0, 0, 230, 159, 0, 86, 180, 233, 10, 20, 30][..]));
        assert_eq!(info.trns.as_deref(), Some(&[0][..]));
        let (info, _) = saved(vec![0, 255], "mask.png");
        assert_eq!(info.palette.map(|palette| palette.len()), Some(3 * 256));
    }

    #[test]
    fn a_band_is_as_high_as_it_may_be() {
        let of = |step: usize, most| {
            let rows: Vec<usize> = (0..1000).map(|row| row * step).collect();
            let found: Vec<&[usize]> = bands(&rows, most).collect();
            assert_eq!(found.concat(), rows);
            found.into_iter().map(<[usize]>::len).collect::<Vec<_>>()
        };
        assert_eq!(of(1, 1000), [256, 256, 256, 232]);
        // Rows 0, 3, ... 297 are within 298 rows, and 300 is within 301.
        assert_eq!((of(3, 298), of(3, 301).first()), (vec![100; 10], Some(&101)));
        assert_eq!(of(3, 1), [1; 1000]);
    }

    #[test]
    fn labels_that_no_palette_holds_are_colored() {
        let (info, samples) = saved(vec![0, 256, 3], "mask.png");
        assert_eq!((info.color_type, info.palette.is_none()), (png::ColorType::Rgb, true));
        let other = Class::with_default_color(256, "").color;
        assert_eq!(samples, [[0; 3], other, [10, 20, 30]].concat());
    }
}
