//! Small pictures of large slides.

use std::borrow::Cow;
use std::path::Path;

use image::{ExtendedColorType, ImageEncoder};
use microtome_io::slide::SlideReader;
use microtome_io::store::OmeZarr;
use microtome_io::{Class, Downsample, Level, Pixels, Rect, SampleType, Samples, Size};
use microtome_tile::tissue::{self, TissueOptions};
use microtome_tile::{Reader, Roi, TargetGrid};
use rayon::prelude::*;

use crate::output::put;
use crate::region::{self, Place, RegionOrigin};
use crate::{Error, Result};

/// How a preview is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PreviewOptions {
    /// The longest side of the picture, in pixels. A smaller slide is not enlarged.
    pub size: u64,
    /// Quality of JPEG pictures, 1 to 100.
    pub quality: u8,
}

impl Default for PreviewOptions {
    fn default() -> Self {
        Self { size: 1024, quality: 90 }
    }
}

/// A picture of the whole slide, 8-bit grey or RGB: read from the level that is just fine enough, averaged down.
///
/// Slides of 16 bits are shown with their upper 8. Bands of it are read at the same time, by the threads of the pool that this is called on.
///
/// # Errors
/// [`Error::Read`] if the slide cannot be read, [`Error::Usage`] if it has neither 1 nor 3 channels or the size is 0.
pub fn overview(slide: &dyn SlideReader, options: PreviewOptions) -> Result<Pixels> {
    let info = slide.info();
    if options.size == 0 {
        return Err(Error::Usage("a preview of 0 pixels".into()));
    }
    if !is_shown(slide) {
        return Err(Error::Usage(format!(
            "{}: a slide with {} channels cannot be shown as a picture (1 or 3 can)",
            info.path.display(),
            info.channels
        )));
    }
    let grid = grid(slide, options);
    let mut pixels = Pixels::filled(grid.size, info.sample, &vec![0; info.channels]);
    let bands: Vec<(Rect, Pixels)> = (0..grid.size.height)
        .step_by(BAND as usize)
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|y| {
            let band = Rect::new(0, y as i64, grid.size.width, BAND.min(grid.size.height - y));
            Ok((band, Reader::new(slide, &grid).read(band)?))
        })
        .collect::<Result<_>>()?;
    for (band, read) in bands {
        pixels.blit(grid.size.rect(), &read, band);
    }
    Ok(match pixels.samples() {
        Samples::U8(_) => pixels,
        Samples::U16(v) => {
            Pixels::from_u8(pixels.size(), pixels.channels(), v.iter().map(|&s| (s >> 8) as u8).collect())
        }
    })
}

/// Rows of an overview that are read together: enough that few stored tiles lie under two bands.
const BAND: u64 = 64;

/// True for slides that have an [`overview`].
pub(crate) fn is_shown(slide: &dyn SlideReader) -> bool {
    matches!(slide.info().channels, 1 | 3)
}

/// A picture of the [`overview`]'s size, light grey all over, to draw on where there is no overview.
pub(crate) fn blank(slide: &dyn SlideReader, options: PreviewOptions) -> Pixels {
    Pixels::filled(grid(slide, options).size, SampleType::U8, &[240])
}

/// The grid of an overview.
fn grid(slide: &dyn SlideReader, options: PreviewOptions) -> TargetGrid {
    let size = slide.info().size();
    let factor = (size.width.max(size.height) as f64 / options.size as f64).max(1.0);
    TargetGrid::coarse(slide.info(), None, factor)
}

/// A picture of a mask: each label in its class's colour, background black. Reads the level that is just fine enough;
/// labels are picked, never averaged.
///
/// # Errors
/// [`Error::Read`] if the mask cannot be read.
pub fn mask_overview(mask: &OmeZarr, options: PreviewOptions) -> Result<Pixels> {
    let size = mask.info().levels[0].size;
    let factor = (size.width.max(size.height) as f64 / options.size.max(1) as f64).max(1.0);
    let shown = Size::new(scaled(size.width, factor), scaled(size.height, factor));
    let labels = MaskLabels::read(mask, shown)?;
    let palette = Palette::new(mask.info().content.classes());
    let samples = labels.values.iter().flat_map(|&l| if l == 0 { [0; 3] } else { palette.color(l) }).collect();
    Ok(Pixels::from_u8(shown, 3, samples))
}

