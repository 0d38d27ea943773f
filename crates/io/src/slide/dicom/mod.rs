//! DICOM whole slides: VL Whole Slide Microscopy Image Storage, a series of files, each of which is a level, a part of
//! one, or a picture that travels along.
//!
//! A slide is opened by a folder or by any file of its series; the others are looked for in the same folder, by their
//! Series Instance UID. Files of other kinds (segmentations, annotations) are passed over. What a file is to the slide,
//! the third word of its Image Type says: `VOLUME` is a level, `LABEL`, `OVERVIEW` and `THUMBNAIL` are pictures, which
//! are called `label`, `macro` and `thumbnail` as in OpenSlide.
//!
//! - Levels differ in their Total Pixel Matrix. Files of one matrix are parts of one concatenation, or brightnesses of
//!   several optical paths, which become the channels of one level. A level in colours has one path.
//! - `TILED_FULL` has a frame for each tile, `TILED_SPARSE` says of each frame where it lies; tiles that are missing are
//!   background. Frames must lie on the grid of tiles.
//! - Several focal planes are refused.
//! - Pixel Spacing is in millimetres, the distance of rows first. Where it is missing, the Imaged Volume's width and
//!   height, which are those of the whole matrix, say the same.
//! - Bits above High Bit are no part of a sample. MONOCHROME1 is turned over, so that high numbers are bright.
//!
//! Sources: DICOM PS3.3, A.32.8, C.7.6.16, C.7.6.17 and C.8.12; OpenSlide's format page "DICOM"; files made by
//! `tests/python/dicom_slides.py`, and of the collections that docs/formats.md names.

mod element;
mod frame;
mod frames;
mod grid;
mod instance;
mod properties;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use dicom_dictionary_std::tags;

use self::element::Value;
use self::frame::{Coding, Color};
use self::grid::{Grid, Volume};
use self::instance::{Found, Instance, Role, is_dicom};
use super::codec::jpeg;
use super::pyramid::{Layer, Parts, Pyramid};
use super::raster::Raster;
use super::{ICC_FAULT, Limits, OpenOptions, Resolution, ResolutionSource, SlideReader};
use crate::bytes::ByteSource;
use crate::{Error, Microns, Result};

/// True for a DICOM file, unless it is a TIFF, too, and named like one: then it is read as that, as OpenSlide does.
pub(super) fn detect(source: &dyn ByteSource) -> Result<bool> {
    let head = source.read_at(0..source.len().min(132))?;
    let named =
        |extension: &std::ffi::OsStr| extension.eq_ignore_ascii_case("tif") || extension.eq_ignore_ascii_case("tiff");
    Ok(is_dicom(&head) && !(super::tiff::is_tiff(&head) && source.path().extension().is_some_and(named)))
}

/// Opens one file as all there is of a slide.
pub(super) fn open_alone(source: Arc<dyn ByteSource>, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    let instance = the_slide(&source, &options.limits)?;
    assemble(vec![instance], options)
}

/// Opens a file together with those of its series that lie beside it.
pub(super) fn open_series(source: Arc<dyn ByteSource>, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    let instance = the_slide(&source, &options.limits)?;
    let path = source.path();
    // A name without a folder lies in the one that we are in.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut instances = vec![instance];
    for beside in dicom_files(folder, options)? {
        if beside.path().file_name() == path.file_name() {
            continue;
        }
        if let Found::Slide(found) = Instance::read(&beside, Some(&instances[0].series), &options.limits)? {
            add(&mut instances, *found, &options.limits)?;
        }
    }
    assemble(instances, options)
}

/// Opens the slide that lies in a folder, if there is any DICOM file in it.
pub(super) fn open_folder(folder: &Path, options: &OpenOptions) -> Result<Option<Box<dyn SlideReader>>> {
    let mut series = BTreeMap::<String, Vec<Instance>>::new();
    let mut foreign = None;
    for source in dicom_files(folder, options)? {
        match Instance::read(&source, None, &options.limits)? {
            Found::Slide(instance) => {
                let instances = series.entry(instance.series.clone()).or_default();
                add(instances, *instance, &options.limits)?;
            }
            Found::Foreign(what) => foreign = foreign.or(Some(what)),
            Found::OtherSeries => {}
        }
    }
    let names: Vec<_> = series.keys().take(8).map(String::as_str).collect();
    if series.len() > 1 {
        return Err(Error::usage(
            folder,
            format!(
                "the folder holds {} DICOM slides; open one of their files instead. Their series are {}{}",
                series.len(),
                names.join(", "),
                if series.len() > names.len() { ", ..." } else { "" }
            ),
        ));
    }
    match (series.into_values().next(), foreign) {
        (Some(instances), _) => assemble(instances, options).map(Some),
        (None, Some(what)) => Err(refusal(folder, "the folder holds no DICOM slide, but", &what)),
        (None, None) => Ok(None),
    }
}

