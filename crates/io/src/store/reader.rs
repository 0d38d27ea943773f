//! Reading OME-Zarr images and label images.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

use super::SHOWS_LABEL;
use super::array::{Array, identity};
use super::entries::{Entries, FolderEntries, ZipEntries, is_inside, is_zip, join};
use super::found::{ASSOCIATED, MARKER};
use super::multiscale::{Axes, Multiscale};
use super::node::{Node, take};
use super::raster::LevelRaster;
use super::region::Region;
use super::{Channel, Content, StoreLevel, Translation, collection, ngff};
use crate::bytes::{ByteSource, Memory, Positional, content_id};
use crate::remote::{self, Opened};
use crate::slide::{AssociatedImage, LevelInfo, Limits, Resolution, ResolutionSource, SlideInfo, SlideReader};
use crate::{Downsample, Error, Level, Microns, Pixels, Rect, Result, SampleType, Size};

/// What a store says about itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoreInfo {
    /// The folder or the archive, as it was given.
    #[serde(serialize_with = "crate::error::as_text")]
    pub path: PathBuf,
    /// The version of OME-NGFF: `0.1` to `0.5`; empty for an array without such metadata.
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

/// An OME-Zarr multiscale image or label image, in a folder, a ZIP archive or an object store: version 0.5 (Zarr 3, with or without shards), 0.4 and older
/// (Zarr 2); booleans and 8- or 16-bit unsigned samples; axes y and x in any order, with or without channels, every other axis of
/// length 1; chunks plain or compressed with Blosc, zstd, gzip, zlib or LZ4. Of a collection in the layout of bioformats2raw it is the first
/// image, of several multiscale images in a group the first; an array without any is a picture of one level. Anything else is refused with
/// the reason.
///
/// Nothing in the store is believed: paths that lead out of the folder, chunks larger than the [`Limits`] and streams
/// that decode to more than their chunk are errors.
#[derive(Debug)]
pub struct OmeZarr {
    info: StoreInfo,
    slide: SlideInfo,
    entries: Arc<dyn Entries>,
    /// The document that describes the image.
    metadata: String,
    limits: Limits,
    axes: Arc<Axes>,
    arrays: Vec<Arc<Array>>,
    /// Other images of a collection, by what they show.
    associated: Vec<(String, OmeZarr)>,
}

