//! Slides: what a whole-slide image is to the rest of the workspace.
//!
//! [`open`] finds out what a file or a folder is by its content and returns a [`SlideReader`]. The formats, each a file of its own
//! (or a folder, where it is large), are listed in one place, in the file `open.rs` beside this one.
//!
//! A format's file says which rasters make up each level, which pictures travel along, and what the metadata mean. A raster
//! (`raster.rs`) is a picture that is stored in cells, each of which is decoded by itself, by the codecs in `codec`. From there on all
//! formats are read by the same code: `pyramid.rs` decodes the cells that a rectangle touches, `cache.rs` keeps some of them, and
//! `mosaic.rs` puts them together. Plain pictures, which are decoded as a whole, are the one exception (`picture.rs`).
//!
//! All levels that a file holds are levels here. Of an NDPI there are also those that OpenSlide makes up between them; their
//! [`LevelInfo::stored`] is false. Nothing else is resampled, but for the levels that OpenSlide draws ([`Backend`]).

mod alpha;
mod aperio;
mod cache;
mod check;
mod codec;
mod dicom;
mod generic_tiff;
mod icc;
mod jpeg_picture;
pub(crate) mod leica;
mod mosaic;
mod ndpi;
mod ome_tiff;
mod ome_zarr;
mod open;
mod openslide;
pub(crate) mod philips;
mod picture;
mod planes;
mod pyramid;
mod qptiff;
pub(crate) mod raster;
mod reduced;
mod spare;
mod stitched;
mod tiff;
mod trestle;
pub(crate) mod ventana;
pub(crate) mod xml;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use check::{Checked, check};
pub(crate) use codec::{jpeg, jpeg2000};
pub use mosaic::GATHERED;
pub use open::{Backend, OpenOptions, open, open_bytes};

use crate::store::Translation;
use crate::{Class, Downsample, Error, Level, Microns, Pixels, Rect, Result, SampleType, Size, TileCoord};

/// One resolution of a slide.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LevelInfo {
    /// Pixels.
    pub size: Size,
    /// Level-0 pixels per pixel, per axis: as the file states it, or else `level 0 size / this size`.
    pub downsample: Downsample,
    /// The unit in which the file stores pixels: a tile, a strip, or the whole level.
    pub tile: Size,
    /// False if the file does not hold this level: it is made of a finer one while reading, as OpenSlide does for NDPI.
    pub stored: bool,
}

impl LevelInfo {
    /// A stored level of a slide whose level 0 has the size `finest`.
    #[must_use]
    pub fn new(finest: Size, size: Size, tile: Size) -> Self {
        let downsample =
            Downsample { x: finest.width as f64 / size.width as f64, y: finest.height as f64 / size.height as f64 };
        Self { size, downsample, tile, stored: true }
    }
}

/// Where a slide's resolution was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResolutionSource {
    /// Given by the user.
    Given,
    /// A field of the vendor's own, by name.
    Vendor(String),
    /// The TIFF tags `XResolution`, `YResolution` and `ResolutionUnit`.
    TiffTags,
    /// The multiscale metadata of an OME-Zarr image.
    OmeZarr,
    /// The nominal magnification of the objective: 10 micrometres divided by it. Often inaccurate, and used only where the
    /// user asks for it.
    ObjectivePower,
}

impl std::fmt::Display for ResolutionSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Given => f.write_str("given"),
            Self::Vendor(field) => f.write_str(field),
            Self::TiffTags => f.write_str("TIFF resolution tags"),
            Self::OmeZarr => f.write_str("OME-Zarr scale"),
            Self::ObjectivePower => f.write_str("objective power"),
        }
    }
}

/// The physical size of a level-0 pixel, and who says so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resolution {
    /// Micrometres per level-0 pixel.
    pub mpp: Microns,
    /// Where it was found.
    pub source: ResolutionSource,
}

/// A picture that travels with a slide: its label, an overview of the glass, a thumbnail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssociatedImage {
    /// `label`, `macro`, `thumbnail`, or the vendor's name.
    pub name: String,
    /// Pixels.
    pub size: Size,
    /// True if it shows the label on the glass, which can carry a patient's name.
    #[serde(default)]
    pub shows_label: bool,
}

impl AssociatedImage {
    /// A picture of this name in a file of this [format](SlideInfo::format), which say whether it shows the label: a picture called so does, and
    /// Hamamatsu's and Ventana's scanners make one of the whole glass (Ventana's files call it `Label Image` themselves).
    #[must_use]
    pub fn new(format: &str, name: impl Into<String>, size: Size) -> Self {
        let name = name.into();
        let whole_glass = name == "macro" && matches!(format, "hamamatsu" | "ventana");
        let shows_label = whole_glass || name.to_lowercase().contains("label");
        Self { name, size, shows_label }
    }
}

