//! What a frame is stored as, and how it becomes pixels.
//!
//! What three channels mean is for the Photometric Interpretation to say, as it is in OpenSlide and libdicom: a JPEG
//! stream of a file that says RGB is RGB, whatever the stream's own markers say.
//!
//! Sources: DICOM PS3.3, C.7.6.3.1; PS3.5, 8.2 and annex A; PS3.6, annex A for the names.

use std::borrow::Cow;

use crate::pixels::Samples;
use crate::slide::codec::{dicom_rle, jpeg, jpeg2000, jpegls};
use crate::{Pixels, SampleType, Size};

/// How frames are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// Not at all.
    Raw,
    Jpeg,
    Jpeg2000,
    JpegLs,
    Rle,
}

/// What the channels mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Color {
    Grey,
    /// Bright where the number is low.
    InvertedGrey,
    Rgb,
    /// Luma and chromas, of full range.
    Ybr,
    /// The same, the chromas shared by two pixels side by side.
    Ybr422,
}

/// How the frames of a file are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) coding: Coding,
    pub(super) color: Color,
    /// Pixels of a frame.
    pub(super) size: Size,
    pub(super) channels: usize,
    pub(super) sample: SampleType,
    /// Bits of a sample that count.
    pub(super) bits: u32,
    /// Each channel in a plane of its own.
    pub(super) planar: bool,
}

/// A transfer syntax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Syntax {
    pub(super) implicit: bool,
    /// The pixels are in items.
    pub(super) items: bool,
    pub(super) coding: Coding,
}

impl Syntax {
    /// The syntax of that number, or a clause that names one that cannot be read.
    pub(super) fn of(uid: &str) -> Result<Self, String> {
        let syntax = |coding| Ok(Self { implicit: false, items: true, coding });
        let name = match uid {
            "1.2.840.10008.1.2" => return Ok(Self { implicit: true, items: false, coding: Coding::Raw }),
            "1.2.840.10008.1.2.1" => return Ok(Self { implicit: false, items: false, coding: Coding::Raw }),
            "1.2.840.10008.1.2.1.98" => return syntax(Coding::Raw),
            // Process 2 is baseline with more tables; 12 bits are found by their number.
            "1.2.840.10008.1.2.4.50" | "1.2.840.10008.1.2.4.51" => return syntax(Coding::Jpeg),
            "1.2.840.10008.1.2.4.80" | "1.2.840.10008.1.2.4.81" => return syntax(Coding::JpegLs),
            "1.2.840.10008.1.2.4.90" | "1.2.840.10008.1.2.4.91" => return syntax(Coding::Jpeg2000),
            "1.2.840.10008.1.2.5" => return syntax(Coding::Rle),
            "1.2.840.10008.1.2.1.99" => "deflated little endian",
            "1.2.840.10008.1.2.2" => "big endian",
            "1.2.840.10008.1.2.4.57" | "1.2.840.10008.1.2.4.70" => "lossless JPEG",
            "1.2.840.10008.1.2.4.92" | "1.2.840.10008.1.2.4.93" => "JPEG 2000 of several components",
            "1.2.840.10008.1.2.4.110" | "1.2.840.10008.1.2.4.111" | "1.2.840.10008.1.2.4.112" => "JPEG XL",
            "1.2.840.10008.1.2.4.201" | "1.2.840.10008.1.2.4.202" | "1.2.840.10008.1.2.4.203" => {
                "high-throughput JPEG 2000"
            }
            "1.2.840.10008.1.2.8.1" => "deflated frames",
            _ if uid.starts_with("1.2.840.10008.1.2.4.10") => "a video",
            _ => "unknown",
        };
        Err(format!(
            "DICOM transfer syntax {uid} ({name}) cannot be read: uncompressed little endian, JPEG of 8 bits, JPEG 2000, JPEG-LS and RLE can"
        ))
    }
}

