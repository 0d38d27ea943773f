//! Decoded pixels of a rectangle.

use crate::{Rect, Size};

/// What one sample of a pixel is stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SampleType {
    /// Unsigned, 0 to 255.
    U8,
    /// Unsigned, 0 to 65535.
    U16,
}

impl SampleType {
    /// Bytes of one sample.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U16 => 2,
        }
    }
}

/// The samples of a picture, row by row, the channels of a pixel side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Samples {
    /// 8 bits a sample.
    U8(Vec<u8>),
    /// 16 bits a sample.
    U16(Vec<u16>),
}

/// A decoded picture: `size.height` rows of `size.width` pixels of `channels` interleaved samples, without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixels {
    size: Size,
    channels: usize,
    samples: Samples,
}

impl Pixels {
    /// A picture of one colour: `fill` holds one value per channel, in 0..=255 or 0..=65535.
    #[must_use]
    pub fn filled(size: Size, sample: SampleType, fill: &[u16]) -> Self {
        let n = size.area() as usize;
        let samples = match sample {
            SampleType::U8 => {
                let pixel: Vec<u8> = fill.iter().map(|&v| v as u8).collect();
                Samples::U8(pixel.repeat(n))
            }
            SampleType::U16 => Samples::U16(fill.repeat(n)),
        };
        Self { size, channels: fill.len(), samples }
    }

    /// Wraps 8-bit samples.
    ///
    /// # Panics
    /// If the number of samples is not width × height × channels: that is a mistake of the caller.
    #[must_use]
    pub fn from_u8(size: Size, channels: usize, samples: Vec<u8>) -> Self {
        assert_eq!(samples.len() as u64, size.area() * channels as u64, "samples of a {size} picture");
        Self { size, channels, samples: Samples::U8(samples) }
    }

    /// Wraps 16-bit samples.
    ///
    /// # Panics
    /// If the number of samples is not width × height × channels: that is a mistake of the caller.
    #[must_use]
    pub fn from_u16(size: Size, channels: usize, samples: Vec<u16>) -> Self {
        assert_eq!(samples.len() as u64, size.area() * channels as u64, "samples of a {size} picture");
        Self { size, channels, samples: Samples::U16(samples) }
    }

    /// Width and height.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// Samples per pixel.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// One channel of the picture.
    ///
    /// # Panics
    /// If there is no such channel.
    #[must_use]
    pub fn channel(&self, channel: usize) -> Self {
        assert!(channel < self.channels, "channel {channel} of {}", self.channels);
        let every = |n: usize| (channel..n).step_by(self.channels);
        let samples = match &self.samples {
            Samples::U8(v) => Samples::U8(every(v.len()).map(|i| v[i]).collect()),
            Samples::U16(v) => Samples::U16(every(v.len()).map(|i| v[i]).collect()),
        };
        Self { size: self.size, channels: 1, samples }
    }

    /// The samples themselves.
    #[must_use]
    pub fn samples(&self) -> &Samples {
        &self.samples
    }

    /// The samples themselves, without their size.
    pub(crate) fn into_samples(self) -> Samples {
        self.samples
    }

    /// The samples, to write to.
    pub fn samples_mut(&mut self) -> &mut Samples {
        &mut self.samples
    }

    /// How a sample is stored.
    #[must_use]
    pub fn sample_type(&self) -> SampleType {
        match self.samples {
            Samples::U8(_) => SampleType::U8,
            Samples::U16(_) => SampleType::U16,
        }
    }

    /// The 8-bit samples, or `None` if they are wider.
    #[must_use]
    pub fn as_u8(&self) -> Option<&[u8]> {
        match &self.samples {
            Samples::U8(v) => Some(v),
            Samples::U16(_) => None,
        }
    }

    /// Bytes that the samples take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.size.area() as usize * self.channels * self.sample_type().bytes()
    }

    /// Copies what `source`, lying at `source_at`, and this picture, lying at `at`, share.
    /// Both rectangles are in the same coordinates; pixels that `source` does not hold stay as they are.
    ///
    /// # Panics
    /// If a rectangle has not its picture's size, or the pictures differ in channels or sample type.
    pub fn blit(&mut self, at: Rect, source: &Self, source_at: Rect) {
        assert_eq!((at.size(), source_at.size()), (self.size, source.size), "a rectangle is not its picture's");
        assert_eq!(self.channels, source.channels, "pictures differ in channels");
        let Some(common) = at.intersect(source_at) else { return };
        let channels = self.channels;
        match (&mut self.samples, &source.samples) {
            (Samples::U8(to), Samples::U8(from)) => copy_rows(to, at, from, source_at, common, channels),
            (Samples::U16(to), Samples::U16(from)) => copy_rows(to, at, from, source_at, common, channels),
            _ => panic!("pictures differ in sample type"),
        }
    }
}

fn copy_rows<T: Copy>(to: &mut [T], to_at: Rect, from: &[T], from_at: Rect, common: Rect, channels: usize) {
    let n = common.width as usize * channels;
    let offset = |at: Rect, y: i64| ((y - at.y) as usize * at.width as usize + (common.x - at.x) as usize) * channels;
    for y in common.y..common.bottom() {
        let (a, b) = (offset(to_at, y), offset(from_at, y));
        to[a..a + n].copy_from_slice(&from[b..b + n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blit_copies_only_what_both_hold() {
        let mut to = Pixels::filled(Size::new(3, 2), SampleType::U8, &[9, 9]);
        let from = Pixels::from_u8(Size::new(2, 2), 2, vec![1, 2, 3, 4, 5, 6, 7, 8]);
        to.blit(Rect::new(0, 0, 3, 2), &from, Rect::new(2, 1, 2, 2));
        assert_eq!(to.as_u8().unwrap(), [9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 1, 2]);
        to.blit(Rect::new(0, 0, 3, 2), &from, Rect::new(-1, -1, 2, 2));
        assert_eq!(to.as_u8().unwrap(), [7, 8, 9, 9, 9, 9, 9, 9, 9, 9, 1, 2]);
    }
}
