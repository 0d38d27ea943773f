//! From a path to a reader: what a file is, by its content.

use std::path::Path;
use std::sync::Arc;

use super::picture::Kind;
use super::tiff::{self, Tiff};
use super::{
    Colors, Limits, SlideReader, aperio, dicom, generic_tiff, icc, leica, ndpi, ome_tiff, ome_zarr, openslide, philips,
    picture, qptiff, trestle, ventana,
};
use crate::bytes::{ByteAccess, ByteSource};
use crate::remote::{self, Opened};
use crate::{Error, Result};

/// Whose code reads a slide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// Ours; OpenSlide, where it is part of the build, for what ours refuses as unsupported. What OpenSlide takes for a plain TIFF stays refused.
    #[default]
    Auto,
    /// Ours or none.
    Native,
    /// OpenSlide or none. It takes the cargo feature `openslide`.
    OpenSlide,
}

/// How a slide is opened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Bytes of decoded tiles to keep; 0 keeps none. It adds to the memory that reading takes.
    pub cache_bytes: usize,
    /// How the bytes of the file are reached.
    pub access: ByteAccess,
    /// What the file may ask for.
    pub limits: Limits,
    /// Whether colours are converted by the slide's ICC profile. A slide without one stays as it is.
    pub colors: Colors,
    /// Whose code reads it.
    pub backend: Backend,
}

impl Default for OpenOptions {
    /// A memory map, the default limits, and 64 MiB of tiles: a row of them across most slides.
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            access: ByteAccess::default(),
            limits: Limits::default(),
            colors: Colors::Stored,
            backend: Backend::default(),
        }
    }
}

impl OpenOptions {
    /// These options with another [`OpenOptions::cache_bytes`].
    #[must_use]
    pub fn cache_bytes(self, cache_bytes: usize) -> Self {
        Self { cache_bytes, ..self }
    }

    /// These options with another [`OpenOptions::access`].
    #[must_use]
    pub fn access(self, access: ByteAccess) -> Self {
        Self { access, ..self }
    }

    /// These options with other [`OpenOptions::limits`].
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// These options with other [`OpenOptions::colors`].
    #[must_use]
    pub fn colors(self, colors: Colors) -> Self {
        Self { colors, ..self }
    }

    /// These options with another [`OpenOptions::backend`].
    #[must_use]
    pub fn backend(self, backend: Backend) -> Self {
        Self { backend, ..self }
    }
}

/// A kind of TIFF.
struct TiffFormat {
    /// True if a TIFF is of this kind.
    detect: fn(&Tiff) -> Result<bool>,
    open: fn(Tiff, &OpenOptions) -> Result<Box<dyn SlideReader>>,
}

/// The kinds of TIFF, in the order in which they are asked; the last one takes what is left.
/// A new vendor is a file of its own and a line here.
const TIFF_FORMATS: &[TiffFormat] = &[
    TiffFormat { detect: aperio::detect, open: aperio::open },
    TiffFormat { detect: |tiff| Ok(ndpi::detect(tiff)), open: ndpi::open },
    TiffFormat { detect: leica::detect, open: leica::open },
    TiffFormat { detect: philips::detect, open: philips::open },
    TiffFormat { detect: ome_tiff::detect, open: ome_tiff::open },
    TiffFormat { detect: qptiff::detect, open: qptiff::open },
    TiffFormat { detect: ventana::detect, open: ventana::open },
    TiffFormat { detect: trestle::detect, open: trestle::open },
    TiffFormat { detect: |_| Ok(true), open: generic_tiff::open },
];

/// What can be read, for messages.
const READABLE: &str = "Aperio SVS, Hamamatsu NDPI, Leica SCN, Philips TIFF, Ventana BIF, Trestle TIFF, OME-TIFF, PerkinElmer QPTIFF, \
                        DICOM, OME-Zarr, tiled and plain TIFF, PNG, JPEG and WebP";

/// Formats that are known by their name alone and cannot be read yet.
const FOREIGN_EXTENSIONS: &[(&str, &str)] = &[
    ("afi", "Aperio fluorescence (AFI)"),
    ("czi", "Zeiss CZI"),
    ("isyntax", "Philips iSyntax"),
    ("lif", "Leica LIF"),
    ("mrxs", "3DHISTECH MIRAX"),
    ("nd2", "Nikon ND2"),
    ("ndpis", "Hamamatsu NDPI set"),
    ("svslide", "Sakura SVSLIDE"),
    ("vms", "Hamamatsu VMS"),
    ("vmu", "Hamamatsu VMU"),
    ("vsi", "Olympus VSI"),
    ("zvi", "Zeiss ZVI"),
];