impl Format {
    /// Bytes of a frame that is not compressed.
    pub(super) fn raw_bytes(&self) -> u64 {
        let samples = if self.color == Color::Ybr422 { 2 } else { self.channels as u64 };
        self.size.area().saturating_mul(samples * self.sample.bytes() as u64)
    }

    /// Makes pixels of the bytes of a frame.
    pub(super) fn decode(&self, data: &[u8]) -> Result<Pixels, String> {
        let pixels = self.size.area() as usize;
        let samples: Cow<'_, [u8]> = match self.coding {
            Coding::Jpeg => return self.jpeg(data),
            Coding::Jpeg2000 => return self.jpeg2000(data),
            Coding::JpegLs => {
                let (width, height) = (self.size.width as usize, self.size.height as usize);
                let expected = jpegls::Expected { width, height, components: self.channels, sample: self.sample };
                Cow::Owned(jpegls::decode(data, expected)?)
            }
            Coding::Raw => {
                let want = self.raw_bytes();
                let have = data.len();
                let raw = data.get(..want as usize).ok_or_else(|| format!("has {have} of {want} bytes"))?;
                match self.color {
                    Color::Ybr422 => Cow::Owned(spread_chroma(raw)),
                    _ if self.planar => Cow::Owned(interleave(raw, pixels, self.channels, self.sample.bytes())),
                    _ => Cow::Borrowed(raw),
                }
            }
            Coding::Rle => {
                let mut out = vec![0; pixels * self.channels * self.sample.bytes()];
                dicom_rle::decode(data, &mut out, self.channels, self.sample.bytes())?;
                Cow::Owned(out)
            }
        };
        Ok(match self.sample {
            SampleType::U8 => {
                let mut samples = samples.into_owned();
                if let Color::Ybr | Color::Ybr422 = self.color {
                    to_rgb(&mut samples);
                }
                self.clean(&mut samples, |value, mask| value & mask as u8, |value, mask| mask as u8 - value);
                Pixels::from_u8(self.size, self.channels, samples)
            }
            SampleType::U16 => {
                let mut samples: Vec<u16> =
                    samples.as_chunks::<2>().0.iter().map(|&bytes| u16::from_le_bytes(bytes)).collect();
                self.clean(&mut samples, |value, mask| value & mask, |value, mask| mask - value);
                Pixels::from_u16(self.size, self.channels, samples)
            }
        })
    }

    /// Takes away bits that are no part of a sample, and turns what is upside down.
    fn clean<T: Copy>(&self, samples: &mut [T], mask: impl Fn(T, u16) -> T, invert: impl Fn(T, u16) -> T) {
        let full = u16::MAX >> (16 - self.bits);
        if self.bits as usize != self.sample.bytes() * 8 {
            for sample in &mut *samples {
                *sample = mask(*sample, full);
            }
        }
        if self.color == Color::InvertedGrey {
            for sample in samples {
                *sample = invert(*sample, full);
            }
        }
    }

    fn jpeg2000(&self, data: &[u8]) -> Result<Pixels, String> {
        let expected = jpeg2000::Expected {
            width: self.size.width,
            height: self.size.height,
            components: self.channels,
            sample: self.sample,
        };
        let color = match self.color {
            Color::Grey | Color::InvertedGrey | Color::Rgb => jpeg2000::Color::AsStored,
            Color::Ybr | Color::Ybr422 => jpeg2000::Color::YCbCr,
        };
        // A frame of an odd length has a zero behind its end.
        let data = if data.ends_with(&[0xff, 0xd9, 0]) { &data[..data.len() - 1] } else { data };
        Ok(match jpeg2000::decode(data, expected, color)? {
            Samples::U8(mut samples) => {
                self.clean(&mut samples, |value, mask| value & mask as u8, |value, mask| mask as u8 - value);
                Pixels::from_u8(self.size, self.channels, samples)
            }
            Samples::U16(mut samples) => {
                self.clean(&mut samples, |value, mask| value & mask, |value, mask| mask - value);
                Pixels::from_u16(self.size, self.channels, samples)
            }
        })
    }

    fn jpeg(&self, data: &[u8]) -> Result<Pixels, String> {
        // Both sides were 16-bit numbers in the file.
        let expected = jpeg::Header {
            width: self.size.width as u16,
            height: self.size.height as u16,
            components: self.channels as u8,
        };
        let color = match self.color {
            Color::Grey | Color::InvertedGrey => jpeg::Color::Grey,
            Color::Rgb => jpeg::Color::Rgb,
            Color::Ybr | Color::Ybr422 => jpeg::Color::YCbCr,
        };
        let mut samples = jpeg::decode(None, data, expected, color)?;
        self.clean(&mut samples, |value, _| value, |value, mask| mask as u8 - value);
        Ok(Pixels::from_u8(self.size, self.channels, samples))
    }
}

