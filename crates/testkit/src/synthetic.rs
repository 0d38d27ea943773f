//! A slide that exists only as a formula.

use microtome_io::slide::{AssociatedImage, LevelInfo, Limits, Resolution, ResolutionSource, SlideInfo, SlideReader};
use microtome_io::{Error, Level, Microns, Pixels, Rect, Result, SampleType, Size};

/// Red, green, blue.
pub type Rgb = [u8; 3];

/// What tissue looks like on average: eosin and haematoxylin at a distance. Its texture stays within ±[`TEXTURE`].
pub const TISSUE: Rgb = [170, 110, 160];

/// How far a pixel of tissue can be from [`TISSUE`], the same in each channel.
pub const TEXTURE: u8 = 72;

/// Glass, unless the slide is told otherwise.
pub const GLASS: Rgb = [243, 242, 244];

/// Levels are at most this many halvings below level 0; together with the amplitudes below it keeps samples from clipping.
const MAX_SHIFT: u32 = 9;

/// A pyramidal RGB slide of any size, whose pixels are computed when they are read: 100 000 × 80 000 pixels cost nothing.
///
/// A pixel `(x, y)` of level 0 is glass, of one colour, or tissue. Tissue is [`TISSUE`] plus one term for each scale `k`
/// from 0 up: a number that depends on `(x >> k, y >> k)` and takes, within each block of 2 × 2 such cells, the value `+a`
/// twice and `-a` twice, in an order drawn from the seed. So the terms of a scale cancel in the mean over a block, and
/// the pixel of a level that is `s` halvings below level 0 **is exactly** the mean of the `2^s` × `2^s` pixels of level 0 under it:
/// the sum without the first `s` terms, no rounding anywhere.
///
/// Tissue lies in elliptical islands, whose outline follows the cells of the coarsest scale, so that no cell of any level is
/// partly glass.
///
/// ```
/// use microtome_io::{Level, Rect, Size, slide::SlideReader};
/// use microtome_testkit::SyntheticSlide;
///
/// let slide = SyntheticSlide::new(Size::new(100_000, 80_000), 7);
/// let corner = slide.read_region(Level::FINEST, Rect::new(99_998, 79_999, 2, 1))?;
/// assert_eq!(corner.as_u8().unwrap()[..3], slide.pixel(99_998, 79_999));
/// # Ok::<(), microtome_io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SyntheticSlide {
    info: SlideInfo,
    /// Halvings from level 0 to each level.
    shifts: Vec<u32>,
    seed: u64,
    glass: Rgb,
    tissue: Tissue,
    associated: Vec<(String, Pixels)>,
    icc_profile: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
enum Tissue {
    Everywhere,
    Islands(Vec<Ellipse>),
}

/// Centre and half axes in pixels of level 0.
#[derive(Debug, Clone, Copy)]
struct Ellipse {
    x: f64,
    y: f64,
    half_width: f64,
    half_height: f64,
}

impl SyntheticSlide {
    /// A slide at 0.5 µm per pixel with four levels (as far as the size allows), each half the one before, and five islands of
    /// tissue that cover something like a third of it. The same size and seed give the same pixels.
    ///
    /// # Panics
    /// If the size is empty.
    #[must_use]
    pub fn new(size: Size, seed: u64) -> Self {
        assert!(!size.is_empty(), "a slide has pixels");
        let possible = size.width.min(size.height).ilog2().min(3);
        let resolution = Resolution { mpp: Microns { x: 0.5, y: 0.5 }, source: ResolutionSource::Given };
        let info = SlideInfo {
            resolution: Some(resolution),
            background: vec![255; 3],
            ..SlideInfo::new("synthetic", "synthetic", size, Size::new(256, 256), 3, SampleType::U8)
        };
        let shifts: Vec<u32> = (0..=possible).collect();
        let slide = Self {
            info,
            shifts: Vec::new(),
            seed,
            glass: GLASS,
            tissue: Tissue::Everywhere,
            associated: Vec::new(),
            icc_profile: None,
        };
        slide.with_islands(5).with_levels(&shifts)
    }

    /// Other levels: for each, by how many halvings it is smaller than level 0. `&[0, 2, 4]` is what Aperio's scanners store.
    ///
    /// # Panics
    /// If the first is not 0, they do not ascend, one is above 9, or a level would be empty.
    #[must_use]
    pub fn with_levels(mut self, shifts: &[u32]) -> Self {
        assert!(shifts.first() == Some(&0) && shifts.is_sorted_by(|a, b| a < b), "levels ascend from 0: {shifts:?}");
        assert!(shifts.iter().all(|&s| s <= MAX_SHIFT), "at most {MAX_SHIFT} halvings: {shifts:?}");
        let LevelInfo { size, tile, .. } = self.info.levels[0];
        self.info.levels = shifts
            .iter()
            .map(|&shift| {
                let level = Size::new(size.width >> shift, size.height >> shift);
                assert!(!level.is_empty(), "a level {shift} halvings below {size} is empty");
                LevelInfo::new(size, level, tile)
            })
            .collect();
        self.shifts = shifts.to_vec();
        self
    }

