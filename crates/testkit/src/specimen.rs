//! One piece of real tissue, seen in the ways that make tissue hard to find.

use microtome_io::slide::SlideReader;
use microtome_io::{Level, Pixels, Rect, Result, Size};

use crate::picture::PictureSlide;
use crate::synthetic::hash;

/// Micrometres per pixel of the views.
pub const SPECIMEN_MPP: f64 = 2.0;

/// Pixels of a view, with room for glass and padding around the tissue: 2.8 mm x 2.4 mm.
const CANVAS: Size = Size::new(1400, 1200);

/// Pixels across of the cells for which the truth is known: 8 um.
const CELL: u64 = 4;

/// What glass is scaled to: the commonest colour of the slides of Aperio's scanners.
const GLASS: f32 = 243.0;

/// A way of seeing the specimen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum View {
    /// As it was scanned.
    Plain,
    /// With this share of its stain: the colours are blended towards the glass.
    Pale(f32),
    /// Underexposed: glass is grey, at about 120, and noisy.
    Dark,
    /// Through yellowed glass.
    Tinted,
    /// Under light that falls off by a tenth towards the corners of each field of 0.5 mm.
    Shaded,
    /// With strokes of blue, green and black ink, 400 um wide, over glass and tissue.
    Pen,
    /// With 300 grains of dust of 4 to 50 um across.
    Dust,
    /// Fluorescent, in 8 bits: signal where there is stain, on a dark background with the camera's noise. In 3 channels the first one is
    /// empty. `gain` is the signal of a density of 1.
    Fluorescent {
        /// 1 or 3.
        channels: usize,
        /// In sample levels.
        gain: f32,
    },
    /// The same in 16 bits, of which a camera of 12 bits fills some, with shot noise.
    FluorescentDeep {
        /// 1 or 3.
        channels: usize,
        /// In sample levels.
        gain: f32,
    },
    /// Nothing but glass.
    Glass,
    /// Nothing but tissue, no glass anywhere.
    Tissue,
    /// Exactly this sample in all channels outside the region that was scanned.
    Padded(u8),
    /// So much light that glass is beyond the scale.
    Overexposed,
}

impl View {
    /// Every way of seeing, with its name.
    pub const ALL: [(&'static str, Self); 20] = [
        ("plain", Self::Plain),
        ("pale, 25 % of the stain", Self::Pale(0.25)),
        ("pale, 10 % of the stain", Self::Pale(0.1)),
        ("dark", Self::Dark),
        ("tinted", Self::Tinted),
        ("shaded", Self::Shaded),
        ("pen", Self::Pen),
        ("dust", Self::Dust),
        ("overexposed", Self::Overexposed),
        ("padded with black", Self::Padded(0)),
        ("padded with white", Self::Padded(255)),
        ("fluorescent, 1 channel", Self::Fluorescent { channels: 1, gain: 160.0 }),
        ("fluorescent, 3 channels", Self::Fluorescent { channels: 3, gain: 160.0 }),
        ("fluorescent, dim", Self::Fluorescent { channels: 1, gain: 40.0 }),
        ("fluorescent, 1 x 16 bits", Self::FluorescentDeep { channels: 1, gain: 1500.0 }),
        ("fluorescent, 3 x 16 bits", Self::FluorescentDeep { channels: 3, gain: 1500.0 }),
        ("fluorescent, 16 bits, dim", Self::FluorescentDeep { channels: 1, gain: 300.0 }),
        ("fluorescent, no black level", Self::Fluorescent { channels: 1, gain: 250.0 }),
        ("glass", Self::Glass),
        ("tissue", Self::Tissue),
    ];
}

/// A piece of tissue on clean glass.
#[derive(Debug, Clone)]
pub struct Specimen {
    /// How much light passes each pixel of the canvas, per colour; 1 is glass.
    light: Vec<[f32; 3]>,
}

impl Specimen {
    /// The tissue of OpenSlide's `CMU-1-Small-Region.svs` (see [`assets::cmu_small_region`](crate::assets::cmu_small_region)), or of another
    /// slide of 0.5 um per pixel that is not larger, averaged to [`SPECIMEN_MPP`].
    ///
    /// # Errors
    /// If the slide cannot be read.
    ///
    /// # Panics
    /// If the slide is not 8-bit RGB.
    pub fn new(slide: &dyn SlideReader) -> Result<Self> {
        let level0 = slide.info().size();
        let size = Size::new((level0.width / CELL).min(CANVAS.width), (level0.height / CELL).min(CANVAS.height));
        let mut light = vec![[1.0; 3]; CANVAS.area() as usize];
        let (left, top) = ((CANVAS.width - size.width) / 2, (CANVAS.height - size.height) / 2);
        for y in 0..size.height {
            let rows = slide.read_region(Level::FINEST, Rect::new(0, (y * CELL) as i64, size.width * CELL, CELL))?;
            let samples = rows.as_u8().expect("8-bit samples").as_chunks::<3>().0;
            for x in 0..size.width {
                let mut sums = [0u32; 3];
                for i in 0..CELL * CELL {
                    let pixel = samples[(i / CELL * size.width * CELL + x * CELL + i % CELL) as usize];
                    sums.iter_mut().zip(pixel).for_each(|(sum, v)| *sum += u32::from(v));
                }
                light[((y + top) * CANVAS.width + x + left) as usize] =
                    sums.map(|sum| (sum as f32 / (CELL * CELL) as f32 / GLASS).min(1.0));
            }
        }
        Ok(Self { light })
    }