/// What the colours of a slide's pixels are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colors {
    /// Those that are stored, whatever a profile says of them.
    #[default]
    Stored,
    /// sRGB, converted by the slide's ICC profile.
    Srgb,
}

/// What is known of a slide without decoding a pixel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SlideInfo {
    /// The file.
    #[serde(serialize_with = "crate::error::as_text")]
    pub path: PathBuf,
    /// The format, in lower case: `aperio`, `generic-tiff`, `png`, `jpeg`, ...
    pub format: String,
    /// From the finest to the coarsest; never empty.
    pub levels: Vec<LevelInfo>,
    /// Samples per pixel: 3 for RGB.
    pub channels: usize,
    /// How a sample is stored.
    pub sample: SampleType,
    /// Physical size of a level-0 pixel, or `None` where the file does not say. Never guessed.
    pub resolution: Option<Resolution>,
    /// Nominal magnification of the objective, as the file states it.
    pub objective_power: Option<f64>,
    /// The value of pixels outside the slide and of tiles that the file leaves out, one value per channel.
    pub background: Vec<u16>,
    /// The part of level 0 outside of which the scanner saw nothing, where the file says. Coordinates do not count from it.
    pub bounds: Option<Rect>,
    /// Names of the channels in their order; empty for colours, and where nothing names them.
    pub channel_names: Vec<String>,
    /// What the values mean where they are labels of classes, and no intensities.
    pub classes: Option<Vec<Class>>,
    /// Where the centre of the first pixel lies in the coordinates that the file states, in level-0 pixels: of a part that was cut out of another
    /// image, its place there.
    pub translation: Translation,
    /// Pictures that travel with the slide.
    pub associated: Vec<AssociatedImage>,
    /// Vendor properties under OpenSlide's names where it has them (`aperio.AppMag`, `tiff.ImageDescription`).
    pub properties: BTreeMap<String, String>,
    /// What [`SlideReader::read_region`] returns: stored colours, or converted ones.
    pub colors: Colors,
    /// Bytes of the embedded ICC profile, if any.
    pub icc_profile_bytes: Option<usize>,
}

impl SlideInfo {
    /// A slide of one level of which nothing is known but its pixels; its background is 0.
    #[must_use]
    pub fn new(
        path: impl Into<PathBuf>,
        format: &str,
        size: Size,
        tile: Size,
        channels: usize,
        sample: SampleType,
    ) -> Self {
        Self {
            path: path.into(),
            format: format.into(),
            levels: vec![LevelInfo::new(size, size, tile)],
            channels,
            sample,
            resolution: None,
            objective_power: None,
            background: vec![0; channels],
            bounds: None,
            channel_names: Vec::new(),
            classes: None,
            translation: Translation { x: 0.0, y: 0.0 },
            associated: Vec::new(),
            properties: BTreeMap::new(),
            colors: Colors::Stored,
            icc_profile_bytes: None,
        }
    }

    /// Size of level 0.
    #[must_use]
    pub fn size(&self) -> Size {
        self.levels[0].size
    }

    /// The description of a level.
    ///
    /// # Errors
    /// [`Error::Usage`] if the slide has no such level.
    pub fn level(&self, level: Level) -> Result<&LevelInfo> {
        self.levels.get(level.0).ok_or_else(|| {
            Error::usage(&self.path, format!("there is no level {level}: the slide has {}", self.levels.len()))
        })
    }
}

/// Decodes a whole JPEG stream as tiles of slides are, into all of `samples`: for benches, which compare it with other decoders.
///
/// # Errors
/// The decoder's word.
#[doc(hidden)]
pub fn decode_jpeg(stream: &[u8], samples: &mut [u8]) -> Result<(), String> {
    codec::jpeg::decode_whole(stream, samples)
}

/// The property ([`SlideInfo::properties`]) that says why the slide's ICC profile cannot be read, where it has one. Its pixels are none the worse for it.
pub const ICC_FAULT: &str = "icc-profile.fault";

/// Bounds on what a file may ask for. Files are hostile until proven otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Directories (pages) of a TIFF.
    pub directories: usize,
    /// Entries of one directory.
    pub directory_entries: usize,
    /// Bytes of the tables of one directory (tile offsets and the like) and of any one text field.
    pub table_bytes: u64,
    /// Decoded bytes of one tile, strip or whole picture that must be decoded in one piece.
    pub decoded_bytes: u64,
}