/// Puts planes together.
fn interleave(planes: &[u8], pixels: usize, channels: usize, width: usize) -> Vec<u8> {
    let mut out = vec![0; planes.len()];
    for (channel, plane) in planes.chunks_exact(pixels * width).enumerate() {
        for (pixel, sample) in out.chunks_exact_mut(channels * width).zip(plane.chunks_exact(width)) {
            pixel[channel * width..(channel + 1) * width].copy_from_slice(sample);
        }
    }
    out
}

/// Of two lumas and the chromas that they share, two pixels.
fn spread_chroma(pairs: &[u8]) -> Vec<u8> {
    pairs.as_chunks::<4>().0.iter().flat_map(|&[y0, y1, cb, cr]| [y0, cb, cr, y1, cb, cr]).collect()
}

/// Luma and chroma to red, green, blue (PS3.3, C.7.6.3.1.2), rounded to the nearest.
fn to_rgb(samples: &mut [u8]) {
    for pixel in samples.as_chunks_mut::<3>().0 {
        let [y, cb, cr] = pixel.map(f32::from);
        let (cb, cr) = (cb - 128.0, cr - 128.0);
        let rgb = [y + 1.402 * cr, y - (0.114 * 1.772 * cb + 0.299 * 1.402 * cr) / 0.587, y + 1.772 * cb];
        *pixel = rgb.map(|value| value.round() as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(color: Color, channels: usize, sample: SampleType, bits: u32) -> Format {
        Format { coding: Coding::Raw, color, size: Size::new(2, 1), channels, sample, bits, planar: false }
    }

    #[test]
    fn colours() {
        let grey = format(Color::Grey, 1, SampleType::U16, 12);
        assert_eq!(grey.decode(&[0x34, 0xf2, 1, 0]).unwrap(), Pixels::from_u16(grey.size, 1, vec![0x234, 1]));
        let inverted = Format { color: Color::InvertedGrey, ..grey };
        assert_eq!(inverted.decode(&[0, 0, 1, 0]).unwrap(), Pixels::from_u16(grey.size, 1, vec![4095, 4094]));
        let planar = Format { planar: true, ..format(Color::Rgb, 3, SampleType::U8, 8) };
        let rgb = planar.decode(&[1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(rgb.as_u8().unwrap(), [1, 3, 5, 2, 4, 6]);
        // Red is Y 76, Cb 85, Cr 255 (to the nearest number).
        let ybr = format(Color::Ybr, 3, SampleType::U8, 8);
        assert_eq!(ybr.decode(&[76, 85, 255, 128, 128, 128]).unwrap().as_u8().unwrap(), [254, 0, 0, 128, 128, 128]);
        let half = format(Color::Ybr422, 3, SampleType::U8, 8);
        assert_eq!(half.decode(&[10, 20, 128, 128]).unwrap().as_u8().unwrap(), [10, 10, 10, 20, 20, 20]);
        assert!(half.decode(&[10, 20, 128]).unwrap_err().contains("has 3 of 4 bytes"));
    }
}