    /// Cells of 8 um of the canvas.
    #[must_use]
    pub fn cells() -> Size {
        Size::new(CANVAS.width / CELL, CANVAS.height / CELL)
    }

    /// The green light's optical density of each cell: haematoxylin and eosin both absorb green.
    fn density(&self) -> Vec<f32> {
        let size = Self::cells();
        let of = |x: u64, y: u64| {
            let under = (0..CELL * CELL).map(|i| ((y * CELL + i / CELL) * CANVAS.width + x * CELL + i % CELL) as usize);
            let mean = under.map(|i| self.light[i][1]).sum::<f32>() / (CELL * CELL) as f32;
            -mean.max(1e-3).log10()
        };
        (0..size.area()).map(|i| of(i % size.width, i / size.width)).collect()
    }

    /// For each cell whether it is tissue: in most of the cells of its neighbourhood of 3 x 3, and in itself, the density is 0.05 or more
    /// (11 % of the light). It is the mask of `tests/python/tissue_check.py`.
    #[must_use]
    pub fn tissue(&self) -> Vec<bool> {
        let density = self.density();
        let near = |i: usize| neighbours(i, 1).filter(|&n| density[n] >= 0.05).count();
        (0..density.len()).map(|i| density[i] >= 0.05 && near(i) >= 5).collect()
    }

    /// For each cell whether it is glass, and far from tissue: nowhere within 64 um the density is 0.02 or more.
    #[must_use]
    pub fn glass(&self) -> Vec<bool> {
        let density = self.density();
        (0..density.len()).map(|i| neighbours(i, 8).all(|n| density[n] < 0.02)).collect()
    }