fn scaled(n: u64, factor: f64) -> u64 {
    ((n as f64 / factor).round() as u64).max(1)
}

/// Outlines every region of the mask on a picture of the same slide, in its class's colour. Grey pictures become RGB.
///
/// A pixel is outlined if it has a label and a neighbour (left, right, above or below) that has another one.
///
/// # Errors
/// [`Error::Read`] if the mask cannot be read, [`Error::Usage`] if its shape is not the slide's.
pub fn outline(picture: &Pixels, slide: &dyn SlideReader, mask: &OmeZarr) -> Result<Pixels> {
    let (slide_size, mask_size) = (slide.info().size(), mask.info().levels[0].size);
    // Sizes are rounded to whole pixels, so the proportions may differ by one pixel of the mask.
    let expected = slide_size.height as f64 / slide_size.width as f64 * mask_size.width as f64;
    let slack = 1.0 + slide_size.height as f64 / slide_size.width as f64;
    if (expected - mask_size.height as f64).abs() > slack {
        return Err(Error::Usage(format!(
            "{}: a mask of {mask_size} pixels has not the proportions of the slide ({slide_size})",
            mask.info().path.display()
        )));
    }
    outline_own(picture, mask)
}

/// The same for a mask that is known to be the slide's: its pixels may be wider than high where the slide's are not.
///
/// # Errors
/// [`Error::Read`] if the mask cannot be read.
pub(crate) fn outline_own(picture: &Pixels, mask: &OmeZarr) -> Result<Pixels> {
    let labels = MaskLabels::read(mask, picture.size())?;
    let palette = Palette::new(mask.info().content.classes());
    draw(picture, &labels.values, |label| palette.color(label))
}

/// Outlines a region of interest on the [`overview`] of the same slide that was made with the same options, in a blue that no class
/// has. Grey pictures become RGB.
///
/// The region is that of a run at the picture's resolution: what lies between the centres of its pixels is not seen.
///
/// # Errors
/// [`Error::Region`] for a region that cannot be read or does not fit the slide, [`Error::Read`] if the slide cannot be read,
/// [`Error::Usage`] for another picture.
pub fn outline_region(
    picture: &Pixels,
    slide: &dyn SlideReader,
    region: &RegionOrigin,
    options: PreviewOptions,
) -> Result<Pixels> {
    let target = grid(slide, options);
    let mpp = slide.info().resolution.as_ref().map(|r| r.mpp);
    if picture.size() != target.size {
        return Err(Error::Usage(format!("a picture of {} is no overview of {}", picture.size(), target.size)));
    }
    let roi = match region {
        RegionOrigin::File(source) => {
            region::load(source, Place { slide: slide.info().size(), mpp, target: &target })?.roi
        }
        RegionOrigin::Tissue => tissue::detect(slide, mpp, &target, &TissueOptions::default())?.roi,
    };
    let width = target.size.width as usize;
    let mut wanted = vec![1; target.size.area() as usize];
    roi.for_each_outside(target.size.rect(), |y, run| wanted[y * width..][run].fill(0));
    draw(picture, &wanted, |_| REGION)
}

