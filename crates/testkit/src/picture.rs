//! A slide whose pixels lie in memory.

use std::hash::{DefaultHasher, Hash, Hasher};

use microtome_io::slide::{LevelInfo, Resolution, ResolutionSource, SlideInfo, SlideReader};
use microtome_io::{Error, Level, Microns, Pixels, Rect, Result, SampleType, Samples, Size};

/// A slide of pixels in memory, whose levels are the means of `2^shift` x `2^shift` pixels of level 0.
#[derive(Debug, Clone)]
pub struct PictureSlide {
    info: SlideInfo,
    levels: Vec<Pixels>,
}

impl PictureSlide {
    /// A slide of one level at `mpp` micrometres per pixel.
    #[must_use]
    pub fn new(pixels: Pixels, mpp: f64) -> Self {
        let (channels, sample) = (pixels.channels(), pixels.sample_type());
        let info = SlideInfo {
            resolution: Some(Resolution { mpp: Microns::square(mpp), source: ResolutionSource::Given }),
            ..SlideInfo::new("picture", "picture", pixels.size(), Size::new(256, 256), channels, sample)
        };
        Self { info, levels: vec![pixels] }
    }

    /// Adds a level, `shift` halvings below level 0.
    ///
    /// # Panics
    /// If level 0 is not a multiple of its pixels.
    #[must_use]
    pub fn with_level(mut self, shift: u32) -> Self {
        let side = 1u64 << shift;
        let level0 = &self.levels[0];
        let Size { width, height } = level0.size();
        assert!(width.is_multiple_of(side) && height.is_multiple_of(side), "whole pixels of level 0");
        let size = Size::new(width / side, height / side);
        let channels = level0.channels();
        let sample = |x: u64, y: u64, c: usize| -> u64 {
            let at = (y * width + x) as usize * channels + c;
            match level0.samples() {
                Samples::U8(v) => v[at].into(),
                Samples::U16(v) => v[at].into(),
            }
        };
        let mut means = Vec::with_capacity(size.area() as usize * channels);
        for (y, x) in (0..size.height).flat_map(|y| (0..size.width).map(move |x| (y, x))) {
            for c in 0..channels {
                let under = (0..side * side).map(|i| sample(x * side + i % side, y * side + i / side, c));
                means.push(((under.sum::<u64>() + side * side / 2) / (side * side)) as u16);
            }
        }
        let pixels = match level0.sample_type() {
            SampleType::U8 => Pixels::from_u8(size, channels, means.into_iter().map(|v| v as u8).collect()),
            SampleType::U16 => Pixels::from_u16(size, channels, means),
        };
        self.info.levels.push(LevelInfo::new(self.info.size(), size, Size::new(256, 256)));
        self.levels.push(pixels);
        self
    }

    /// All pixels of a level.
    #[must_use]
    pub fn level(&self, level: Level) -> Option<&Pixels> {
        self.levels.get(level.0)
    }
}

impl SlideReader for PictureSlide {
    fn info(&self) -> &SlideInfo {
        &self.info
    }

    fn read_region(&self, level: Level, rect: Rect) -> Result<Pixels> {
        let size = self.info.level(level)?.size;
        let mut out = Pixels::filled(rect.size(), self.info.sample, &self.info.background);
        out.blit(rect, &self.levels[level.0], size.rect());
        Ok(out)
    }

    fn read_associated(&self, name: &str) -> Result<Pixels> {
        Err(Error::usage(&self.info.path, format!("there is no associated image {name:?}")))
    }

    fn content_id(&self) -> Result<String> {
        let mut hasher = DefaultHasher::new();
        match self.levels[0].samples() {
            Samples::U8(v) => v.hash(&mut hasher),
            Samples::U16(v) => v.hash(&mut hasher),
        }
        Ok(format!("{:?} {:016x}", self.info.levels, hasher.finish()))
    }
}