    /// Another resolution, or none.
    #[must_use]
    pub fn with_mpp(mut self, mpp: Option<Microns>) -> Self {
        self.info.resolution = mpp.map(|mpp| Resolution { mpp, source: ResolutionSource::Given });
        self
    }

    /// Stored tiles of another size.
    #[must_use]
    pub fn with_tile(mut self, tile: Size) -> Self {
        for level in &mut self.info.levels {
            level.tile = tile;
        }
        self
    }

    /// Glass of another colour.
    #[must_use]
    pub fn with_glass(mut self, glass: Rgb) -> Self {
        self.glass = glass;
        self
    }

    /// So many islands of tissue, drawn from the seed; with 0 all is glass.
    #[must_use]
    pub fn with_islands(mut self, count: u64) -> Self {
        let size = self.info.size();
        let draw = |island: u64, what: u64, low: f64, high: f64| {
            let unit = (hash([self.seed, !0, island, what]) >> 11) as f64 / (1u64 << 53) as f64;
            low + unit * (high - low)
        };
        let (width, height) = (size.width as f64, size.height as f64);
        let ellipse = |i| Ellipse {
            x: draw(i, 0, 0.15, 0.85) * width,
            y: draw(i, 1, 0.15, 0.85) * height,
            half_width: draw(i, 2, 0.05, 0.25) * width,
            half_height: draw(i, 3, 0.05, 0.25) * height,
        };
        self.tissue = Tissue::Islands((0..count).map(ellipse).collect());
        self
    }

    /// No glass at all.
    #[must_use]
    pub fn with_tissue_everywhere(mut self) -> Self {
        self.tissue = Tissue::Everywhere;
        self
    }

    /// A picture that travels along.
    #[must_use]
    pub fn with_associated(mut self, name: &str, picture: Pixels) -> Self {
        self.info.associated.push(AssociatedImage::new(&self.info.format, name, picture.size()));
        self.associated.push((name.into(), picture));
        self
    }

    /// A profile of its colours, which nothing here looks into.
    #[must_use]
    pub fn with_icc_profile(mut self, bytes: &[u8]) -> Self {
        self.info.icc_profile_bytes = Some(bytes.len());
        self.icc_profile = Some(bytes.into());
        self
    }

    /// The pixel at column `x`, row `y` of level 0.
    #[must_use]
    pub fn pixel(&self, x: u64, y: u64) -> Rgb {
        self.pixel_at(0, x, y)
    }

    /// The pixel of the image that is `shift` halvings below level 0, whether the slide stores that as a level or not: the exact
    /// mean of `2^shift` × `2^shift` pixels of level 0.
    ///
    /// # Panics
    /// If `shift` is more than the slide's coarsest level has.
    #[must_use]
    pub fn pixel_at(&self, shift: u32, x: u64, y: u64) -> Rgb {
        let scales = self.scales();
        assert!(shift <= scales, "{shift} halvings; the slide's cells have {scales}");
        if self.is_tissue_cell(x >> (scales - shift), y >> (scales - shift)) {
            let texture: i16 = (shift..scales).map(|k| self.term(k, x >> (k - shift), y >> (k - shift))).sum();
            TISSUE.map(|mean| (i16::from(mean) + texture) as u8)
        } else {
            self.glass
        }
    }

    /// True if the pixel at column `x`, row `y` of level 0 is tissue.
    #[must_use]
    pub fn is_tissue(&self, x: u64, y: u64) -> bool {
        self.is_tissue_cell(x >> self.scales(), y >> self.scales())
    }

    /// Number of terms of the texture. Cells of this scale are all tissue or all glass.
    fn scales(&self) -> u32 {
        // A slide of one level has a texture too.
        self.shifts.last().map_or(4, |&coarsest| coarsest.max(4))
    }

    fn is_tissue_cell(&self, x: u64, y: u64) -> bool {
        let side = f64::from(1u32 << self.scales());
        let (x, y) = ((x as f64 + 0.5) * side, (y as f64 + 0.5) * side);
        match &self.tissue {
            Tissue::Everywhere => true,
            Tissue::Islands(islands) => islands.iter().any(|e| {
                let (u, v) = ((x - e.x) / e.half_width, (y - e.y) / e.half_height);
                u * u + v * v <= 1.0
            }),
        }
    }

    /// The term of scale `k` for the cell `(x, y)` of that scale.
    fn term(&self, k: u32, x: u64, y: u64) -> i16 {
        /// Which two of the four cells of a block are darker, as bits `2 * (y & 1) + (x & 1)`: all six ways.
        const DARKER: [u8; 6] = [0b0011, 0b0101, 0b1001, 0b0110, 0b1010, 0b1100];
        // 3 × 12 + 6 × 6 = TEXTURE at most.
        let amplitude = if k < 3 { 12 } else { 6 };
        let way = hash([self.seed, u64::from(k), x >> 1, y >> 1]) % DARKER.len() as u64;
        let dark = DARKER[way as usize] >> (2 * (y & 1) + (x & 1)) & 1;
        if dark == 1 { -amplitude } else { amplitude }
    }
}

