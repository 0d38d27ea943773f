//! OME-TIFF: a TIFF, or a set of them, whose first page's description is OME-XML.
//!
//! The XML lists images; an image has planes (channels, focal planes, times), and `TiffData` elements say which page of
//! which file each plane is. The first image is the slide. Its coarser levels are the pages that `SubIFDs` of its planes
//! refer to or, in files from before 2019, further images: those that are smaller, of the same shape to the pixel and of
//! the same channels, and whose pixels, where both images state their size, are larger by as much. Of the other
//! images, those named `label`, `macro`, `overview` or `thumbnail` are pictures that travel along; what is left is
//! listed in the property `microtome.images-not-read`.
//!
//! Colours are pages of three samples; channels are pages of one sample each, stacked while reading. How many samples
//! a page has is believed of the page, not of the XML's `SamplesPerPixel`, which writers leave out.
//!
//! A set's other files must lie in the folder of the file that is opened, under plain names. The description may
//! be no more than a reference (`BinaryOnly`) to a file that holds the XML: a `.companion.ome`, or a TIFF of the set.
//! A file whose XML names only one file, and not by the name that it has, was renamed, and is that file.
//!
//! `PhysicalSizeX` and `PhysicalSizeY` are the size of a pixel, in micrometres unless a unit is given; an image without
//! them may still have resolution tags. Images of focal planes and times are refused: one of them would pass for the whole.
//!
//! Sources: the OME-TIFF specification (6.1) and the OME schema 2016-06 of docs.openmicroscopy.org; what tifffile 2026.3
//! and Bio-Formats' documentation say of sub-resolutions; files of Viv, and files written by tifffile and libvips.

mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use self::model::{FileRef, Image, Ome, TiffData};
use super::planes::{MOST_CHANNELS, Planes, sample_name};
use super::pyramid::{Layer, Parts, Pyramid, explains};
use super::raster::Raster;
use super::tiff::page::Color;
use super::tiff::{self, Page, Tag, Tiff};
use super::{OpenOptions, Resolution, ResolutionSource, SlideReader, generic_tiff, xml};
use crate::bytes::ByteSource;
use crate::{Error, Result};

/// Files of a set; each stays open.
const MOST_FILES: usize = 512;
/// Coarser levels of a plane: more than halving the largest picture can give.
const MOST_LEVELS: u64 = 64;
/// Images that the property about those not read lists.
const MOST_LISTED: usize = 20;

/// True if the description of the first page is OME-XML.
pub(super) fn detect(tiff: &Tiff) -> Result<bool> {
    let description = tiff.directories()[0].text(tiff.file(), Tag::IMAGE_DESCRIPTION)?.unwrap_or_default();
    // The end of the root element, whatever the prefix of its namespace.
    Ok(description.ends_with("OME>") || description.contains("openmicroscopy.org/Schemas/OME"))
}

