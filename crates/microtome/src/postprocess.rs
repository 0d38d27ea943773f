//! Post-processing of a finished mask: a second mask, made of the first shard by shard.

use std::path::Path;

use microtome_io::store::{
    self, Content, Encoding, Format, Found, ImageSink, OmeZarr, StoreLevel, StoredImage, ZarrImage,
};
use microtome_io::{Level, Pixels, Rect, Size, TileCoord};
use microtome_stitch::{Components, Product, PyramidWriter};
use microtome_tile::pyramid::{Reduction, Shard, level_sizes};
use microtome_unet::Postprocessing;
use serde::Serialize;
use serde_json::{Map, json};

use crate::convert::archive;
use crate::distinct::distinct;
use crate::output::Existing;
use crate::plan::PYRAMID_BYTES;
use crate::progress::{Observer, Phase};
use crate::{Error, Result, Settings};

/// What a step has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Postprocessed {
    /// The step.
    pub step: Postprocessing,
    /// Connected components that there were before.
    pub components: u64,
    /// Pixels of the largest.
    pub largest: u64,
    /// Pixels that became background.
    pub cleared: u64,
}

/// Applies `steps`, in their order, to the mask at `from`, and writes the result to `to`, in the version of OME-Zarr that the mask
/// has (of older ones 0.5), with a pyramid of its own; `from` stays as it is.
///
/// The mask is read once for each step and once more to write, a shard at a time. Memory is that of a few shards, 12 bytes for each
/// component of a shard, and 8 bytes for each pixel of the mask's width.
///
/// # Errors
/// [`Error::Read`] if the mask cannot be read, [`Error::Usage`] if it is a picture and no mask, if there is no step or
/// if `to` is the mask itself,
/// [`Error::OutputExists`] if something is at `to` (only a store of ours, finished or not, gives way to [`Existing::Replace`]),
/// [`Error::Write`] if the result cannot be written, [`Error::Interrupted`] if the observer says so: then nothing is left.
pub fn postprocess(
    from: &Path,
    to: &Path,
    steps: &[Postprocessing],
    existing: Existing,
    observer: &dyn Observer,
) -> Result<Vec<Postprocessed>> {
    if steps.is_empty() {
        return Err(Error::Usage("there is no post-processing to apply".into()));
    }
    let mask = OmeZarr::open(from).map_err(Error::Read)?;
    let Content::Labels { .. } = mask.info().content else {
        return Err(Error::Usage(format!("{}: a picture, and no mask of labels", from.display())));
    };
    archive::refuse(to)?;
    distinct(to, [from])?;
    claim(to, existing)?;
    let job = Job { mask: &mask, image: image(&mask, from, steps), steps, observer };
    let written = job.write(to);
    if written.is_err() {
        // Best effort: the error that counts is the one at hand.
        if let Ok(Found::Unfinished) = store::inspect(to) {
            let _ = store::remove(to);
        }
    }
    written
}

/// Makes room, or says why that cannot be.
fn claim(to: &Path, existing: Existing) -> Result<()> {
    let taken = |hint| Err(Error::OutputExists { path: to.into(), found: "something".into(), hint });
    match store::inspect(to).map_err(Error::Write)? {
        Found::Nothing => Ok(()),
        Found::InUse => Err(Error::InUse { path: to.into() }),
        Found::Complete(_) | Found::Unfinished | Found::Elsewhere if existing == Existing::Replace => {
            store::remove(to).map_err(Error::Write)
        }
        Found::Complete(_) | Found::Unfinished | Found::Elsewhere => taken("; --overwrite replaces it"),
        _ => taken(", and it is not microtome's"),
    }
}

