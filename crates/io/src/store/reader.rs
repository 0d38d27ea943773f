//! Reading OME-Zarr images and label images.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use super::array::Array;
use super::multiscale::{Axes, Multiscale};
use super::region::Region;
use super::{Content, StoreLevel};
use crate::bytes::{Memory, Positional, content_id};
use crate::slide::{LevelInfo, Limits, Resolution, ResolutionSource, SlideInfo, SlideReader};
use crate::{Error, Level, Pixels, Rect, Result, SampleType, Size};

/// What a store says about itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoreInfo {
    /// The folder, as it was given.
    pub path: PathBuf,
    /// The version of OME-NGFF: `0.4` or `0.5`.
    pub version: String,
    /// The name of the multiscale image.
    pub name: Option<String>,
    /// From the finest to the coarsest; never empty. Sizes in pixels, resolutions and translations in micrometres where the axes have units.
    pub levels: Vec<StoreLevel>,
    /// Samples per pixel.
    pub channels: usize,
    /// How a sample is stored.
    pub sample: SampleType,
    /// What is decoded at once, at level 0.
    pub chunk: Size,
    /// What the samples stand for: labels, if the store carries `image-label` metadata.
    pub content: Content,
    /// How a level was made from the one below, if the store says.
    pub method: Option<String>,
    /// The `metadata` of the multiscale image.
    pub metadata: Map<String, Value>,
    /// The root attribute `microtome`; empty if another program wrote the store.
    pub attributes: Map<String, Value>,
}

/// An OME-Zarr multiscale image or label image in a folder: version 0.5 (Zarr 3, with or without shards) or 0.4 (Zarr 2); 8- or 16-bit
/// unsigned samples; axes y and x, with or without channels, every other axis of length 1; chunks
/// plain or compressed with zstd, gzip or zlib. Anything else is refused with the reason.
///
/// Nothing in the store is believed: paths that lead out of the folder, chunks larger than the [`Limits`] and streams
/// that decode to more than their chunk are errors.
#[derive(Debug)]
pub struct OmeZarr {
    info: StoreInfo,
    slide: SlideInfo,
    /// The file that describes the image.
    metadata: PathBuf,
    limits: Limits,
    axes: Axes,
    arrays: Vec<Array>,
}

impl OmeZarr {
    /// Opens the store in the folder `path` with the default [`Limits`].
    ///
    /// # Errors
    /// [`Error::Format`], [`Error::Unsupported`] or [`Error::Limits`] for a store that cannot be read, and
    /// [`Error::Io`] if it is not there.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, Limits::default())
    }

    /// Opens the store in the folder `path`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, limits: Limits) -> Result<Self> {
        let path = path.as_ref();
        let root = fs::canonicalize(path).map_err(|e| Error::io(path, e))?;
        if !root.is_dir() {
            return Err(Error::format(path, "an OME-Zarr store is a folder, and this is a file"));
        }
        let multiscale = Multiscale::open(&root)?;
        let axes = multiscale.axes;
        let mut arrays: Vec<Array> = Vec::new();
        let mut levels: Vec<StoreLevel> = Vec::new();
        for (name, place) in &multiscale.datasets {
            let folder = fs::canonicalize(root.join(name)).map_err(|e| Error::io(path.join(name), e))?;
            if !folder.starts_with(&root) {
                return Err(Error::format(path, format!("the level {name:?} leads out of the store")));
            }
            let array = Array::open(&root, &folder, &limits)?;
            let size = axes.check(&folder, &array, arrays.first())?;
            if levels.last().is_some_and(|l| size.width > l.size.width || size.height > l.size.height) {
                return Err(Error::format(path, format!("level {name:?} is larger than the one before")));
            }
            levels.push(place.level(size, multiscale.datasets[0].1));
            arrays.push(array);
        }
        let finest = &arrays[0];
        let count = axes.channel.map_or(1, |c| finest.shape[c]);
        let info = StoreInfo {
            path: path.into(),
            version: multiscale.version,
            name: multiscale.name,
            levels,
            channels: count as usize,
            sample: finest.sample,
            chunk: axes.plane(&finest.chunk),
            content: match multiscale.content {
                // What tells of more or fewer channels than there are tells of other channels.
                Content::Image { channels } if channels.len() as u64 != count => {
                    Content::Image { channels: Vec::new() }
                }
                content => content,
            },
            method: multiscale.method,
            metadata: multiscale.metadata,
            attributes: multiscale.attributes,
        };
        let slide = info.slide(&axes, &arrays);
        Ok(Self { info, slide, metadata: multiscale.file, limits, axes, arrays })
    }

    /// What the store says about itself.
    #[must_use]
    pub fn info(&self) -> &StoreInfo {
        &self.info
    }

    /// Decodes the pixels of `rect` (in pixels of `level`, which may stick out of the image), channels interleaved.
    ///
    /// Pixels outside the image are 0, those of chunks that are not stored have the array's fill value. Chunks are decoded on rayon's pool.
    /// Memory: the result; per working thread one chunk, encoded and decoded, and the index of one shard.
    ///
    /// # Errors
    /// [`Error::Usage`] for a level that does not exist, [`Error::Limits`] for more than `Limits::decoded_bytes`, [`Error::Tile`]
    /// where a chunk cannot be decoded; its column and row count chunks.
    pub fn read_region(&self, level: Level, rect: Rect) -> Result<Pixels> {
        self.read(level, rect, 0..self.info.channels)
    }

    /// Decodes one channel of the pixels of `rect`, and of what is stored only the chunks that hold it. Otherwise as [`read_region`](Self::read_region).
    ///
    /// # Errors
    /// As [`read_region`](Self::read_region); [`Error::Usage`] for a channel that does not exist.
    pub fn read_channel(&self, level: Level, rect: Rect, channel: usize) -> Result<Pixels> {
        if channel >= self.info.channels {
            let n = self.info.channels;
            return Err(Error::usage(&self.info.path, format!("there is no channel {channel}: the store has {n}")));
        }
        self.read(level, rect, channel..channel + 1)
    }

    fn read(&self, level: Level, rect: Rect, channels: Range<usize>) -> Result<Pixels> {
        let (info, Some(array)) = (&self.info, self.arrays.get(level.0)) else {
            let n = self.arrays.len();
            return Err(Error::usage(&self.info.path, format!("there is no level {level}: the store has {n}")));
        };
        let sample_bytes = (channels.len() * info.sample.bytes()) as u64;
        let bytes = u128::from(rect.width) * u128::from(rect.height) * u128::from(sample_bytes);
        if bytes > u128::from(self.limits.decoded_bytes) {
            let limit = self.limits.decoded_bytes;
            return Err(Error::limits(
                &info.path,
                format!("{rect} takes {bytes} bytes, more than the {limit} that are allowed"),
            ));
        }
        let whole = Pixels::filled(rect.size(), info.sample, &vec![0; channels.len()]);
        let Some(inside) = rect.intersect(info.levels[level.0].size.rect()) else { return Ok(whole) };
        let region = Region::new(array, &self.axes, rect, inside, whole).channels(channels);
        region.read_in_parallel().map_err(|(tile, message)| Error::Tile {
            path: info.path.clone(),
            level,
            tile,
            message,
        })
    }
}