/// Opens an OME-TIFF, given any file of a set.
pub(super) fn open(tiff: Tiff, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    let path = tiff.file().path().to_owned();
    let mut properties = tiff.text_properties()?;
    let text = tiff.directories()[0].text(tiff.file(), Tag::IMAGE_DESCRIPTION)?.unwrap_or_default();
    let mut set = Set::new(tiff, options);
    let mut ome = set.parse(&text, "its description")?;
    if ome.images.is_empty()
        && let Some(name) = ome.companion.take()
    {
        let text = set.companion(&name)?;
        let own = ome.uuid;
        ome = set.parse(&text, &format!("{name:?}"))?;
        // Which file is which is told by what each says of itself.
        ome.uuid = own;
    }
    set.uuid = ome.uuid.take();
    if ome.images.is_empty() {
        return Err(Error::format(&path, "its OME-XML has no Image"));
    }
    set.note_names(&ome);
    let mut others = ome.images.split_off(1);
    let image = ome.images.remove(0).map_err(|what| Error::format(&path, format!("its OME-XML: {what}")))?;

    let slide = set.read(&image)?;
    let mut not_read = Vec::new();
    let mut associated: Vec<(String, Box<dyn Raster>)> = Vec::new();
    let mut layers = Layers { of_sub_ifds: slide.levels.len() > 1, levels: slide.levels };
    for (number, other) in (1..).zip(others.drain(..)) {
        let other = match other {
            Ok(other) => other,
            Err(what) => {
                not_read.push(format!("image {number} ({what})"));
                continue;
            }
        };
        let name = picture_name(&other).filter(|name| associated.iter().all(|(known, _)| known != name));
        // A picture that travels along, or another scene, that cannot be read is no reason to refuse the slide.
        let read = match name {
            None if !layers.could_take(&image, &other) => Ok(None),
            _ => set.read(&other).map(Some),
        };
        match (read, name) {
            (Ok(Some(read)), Some(name)) => {
                associated.extend(read.levels.into_iter().next().map(|raster| (name.to_owned(), raster)));
            }
            (Ok(Some(read)), None) => layers.levels.extend(read.levels.into_iter().next()),
            (Ok(None) | Err(Error::Unsupported { .. } | Error::Limits { .. }), _) => {
                not_read.push(other.title(number));
            }
            (Err(error), _) => return Err(error),
        }
    }
    layers.levels.sort_by_key(|level| std::cmp::Reverse(level.shape().size.width));

    if !not_read.is_empty() {
        let left = not_read.len().saturating_sub(MOST_LISTED);
        not_read.truncate(MOST_LISTED);
        if left > 0 {
            not_read.push(format!("and {left} more"));
        }
        properties.insert("microtome.images-not-read".into(), not_read.join("; "));
    }
    if slide.reductions_not_read > 0 {
        properties.insert("microtome.pages-not-read".into(), slide.reductions_not_read.to_string());
    }
    if slide.alpha {
        properties.insert("microtome.alpha".into(), "laid over white".into());
    }
    for (key, value) in [("ome.Creator", &ome.creator), ("ome.Image.Name", &image.name)] {
        properties.extend(value.clone().map(|value| (key.to_owned(), value)));
    }
    let channels = layers.levels[0].shape().channels;
    let mut channel_names = Vec::new();
    if !slide.is_colors && image.channels.len() == channels {
        for (number, channel) in image.channels.iter().enumerate() {
            let color = channel.color.clone();
            properties.extend(color.map(|color| (format!("ome.Channel[{number}].Color"), color)));
        }
        if image.channels.iter().any(|channel| channel.name.is_some()) {
            channel_names = image.channels.iter().map(|channel| channel.name.clone().unwrap_or_default()).collect();
        }
    }
    let (file, directory) = slide.first;
    let (file, first) = (set.files[file].file(), &set.files[file].directories()[directory]);
    let resolution = match &image.mpp {
        Ok(Some(mpp)) => {
            Ok(Some(Resolution { mpp: *mpp, source: ResolutionSource::Vendor("PhysicalSizeX".to_owned()) }))
        }
        Ok(None) => generic_tiff::resolution(file, first, &mut properties)?,
        Err(what) => Err(what.clone()),
    };
    let resolution = resolution.unwrap_or_else(|why| {
        properties.insert("microtome.resolution-ignored".into(), why);
        None
    });
    let icc_profile = first.bytes(file, Tag::ICC_PROFILE)?;
    let parts = Parts {
        files: set.sources(),
        associated,
        resolution,
        objective_power: image.magnification,
        channel_names,
        icc_profile,
        properties,
        ..Parts::new(
            "ome-tiff",
            Arc::clone(set.files[0].file().source()),
            layers.levels.into_iter().map(layer).collect(),
        )
    };
    Ok(Box::new(Pyramid::new(parts, options)?))
}

/// The levels of the slide, as they are found.
struct Layers {
    levels: Vec<Box<dyn Raster>>,
    of_sub_ifds: bool,
}

impl Layers {
    /// True if an image may be a coarser level, as far as the XML says.
    fn could_take(&self, full: &Image, other: &Image) -> bool {
        let planes = |image: &Image| (image.size_c, image.size_z, image.size_t, image.sample.clone());
        let smaller = other.size.width < full.size.width && other.size.height <= full.size.height;
        // Square scenes are all of one shape; the size of their pixels tells them from levels.
        let scaled = match (&full.mpp, &other.mpp) {
            (Ok(Some(full_mpp)), Ok(Some(mpp))) => {
                let close = |a: f64, b: f64, side: u64| (a / b - 1.0).abs() < 0.02 + 1.0 / side as f64;
                let downsample = full.size.width as f64 / other.size.width as f64;
                close(mpp.x, full_mpp.x * downsample, other.size.width)
            }
            _ => true,
        };
        let known = self.levels.iter().any(|level| level.shape().size == other.size);
        !self.of_sub_ifds
            && smaller
            && scaled
            && !known
            && planes(full) == planes(other)
            && explains(full.size, other.size)
    }
}