/// Why DICOM files are no slide.
fn refusal(path: &Path, so: &str, what: &str) -> Error {
    Error::unsupported(
        path,
        format!("{so} {what}; of DICOM, whole slides (VL Whole Slide Microscopy Image Storage) can be read"),
    )
}

/// Reads a file that must be of a slide.
fn the_slide(source: &Arc<dyn ByteSource>, limits: &Limits) -> Result<Instance> {
    match Instance::read(source, None, limits)? {
        Found::Slide(instance) => Ok(*instance),
        Found::Foreign(what) => Err(refusal(source.path(), "is a DICOM file of", &what)),
        Found::OtherSeries => unreachable!("no series was asked for"),
    }
}

/// Adds a file to its series, unless it is a copy of one that is there.
fn add(instances: &mut Vec<Instance>, found: Instance, limits: &Limits) -> Result<()> {
    if instances.iter().any(|known| known.uid == found.uid) {
        return Ok(());
    }
    if instances.len() >= limits.directories {
        return Err(Error::limits(
            found.values.source.path(),
            format!("the slide is made of more than {} files, which is the limit", limits.directories),
        ));
    }
    instances.push(found);
    Ok(())
}

/// The DICOM files of a folder, by name.
fn dicom_files(folder: &Path, options: &OpenOptions) -> Result<Vec<Arc<dyn ByteSource>>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        // Links that lead nowhere are no files; opening a pipe would wait for a writer.
        if std::fs::metadata(&path).is_ok_and(|metadata| metadata.is_file() && metadata.len() > 132) {
            paths.push(path);
        }
    }
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        let source = options.access.open(&path)?;
        if detect(&*source)? {
            files.push(source);
        }
    }
    Ok(files)
}