impl SlideReader for OmeZarr {
    fn info(&self) -> &SlideInfo {
        &self.slide
    }

    fn read_region(&self, level: Level, rect: Rect) -> Result<Pixels> {
        self.read_region(level, rect)
    }

    fn read_associated(&self, name: &str) -> Result<Pixels> {
        Err(Error::usage(&self.info.path, format!("there is no picture {name:?}: an OME-Zarr store has none")))
    }

    /// The identity of the list of the identities of all metadata and of up to 16 files of chunks per level.
    fn content_id(&self) -> Result<String> {
        let mut ids = vec![content_id(&Positional::open(&self.metadata)?)?];
        for array in &self.arrays {
            array.identify(&mut ids)?;
        }
        content_id(&Memory::new(&self.info.path, ids.join("\n").into_bytes()))
    }
}

impl StoreInfo {
    fn slide(&self, axes: &Axes, arrays: &[Array]) -> SlideInfo {
        let finest = self.levels[0];
        let levels = self.levels.iter().zip(arrays);
        let properties = [("ome-zarr.version", Some(&self.version)), ("ome-zarr.name", self.name.as_ref())];
        SlideInfo {
            levels: levels.map(|(l, array)| LevelInfo::new(finest.size, l.size, axes.plane(&array.chunk))).collect(),
            resolution: finest.mpp.map(|mpp| Resolution { mpp, source: ResolutionSource::OmeZarr }),
            properties: properties.into_iter().filter_map(|(k, v)| Some((k.into(), v?.clone()))).collect(),
            ..SlideInfo::new(&self.path, "ome-zarr", finest.size, self.chunk, self.channels, self.sample)
        }
    }
}

impl Axes {
    /// Width and height of a shape.
    fn plane(&self, shape: &[u64]) -> Size {
        Size::new(shape[self.x], shape[self.y])
    }

    /// Refuses an array that is no picture, or not one like level 0.
    fn check(&self, folder: &Path, array: &Array, finest: Option<&Array>) -> Result<Size> {
        if array.shape.len() != self.names.len() {
            let (n, names) = (array.shape.len(), &self.names);
            return Err(Error::format(folder, format!("the array has {n} dimensions, for the axes {names:?}")));
        }
        for (axis, (&length, name)) in array.shape.iter().zip(&self.names).enumerate() {
            if length != 1 && axis != self.x && axis != self.y && self.channel != Some(axis) {
                let message =
                    format!("the axis {name:?} has {length} planes; only pictures of two dimensions are supported");
                return Err(Error::unsupported(folder, message));
            }
        }
        let channels = |a: &Array| self.channel.map_or(1, |c| a.shape[c]);
        if channels(array) > u64::from(u16::MAX) {
            return Err(Error::limits(folder, format!("{} channels are more than 65535", channels(array))));
        }
        if finest.is_some_and(|f| f.sample != array.sample || channels(f) != channels(array)) {
            return Err(Error::format(folder, "the level differs from level 0 in channels or sample type"));
        }
        Ok(self.plane(&array.shape))
    }
}
