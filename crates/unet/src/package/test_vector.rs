//! An input with the logits and the mask that the original framework computed for it.

use std::path::Path;

use image::ImageFormat;
use microtome_io::{Pixels, Rect, Size};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::manifest::Test;
use crate::cpu::InstructionSet;
use crate::model::{Agreement, Model};
use crate::{
    Arithmetic, Card, ChannelStatistics, Device, Error, Execution, Logits, Mirroring, Normalizer, Output, Precision,
    Predictor, Result, Tile, bounded, ensemble,
};

/// The folder in a package.
const FOLDER: &str = "test";
const INPUT: &str = "input.png";
const LOGITS: &str = "logits.safetensors";
const MASK: &str = "mask.png";
/// What stands in a package's manifest, where the folder stands alone.
const ABOUT: &str = "test.toml";
const KEY: &str = "logits";
/// A tile of sixteen megapixels with a few heads; a test vector has no business being larger.
const MAX_BYTES: u64 = 256 << 20;
/// What the logits of our own picture take at most.
const MAX_OWN_LOGITS: u64 = 8 << 20;
/// How `computed_by` ends where this crate computed the vector: such a one shows that another machine computes alike, not that the
/// network is what its framework trained.
const NOT_ORIGINAL: &str = "(not the original framework)";

/// A reference to check an implementation against.
///
/// The statistics for normalisation are those of the input picture itself, and no mirroring is applied.
#[derive(Debug, Clone, PartialEq)]
pub struct TestVector {
    /// An 8-bit picture of the tile's size or smaller.
    pub input: Pixels,
    /// The logits at the input's size.
    pub logits: Logits,
    /// The mask, one value per pixel, row by row.
    pub mask: Vec<u8>,
    /// Who computed logits and mask, such as "nnU-Net 2.8.1".
    pub computed_by: String,
    /// How.
    pub method: String,
}

