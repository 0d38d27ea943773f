//! In which form an image is stored: the version of the format, and how chunks are compressed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which version of OME-NGFF is written: `0.5` or `0.4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Format {
    /// 0.5: Zarr version 3, chunks in shards.
    #[default]
    #[serde(rename = "0.5")]
    V0_5,
    /// 0.4: Zarr version 2, each chunk a file in nested folders. For programs that do not read 0.5.
    #[serde(rename = "0.4")]
    V0_4,
}

impl Format {
    /// The version as metadata write it.
    #[must_use]
    pub const fn version(self) -> &'static str {
        match self {
            Self::V0_5 => "0.5",
            Self::V0_4 => "0.4",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.version())
    }
}

impl FromStr for Format {
    type Err = String;

    /// Parses `0.5` or `0.4`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "0.5" => Ok(Self::V0_5),
            "0.4" => Ok(Self::V0_4),
            _ => Err(format!("{text:?} is not a version of OME-Zarr that is written: 0.5 or 0.4")),
        }
    }
}

/// How chunks are compressed, each by itself and without loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "String")]
pub enum Compression {
    /// Not at all.
    None,
    /// Deflate in a gzip stream.
    Gzip {
        /// 0 (stored) to 9 (smallest).
        level: u32,
    },
    /// Zstandard. Level 1 was measured on shards of 2048 x 2048 (`store::measurements`): of masks level 3 makes larger files (181 against
    /// 165 kB) in slightly more time, of probabilities and confidences files that are 2 to 3 % smaller in 1.6 to 2 times the time.
    Zstd {
        /// 1 (fastest) to 22 (smallest).
        level: i32,
    },
    /// Blosc 1 with Zstandard inside, the bytes of wide samples shuffled: for programs that read nothing else.
    Blosc {
        /// Blosc's own scale, 1 (fastest) to 9 (smallest): Zstandard at level 1, 3, 5, ... 15, 22.
        level: u32,
    },
}

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd { level: 1 }
    }
}

impl Compression {
    /// What keeps chunks of so many bytes from being compressed so.
    pub(super) fn fault(self, chunk: u64) -> Option<String> {
        let range = |level: i64, least: i64, most: i64| {
            (!(least..=most).contains(&level)).then(|| format!("{self}: the level is one of {least} to {most}"))
        };
        match self {
            Self::None => None,
            Self::Gzip { level } => range(level.into(), 0, 9),
            Self::Zstd { level } => range(level.into(), 1, 22),
            // The format has 32 bits for sizes, with the header, and its library takes them for signed.
            Self::Blosc { .. } if chunk > (i32::MAX - 16) as u64 => {
                Some(format!("a chunk of {chunk} bytes is larger than Blosc takes"))
            }
            Self::Blosc { level } => range(level.into(), 1, 9),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Gzip { level } => write!(f, "gzip:{level}"),
            Self::Zstd { level } => write!(f, "zstd:{level}"),
            Self::Blosc { level } => write!(f, "blosc:{level}"),
        }
    }
}

impl From<Compression> for String {
    fn from(compression: Compression) -> Self {
        compression.to_string()
    }
}

impl FromStr for Compression {
    type Err = String;

    /// Parses `zstd`, `gzip`, `blosc` or `none`, the first three with a level if wanted: `zstd:3`. Without one zstd and blosc have level 1,
    /// gzip 6.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level)),
            None => (text, None),
        };
        let number = |default: u32| match level {
            None => Ok(default),
            Some(level) => level.parse().map_err(|_| format!("{level:?} is not a level of compression")),
        };
        let compression = match name {
            "zstd" => Self::Zstd { level: i32::try_from(number(1)?).unwrap_or(i32::MAX) },
            "gzip" => Self::Gzip { level: number(6)? },
            "blosc" => Self::Blosc { level: number(1)? },
            "none" if level.is_none() => Self::None,
            _ => {
                return Err(format!(
                    "{text:?} is not a compression: zstd, gzip or blosc, with a level if wanted (zstd:3), or none"
                ));
            }
        };
        match compression.fault(0) {
            None => Ok(compression),
            Some(fault) => Err(fault),
        }
    }
}

/// In which form an image is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
pub struct Encoding {
    /// The version of the format.
    pub format: Format,
    /// How chunks are compressed.
    pub compression: Compression,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressions_are_written_as_they_are_read() {
        for text in ["none", "gzip:0", "gzip:9", "zstd:1", "zstd:22", "blosc:1", "blosc:9"] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
        }
        assert_eq!("zstd".parse(), Ok(Compression::default()));
        assert_eq!("gzip".parse(), Ok(Compression::Gzip { level: 6 }));
        assert_eq!("blosc".parse(), Ok(Compression::Blosc { level: 1 }));
        for text in
            ["", "lz4", "none:1", "zstd:", "zstd:0", "zstd:23", "gzip:10", "gzip:-1", "blosc:0", "zstd:99999999999"]
        {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
        assert!(Compression::Blosc { level: 1 }.fault(1 << 31).unwrap().contains("larger than Blosc"));
    }

    #[test]
    fn versions_are_written_as_they_are_read() {
        for text in ["0.4", "0.5"] {
            let format: Format = text.parse().unwrap();
            assert_eq!((format.to_string(), serde_json::json!(format)), (text.into(), text.into()));
        }
        assert!("0.3".parse::<Format>().unwrap_err().contains("0.5 or 0.4"));
    }
}