fn layer(raster: Box<dyn Raster>) -> Layer {
    let size = raster.shape().size;
    Layer { size, parts: vec![super::pyramid::Part { x: 0, y: 0, raster }], stored: true }
}

/// The name under which an image travels along, if its own name says that it does.
fn picture_name(image: &Image) -> Option<&'static str> {
    let name = image.name.as_deref()?.to_lowercase();
    let mut words = name.split(|c: char| !c.is_alphanumeric());
    words.find_map(|word| {
        Some(match word {
            "label" => "label",
            "macro" | "overview" => "macro",
            "thumbnail" => "thumbnail",
            _ => return None,
        })
    })
}

/// An image whose pages have been found.
struct Found {
    /// From the finest to the coarsest; never empty.
    levels: Vec<Box<dyn Raster>>,
    /// True if samples are red, green and blue.
    is_colors: bool,
    /// File and directory of the first of them.
    first: (usize, usize),
    /// True if pixels were laid over white.
    alpha: bool,
    /// Reduced pages that are no level.
    reductions_not_read: usize,
}

/// The files of a set, opened as they are asked for.
struct Set<'a> {
    options: &'a OpenOptions,
    /// The one that was asked for comes first.
    files: Vec<Tiff>,
    /// Files by name; the first one by its own name.
    known: BTreeMap<String, usize>,
    folder: PathBuf,
    /// How the first file calls itself.
    uuid: Option<String>,
    /// True if the XML names no more than one file.
    alone: bool,
    companion: Option<Arc<dyn ByteSource>>,
    /// Pages that are planes already. A page is one plane of one image: one that is several is a mistake, or an attack.
    taken: BTreeSet<(usize, usize)>,
}

impl<'a> Set<'a> {
    fn new(tiff: Tiff, options: &'a OpenOptions) -> Self {
        let path = tiff.file().path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        Self {
            options,
            known: BTreeMap::from([(name, 0)]),
            files: vec![tiff],
            folder,
            uuid: None,
            alone: false,
            companion: None,
            taken: BTreeSet::new(),
        }
    }

    fn path(&self) -> &Path {
        self.files[0].file().path()
    }

    fn parse(&self, text: &str, place: &str) -> Result<Ome> {
        xml::tree(text)
            .and_then(|document| Ome::of(&document))
            .map_err(|what| Error::format(self.path(), format!("the OME-XML of {place}: {what}")))
    }

    fn note_names(&mut self, ome: &Ome) {
        let data = ome.images.iter().flatten().flat_map(|image| &image.data);
        let names: BTreeSet<_> = data.filter_map(|data| data.file.as_ref()?.name.as_ref()).collect();
        self.alone = names.len() <= 1;
    }