/// Outlines a region at hand, over `target`, on a picture of the whole slide, as [`outline_region`] does. A pixel of the picture counts
/// where anything under it is wanted, so that no part is too small to be seen.
///
/// # Errors
/// [`Error::Usage`] for pictures that are neither grey nor RGB of 8 bits.
pub(crate) fn outline_roi(picture: &Pixels, roi: &Roi, target: &TargetGrid) -> Result<Pixels> {
    let (shown, all) = (picture.size(), target.size);
    // The target pixels under a pixel of the picture, at least one.
    let under = |i: u64, shown: u64, all: u64| {
        let step = all as f64 / shown as f64;
        let first = ((i as f64 * step) as u64).min(all - 1);
        first..(((i + 1) as f64 * step).ceil() as u64).clamp(first + 1, all)
    };
    let mut wanted = Vec::with_capacity(shown.area() as usize);
    for y in 0..shown.height {
        let rows = under(y, shown.height, all.height);
        let band = |from: u64, end: u64| Rect::new(from as i64, rows.start as i64, end - from, rows.end - rows.start);
        if !roi.touches(band(0, all.width)) {
            wanted.resize(wanted.len() + shown.width as usize, 0);
            continue;
        }
        wanted.extend((0..shown.width).map(|x| {
            let columns = under(x, shown.width, all.width);
            u16::from(roi.touches(band(columns.start, columns.end)))
        }));
    }
    draw(picture, &wanted, |_| REGION)
}

/// Pure blue, which neither the palette of classes nor a common stain has.
const REGION: [u8; 3] = [0, 0, 255];

/// Colours every pixel that has a label other than 0 and a neighbour (left, right, above or below) that has another one.
fn draw(picture: &Pixels, labels: &[u16], color: impl Fn(u16) -> [u8; 3]) -> Result<Pixels> {
    let size = picture.size();
    let mut samples: Vec<u8> = match (picture.channels(), picture.as_u8()) {
        (3, Some(samples)) => samples.to_vec(),
        (1, Some(samples)) => samples.iter().flat_map(|&v| [v; 3]).collect(),
        _ => return Err(Error::Usage("outlines are drawn on 8-bit grey or RGB pictures".into())),
    };
    let (width, height) = (size.width as usize, size.height as usize);
    for y in 0..height {
        for x in 0..width {
            let label = labels[y * width + x];
            let differs = |x: usize, y: usize| labels[y * width + x] != label;
            let edge = (x > 0 && differs(x - 1, y))
                || (x + 1 < width && differs(x + 1, y))
                || (y > 0 && differs(x, y - 1))
                || (y + 1 < height && differs(x, y + 1));
            if label != 0 && edge {
                samples[(y * width + x) * 3..][..3].copy_from_slice(&color(label));
            }
        }
    }
    Ok(Pixels::from_u8(size, 3, samples))
}

/// The label under the centre of each pixel of a picture of the whole mask.
struct MaskLabels {
    values: Vec<u16>,
}

impl MaskLabels {
    /// Memory: what lies under 256 rows of the picture at a time, besides the result.
    fn read(mask: &OmeZarr, size: Size) -> Result<Self> {
        let info = mask.info();
        let finest = info.levels[0].size;
        let step =
            Downsample { x: finest.width as f64 / size.width as f64, y: finest.height as f64 / size.height as f64 };
        // The coarsest level that still has a pixel for each of the picture's.
        let level = (0..info.levels.len())
            .rev()
            .find(|&l| info.levels[l].size.width >= size.width && info.levels[l].size.height >= size.height)
            .unwrap_or(0);
        let level_size = info.levels[level].size;
        // Level n has ceil(size / 2^n) pixels that each span exactly 2^n.
        let shrink = |finest: u64, n: u64| (finest as f64 / n as f64).log2().round().exp2();
        let (fx, fy) = (shrink(finest.width, level_size.width), shrink(finest.height, level_size.height));
        let at =
            |i: u64, step: f64, factor: f64, n: u64| ((((i as f64 + 0.5) * step / factor) as u64).min(n - 1)) as usize;
        let columns: Vec<usize> = (0..size.width).map(|x| at(x, step.x, fx, level_size.width)).collect();
        let mut values = Vec::with_capacity(size.area() as usize);
        // Bands of rows, so that chunks are decoded few times and little is held.
        let rows: Vec<usize> = (0..size.height).map(|y| at(y, step.y, fy, level_size.height)).collect();
        for band in rows.chunks(256) {
            let (first, last) = (band[0], band[band.len() - 1]);
            let rect = Rect::new(0, first as i64, level_size.width, (last - first + 1) as u64);
            let pixels = mask.read_region(Level(level), rect).map_err(Error::Read)?;
            let channels = pixels.channels();
            let width = level_size.width as usize;
            for &row in band {
                let index = |x: usize| ((row - first) * width + x) * channels;
                match pixels.samples() {
                    Samples::U8(v) => values.extend(columns.iter().map(|&x| u16::from(v[index(x)]))),
                    Samples::U16(v) => values.extend(columns.iter().map(|&x| v[index(x)])),
                }
            }
        }
        Ok(Self { values })
    }
}