impl TestVector {
    /// A test vector that the original framework has computed: a folder with `input.png`, `logits.safetensors` and `mask.png`, and
    /// `test.toml` that says who computed them. Format: `docs/model-package.md`.
    ///
    /// # Errors
    /// If a file is missing, damaged or not of this model.
    pub fn open(folder: impl AsRef<Path>, card: &Card) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join(ABOUT);
        let test: Test = toml::from_str(&bounded::read_text(&path, super::MAX_MANIFEST)?)
            .map_err(|e| Error::format(&path, e.message().replace('\n', "; ")))?;
        if test.computed_by.trim().is_empty() {
            return Err(Error::format(&path, "computed_by is empty; it must say who computed the vector"));
        }
        Self::read_from(folder, &test, card)
    }

    /// A picture to compute a test vector of: a PNG of the model's channels, no larger than its tile.
    ///
    /// # Errors
    /// If it is none.
    pub fn read_picture(path: impl AsRef<Path>, card: &Card) -> Result<Pixels> {
        let path = path.as_ref();
        let (size, channels, samples) = picture(path, card.tile)?;
        if channels != card.channels.len() {
            let message = format!("{channels} channels; the model has {}", card.channels.len());
            return Err(Error::format(path, message));
        }
        Ok(Pixels::from_u8(size, channels, samples))
    }

    /// Computes a test vector by sums of products in f32 in plain Rust, of a picture or of a pattern of our own.
    ///
    /// `None` where test vectors cannot hold the model's picture or mask: those are PNGs of 8 bits, with one or three channels.
    ///
    /// # Errors
    /// If the picture does not fit the model, or the network fails.
    pub fn compute(model: &Model, input: Option<&Pixels>) -> Result<Option<Self>> {
        let card = model.card();
        let (channels, values) = (card.channels.len(), card.classes.iter().map(|c| c.value).max().unwrap_or(0));
        if !matches!(channels, 1 | 3) || values > u16::from(u8::MAX) {
            return Ok(None);
        }
        let own = if input.is_none() { Some(pattern(pattern_size(card), channels)) } else { None };
        let what = if own.is_some() { "a built-in pattern" } else { "a given picture" };
        let Some(input) = input.or(own.as_ref()) else { return Ok(None) };
        let execution = Execution {
            device: Device::Cpu,
            mirroring: Mirroring::Off,
            precision: Precision::F32,
            arithmetic: Arithmetic::Exact,
        };
        let predictor = ensemble::on_cpu(model, &execution, InstructionSet::Portable)?;
        let logits = predict(&predictor, card, input)?;
        let mask = mask(&logits, &card.output).into_iter().map(|v| v as u8).collect();
        let computed_by = format!("microtome {} {NOT_ORIGINAL}", env!("CARGO_PKG_VERSION"));
        let method = format!("of {what}, by sums of products in f32 in plain Rust, without mirroring, with all folds");
        Ok(Some(Self { input: input.clone(), logits, mask, computed_by, method }))
    }

    /// True where this crate computed the vector itself, for want of one by the framework that trained the model.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.computed_by.ends_with(NOT_ORIGINAL)
    }

    pub(super) fn read(folder: &Path, test: &Test, card: &Card) -> Result<Self> {
        Self::read_from(&folder.join(FOLDER), test, card)
    }

    fn read_from(folder: &Path, test: &Test, card: &Card) -> Result<Self> {
        let input = Self::read_picture(folder.join(INPUT), card)?;
        let size = input.size();

        let path = folder.join(LOGITS);
        let bytes = bounded::read(&path, MAX_BYTES)?;
        let wrong = |message: String| Error::format(&path, message);
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
        let tensor = tensors.tensor(KEY).map_err(|e| wrong(e.to_string()))?;
        let shape = [card.heads(), size.height as usize, size.width as usize];
        if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
            let message = format!("{KEY} is {:?} {:?}; it must be F32 {shape:?}", tensor.dtype(), tensor.shape());
            return Err(wrong(message));
        }
        let values: Vec<f32> = tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        // Nothing can be compared with them.
        if !values.iter().all(|v| v.is_finite()) {
            return Err(wrong(format!("{KEY} holds a value that is not finite")));
        }
        let logits = Logits { heads: card.heads(), size, values };

        let path = folder.join(MASK);
        let (mask_size, channels, mask) = picture(&path, card.tile)?;
        if mask_size != size || channels != 1 {
            let message = format!("{mask_size} with {channels} channels; it must be {size} with one");
            return Err(Error::format(path, message));
        }
        Ok(Self { input, logits, mask, computed_by: test.computed_by.clone(), method: test.method.clone() })
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let folder = folder.join(FOLDER);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let size = self.input.size();
        let color = match self.input.channels() {
            1 => image::ExtendedColorType::L8,
            3 => image::ExtendedColorType::Rgb8,
            n => return Err(Error::usage(format!("a test vector of {n} channels; pictures have 1 or 3"))),
        };
        let input = self.input.as_u8().ok_or_else(|| Error::usage("a test vector of more than 8 bits a sample"))?;
        for (name, samples, color) in
            [(INPUT, input, color), (MASK, self.mask.as_slice(), image::ExtendedColorType::L8)]
        {
            let path = folder.join(name);
            image::save_buffer_with_format(
                &path,
                samples,
                size.width as u32,
                size.height as u32,
                color,
                ImageFormat::Png,
            )
            .map_err(|e| Error::format(&path, e.to_string()))?;
        }
        let path = folder.join(LOGITS);
        let bytes: Vec<u8> = self.logits.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = vec![self.logits.heads, size.height as usize, size.width as usize];
        let file = TensorView::new(Dtype::F32, shape, &bytes)
            .and_then(|view| safetensors::serialize([(KEY, view)], None))
            .map_err(|e| Error::format(&path, e.to_string()))?;
        std::fs::write(&path, file).map_err(|e| Error::io(&path, e))
    }

    /// Computes logits and mask anew and compares.
    pub(crate) fn check(&self, model: &Model, execution: &Execution) -> Result<Agreement> {
        let card = model.card();
        let predictor = model.predictor(&Execution { mirroring: Mirroring::Off, ..*execution })?;
        let logits = predict(predictor.as_ref(), card, &self.input)?;
        let mask = mask(&logits, &card.output);
        Ok(self.compare(&logits, mask.into_iter(), &card.output))
    }

    /// How far another vector of the same picture is from this one, both of models with this output.
    ///
    /// # Errors
    /// If it is of another picture, or has another number of logits.
    pub fn agreement(&self, other: &Self, output: &Output) -> Result<Agreement> {
        if self.input != other.input || self.logits.heads != other.logits.heads {
            return Err(Error::usage("test vectors of different pictures or models cannot be compared"));
        }
        Ok(self.compare(&other.logits, other.mask.iter().map(|v| u16::from(*v)), output))
    }

    fn compare(&self, logits: &Logits, mask: impl Iterator<Item = u16>, output: &Output) -> Agreement {
        // `f32::max` would forget a NaN.
        let larger = |m: f32, v: f32| if m.is_nan() || v.is_nan() { f32::NAN } else { m.max(v.abs()) };
        let differences = logits.values.iter().zip(&self.logits.values).map(|(a, b)| a - b);
        let mut agreement = Agreement {
            max_logit_difference: differences.fold(0.0, larger),
            max_logit: self.logits.values.iter().copied().fold(0.0, larger),
            differing_pixels: 0,
            wrong_pixels: 0,
            pixels: self.input.size().area(),
        };
        let tolerance = Agreement::tolerance(agreement.max_logit);
        for (pixel, (found, expected)) in mask.zip(&self.mask).enumerate() {
            let expected = u16::from(*expected);
            if found != expected {
                agreement.differing_pixels += 1;
                agreement.wrong_pixels += u64::from(!could_be(expected, logits, output, pixel, tolerance));
            }
        }
        agreement
    }
}

