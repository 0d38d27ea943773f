//! What an image is, before it is stored.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::array::MAX_CHUNKS_PER_SHARD;
use super::{Content, Encoding};
use crate::{Error, Level, Microns, Pixels, Rect, Result, SampleType, Size, TileCoord};

/// Where the centre of a level's first pixel lies, seen from the centre of the slide's first pixel: in micrometres,
/// or in level-0 pixels where the resolution is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Translation {
    /// To the right.
    pub x: f64,
    /// Down.
    pub y: f64,
}

/// One resolution of a store.
///
/// OME-NGFF maps the array index `i` of a level to the physical position `scale × i + translation`. Index and
/// position belong to a pixel's *centre*, and position 0 is the centre of the slide's first pixel at level 0. A pixel of
/// level `n` covers `2ⁿ` level-0 pixels along each axis, so the centre of the first one is `(2ⁿ − 1) / 2` level-0
/// pixels further right and down: that, times the resolution of level 0, is the translation. Where a size is odd, the last pixel
/// of the next level still spans two, of which only one exists: the scale is exactly `2ⁿ`, not the ratio of the sizes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StoreLevel {
    /// Pixels.
    pub size: Size,
    /// Micrometres per pixel of this level, or `None` where the resolution is not known.
    pub mpp: Option<Microns>,
    /// Where the level's first pixel lies.
    pub translation: Translation,
}

impl StoreLevel {
    /// A finest level whose first pixel is the slide's first pixel.
    #[must_use]
    pub const fn finest(size: Size, mpp: Option<Microns>) -> Self {
        Self { size, mpp, translation: Translation { x: 0.0, y: 0.0 } }
    }

    /// This level and the next `count - 1`, each half of the one before (rounded up).
    #[must_use]
    pub fn pyramid(self, count: usize) -> Vec<Self> {
        (0..count.min(64) as u32).map(|n| self.halved(n)).collect()
    }

    /// The level `times` halvings below this one, which is level 0.
    fn halved(self, times: u32) -> Self {
        let factor = 2f64.powi(times as i32);
        let halve = |n: u64| n.div_ceil(1 << times.min(63));
        let unit = self.mpp.unwrap_or(Microns::square(1.0));
        Self {
            size: Size::new(halve(self.size.width), halve(self.size.height)),
            mpp: self.mpp.map(|mpp| Microns { x: mpp.x * factor, y: mpp.y * factor }),
            translation: Translation {
                x: self.translation.x + (factor - 1.0) / 2.0 * unit.x,
                y: self.translation.y + (factor - 1.0) / 2.0 * unit.y,
            },
        }
    }
}

/// The image that labels belong to (`image-label.source` in OME-Zarr).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSource {
    /// The path of the image, seen from the labels: `../../` of those in its folder `labels`.
    pub image: String,
    /// In what the image measures, and with it its labels.
    pub unit: AxisUnit,
}

/// In what the axes x and y of an image measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AxisUnit {
    /// Micrometres.
    Micrometer,
    /// Something that is not said: what a [`StoreLevel`] has as micrometres is in that.
    Unknown,
}

/// A multiscale image: everything about it but its pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredImage {
    /// The name of the multiscale image.
    pub name: String,
    /// From the finest to the coarsest; each is half of the one before, rounded up.
    pub levels: Vec<StoreLevel>,
    /// The smallest piece that a reader decodes: so many pixels of one channel.
    pub chunk: Size,
    /// The piece that is written at once, all channels: a whole multiple of `chunk` along each axis. In version 0.5 it is one file, in 0.4
    /// it is a group of files, one for each chunk.
    pub shard: Size,
    /// How a sample is stored.
    pub sample: SampleType,
    /// In which form it is stored.
    pub encoding: Encoding,
    /// What the samples stand for.
    pub content: Content,
    /// The image that it belongs to, if it is labels in an image's folder `labels`.
    pub source: Option<LabelSource>,
    /// How a level is made from the one below: `"mode"` for a majority vote, `"mean"` for an average.
    pub method: String,
    /// What goes into `multiscales[0].metadata`: by custom `method`, `version` and `args`.
    pub metadata: Map<String, Value>,
    /// What goes under the root attribute `microtome`: fingerprint and the like. No times, no machine: it is part of the result.
    pub attributes: Map<String, Value>,
}

impl StoredImage {
    /// Shards of one level that a store keeps account of, one bit each (32 MiB).
    const MAX_SHARDS: u64 = 1 << 28;
    /// Samples of one padded shard, all channels together.
    const MAX_SHARD_SAMPLES: u64 = 1 << 30;