    /// The bytes of a file beside the first one, or `None` if it is not there.
    fn beside(&self, name: &str) -> Result<Option<Arc<dyn ByteSource>>> {
        // No name leads out of the folder: `../x`, `/x` and `a/x` are not what a set calls its files.
        let mut components = Path::new(name).components();
        let plain =
            matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name);
        if !plain || name.contains(['/', '\\', '\0']) {
            return Err(Error::format(
                self.path(),
                format!("its OME-XML refers to {name:?}, which is no name of a file in the same folder"),
            ));
        }
        let path = self.folder.join(name);
        match std::fs::metadata(&path) {
            // Opening a pipe would wait for a writer.
            Ok(metadata) if metadata.is_file() => self.options.access.open(&path).map(Some),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(path, error)),
        }
    }

    /// The XML of the file that holds it for the whole set.
    fn companion(&mut self, name: &str) -> Result<String> {
        let Some(source) = self.beside(name)? else {
            return Err(Error::format(
                self.path(),
                format!("is one file of a set whose OME-XML is in {name:?}, which is not in the same folder"),
            ));
        };
        let most = xml::MOST_BYTES.min(self.options.limits.table_bytes);
        let text = if tiff::is_tiff(&source.read_at(0..source.len().min(16))?) {
            let tiff = Tiff::parse(Arc::clone(&source), &self.options.limits)?;
            tiff.directories()[0].text(tiff.file(), Tag::IMAGE_DESCRIPTION)?.unwrap_or_default()
        } else if source.len() > most {
            return Err(Error::limits(
                source.path(),
                format!("OME-XML of {} bytes, the limit is {most}", source.len()),
            ));
        } else {
            xml::decode(&source.read_at(0..source.len())?)
        };
        self.companion = Some(source);
        Ok(text)
    }

    /// The number of the file that a plane is in.
    fn file(&mut self, reference: Option<&FileRef>) -> Result<usize> {
        let Some(reference) = reference else { return Ok(0) };
        if reference.uuid.is_some() && reference.uuid == self.uuid {
            return Ok(0);
        }
        // Without a name, there is no other file that it could be.
        let Some(name) = &reference.name else { return Ok(0) };
        if let Some(&known) = self.known.get(name) {
            return Ok(known);
        }
        if self.files.len() >= MOST_FILES {
            return Err(Error::limits(
                self.path(),
                format!("the set has more than {MOST_FILES} files, which is the limit"),
            ));
        }
        let number = match self.beside(name)? {
            Some(source) => {
                self.files.push(Tiff::parse(source, &self.options.limits)?);
                self.files.len() - 1
            }
            None if self.alone => 0,
            None => {
                return Err(Error::format(
                    self.path(),
                    format!("part of this slide is in {name:?}, which is not in the same folder"),
                ));
            }
        };
        self.known.insert(name.clone(), number);
        Ok(number)
    }

    /// All files that were opened.
    fn sources(&self) -> Vec<Arc<dyn ByteSource>> {
        let files = self.files.iter().map(|file| Arc::clone(file.file().source()));
        files.chain(self.companion.clone()).collect()
    }

    /// Finds the pages of an image, and reads how they are stored.
    fn read(&mut self, image: &Image) -> Result<Found> {
        let path = self.path().to_owned();
        if !matches!(image.sample.as_str(), "uint8" | "uint16") {
            return Err(Error::unsupported(
                path,
                format!("OME-TIFF samples of the type {} cannot be read, uint8 and uint16 can", image.sample),
            ));
        }
        for (what, size) in [("focal planes", image.size_z), ("times", image.size_t)] {
            if size != 1 {
                return Err(Error::unsupported(
                    path,
                    format!(
                        "this OME-TIFF is a stack of {size} {what}, which cannot be read: one of them would pass for the whole"
                    ),
                ));
            }
        }
        let planes = self.planes(image)?;
        let mut levels: Vec<Vec<Page>> = vec![Vec::new()];
        let (mut fewest, mut reductions) = (usize::MAX, 0);
        for (number, &(file, directory)) in planes.iter().enumerate() {
            let tiff = &self.files[file];
            let ifd = &tiff.directories()[directory];
            let page = Page::read(tiff.file(), ifd)?;
            let size = page.layout.size;
            if size != image.size {
                return Err(Error::format(
                    path,
                    format!(
                        "its OME-XML says {} pixels, but page {directory}, channel {number}, has {size}",
                        image.size
                    ),
                ));
            }
            let sample = sample_name(page.shape().sample);
            if sample != image.sample {
                return Err(Error::format(
                    path,
                    format!(
                        "its OME-XML says {}, but page {directory}, channel {number}, is of {sample}",
                        image.sample
                    ),
                ));
            }
            levels[0].push(page);
            let reduced = self.reduced(file, directory, image)?;
            reductions += reduced.of;
            fewest = fewest.min(reduced.pages.len());
            for (level, page) in (1..).zip(reduced.pages) {
                if levels.len() == level {
                    levels.push(Vec::new());
                }
                levels[level].push(page);
            }
        }
        // A level is one that all channels have.
        levels.truncate(1 + fewest);
        let is_colors = matches!(levels[0][0].color, Color::Rgb | Color::YCbCr);
        let alpha = levels[0].iter().any(Page::has_alpha);
        let reductions_not_read = reductions - levels[1..].iter().map(Vec::len).sum::<usize>();
        let decoded_bytes = self.options.limits.decoded_bytes;
        let stack = |mut pages: Vec<Page>| -> Result<Box<dyn Raster>> {
            Ok(match (pages.pop(), pages.is_empty()) {
                (Some(only), true) => Box::new(only),
                (last, _) => {
                    pages.extend(last);
                    Box::new(Planes::new(&path, pages, decoded_bytes)?)
                }
            })
        };
        Ok(Found {
            is_colors,
            first: planes[0],
            levels: levels.into_iter().map(stack).collect::<Result<_>>()?,
            alpha,
            reductions_not_read,
        })
    }

    /// File and directory of each plane, in the order of the channels; never empty.
    fn planes(&mut self, image: &Image) -> Result<Vec<(usize, usize)>> {
        let path = self.path().to_owned();
        if image.size_c > MOST_CHANNELS as u64 {
            return Err(Error::limits(
                path,
                format!("{} channels are more than {MOST_CHANNELS}, which is the limit", image.size_c),
            ));
        }
        let mut found: Vec<Option<(usize, u64)>> = vec![None; image.size_c as usize];
        // The schema demands TiffData, and there are files without: their pages are the planes in their order.
        let implied = [TiffData { ifd: None, count: None, first_c: 0, first_z: 0, first_t: 0, file: None }];
        for data in if image.data.is_empty() { &implied[..] } else { &image.data } {
            if (data.first_z, data.first_t) != (0, 0) || data.first_c >= image.size_c {
                return Err(Error::format(
                    path,
                    format!(
                        "its OME-XML says where channel {}, focal plane {}, time {} is, which is not in the image",
                        data.first_c, data.first_z, data.first_t
                    ),
                ));
            }
            let file = self.file(data.file.as_ref())?;
            let first = data.ifd.unwrap_or(0);
            let pages = (self.files[file].directories().len() as u64).saturating_sub(first);
            // As the schema has it: all pages of the file, or one where it says which.
            let count = data.count.unwrap_or(if data.ifd.is_some() { 1 } else { pages });
            let run = found[data.first_c as usize..].iter_mut().zip(0..count);
            for (place, number) in run {
                place.get_or_insert((file, first.saturating_add(number)));
            }
        }
        let page = |set: &Self, channel: usize| {
            let (file, directory) = found[channel].ok_or_else(|| {
                Error::format(&path, format!("its OME-XML does not say which page channel {channel} is"))
            })?;
            let pages = set.files[file].directories().len();
            if directory >= pages as u64 {
                return Err(Error::format(
                    &path,
                    format!("channel {channel} is to be page {directory} of a file that has {pages}"),
                ));
            }
            Ok((file, directory as usize))
        };
        let first = page(self, 0)?;
        let tiff = &self.files[first.0];
        let samples = tiff.directories()[first.1].unsigned(tiff.file(), Tag::SAMPLES_PER_PIXEL)?.unwrap_or(1);
        let planes = match samples {
            1 => (0..image.size_c as usize).map(|channel| page(self, channel)).collect::<Result<Vec<_>>>()?,
            all if all == image.size_c => vec![first],
            some if some > 1 && image.size_c.is_multiple_of(some) => {
                return Err(Error::unsupported(
                    path,
                    format!(
                        "an OME-TIFF of {} channels in pages of {some} samples cannot be read: one page of all of them, or one of each, can",
                        image.size_c
                    ),
                ));
            }
            other => {
                return Err(Error::format(
                    path,
                    format!("its OME-XML says {} channels, but a page has {other} samples per pixel", image.size_c),
                ));
            }
        };
        for &(file, directory) in &planes {
            if !self.taken.insert((file, directory)) {
                return Err(Error::format(path, format!("page {directory} is more than one plane of its OME-XML")));
            }
        }
        Ok(planes)
    }

    /// The coarser versions of a page, from the finest to the coarsest.
    fn reduced(&self, file: usize, directory: usize, image: &Image) -> Result<Reduced> {
        let tiff = &self.files[file];
        let ifd = &tiff.directories()[directory];
        let count = ifd.field(Tag::SUB_IFDS).map_or(0, |field| field.count);
        if count > MOST_LEVELS {
            return Err(Error::limits(
                tiff.file().path(),
                format!("page {directory} has {count} reduced versions, the limit is {MOST_LEVELS}"),
            ));
        }
        let mut pages = Vec::new();
        for ifd in tiff.sub_directories(ifd)? {
            let page = Page::read(tiff.file(), &ifd)?;
            let size = page.layout.size;
            let smaller = size.width < image.size.width && size.height <= image.size.height;
            if smaller && explains(image.size, size) {
                pages.push(page);
            }
        }
        pages.sort_by_key(|page| std::cmp::Reverse(page.layout.size.width));
        Ok(Reduced { pages, of: count as usize })
    }
}

/// Coarser versions of a page.
struct Reduced {
    pages: Vec<Page>,
    /// How many there are, also of those that are no levels.
    of: usize,
}
