//! Reading OME-Zarr images and label images.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Map, Value};

use super::StoreLevel;
use super::array::{Array, ChunkFile, Grid};
use super::multiscale::{Axes, Multiscale};
use crate::bytes::{Memory, Positional, content_id};
use crate::slide::{LevelInfo, Limits, Resolution, ResolutionSource, SlideInfo, SlideReader};
use crate::{Class, Downsample, Error, Level, Pixels, Rect, Result, SampleType, Samples, Size, TileCoord};

/// What a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// A picture.
    Image,
    /// A label image: it carries `image-label` metadata.
    Labels,
}

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
    /// Whether the samples are intensities or labels.
    pub kind: StoreKind,
    /// What the labels of a label image mean; empty for an image.
    pub classes: Vec<Class>,
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
        let info = StoreInfo {
            path: path.into(),
            version: multiscale.version,
            name: multiscale.name,
            levels,
            channels: axes.channel.map_or(1, |c| finest.shape[c] as usize),
            sample: finest.sample,
            chunk: axes.plane(&finest.chunk),
            kind: if multiscale.classes.is_some() { StoreKind::Labels } else { StoreKind::Image },
            classes: multiscale.classes.unwrap_or_default(),
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
        let (info, Some(array)) = (&self.info, self.arrays.get(level.0)) else {
            let n = self.arrays.len();
            return Err(Error::usage(&self.info.path, format!("there is no level {level}: the store has {n}")));
        };
        let sample_bytes = (info.channels * info.sample.bytes()) as u64;
        let bytes = u128::from(rect.width) * u128::from(rect.height) * u128::from(sample_bytes);
        if bytes > u128::from(self.limits.decoded_bytes) {
            let limit = self.limits.decoded_bytes;
            return Err(Error::limits(
                &info.path,
                format!("{rect} takes {bytes} bytes, more than the {limit} that are allowed"),
            ));
        }
        let whole = Pixels::filled(rect.size(), info.sample, &vec![0; info.channels]);
        let Some(inside) = rect.intersect(info.levels[level.0].size.rect()) else { return Ok(whole) };
        let region = Region { array, axes: &self.axes, rect, inside, result: Mutex::new(whole) };
        let files = region.files();
        (0..files.count()).into_par_iter().try_for_each(|n| {
            region.read_file(&files.get(n)).map_err(|(tile, message)| Error::Tile {
                path: info.path.clone(),
                level,
                tile,
                message,
            })
        })?;
        Ok(region.result.into_inner().unwrap_or_else(PoisonError::into_inner))
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
        let levels = self.levels.iter().zip(arrays).map(|(level, array)| LevelInfo {
            size: level.size,
            downsample: Downsample {
                x: finest.size.width as f64 / level.size.width as f64,
                y: finest.size.height as f64 / level.size.height as f64,
            },
            tile: axes.plane(&array.chunk),
        });
        let properties = [("ome-zarr.version", Some(&self.version)), ("ome-zarr.name", self.name.as_ref())];
        SlideInfo {
            path: self.path.clone(),
            format: "ome-zarr".into(),
            levels: levels.collect(),
            channels: self.channels,
            sample: self.sample,
            resolution: finest.mpp.map(|mpp| Resolution { mpp, source: ResolutionSource::OmeZarr }),
            objective_power: None,
            background: vec![0; self.channels],
            associated: Vec::new(),
            properties: properties.into_iter().filter_map(|(k, v)| Some((k.into(), v?.clone()))).collect(),
            icc_profile_bytes: None,
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

/// A rectangle of a level on its way into the result.
struct Region<'a> {
    array: &'a Array,
    axes: &'a Axes,
    rect: Rect,
    /// What of `rect` the level holds.
    inside: Rect,
    result: Mutex<Pixels>,
}

/// The chunk and what is wrong with it.
type Fault = (TileCoord, String);

impl Region<'_> {
    /// The first and last index along an axis that the region needs.
    fn needs(&self, axis: usize) -> (u64, u64) {
        let span = |at: i64, n: u64| (at as u64, at as u64 + n - 1);
        match axis {
            _ if axis == self.axes.x => span(self.inside.x, self.inside.width),
            _ if axis == self.axes.y => span(self.inside.y, self.inside.height),
            _ if self.axes.channel == Some(axis) => (0, self.array.shape[axis] - 1),
            _ => (0, 0),
        }
    }

    /// The first and last chunk that the region needs, per axis.
    fn chunks(&self) -> Vec<(u64, u64)> {
        let chunk = |axis: usize, side: u64| {
            let (first, last) = self.needs(axis);
            (first / side, last / side)
        };
        self.array.chunk.iter().enumerate().map(|(axis, &side)| chunk(axis, side)).collect()
    }

    fn files(&self) -> Grid {
        let (first, last): (Vec<u64>, Vec<u64>) = self.chunks().into_iter().unzip();
        let (first, last) = (self.array.file_of(&first), self.array.file_of(&last));
        Grid::new(first.into_iter().zip(last).collect())
    }

    fn read_file(&self, file: &[u64]) -> Result<(), Fault> {
        let (per_file, needed) = (self.array.chunks_per_file(), self.chunks());
        let here: Vec<(u64, u64)> = (file.iter().zip(&per_file).zip(&needed))
            .map(|((&file, &n), &(first, last))| (first.max(file * n), last.min(file * n + (n - 1))))
            .collect();
        let tile = |chunk: &[u64]| TileCoord { row: chunk[self.axes.y], column: chunk[self.axes.x] };
        let chunks = Grid::new(here);
        let opened = self.array.open_file(file).map_err(|message| (tile(&chunks.get(0)), message))?;
        (0..chunks.count()).into_par_iter().try_for_each(|n| {
            let chunk = chunks.get(n);
            self.read_chunk(opened.as_ref(), &chunk).map_err(|message| (tile(&chunk), message))
        })
    }

    fn read_chunk(&self, file: Option<&ChunkFile>, chunk: &[u64]) -> Result<(), String> {
        let decoded = match file {
            Some(file) => self.array.read_chunk(file, chunk)?,
            None => None,
        };
        let fill = self.array.fill;
        let Some(decoded) = decoded else {
            if fill != 0 {
                let strides = vec![0; chunk.len()];
                match self.array.sample {
                    SampleType::U8 => self.place(chunk, &[fill as u8], &strides, u8_mut(&mut self.result())),
                    SampleType::U16 => self.place(chunk, &[fill], &strides, u16_mut(&mut self.result())),
                }
            }
            return Ok(());
        };
        let strides = decoded.strides.clone();
        match self.array.sample {
            SampleType::U8 => {
                let samples = decoded.into_u8();
                self.place(chunk, &samples, &strides, u8_mut(&mut self.result()));
            }
            SampleType::U16 => {
                let samples = decoded.into_u16();
                self.place(chunk, &samples, &strides, u16_mut(&mut self.result()));
            }
        }
        Ok(())
    }

    /// The result, to be held only for as long as a chunk is copied into it.
    fn result(&self) -> std::sync::MutexGuard<'_, Pixels> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies what the region needs of a chunk.
    fn place<T: Copy>(&self, chunk: &[u64], samples: &[T], strides: &[usize], result: &mut [T]) {
        let side = |axis: usize| self.array.chunk[axis];
        // From and to which index, within the whole array.
        let span = |axis: usize| {
            let (first, last) = self.needs(axis);
            let start = chunk[axis] * side(axis);
            (first.max(start), last.min(start + (side(axis) - 1)), start)
        };
        let (x0, x1, chunk_x) = span(self.axes.x);
        let (y0, y1, chunk_y) = span(self.axes.y);
        let channels = self.axes.channel.map_or(1, |c| self.array.shape[c] as usize);
        let (c0, c1, chunk_c) = self.axes.channel.map_or((0, 0, 0), span);
        let channel_stride = self.axes.channel.map_or(0, |c| strides[c]);
        let (x_stride, y_stride) = (strides[self.axes.x], strides[self.axes.y]);
        let n = (x1 - x0 + 1) as usize;
        for y in y0..=y1 {
            let row = (y as i64 - self.rect.y) as usize * self.rect.width as usize;
            let to = (row + (x0 as i64 - self.rect.x) as usize) * channels;
            for c in c0..=c1 {
                let from = (y - chunk_y) as usize * y_stride
                    + (x0 - chunk_x) as usize * x_stride
                    + (c - chunk_c) as usize * channel_stride;
                if channels == 1 && x_stride == 1 {
                    result[to..to + n].copy_from_slice(&samples[from..from + n]);
                } else {
                    let to = result[to + c as usize..].iter_mut().step_by(channels);
                    to.zip(0..n).for_each(|(to, x)| *to = samples[from + x * x_stride]);
                }
            }
        }
    }
}

fn u8_mut(pixels: &mut Pixels) -> &mut [u8] {
    match pixels.samples_mut() {
        Samples::U8(v) => v,
        Samples::U16(_) => unreachable!("the result was made with the array's sample type"),
    }
}

fn u16_mut(pixels: &mut Pixels) -> &mut [u16] {
    match pixels.samples_mut() {
        Samples::U16(v) => v,
        Samples::U8(_) => unreachable!("the result was made with the array's sample type"),
    }
}