    /// A slide of [`SPECIMEN_MPP`] with one level.
    #[must_use]
    pub fn seen(&self, view: View) -> PictureSlide {
        let pixel = |i: u64| (i % CANVAS.width, i / CANVAS.width);
        let light = |x: u64, y: u64| self.light[(y * CANVAS.width + x) as usize];
        let rgb = |color: [f32; 3], noise: f32, pass: &dyn Fn(u64, u64) -> [f32; 3]| {
            let samples = (0..CANVAS.area()).flat_map(|i| {
                let (x, y) = pixel(i);
                let pass = pass(x, y);
                std::array::from_fn::<u8, 3, _>(|c| (color[c] * pass[c] + noise * gauss(x, y, c) + 0.5) as u8)
            });
            Pixels::from_u8(CANVAS, 3, samples.collect())
        };
        let white = [GLASS; 3];
        let pixels = match view {
            View::Plain => rgb(white, 1.0, &light),
            View::Pale(share) => rgb(white, 1.0, &|x, y| light(x, y).map(|v| 1.0 + (v - 1.0) * share)),
            View::Dark => rgb([123.0, 119.0, 113.0], 2.0, &light),
            View::Tinted => rgb([232.0, 214.0, 188.0], 1.0, &light),
            View::Overexposed => rgb([262.0; 3], 1.0, &light),
            View::Shaded => rgb(white, 1.0, &|x, y| {
                let off = |v: u64| (v % 256) as f32 / 128.0 - 1.0;
                light(x, y).map(|v| v * (1.0 - 0.05 * (off(x) * off(x) + off(y) * off(y))))
            }),
            View::Pen => rgb(white, 1.0, &|x, y| {
                let light = light(x, y);
                ink(x, y).map_or(light, |ink| std::array::from_fn(|c| light[c] * ink[c]))
            }),
            View::Dust => {
                let mut dusty = self.light.clone();
                for grain in 0..300 {
                    let draw = |what: u64, n: u64| hash([5, grain, what, 0]) % n;
                    let (x0, y0) = (draw(0, CANVAS.width), draw(1, CANVAS.height));
                    let (radius, pass) = (1 + draw(2, 12), 0.2 + draw(3, 6) as f32 / 10.0);
                    for y in y0.saturating_sub(radius)..(y0 + radius + 1).min(CANVAS.height) {
                        for x in x0.saturating_sub(radius)..(x0 + radius + 1).min(CANVAS.width) {
                            if x.abs_diff(x0).pow(2) + y.abs_diff(y0).pow(2) <= radius * radius {
                                let at = &mut dusty[(y * CANVAS.width + x) as usize];
                                *at = at.map(|v| v * pass);
                            }
                        }
                    }
                }
                rgb(white, 1.0, &|x, y| dusty[(y * CANVAS.width + x) as usize])
            }
            View::Glass => rgb(white, 1.0, &|_, _| [1.0; 3]),
            View::Tissue => {
                // The epidermis of CMU-1, mirrored at its edges again and again.
                let part = Rect::new(632, 610, 70, 100);
                let fold = |v: u64, n: u64| if (v / n).is_multiple_of(2) { v % n } else { n - 1 - v % n };
                rgb(white, 1.0, &|x, y| {
                    light(part.x as u64 + fold(x, part.width), part.y as u64 + fold(y, part.height))
                })
            }
            View::Padded(sample) => {
                let mut pixels = rgb(white, 1.0, &light);
                let scanned = Rect::new(240, 200, 960, 900);
                let filled = Pixels::filled(CANVAS, pixels.sample_type(), &[sample.into(); 3]);
                let inside = std::mem::replace(&mut pixels, filled);
                let mut part = Pixels::filled(scanned.size(), inside.sample_type(), &[0; 3]);
                part.blit(scanned, &inside, CANVAS.rect());
                pixels.blit(CANVAS.rect(), &part, scanned);
                pixels
            }
            View::Fluorescent { channels, gain } => {
                // A gain this high stands for a camera whose black level lies below 0.
                let offset = if gain > 200.0 { -6.0 } else { 8.0 };
                let samples = (0..CANVAS.area()).flat_map(|i| {
                    let (x, y) = pixel(i);
                    let signal = emission(light(x, y), channels);
                    (0..channels).map(move |c| (offset + gain * signal[c] + 3.0 * gauss(x, y, c) + 0.5) as u8)
                });
                Pixels::from_u8(CANVAS, channels, samples.collect())
            }
            View::FluorescentDeep { channels, gain } => {
                let samples = (0..CANVAS.area()).flat_map(|i| {
                    let (x, y) = pixel(i);
                    let signal = emission(light(x, y), channels);
                    (0..channels).map(move |c| {
                        let mean = 110.0 + gain * signal[c];
                        (mean + (36.0 + mean).sqrt() * gauss(x, y, c) + 0.5) as u16
                    })
                });
                Pixels::from_u16(CANVAS, channels, samples.collect())
            }
        };
        PictureSlide::new(pixels, SPECIMEN_MPP)
    }
}

/// The cells within `reach` of a cell, itself included.
fn neighbours(i: usize, reach: u64) -> impl Iterator<Item = usize> {
    let size = Specimen::cells();
    let (x, y) = (i as u64 % size.width, i as u64 / size.width);
    let along = move |v: u64, n: u64| v.saturating_sub(reach)..(v + reach + 1).min(n);
    along(y, size.height).flat_map(move |v| along(x, size.width).map(move |u| (v * size.width + u) as usize))
}

/// What a stain that emits where it absorbs would send: one channel of all of it, or red nothing, green eosin, blue haematoxylin.
fn emission(light: [f32; 3], channels: usize) -> [f32; 3] {
    let density = light.map(|v| -v.max(0.03).log10());
    if channels == 1 { [density[1]; 3] } else { [0.0, density[1], density[0]] }
}

/// The light that ink lets through, where there is ink: strokes of 200 pixels.
fn ink(x: u64, y: u64) -> Option<[f32; 3]> {
    // Leaning bands: one over glass on the left, one over glass and the tissue's middle, one at the bottom right.
    let lean = x + y / 4;
    match (lean, y) {
        (100..300, _) => Some([0.12, 0.2, 0.62]),
        (_, 500..700) if x < 800 => Some([0.1, 0.45, 0.25]),
        (1250..1450, 300..) => Some([0.08, 0.08, 0.09]),
        _ => None,
    }
}

/// A number of the normal distribution, nearly: the sum of eight even ones, its own for each pixel and channel.
fn gauss(x: u64, y: u64, channel: usize) -> f32 {
    let bytes = hash([17, x, y, channel as u64]).to_le_bytes();
    let sum: f32 = bytes.iter().map(|&b| f32::from(b)).sum();
    (sum - 8.0 * 127.5) / (8.0f32 * 65535.0 / 12.0).sqrt()
}