    /// Refuses a description that no store could honour.
    ///
    /// # Errors
    /// [`Error::Usage`], naming `path`, with what is wrong.
    pub fn validate(&self, path: &Path) -> Result<()> {
        match self.fault() {
            None => Ok(()),
            Some(fault) => Err(Error::usage(path, format!("the image cannot be stored: {fault}"))),
        }
    }

    fn fault(&self) -> Option<String> {
        let (chunk, shard) = (self.chunk, self.shard);
        let Some(finest) = self.levels.first() else { return Some("it has no level".into()) };
        if chunk.is_empty()
            || shard.is_empty()
            || !shard.width.is_multiple_of(chunk.width)
            || !shard.height.is_multiple_of(chunk.height)
        {
            return Some(format!("a shard of {shard} pixels is not made of whole chunks of {chunk}"));
        }
        let channels = self.content.samples_per_pixel() as u64;
        if shard.area().saturating_mul(channels) > Self::MAX_SHARD_SAMPLES {
            return Some(format!("a shard of {shard} pixels is larger than 2^30 samples"));
        }
        if shard.cells(chunk).area().saturating_mul(channels) > MAX_CHUNKS_PER_SHARD {
            return Some(format!("a shard of {shard} pixels has more than 2^20 chunks of {chunk}"));
        }
        for (n, level) in self.levels.iter().enumerate() {
            if level.size.is_empty() {
                return Some(format!("level {n} is empty"));
            }
            if level.size.width.max(level.size.height) > i64::MAX as u64 / 2 {
                return Some(format!("level {n} of {} pixels is too large to address", level.size));
            }
            if level.size.cells(shard).area() > Self::MAX_SHARDS {
                return Some(format!("level {n} has more than 2^28 shards of {shard} pixels"));
            }
            if level.size != finest.halved(n as u32).size {
                return Some(format!("level {n} of {} pixels is not half of the one before", level.size));
            }
            let expected = finest.halved(n as u32).mpp;
            let close = match (level.mpp, expected) {
                (None, None) => true,
                (Some(a), Some(b)) => {
                    let near = |a: f64, b: f64| a.is_finite() && a > 0.0 && (a - b).abs() <= 1e-9 * b;
                    near(a.x, b.x) && near(a.y, b.y)
                }
                _ => false,
            };
            if !close {
                return Some(format!("the resolution of level {n} is not half of that of the one before"));
            }
            if !(level.translation.x.is_finite() && level.translation.y.is_finite()) {
                return Some(format!("the translation of level {n} is not a number"));
            }
        }
        let chunk_bytes = chunk.area().saturating_mul(self.sample.bytes() as u64);
        if let Some(fault) = self.encoding.compression.fault(chunk_bytes) {
            return Some(fault);
        }
        if self.source.is_some() && matches!(self.content, Content::Image { .. }) {
            return Some("it is a picture, and has the image that labels belong to".into());
        }
        self.content.fault(self.sample)
    }

    /// How many shards cover `level` along each axis, or `None` if there is no such level.
    #[must_use]
    pub fn shards(&self, level: Level) -> Option<Size> {
        self.levels.get(level.0).map(|l| l.size.cells(self.shard))
    }

    /// The pixels that `shard` of `level` holds: its cell of the grid, clipped to the level.
    /// `None` if there is no such level or shard.
    #[must_use]
    pub fn shard_rect(&self, level: Level, shard: TileCoord) -> Option<Rect> {
        let grid = self.shards(level)?;
        if shard.column >= grid.width || shard.row >= grid.height {
            return None;
        }
        shard.rect(self.shard).intersect(self.levels[level.0].size.rect())
    }

    /// The attributes with the notes that came when the image was finished.
    ///
    /// # Errors
    /// [`Error::Usage`], naming `path`, if a note has the name of an attribute.
    pub(super) fn attributes_with(&self, path: &Path, notes: &Map<String, Value>) -> Result<Map<String, Value>> {
        let mut all = self.attributes.clone();
        for (name, note) in notes {
            if all.insert(name.clone(), note.clone()).is_some() {
                return Err(Error::usage(path, format!("the note {name:?} has the name of an attribute")));
            }
        }
        Ok(all)
    }