impl Default for Limits {
    /// Generous for slides (a 4-gigapixel level of 240-pixel tiles has 1.2 MB of tables), far below what hurts.
    fn default() -> Self {
        Self { directories: 1024, directory_entries: 1024, table_bytes: 512 << 20, decoded_bytes: 1 << 30 }
    }
}

/// The decoder of JPEG tiles in this build. Ours gives the samples that libjpeg-turbo gives; it leaves progressive streams, which slides do
/// not have, to zune-jpeg, which gives others.
pub const JPEG_DECODER: &str =
    if cfg!(feature = "turbojpeg") { "libjpeg-turbo" } else { "microtome 1, progressive zune-jpeg 0.5" };

/// A source of slide pixels. Implementations decode from many threads at once and hold no lock while they do.
pub trait SlideReader: Send + Sync + std::fmt::Debug {
    /// What is known without decoding.
    fn info(&self) -> &SlideInfo;

    /// Decodes the pixels of `rect` (in pixels of `level`, which may stick out of the slide).
    ///
    /// Pixels outside the slide, and tiles that the file leaves out, have the [`SlideInfo::background`] value.
    /// Memory: the result, plus one decoded tile per working thread, or up to 4 MiB of those that the cache may keep.
    ///
    /// # Errors
    /// [`Error::Usage`] for a level that does not exist, [`Error::Tile`] where a tile cannot be decoded,
    /// [`Error::Limits`] for a rectangle of more than `Limits::decoded_bytes`.
    fn read_region(&self, level: Level, rect: Rect) -> Result<Pixels>;

    /// Decodes an associated picture.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is none of that name, [`Error::Format`] or [`Error::Unsupported`] if it cannot be decoded.
    fn read_associated(&self, name: &str) -> Result<Pixels>;

    /// The embedded ICC profile, which says what the stored colours mean. Pixels are returned as they are stored.
    fn icc_profile(&self) -> Option<&[u8]> {
        None
    }

    /// Where the stored tiles of a level lie, row by row, in the pixels of the level. They may overlap, stick out, or leave places free
    /// where the file stores nothing.
    ///
    /// # Errors
    /// [`Error::Usage`] for a level that does not exist.
    fn tiles(&self, level: Level) -> Result<Box<dyn Iterator<Item = Rect> + '_>> {
        let LevelInfo { size, tile, .. } = *self.info().level(level)?;
        Ok(Box::new(mosaic::cells(size.rect(), size, tile).map(move |at| at.rect(tile))))
    }

    /// A stored tile as a JPEG file of its own, as browsers and picture viewers take it: the tile's own scans, not decoded, with the tables
    /// that tiles share and the mark that says what its channels are. Column and row count tiles of [`LevelInfo::tile`] from the top left corner
    /// of the level; the picture has that size, also where the tile sticks out of the level.
    ///
    /// `None` where the file is no TIFF, stores no such tile, stores it in another way than baseline JPEG, or where its pixels are not those that
    /// [`read_region`](Self::read_region) gives: a level made while reading, one of several parts, converted colours.
    ///
    /// # Errors
    /// [`Error::Usage`] for a level that does not exist, [`Error::Tile`] where the stream is damaged as far as that is seen without decoding.
    fn jpeg_tile(&self, level: Level, tile: TileCoord) -> Result<Option<Vec<u8>>> {
        let _ = tile;
        self.info().level(level).map(|_| None)
    }

    /// Says that a rectangle will be read soon, so that the system can fetch its bytes meanwhile. Returns at once; where it cannot help, it does nothing.
    fn prefetch(&self, level: Level, rect: Rect) {
        let _ = (level, rect);
    }

    /// Bytes that the reader holds for as long as it lives, besides its cache of decoded tiles: a picture that is decoded as a whole, the
    /// directory of an archive, OpenSlide's own cache.
    fn resident_bytes(&self) -> u64 {
        0
    }

    /// Sets how many bytes of decoded tiles the reader may keep, in place of [`OpenOptions::cache_bytes`]. Whoever is about to read in some
    /// order knows how much pays. A reader that keeps no tiles has nothing to do.
    fn keep_decoded(&self, bytes: u64) {
        let _ = bytes;
    }

    /// A cheap identity of the file's content; see [`content_id`](crate::bytes::content_id).
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read.
    fn content_id(&self) -> Result<String>;
}
