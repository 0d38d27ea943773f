//! Codecs: compressed bytes of one tile or strip in, its samples out. One file each.
//!
//! A decoder writes into a buffer of the size that the container states, so that no stream can make it allocate.
//! It fills the buffer to the last byte or fails: it never leaves samples out. What went wrong is a clause in plain
//! words; the caller knows file, level and tile and says them.

pub(super) mod deflate;
pub(super) mod dicom_rle;
pub(crate) mod jpeg;
pub(crate) mod jpeg2000;
pub(super) mod jpegls;
pub(super) mod lzw;
pub(super) mod none;
pub(super) mod packbits;
pub(super) mod predictor;
pub(super) mod webp;
pub(super) mod zstd;

/// The compressions that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// Samples as they are.
    None,
    /// Lempel, Ziv and Welch.
    Lzw,
    /// Apple's run lengths.
    PackBits,
    /// zlib.
    Deflate,
    /// Zstandard.
    Zstd,
    /// WebP.
    WebP,
    /// JPEG, perhaps with tables shared by all tiles.
    Jpeg,
    /// JPEG 2000; what its channels are, the file says elsewhere.
    Jpeg2000,
    /// Aperio's JPEG 2000 of luma and chroma, whatever the file says elsewhere.
    Jpeg2000YCbCr,
    /// Aperio's JPEG 2000 of red, green and blue, whatever the file says elsewhere.
    Jpeg2000Rgb,
}

impl Compression {
    /// The compression with this TIFF code, or a clause that names one that cannot be read.
    pub(super) fn from_code(code: u64) -> Result<Self, String> {
        Ok(match code {
            1 => Self::None,
            5 => Self::Lzw,
            7 => Self::Jpeg,
            8 | 32946 => Self::Deflate,
            32773 => Self::PackBits,
            33003 => Self::Jpeg2000YCbCr,
            33004 | 34712 => Self::Jpeg2000,
            33005 => Self::Jpeg2000Rgb,
            34926 | 50000 => Self::Zstd,
            34927 | 50001 => Self::WebP,
            _ => {
                let name = name(code).map_or_else(String::new, |name| format!(" ({name})"));
                return Err(format!(
                    "compression {code}{name} cannot be read: none, LZW, deflate, PackBits, Zstandard, WebP, JPEG and JPEG 2000 can"
                ));
            }
        })
    }

    /// True for JPEG 2000, under whatever number.
    pub(super) fn is_jpeg2000(self) -> bool {
        matches!(self, Self::Jpeg2000 | Self::Jpeg2000YCbCr | Self::Jpeg2000Rgb)
    }

    /// True if the TIFF predictor applies: libtiff has it for these codecs alone, for others the tag says nothing.
    pub(super) fn has_predictor(self) -> bool {
        matches!(self, Self::Lzw | Self::Deflate | Self::Zstd)
    }
}

/// Names of compressions that people meet, from the TIFF specifications and libtiff's `tiff.h`.
fn name(code: u64) -> Option<&'static str> {
    Some(match code {
        2 => "CCITT run lengths",
        3 => "CCITT group 3 fax",
        4 => "CCITT group 4 fax",
        6 => "old-style JPEG",
        32771 => "CCITT run lengths, word aligned",
        32809 => "ThunderScan",
        22610 | 34934 => "JPEG XR",
        34661 => "JBIG",
        34676 | 34677 => "SGI LogLuv",
        34887 => "LERC",
        34892 => "lossy DNG JPEG",
        34925 => "LZMA",
        50002 => "JPEG XL",
        _ => return None,
    })
}