struct Palette(Vec<Class>);

impl Palette {
    fn new(classes: &[Class]) -> Self {
        Self(classes.to_vec())
    }

    fn color(&self, label: u16) -> [u8; 3] {
        match self.0.iter().find(|c| c.value == label) {
            Some(class) => class.color,
            None => Class::with_default_color(label, "").color,
        }
    }
}

/// How a picture is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PictureFormat {
    Png,
    Jpeg,
    /// Lossless.
    WebP,
}

/// Writes a grey or RGB picture of 8 bits, or as a PNG of 16 bits, per sample; the ending decides the format: `.png`, `.jpg`, `.jpeg` or `.webp` (lossless).
///
/// The picture appears under its name when it is complete.
///
/// # Errors
/// [`Error::Usage`] for another ending or other pixels, [`Error::Picture`] if it cannot be encoded, [`Error::Io`] if it
/// cannot be written.
pub fn save(picture: &Pixels, path: &Path, options: PreviewOptions) -> Result<()> {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let format = match ending.as_str() {
        "png" => PictureFormat::Png,
        "jpg" | "jpeg" => PictureFormat::Jpeg,
        "webp" => PictureFormat::WebP,
        _ => return Err(Error::Usage(format!("{}: pictures are written as .png, .jpg or .webp", path.display()))),
    };
    put(path, &encode(picture, format, path, options)?)
}

/// The bytes of a grey or RGB picture; `path` is what an error names.
///
/// # Errors
/// [`Error::Usage`] for other pixels, [`Error::Picture`] if it cannot be encoded.
pub(crate) fn encode(picture: &Pixels, format: PictureFormat, path: &Path, options: PreviewOptions) -> Result<Vec<u8>> {
    let (samples, color): (Cow<'_, [u8]>, _) = match (picture.samples(), picture.channels()) {
        (Samples::U8(samples), 1) => (samples.into(), ExtendedColorType::L8),
        (Samples::U8(samples), 3) => (samples.into(), ExtendedColorType::Rgb8),
        // The encoders of `image` take samples in the byte order of the machine.
        (Samples::U16(samples), channels @ (1 | 3)) if format == PictureFormat::Png => (
            samples.iter().flat_map(|sample| sample.to_ne_bytes()).collect(),
            if channels == 1 { ExtendedColorType::L16 } else { ExtendedColorType::Rgb16 },
        ),
        _ => {
            return Err(Error::Usage(
                "pictures have grey or RGB pixels, of 8 bits or, as a PNG, of 16 bits a sample".into(),
            ));
        }
    };
    let (width, height) = (picture.size().width as u32, picture.size().height as u32);
    let mut bytes = Vec::new();
    let encoded = match format {
        PictureFormat::Png => {
            image::codecs::png::PngEncoder::new(&mut bytes).write_image(&samples, width, height, color)
        }
        PictureFormat::Jpeg => image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, options.quality)
            .write_image(&samples, width, height, color),
        PictureFormat::WebP => {
            image::codecs::webp::WebPEncoder::new_lossless(&mut bytes).write_image(&samples, width, height, color)
        }
    };
    encoded.map_err(|error| Error::Picture { path: path.into(), message: error.to_string() })?;
    Ok(bytes)
}