/// The result, but for its pixels: like the mask, in pieces of the usual size.
fn image(mask: &OmeZarr, from: &Path, steps: &[Postprocessing]) -> StoredImage {
    let info = mask.info();
    let settings = Settings::default();
    let finest = info.levels[0];
    let mut metadata = Map::new();
    metadata.insert("method".into(), "microtome: majority of 2 x 2 pixels, ties to the lower label".into());
    metadata.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    metadata.insert("args".into(), json!({ "postprocessing": steps }));
    let mut attributes = info.attributes.clone();
    // It is not the store of that run, which goes by this name.
    if let Some(fingerprint) = attributes.remove("fingerprint") {
        attributes.insert("fingerprint_of_mask".into(), fingerprint);
    }
    attributes.insert("postprocessing".into(), json!(steps));
    let format = if info.version == Format::V0_4.version() { Format::V0_4 } else { Format::default() };
    let name = from.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    attributes.insert("postprocessing_of".into(), name.into());
    StoredImage {
        name: info.name.clone().unwrap_or_else(|| "labels".into()),
        levels: StoreLevel { ..finest }.pyramid(level_sizes(finest.size, settings.chunk).len()),
        chunk: Size::new(settings.chunk, settings.chunk),
        shard: Size::new(settings.shard, settings.shard),
        sample: info.sample,
        encoding: Encoding { format, ..Encoding::default() },
        source: None,
        content: info.content.clone(),
        method: Reduction::Mode.name().into(),
        metadata,
        attributes,
    }
}

struct Job<'a> {
    mask: &'a OmeZarr,
    image: StoredImage,
    steps: &'a [Postprocessing],
    observer: &'a dyn Observer,
}

impl Job<'_> {
    fn write(&self, to: &Path) -> Result<Vec<Postprocessed>> {
        let size = self.size();
        let passes = self.steps.len() as u64 + 1;
        let mut done = 0;
        let mut progress = |rect: Rect| {
            done += rect.size().area();
            self.observer.progress(done, size.area() * passes);
        };
        self.observer.phase(Phase::Postprocessing);
        let mut found: Vec<(Components, u64)> = Vec::new();
        for step in self.steps {
            let Postprocessing::KeepLargest { values } = step;
            let mut components = Components::new(size, self.image.shard, values.clone());
            for at in self.cells() {
                let (pixels, rect) = self.cell(at, &mut found)?;
                components.push(&pixels)?;
                progress(rect);
            }
            found.iter_mut().for_each(|(_, cleared)| *cleared = 0);
            found.push((components, 0));
        }
        let sink = ZarrImage::create(to, self.image.clone()).map_err(Error::Write)?;
        let sinks = [(Product::Labels, &sink as &dyn ImageSink)];
        let writer = PyramidWriter::new(sinks, None, Settings::default().sync_every, PYRAMID_BYTES as usize);
        for at in self.cells() {
            let (pixels, rect) = self.cell(at, &mut found)?;
            writer.push(Product::Labels, at, Shard::Pixels(pixels))?;
            progress(rect);
        }
        sink.finish(&Map::new()).map_err(Error::Write)?;
        let report = |(step, (components, cleared)): (&Postprocessing, &(Components, u64))| Postprocessed {
            step: step.clone(),
            components: components.count(),
            largest: components.largest(),
            cleared: *cleared,
        };
        Ok(self.steps.iter().zip(&found).map(report).collect())
    }

    fn size(&self) -> Size {
        self.image.levels[0].size
    }

    /// All shards of the finest level, row by row.
    fn cells(&self) -> impl Iterator<Item = TileCoord> + use<> {
        let cells = self.size().cells(self.image.shard);
        (0..cells.area()).map(move |n| TileCoord { row: n / cells.width, column: n % cells.width })
    }

    /// A shard of the mask after the steps that are known so far, and where it lies.
    fn cell(&self, at: TileCoord, found: &mut [(Components, u64)]) -> Result<(Pixels, Rect)> {
        if self.observer.cancelled() {
            return Err(Error::Interrupted);
        }
        let Some(rect) = self.image.shard_rect(Level::FINEST, at) else {
            return Err(Error::Usage(format!("the mask has no shard {at}")));
        };
        let mut pixels = self.mask.read_region(Level::FINEST, rect).map_err(Error::Read)?;
        for (components, cleared) in found {
            *cleared += components.keep_largest(at, &mut pixels)?;
        }
        Ok((pixels, rect))
    }
}