/// Makes a slide of the files of a series; the first one is what it is called by.
fn assemble(instances: Vec<Instance>, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    let called = Arc::clone(&instances[0].values.source);
    let mut volumes = BTreeMap::<(u8, String), Vec<Instance>>::new();
    for instance in instances {
        let uid = instance.concatenation.as_ref().unwrap_or(&instance.uid).clone();
        let role = instance.role as u8;
        volumes.entry((role, uid)).or_default().push(instance);
    }
    let mut levels = BTreeMap::<_, Vec<Volume>>::new();
    let mut associated = Vec::<(String, Box<dyn Raster>)>::new();
    let mut files = vec![Arc::clone(&called)];
    for parts in volumes.into_values() {
        let role = parts[0].role;
        let name = match role {
            Role::Level => {
                let volume = Volume::new(parts)?;
                let size = volume.first().size;
                levels.entry(std::cmp::Reverse((size.width, size.height))).or_default().push(volume);
                continue;
            }
            Role::Label => "label",
            Role::Macro => "macro",
            Role::Thumbnail => "thumbnail",
            Role::Other => continue,
        };
        // A picture that travels along and cannot be read is no reason to refuse the slide.
        match Volume::new(parts).and_then(|volume| Grid::new(vec![volume])) {
            Ok(grid) if associated.iter().all(|(known, _)| known != name) => {
                files.extend(grid.instances().map(|instance| Arc::clone(&instance.values.source)));
                associated.push((name.to_owned(), Box::new(grid)));
            }
            Ok(_) | Err(Error::Unsupported { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let mut grids = Vec::new();
    for mut volumes in levels.into_values() {
        volumes.sort_by(|a, b| a.first().paths.cmp(&b.first().paths));
        grids.push(Grid::new(volumes)?);
    }
    let Some(finest) = grids.first() else {
        return Err(Error::unsupported(called.path(), "DICOM: the series holds no picture that is a level (VOLUME)"));
    };
    let first = finest.first();
    let (values, data) = (&first.values, &first.data);
    let resolution = resolution(first)?;
    let path = data.item(tags::OPTICAL_PATH_SEQUENCE);
    let objective = path.map(|path| values.numbers(path, tags::OBJECTIVE_LENS_POWER)).transpose()?;
    let objective_power = objective.and_then(|power| power.first().copied()).filter(|power| *power > 0.0);
    let mut icc_fault = None;
    let icc_profile = match path.and_then(|path| path.get(tags::ICC_PROFILE)).map(|element| &element.value) {
        None => None,
        Some(Value::Bytes(range)) if range.end - range.start <= options.limits.table_bytes => {
            Some(values.source.read_at(range.clone())?.into_owned()).filter(|profile| !profile.is_empty())
        }
        Some(Value::Bytes(range)) => {
            let (bytes, limit) = (range.end - range.start, options.limits.table_bytes);
            icc_fault = Some(format!("it has {bytes} bytes, the limit is {limit}"));
            None
        }
        Some(_) => {
            icc_fault = Some("the element holds no bytes".into());
            None
        }
    };
    let channel_names = channel_names(finest)?;
    let mut properties = properties::of(values, [&first.meta, data])?;
    properties.extend(icc_fault.map(|fault| (ICC_FAULT.to_owned(), fault)));
    let picture = first.picture()?;
    if picture.format.color == Color::Rgb && picture.format.coding == Coding::Jpeg {
        // A frame that cannot be read is for whoever reads it to complain about.
        let frame = picture.frames.read(0);
        if frame.is_ok_and(|frame| jpeg::looks_like_ycbcr(&frame)) {
            properties.insert("microtome.colors".into(), MISLABELLED.into());
        }
    }
    values.source.still_whole()?;
    files.extend(grids.iter().flat_map(Grid::instances).map(|instance| Arc::clone(&instance.values.source)));
    let mut others = files.split_off(1);
    others.retain(|file| !Arc::ptr_eq(file, &called));
    files.extend(others);
    let parts = Parts {
        files,
        associated,
        resolution,
        objective_power,
        channel_names,
        icc_profile,
        properties,
        ..Parts::new("dicom", called, grids.into_iter().map(Layer::of).collect())
    };
    Ok(Box::new(Pyramid::new(parts, options)?))
}

/// Said of a slide whose colours are probably wrong, in OpenSlide as here.
const MISLABELLED: &str =
    "taken for RGB, as the file says and as OpenSlide does, although its JPEG streams are made as those of YCbCr";

/// The size of a pixel, where the file says it.
fn resolution(first: &Instance) -> Result<Option<Resolution>> {
    let (values, data) = (&first.values, &first.data);
    let shared = data.item(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE);
    let measures = shared.and_then(|shared| shared.item(tags::PIXEL_MEASURES_SEQUENCE));
    let spacing = measures.map(|measures| values.numbers(measures, tags::PIXEL_SPACING)).transpose()?;
    let known = |x: f64, y: f64, field: &str| {
        let good = |mpp: f64| mpp.is_finite() && mpp > 0.0;
        let source = ResolutionSource::Vendor(format!("dicom.{field}"));
        (good(x) && good(y)).then_some(Resolution { mpp: Microns { x, y }, source })
    };
    if let Some([y, x, ..]) = spacing.as_deref() {
        return Ok(known(x * 1000.0, y * 1000.0, "PixelSpacing"));
    }
    let width = values.numbers(data, tags::IMAGED_VOLUME_WIDTH)?;
    let height = values.numbers(data, tags::IMAGED_VOLUME_HEIGHT)?;
    let (Some(width), Some(height)) = (width.first(), height.first()) else { return Ok(None) };
    let (columns, rows) = (first.size.width as f64, first.size.height as f64);
    Ok(known(width / columns * 1000.0, height / rows * 1000.0, "ImagedVolumeWidth"))
}

/// What the optical paths of brightnesses are called.
fn channel_names(grid: &Grid) -> Result<Vec<String>> {
    if grid.is_colored() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for volume in grid.volumes() {
        let first = volume.first();
        for (index, identifier) in first.paths.iter().enumerate() {
            let item = first.data.items(tags::OPTICAL_PATH_SEQUENCE).get(index);
            let said = item.map(|item| first.values.text(item, tags::OPTICAL_PATH_DESCRIPTION)).transpose()?;
            names.push(said.flatten().unwrap_or_else(|| identifier.clone()));
        }
    }
    Ok(if names.iter().all(String::is_empty) { Vec::new() } else { names })
}