    /// A shard of nothing but background.
    ///
    /// # Errors
    /// [`Error::Usage`], naming `path`, if there is no such shard.
    pub(super) fn background(&self, path: &Path, level: Level, shard: TileCoord) -> Result<Pixels> {
        let rect = self
            .shard_rect(level, shard)
            .ok_or_else(|| Error::usage(path, format!("level {level}, shard {shard}: there is no such shard")))?;
        Ok(Pixels::filled(rect.size(), self.sample, &vec![0; self.content.samples_per_pixel()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;
    use crate::store::{Channel, Compression};

    fn image() -> StoredImage {
        StoredImage {
            name: "mask".into(),
            levels: StoreLevel::finest(Size::new(101, 50), Some(Microns { x: 0.5, y: 0.25 })).pyramid(3),
            chunk: Size::new(16, 8),
            shard: Size::new(32, 16),
            sample: SampleType::U8,
            encoding: Encoding::default(),
            source: None,
            content: Content::Labels { classes: vec![Class::with_default_color(1, "tumour")] },
            method: "mode".into(),
            metadata: Map::new(),
            attributes: Map::new(),
        }
    }

    fn labels(values: &[u16]) -> Content {
        let classes = values.iter().map(|&v| Class::with_default_color(v, "tumour")).collect();
        Content::Labels { classes }
    }

    fn channels(n: usize) -> Content {
        Content::Image { channels: vec![Channel::new("p", [255; 3]); n] }
    }

    #[test]
    fn a_level_is_half_of_the_one_before_and_lies_half_a_pixel_further() {
        let levels = image().levels;
        assert_eq!(
            levels.iter().map(|l| l.size).collect::<Vec<_>>(),
            [Size::new(101, 50), Size::new(51, 25), Size::new(26, 13)]
        );
        assert_eq!(levels[2].mpp, Some(Microns { x: 2.0, y: 1.0 }));
        assert_eq!(levels[2].translation, Translation { x: 0.75, y: 0.375 });
        let unknown = StoreLevel::finest(Size::new(9, 9), None).pyramid(3)[2];
        assert_eq!((unknown.mpp, unknown.translation), (None, Translation { x: 1.5, y: 1.5 }));
    }

    #[test]
    fn shards_are_clipped_to_their_level() {
        let image = image();
        assert_eq!(image.shards(Level(0)), Some(Size::new(4, 4)));
        let last = TileCoord { row: 3, column: 3 };
        assert_eq!(image.shard_rect(Level(0), last), Some(Rect::new(96, 48, 5, 2)));
        assert_eq!(image.shard_rect(Level(0), TileCoord { row: 4, column: 0 }), None);
        assert_eq!(image.shard_rect(Level(3), TileCoord { row: 0, column: 0 }), None);
    }

    #[test]
    fn a_description_that_no_store_could_honour_is_refused() {
        let refuses = |change: fn(&mut StoredImage), word: &str| {
            let mut image = image();
            change(&mut image);
            let error = image.validate(Path::new("m.zarr")).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        image().validate(Path::new("m.zarr")).unwrap();
        refuses(|i| i.levels.clear(), "no level");
        refuses(|i| i.shard.width = 33, "whole chunks");
        refuses(|i| i.chunk = Size::new(0, 8), "whole chunks");
        refuses(|i| i.levels[1].size.width = 50, "not half");
        refuses(|i| i.levels[1].mpp = None, "resolution of level 1");
        refuses(|i| i.levels[0].mpp = Some(Microns::square(f64::NAN)), "resolution of level 0");
        refuses(|i| i.encoding.compression = Compression::Zstd { level: 23 }, "1 to 22");
        refuses(
            |i| {
                i.source = Some(LabelSource { image: "../../".into(), unit: AxisUnit::Micrometer });
                i.content = channels(1);
            },
            "labels belong to",
        );
        refuses(|i| i.content = labels(&[300]), "8 bits");
        refuses(|i| i.content = labels(&[1, 1]), "two classes");
        refuses(|i| i.content = Content::Image { channels: Vec::new() }, "no channel");
        refuses(|i| i.content = channels(1 << 16), "65535");
        refuses(|i| (i.shard, i.content) = (Size::new(16 * 64, 8), channels(1 << 15)), "2^20 chunks");
        refuses(|i| (i.chunk, i.shard) = (Size::new(1 << 15, 1 << 15), Size::new(1 << 16, 1 << 15)), "2^30 samples");
        refuses(|i| i.levels = StoreLevel::finest(Size::new(1 << 40, 1 << 40), None).pyramid(1), "2^28 shards");
    }
}