impl OmeZarr {
    /// Opens the store at `path` with the default [`Limits`].
    ///
    /// # Errors
    /// [`Error::Format`], [`Error::Unsupported`] or [`Error::Limits`] for a store that cannot be read, and
    /// [`Error::Io`] if it is not there.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, Limits::default())
    }

    /// Opens the store at `path`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, limits: Limits) -> Result<Self> {
        let path = path.as_ref();
        if remote::is_remote(path) {
            return match remote::open(path)? {
                Opened::Values(entries) => Self::open_entries(entries, limits),
                Opened::Object(source) => Self::open_archive(path, source, limits),
            };
        }
        let metadata = fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if metadata.is_dir() {
            return Self::open_entries(Arc::new(FolderEntries::open(path)?), limits);
        }
        // Opening a pipe would wait for a writer.
        if !metadata.is_file() {
            return Err(no_store(path));
        }
        Self::open_archive(path, Arc::new(Positional::open(path)?), limits)
    }

    fn open_archive(path: &Path, source: Arc<dyn ByteSource>, limits: Limits) -> Result<Self> {
        if is_zip(&source.read_at(0..source.len().min(4))?) {
            Self::open_entries(Arc::new(ZipEntries::open(source, &limits)?), limits)
        } else {
            Err(no_store(path))
        }
    }

    /// Opens the store that is made of these values.
    pub(crate) fn open_entries(entries: Arc<dyn Entries>, limits: Limits) -> Result<Self> {
        let Some(mut node) = Node::read(&*entries, "")? else {
            return Err(if entries.contains(MARKER)? {
                Error::format(entries.path(), "this store of microtome's is not finished")
            } else {
                Error::format(
                    entries.path(),
                    "this is no OME-Zarr group: there is no zarr.json, .zattrs, .zgroup or .zarray",
                )
            });
        };
        let ours = take(&mut node.attributes, ngff::OURS);
        let ome = if node.is_array { Value::Null } else { node.ome() };
        let is_image = node.is_array || ome["multiscales"].get(0).is_some();
        if is_image || ome.get("plate").is_some() || ome["bioformats2raw.layout"] != 3 {
            let mut image = Self::open_image(&entries, "", node, ome, ours, limits)?;
            image.open_associated()?;
            return Ok(image);
        }
        Self::open_collection(&entries, limits)
    }

    /// Opens the pictures that travel with an image of ours, which says where they are.
    fn open_associated(&mut self) -> Result<()> {
        let folders = self.info.attributes.get(ASSOCIATED).cloned().unwrap_or_default();
        let folders: Vec<String> = serde_json::from_value(folders).unwrap_or_default();
        for folder in folders.into_iter().filter(|folder| is_inside(folder)) {
            let group = join(ASSOCIATED, &folder);
            // One that could not be read was left out, if so asked.
            let Some(mut node) = Node::read(&*self.entries, &group)? else { continue };
            let (ours, ome) = (take(&mut node.attributes, ngff::OURS), node.ome());
            match Self::open_image(&self.entries, &group, node, ome, ours, self.limits) {
                Ok(picture) => {
                    let says = |key: &str| picture.info.attributes.get(key);
                    let name = says(ASSOCIATED).and_then(Value::as_str).unwrap_or(&folder).to_owned();
                    let known = AssociatedImage::new(&self.slide.format, &name, picture.slide.size());
                    let shows_label = known.shows_label || says(SHOWS_LABEL) == Some(&Value::Bool(true));
                    self.slide.associated.push(AssociatedImage { shows_label, ..known });
                    self.associated.push((name, picture));
                }
                // As with a collection: no reason to refuse the slide.
                Err(Error::Unsupported { .. } | Error::Limits { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Opens the images of a collection in the layout of bioformats2raw: the first is the slide, of the others those that are
    /// called label or macro image travel along.
    fn open_collection(entries: &Arc<dyn Entries>, limits: Limits) -> Result<Self> {
        let series = collection::series(&**entries)?;
        let names = collection::names(&**entries, series.len())?;
        let open = |group: &str| -> Result<Self> {
            let Some(mut node) = Node::read(&**entries, group)? else {
                return Err(Error::format(entries.name(group), "the collection lists this image, and it is not there"));
            };
            let ome = if node.is_array { Value::Null } else { node.ome() };
            Self::open_image(entries, group, node, ome, Value::Null, limits)
        };
        let mut image = open(&series[0])?;
        let mut others = Vec::new();
        for (group, name) in series.iter().zip(&names).skip(1) {
            let title = name.as_deref().unwrap_or("no name");
            let Some(role) = name.as_deref().and_then(collection::role) else {
                others.push(format!("{group} ({title})"));
                continue;
            };
            // A picture that travels along and cannot be read is no reason to refuse the slide.
            match open(group) {
                Ok(picture) if image.associated.iter().all(|(known, _)| known != role) => {
                    let size = picture.slide.size();
                    image.slide.associated.push(AssociatedImage::new(&image.slide.format, role, size));
                    image.associated.push((role.into(), picture));
                }
                Ok(_) | Err(Error::Unsupported { .. } | Error::Limits { .. }) => {
                    others.push(format!("{group} ({title})"));
                }
                Err(error) => return Err(error),
            }
        }
        let mut note = |name: &str, text: String| image.slide.properties.insert(name.into(), text);
        note("ome-zarr.series", series.len().to_string());
        if !others.is_empty() {
            note("ome-zarr.series-not-read", others.join(", "));
        }
        if let Some(name) = &names[0] {
            note("ome-zarr.series-name", name.clone());
        }
        Ok(image)
    }

    /// Opens the image that is described at `group`.
    fn open_image(
        entries: &Arc<dyn Entries>,
        group: &str,
        node: Node,
        ome: Value,
        ours: Value,
        limits: Limits,
    ) -> Result<Self> {
        let multiscale = if node.is_array {
            Multiscale::bare(&node, Array::open(entries, group, &limits)?.shape.len())?
        } else {
            Multiscale::parse(&node, ome, ours)?
        };
        let axes = multiscale.axes;
        let mut arrays: Vec<Arc<Array>> = Vec::new();
        let mut levels: Vec<StoreLevel> = Vec::new();
        for (name, place) in &multiscale.datasets {
            let folder = if name.is_empty() { group.into() } else { join(group, name) };
            let array = Array::open(entries, &folder, &limits)?;
            let path = entries.name(&folder);
            let size = axes.check(&path, &array, arrays.first().map(|array| &**array))?;
            if levels.last().is_some_and(|l| size.width > l.size.width || size.height > l.size.height) {
                return Err(Error::format(path, format!("level {name:?} is larger than the one before")));
            }
            levels.push(place.level(size, multiscale.datasets[0].1));
            arrays.push(Arc::new(array));
        }
        let finest = &arrays[0];
        let count = axes.channel.map_or(1, |c| finest.shape[c]);
        let info = StoreInfo {
            path: entries.path().into(),
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
                Content::Labels { mut classes } => {
                    // Of a value that no sample can have there is no label.
                    classes.retain(|class| finest.sample == SampleType::U16 || u8::try_from(class.value).is_ok());
                    Content::Labels { classes }
                }
                Content::Image { mut channels } => {
                    let whole = Some([0, if finest.sample == SampleType::U8 { u8::MAX.into() } else { u16::MAX }]);
                    channels
                        .iter_mut()
                        .for_each(|channel| channel.window = channel.window.filter(|_| channel.window != whole));
                    Content::Image { channels }
                }
            },
            method: multiscale.method,
            metadata: multiscale.metadata,
            attributes: multiscale.attributes,
        };
        let mut slide = info.slide(&axes, &arrays);
        slide.properties.insert("zarr.format".into(), node.format.to_string());
        if multiscale.count > 1 {
            slide.properties.insert("ome-zarr.multiscales".into(), multiscale.count.to_string());
        }
        let (entries, axes) = (Arc::clone(entries), Arc::new(axes));
        Ok(Self { info, slide, entries, metadata: node.key, limits, axes, arrays, associated: Vec::new() })
    }

    /// The rasters of the levels, from the finest to the coarsest.
    pub(crate) fn rasters(&self) -> Result<Vec<LevelRaster>> {
        let fill = self.arrays[0].fill;
        let raster = |array| LevelRaster::new(&self.info.path, array, &self.axes, fill, &self.limits);
        self.arrays.iter().map(raster).collect()
    }

    /// The other pictures of a collection.
    pub(crate) fn pictures(&self) -> &[(String, Self)] {
        &self.associated
    }

    /// Bytes that are held besides what is being read.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.entries.resident_bytes()
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
        region.read_in_parallel().map_err(|(tile, error)| match error {
            // About the network, and not about the chunk: it may be sound.
            transient @ Error::Transient { .. } => transient,
            error => {
                // The store is named by `path`; the message, which reports keep, names the chunk by its place in it.
                let store = format!("{}{}", info.path.display(), std::path::MAIN_SEPARATOR);
                Error::Tile { path: info.path.clone(), level, tile, message: error.to_string().replace(&store, "") }
            }
        })
    }
}

fn no_store(path: &Path) -> Error {
    Error::format(path, "an OME-Zarr store is a folder or a ZIP archive, and this is another kind of file")
}

impl SlideReader for OmeZarr {
    fn info(&self) -> &SlideInfo {
        &self.slide
    }

    fn read_region(&self, level: Level, rect: Rect) -> Result<Pixels> {
        self.read_region(level, rect)
    }

    fn read_associated(&self, name: &str) -> Result<Pixels> {
        match self.associated.iter().find(|(known, _)| known == name) {
            Some((_, picture)) => picture.read_region(Level(0), picture.slide.size().rect()),
            None if self.associated.is_empty() => {
                Err(Error::usage(&self.info.path, format!("there is no picture {name:?}: this store has none")))
            }
            None => {
                let names: Vec<&str> = self.associated.iter().map(|(name, _)| name.as_str()).collect();
                let message = format!("there is no picture {name:?}; there are: [{}]", names.join(", "));
                Err(Error::usage(&self.info.path, message))
            }
        }
    }

    fn resident_bytes(&self) -> u64 {
        self.held_bytes()
    }

    /// The identity of the list of the identities of all metadata and of up to 16 files of chunks per level.
    fn content_id(&self) -> Result<String> {
        let mut ids = vec![identity(&*self.entries, &self.metadata)?];
        for array in &self.arrays {
            array.identify(&mut ids)?;
        }
        content_id(&Memory::new(&self.info.path, ids.join("\n").into_bytes()))
    }
}

impl StoreInfo {
    fn slide(&self, axes: &Axes, arrays: &[Arc<Array>]) -> SlideInfo {
        let finest = self.levels[0];
        let levels = self.levels.iter().zip(arrays);
        let version = Some(&self.version).filter(|version| !version.is_empty());
        let order = axes.names.join(", ");
        let properties =
            [("ome-zarr.version", version), ("ome-zarr.name", self.name.as_ref()), ("ome-zarr.axes", Some(&order))];
        let channel_names = self.content.channel_names();
        let mut properties: BTreeMap<String, String> =
            properties.into_iter().filter_map(|(k, v)| Some((k.into(), v?.clone()))).collect();
        if let (Content::Image { channels }, false) = (&self.content, self.content.are_colors()) {
            for (n, Channel { name, color: [red, green, blue], window }) in channels.iter().enumerate() {
                // White is what is not said: of a channel without a name it says nothing.
                if !name.is_empty() || [*red, *green, *blue] != [255; 3] {
                    properties.insert(format!("omero.channel[{n}].color"), format!("{red:02X}{green:02X}{blue:02X}"));
                }
                if let Some([start, end]) = window {
                    properties.insert(format!("omero.channel[{n}].window"), format!("{start},{end}"));
                }
            }
        }
        let classes = match &self.content {
            // Of several channels, what they are called labels of is not said.
            Content::Labels { classes } if self.channels == 1 => Some(classes.clone()),
            Content::Labels { .. } | Content::Image { .. } => None,
        };
        let unit = finest.mpp.unwrap_or(Microns::square(1.0));
        let translation = Translation { x: finest.translation.x / unit.x, y: finest.translation.y / unit.y };
        // Ours tell of the slide that they were made of, whose magnification is that of its level 0.
        let source = self.metadata.get("args").map(|args| &args["source"]).filter(|_| !self.attributes.is_empty());
        let power = source.filter(|source| source["level"] == 0).and_then(|source| source["objective_power"].as_f64());
        SlideInfo {
            levels: levels.map(|(l, array)| level_info(&finest, l, axes.plane(&array.chunk))).collect(),
            resolution: finest.mpp.map(|mpp| Resolution { mpp, source: ResolutionSource::OmeZarr }),
            objective_power: power.filter(|power| *power > 0.0),
            channel_names,
            classes,
            translation,
            properties,
            ..SlideInfo::new(&self.path, "ome-zarr", finest.size, self.chunk, self.channels, self.sample)
        }
    }
}

/// A level with the downsample that its scale states, if rounding a size to whole pixels explains it, or else the ratio of the sizes. Where
/// a size is odd the two differ: half of 5 pixels are 3, of which the last spans two that are not both there.
fn level_info(finest: &StoreLevel, level: &StoreLevel, tile: Size) -> LevelInfo {
    let mut info = LevelInfo::new(finest.size, level.size, tile);
    if let (Some(of), Some(mpp)) = (finest.mpp, level.mpp) {
        let stated = Downsample { x: mpp.x / of.x, y: mpp.y / of.y };
        let explains = |ratio: f64, finest: u64, size: u64| (finest as f64 / ratio - size as f64).abs() < 1.0;
        if explains(stated.x, finest.size.width, level.size.width)
            && explains(stated.y, finest.size.height, level.size.height)
        {
            info.downsample = stated;
        }
    }
    info
}

impl Axes {
    /// Width and height of a shape.
    pub(super) fn plane(&self, shape: &[u64]) -> Size {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_of_a_rounded_size_has_the_downsample_that_its_scale_states() {
        let levels = StoreLevel::finest(Size::new(2220, 2967), Some(Microns::square(0.499))).pyramid(4);
        let info = |level: &StoreLevel| level_info(&levels[0], level, Size::new(512, 512)).downsample;
        let near = |d: Downsample, x: f64, y: f64| (d.x - x).abs() < 1e-9 && (d.y - y).abs() < 1e-9;
        assert!(near(info(&levels[3]), 8.0, 8.0), "{:?}", info(&levels[3]));
        // What no rounding explains is not believed.
        let wrong = StoreLevel { mpp: Some(Microns::square(0.499 * 7.0)), ..levels[3] };
        assert!(near(info(&wrong), 2220.0 / 278.0, 2967.0 / 371.0));
        let unknown = StoreLevel { mpp: None, ..levels[3] };
        assert!(near(info(&unknown), 2220.0 / 278.0, 2967.0 / 371.0));
    }
}
