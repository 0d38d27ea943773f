//! An input with the logits and the mask that the original framework computed for it.

use std::path::Path;

use image::ImageFormat;
use microtome_io::{Pixels, Rect, Size};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::manifest::Test;
use crate::model::{Agreement, Model};
use crate::{Card, ChannelStatistics, Error, Execution, Logits, Mirroring, Normalizer, Output, Result, Tile, bounded};

const INPUT: &str = "test/input.png";
const LOGITS: &str = "test/logits.safetensors";
const MASK: &str = "test/mask.png";
const KEY: &str = "logits";
/// A tile of sixteen megapixels with a few heads; a test vector has no business being larger.
const MAX_BYTES: u64 = 256 << 20;

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
    pub(super) fn read(folder: &Path, test: &Test, card: &Card) -> Result<Self> {
        let path = folder.join(INPUT);
        let (size, channels, samples) = picture(&path, card.tile)?;
        if channels != card.channels.len() {
            let message = format!("{channels} channels; the model has {}", card.channels.len());
            return Err(Error::format(path, message));
        }
        let input = Pixels::from_u8(size, channels, samples);

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
        let values = tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
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
        let path = folder.join("test");
        std::fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
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
        let size = self.input.size();
        let samples = self.input.as_u8().ok_or_else(|| Error::usage("a test vector of more than 8 bits a sample"))?;
        let channels = self.input.channels();
        let statistics: Vec<ChannelStatistics> = (0..channels).map(|c| statistics(samples, c, channels)).collect();
        let normalizer = Normalizer::new(&card.normalization, &statistics)?;
        // nnU-Net pads a small image by half of what is missing, rounded down, on the low side.
        let low = |n: u64, tile: u64| (tile.saturating_sub(n) / 2) as i64;
        let (x, y) = (low(size.width, card.tile.width), low(size.height, card.tile.height));
        let at = Rect::new(x, y, size.width, size.height);
        let predictor = model.predictor(&Execution { mirroring: Mirroring::Off, ..*execution })?;
        let computed = predictor.predict(&[Tile { pixels: &self.input, at }], &normalizer)?;
        let cropped = crop(&computed[0], at);

        let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0_f32, |m, v| m.max(v.abs()));
        let mask = mask(&cropped, &card.output);
        Ok(Agreement {
            max_logit_difference: largest(&mut cropped.values.iter().zip(&self.logits.values).map(|(a, b)| a - b)),
            max_logit: largest(&mut self.logits.values.iter().copied()),
            differing_pixels: mask.iter().zip(&self.mask).filter(|(a, b)| **a != u16::from(**b)).count() as u64,
            pixels: size.area(),
        })
    }
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