/// Whether a pixel could have this value with logits that differ from these by no more than the tolerance.
fn could_be(value: u16, logits: &Logits, output: &Output, pixel: usize, tolerance: f32) -> bool {
    let area = logits.size.area() as usize;
    let logit = |head: usize| logits.values[head * area + pixel];
    match output {
        Output::Labels => {
            let own = usize::from(value);
            own < logits.heads && (0..logits.heads).all(|head| logit(head) - logit(own) <= 2.0 * tolerance)
        }
        Output::Regions { class_order } => {
            // From the last region on, which overwrites the others, to the first that is there without doubt.
            for head in (0..logits.heads).rev().filter(|head| logit(*head) >= -tolerance) {
                if class_order[head] == value {
                    return true;
                }
                if logit(head) > tolerance {
                    return false;
                }
            }
            value == 0
        }
    }
}

/// The logits of a picture, normalised by its own statistics, at its own size.
fn predict(predictor: &dyn Predictor, card: &Card, input: &Pixels) -> Result<Logits> {
    let size = input.size();
    let samples = input.as_u8().ok_or_else(|| Error::usage("a test vector of more than 8 bits a sample"))?;
    let channels = input.channels();
    let statistics: Vec<ChannelStatistics> = (0..channels).map(|c| statistics(samples, c, channels)).collect();
    let normalizer = Normalizer::new(&card.normalization, &statistics)?;
    // nnU-Net pads a small image by half of what is missing, rounded down, on the low side.
    let low = |n: u64, tile: u64| (tile.saturating_sub(n) / 2) as i64;
    let (x, y) = (low(size.width, card.tile.width), low(size.height, card.tile.height));
    let at = Rect::new(x, y, size.width, size.height);
    let computed = predictor.predict(&[Tile { pixels: input, at }], &normalizer)?;
    Ok(crop(&computed[0], at))
}

/// A whole tile, so that every layer's borders are seen, or a half, a quarter and so on where its logits would be large.
fn pattern_size(card: &Card) -> Size {
    let mut size = card.tile;
    while size.area().saturating_mul(4 * card.heads() as u64) > MAX_OWN_LOGITS && size.width.min(size.height) > 1 {
        size = Size::new(size.width / 2, size.height / 2);
    }
    size
}