/// Formats that are known by their first bytes (at an offset) and cannot be read, or not yet.
const FOREIGN_CONTENT: &[(usize, &[u8], &str)] = &[
    (0, b"ZISRAWFILE", "a Zeiss CZI file"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 stream"),
    (0, b"SQLite format 3\0", "an SQLite database (Sakura SVSLIDE, perhaps)"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a Microsoft compound file (Zeiss ZVI, perhaps)"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"%PDF", "a PDF document"),
    (0, b"<?xml", "an XML document (that of an OME-TIFF, perhaps: open one of the TIFF files beside it)"),
    (0, b"<OME", "OME-XML (open one of the TIFF files beside it)"),
    (0, b"GIF8", "a GIF picture"),
    (0, b"BM", "a BMP picture"),
    (0, b"version https://git-lfs", "a Git LFS pointer, which stands for a file that was not fetched"),
    (0, b"<!DOCTYPE html", "a web page, perhaps in place of a download that failed"),
    (0, b"<html", "a web page, perhaps in place of a download that failed"),
];

/// Opens a slide, which may lie in an object store: then its path is a URL ([`remote`]), and it is read in ranges where it is.
///
/// What the file is, is found out by its content. Its name only serves to refuse: formats that are known by their name
/// and cannot be read yet are refused by name, and so is a plain picture under the name of a slide.
///
/// # Errors
/// [`Error::Io`] for a file that does not exist or cannot be read, [`Error::Transient`] for an object store that does not answer, [`Error::Usage`] for a folder that is no slide, [`Error::Format`] for
/// an empty or damaged file, [`Error::Unsupported`] for a format, or a variety of one, that cannot be read,
/// [`Error::Limits`] for a file that asks for more than [`OpenOptions::limits`] allows.
pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    in_colors(open_stored(path.as_ref(), options)?, options)
}

/// Opens a slide whose bytes come from elsewhere; [`ByteSource::path`] is what the slide is called.
/// Files beside it are not looked for, even where a slide is made of several. OpenSlide reads nothing but files, and so is not asked.
///
/// # Errors
/// As [`open`], and [`Error::Usage`] if OpenSlide must read it.
pub fn open_bytes(source: Arc<dyn ByteSource>, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    if options.backend == Backend::OpenSlide {
        return Err(Error::usage(source.path(), "OpenSlide reads files, no bytes that come from elsewhere"));
    }
    in_colors(open_native(source, options)?, options)
}

fn in_colors(slide: Box<dyn SlideReader>, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    match options.colors {
        Colors::Stored => Ok(slide),
        Colors::Srgb => icc::to_srgb(slide),
    }
}

fn open_stored(path: &Path, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    if remote::is_remote(path) {
        return open_remote(path, options);
    }
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if metadata.is_dir() && options.backend == Backend::OpenSlide {
        return Err(Error::usage(path, "OpenSlide is given a file, not a folder: for DICOM, any file of the series"));
    }
    if metadata.is_dir() {
        if ome_zarr::is_store(path) {
            return ome_zarr::open_folder(path, options);
        }
        if let Some(slide) = dicom::open_folder(path, options)? {
            return Ok(slide);
        }
        return Err(Error::usage(path, "is a folder, and neither an OME-Zarr store nor a DICOM series"));
    }
    if !metadata.is_file() {
        // Opening a pipe would wait for a writer.
        return Err(Error::usage(path, "is neither a file nor a folder"));
    }
    let native = || {
        let source = options.access.open(path)?;
        if dicom::detect(&*source)? { dicom::open_series(source, options) } else { open_native(source, options) }
    };
    match options.backend {
        Backend::Native => native(),
        Backend::OpenSlide => openslide::open(path, options),
        Backend::Auto => match native() {
            Err(refusal @ Error::Unsupported { .. }) => openslide::instead(path, options, refusal),
            opened => opened,
        },
    }
}

/// Opens what lies at a URL: a store, or a file that is read in ranges where it is. Files beside it are not looked for.
fn open_remote(path: &Path, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    if options.backend == Backend::OpenSlide {
        return Err(Error::usage(path, "OpenSlide reads files, no objects: download it first"));
    }
    match remote::open(path)? {
        Opened::Values(entries) => ome_zarr::open(entries, options),
        Opened::Object(source) => open_native(source, options),
    }
}

fn open_native(source: Arc<dyn ByteSource>, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    let path = source.path().to_owned();
    if source.is_empty() {
        return Err(Error::format(&path, "is empty"));
    }
    if dicom::detect(&*source)? {
        return dicom::open_alone(source, options);
    }
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    if let Some((_, name)) = FOREIGN_EXTENSIONS.iter().find(|(known, _)| *known == extension) {
        return Err(Error::unsupported(
            &path,
            format!("by its name this is a {name} file, which microtome cannot read yet; it reads {READABLE}"),
        ));
    }
    let head = source.read_at(0..source.len().min(256))?.into_owned();
    if tiff::is_tiff(&head) {
        let tiff = Tiff::parse(source, &options.limits)?;
        for format in TIFF_FORMATS {
            if (format.detect)(&tiff)? {
                return (format.open)(tiff, options);
            }
        }
    } else if ome_zarr::is_zip(&head) {
        return ome_zarr::open_zip(source, options);
    } else if let Some(kind) = Kind::of(&head) {
        if matches!(extension.as_str(), "svs" | "tif" | "tiff" | "btf" | "tf8" | "tf2") {
            return Err(Error::unsupported(
                &path,
                format!(
                    "is named .{extension} but holds a {} picture, no TIFF: a thumbnail instead of the slide, perhaps; \
                     rename it to read it as a picture",
                    kind.name()
                ),
            ));
        }
        return picture::open(kind, source, options);
    }
    let known =
        FOREIGN_CONTENT.iter().find(|(at, magic, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    Err(Error::unsupported(
        &path,
        match known {
            Some((_, _, name)) => format!("is {name}, which microtome cannot read; it reads {READABLE}"),
            None => format!("is in no format that microtome knows; it reads {READABLE}"),
        },
    ))
}