impl SlideReader for SyntheticSlide {
    fn info(&self) -> &SlideInfo {
        &self.info
    }

    fn read_region(&self, level: Level, rect: Rect) -> Result<Pixels> {
        let size = self.info.level(level)?.size;
        let bytes = rect.size().area().saturating_mul(3);
        let limit = Limits::default().decoded_bytes;
        if bytes > limit {
            let message = format!("{rect} takes {bytes} bytes, and {limit} are allowed");
            return Err(Error::limits(&self.info.path, message));
        }
        let shift = self.shifts[level.0];
        let mut samples = vec![255; bytes as usize];
        if let Some(inside) = rect.intersect(size.rect()) {
            for y in inside.y..inside.bottom() {
                let row = (y - rect.y) as usize * rect.width as usize;
                let left = row + (inside.x - rect.x) as usize;
                let pixels = &mut samples[3 * left..3 * (left + inside.width as usize)];
                for (x, pixel) in (inside.x..).zip(pixels.as_chunks_mut::<3>().0) {
                    *pixel = self.pixel_at(shift, x as u64, y as u64);
                }
            }
        }
        Ok(Pixels::from_u8(rect.size(), 3, samples))
    }

    fn read_associated(&self, name: &str) -> Result<Pixels> {
        let found = self.associated.iter().find(|(known, _)| known == name);
        let missing = || Error::usage(&self.info.path, format!("there is no associated image {name:?}"));
        found.map(|(_, picture)| picture.clone()).ok_or_else(missing)
    }

    fn icc_profile(&self) -> Option<&[u8]> {
        self.icc_profile.as_deref()
    }

    /// The formula's parameters: they are all that the pixels depend on.
    fn content_id(&self) -> Result<String> {
        Ok(format!("{self:?}"))
    }
}

/// Mixes numbers into one that looks random: each word goes through the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
pub(crate) fn hash(words: [u64; 4]) -> u64 {
    words.into_iter().fold(0, |state: u64, word| {
        let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_the_exact_mean_of_level_0() {
        let slide = SyntheticSlide::new(Size::new(203, 157), 3).with_levels(&[0, 1, 3, 5]);
        for (level, shift) in [(1, 1), (2, 3), (3, 5)] {
            let info = &slide.info().levels[level];
            let pixels = slide.read_region(Level(level), info.size.rect()).unwrap();
            let side = 1u64 << shift;
            for (i, pixel) in (0..).zip(pixels.as_u8().unwrap().as_chunks::<3>().0) {
                let (x, y) = (i % info.size.width * side, i / info.size.width * side);
                let mut sums = [0u64; 3];
                for v in y..y + side {
                    for u in x..x + side {
                        sums.iter_mut().zip(slide.pixel(u, v)).for_each(|(sum, sample)| *sum += u64::from(sample));
                    }
                }
                assert_eq!(sums, pixel.map(|sample| u64::from(sample) * side * side), "level {level}, pixel {i}");
            }
        }
    }

    #[test]
    fn a_region_is_its_pixels_and_white_outside() {
        let slide = SyntheticSlide::new(Size::new(300, 200), 1);
        let rect = Rect::new(-2, 150, 310, 60);
        let pixels = slide.read_region(Level::FINEST, rect).unwrap();
        for (i, pixel) in (0..).zip(pixels.as_u8().unwrap().as_chunks::<3>().0) {
            let (x, y) = (rect.x + i % 310, rect.y + i / 310);
            let inside = (0..300).contains(&x) && (0..200).contains(&y);
            let expected = if inside { slide.pixel(x as u64, y as u64) } else { [255; 3] };
            assert_eq!(*pixel, expected, "({x}, {y})");
        }
    }

    #[test]
    fn tissue_and_glass_are_both_there_and_never_alike() {
        let slide = SyntheticSlide::new(Size::new(4000, 3000), 7);
        let mut tissue = 0;
        for y in (0..3000).step_by(10) {
            for x in (0..4000).step_by(10) {
                let pixel = slide.pixel(x, y);
                if slide.is_tissue(x, y) {
                    tissue += 1;
                    assert!(pixel[1].abs_diff(TISSUE[1]) <= TEXTURE);
                } else {
                    assert_eq!(pixel, GLASS);
                }
            }
        }
        let share = f64::from(tissue) / (300.0 * 400.0);
        assert!((0.1..0.7).contains(&share), "{share}");
    }

    #[test]
    fn a_region_beyond_the_limit_is_refused() {
        let slide = SyntheticSlide::new(Size::new(100_000, 80_000), 1);
        let whole = slide.info().size().rect();
        assert!(matches!(slide.read_region(Level::FINEST, whole), Err(Error::Limits { .. })));
        assert!(matches!(slide.read_region(Level(4), Rect::new(0, 0, 1, 1)), Err(Error::Usage { .. })));
    }
}