/// Gradients, blots of 16 pixels and noise in each channel, in integers: the same on every machine.
fn pattern(size: Size, channels: usize) -> Pixels {
    let noise = |x: u64, y: u64, channel: u64| {
        let mixed = (x ^ y << 20 ^ channel << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 56
    };
    let sample = |x: u64, y: u64, c: u64| {
        let gradient = if c.is_multiple_of(2) { x * 255 / size.width } else { y * 255 / size.height };
        ((gradient + 2 * noise(x / 16, y / 16, c) + noise(x, y, c + 3)) / 4) as u8
    };
    let channel_count = channels as u64;
    let row = |y| (0..size.width * channel_count).map(move |i| sample(i / channel_count, y, i % channel_count));
    Pixels::from_u8(size, channels, (0..size.height).flat_map(row).collect())
}

/// Size, channels and samples of an 8-bit PNG that is no larger than a tile.
fn picture(path: &Path, tile: Size) -> Result<(Size, usize, Vec<u8>)> {
    let bytes = bounded::read(path, MAX_BYTES)?;
    let wrong = |message: String| Error::format(path, message);
    let mut reader = image::ImageReader::with_format(std::io::Cursor::new(bytes), ImageFormat::Png);
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(tile.width as u32);
    limits.max_image_height = Some(tile.height as u32);
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    let picture = reader.decode().map_err(|e| wrong(format!("{e} (a test picture is a PNG no larger than {tile})")))?;
    let size = Size::new(picture.width().into(), picture.height().into());
    match picture {
        image::DynamicImage::ImageLuma8(p) => Ok((size, 1, p.into_raw())),
        image::DynamicImage::ImageRgb8(p) => Ok((size, 3, p.into_raw())),
        other => Err(wrong(format!("{:?}; it must have 8 bits and one or three channels", other.color()))),
    }
}

/// Exact, in f64, of one channel of interleaved samples.
fn statistics(samples: &[u8], channel: usize, channels: usize) -> ChannelStatistics {
    let values = || samples.iter().skip(channel).step_by(channels).map(|&v| u64::from(v));
    let n = values().count() as f64;
    let (sum, squares) = values().fold((0, 0), |(s, q), v| (s + v, q + v * v));
    let mean = sum as f64 / n;
    let variance = (squares as f64 / n - mean * mean).max(0.0);
    let (min, max) = values().fold((u64::MAX, 0), |(a, b), v| (a.min(v), b.max(v)));
    ChannelStatistics { mean, std: variance.sqrt(), min: min as f64, max: max as f64 }
}

/// The part of a tile's logits at `at`.
fn crop(logits: &Logits, at: Rect) -> Logits {
    let (width, height) = (logits.size.width as usize, logits.size.height as usize);
    let rows =
        (0..logits.heads).flat_map(|h| (0..at.height as usize).map(move |y| (h * height + at.y as usize + y) * width));
    let values = rows.flat_map(|row| &logits.values[row + at.x as usize..][..at.width as usize]).copied().collect();
    Logits { heads: logits.heads, size: at.size(), values }
}

/// The mask that logits stand for, as nnU-Net decides.
fn mask(logits: &Logits, output: &Output) -> Vec<u16> {
    let area = logits.size.area() as usize;
    let value = |pixel: usize| {
        let logit = |head: usize| logits.values[head * area + pixel];
        match output {
            Output::Labels => (1..logits.heads).fold(0, |best, h| if logit(h) > logit(best) { h } else { best }) as u16,
            Output::Regions { class_order } => {
                (0..logits.heads).rev().find(|&h| logit(h) > 0.0).map_or(0, |h| class_order[h])
            }
        }
    };
    (0..area).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_wrong_unless_another_one_is_near() {
        let could_be = |values: &[f32], output: &Output| {
            let logits = Logits { heads: values.len(), size: Size::new(1, 1), values: values.into() };
            (0..5).filter(|value| could_be(*value, &logits, output, 0, 0.1)).collect::<Vec<u16>>()
        };
        assert_eq!(could_be(&[1.0, 3.0, 2.9], &Output::Labels), [1, 2]);
        assert_eq!(could_be(&[1.0, 3.0, 2.7], &Output::Labels), [1]);
        let regions = Output::Regions { class_order: vec![1, 3, 2] };
        assert_eq!(could_be(&[-1.0, -1.0, -1.0], &regions), [0]);
        assert_eq!(could_be(&[1.0, -1.0, -1.0], &regions), [1]);
        assert_eq!(could_be(&[1.0, 0.05, -0.2], &regions), [1, 3]);
        assert_eq!(could_be(&[1.0, 1.0, -0.05], &regions), [2, 3]);
        assert_eq!(could_be(&[-0.05, -1.0, -1.0], &regions), [0, 1]);
    }
}
