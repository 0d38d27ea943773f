//! A level or a picture that travels along: the frames of one file, or of several that were one, on their grid.

use std::sync::Arc;

use super::instance::{Instance, Picture, Places};
use crate::pixels::Samples;
use crate::slide::raster::{Raster, Shape};
use crate::{Error, Pixels, Result, SampleType, Size, TileCoord};

/// A picture that may be spread over the files of a concatenation.
#[derive(Debug)]
pub(super) struct Volume {
    /// In the order of their frames, which follow each other without a gap.
    pub(super) parts: Vec<Instance>,
    /// Tiles and their frames, in ascending order, for each optical path; `None` where all tiles are there.
    sparse: Option<Vec<Vec<(u64, u32)>>>,
}

impl Volume {
    /// Puts the files of a concatenation, or one file, together.
    pub(super) fn new(mut parts: Vec<Instance>) -> Result<Self> {
        parts.sort_by_key(|part| part.first_frame);
        parts.dedup_by(|a, b| a.uid == b.uid);
        let mut next = 0;
        let first = &parts[0];
        let (size, format) = (first.size, first.picture()?.format);
        for part in &parts {
            let path = part.values.source.path();
            let picture = part.picture()?;
            if part.first_frame != next {
                let what = format!("the part of the concatenation that holds frame {next} is missing");
                return Err(Error::format(path, format!("DICOM: {what}")));
            }
            if (part.size, picture.format) != (size, format) || part.paths != first.paths {
                return Err(Error::format(path, "DICOM: the parts of a concatenation differ in how they are stored"));
            }
            next += picture.frames.count;
        }
        let path = first.values.source.path();
        let cells = size.cells(format.size);
        let tiles = cells.width.checked_mul(cells.height);
        if parts.iter().all(|part| matches!(part.places, Places::Full)) {
            let want = tiles.and_then(|tiles| tiles.checked_mul(first.paths.len() as u64));
            if want != Some(next) {
                return Err(Error::format(
                    path,
                    format!(
                        "DICOM: there are {next} frames, where a full matrix of {size} pixels in tiles of {} and {} optical path(s) has {}",
                        format.size,
                        first.paths.len(),
                        want.map_or_else(|| "more than can be counted".into(), |want| want.to_string())
                    ),
                ));
            }
            return Ok(Self { parts, sparse: None });
        }
        let mut sparse = vec![Vec::new(); first.paths.len()];
        for part in &mut parts {
            let Places::Sparse(places) = std::mem::replace(&mut part.places, Places::Full) else {
                return Err(Error::format(part.values.source.path(), "DICOM: one part is TILED_FULL, another is not"));
            };
            for (number, (cell, path)) in places.into_iter().enumerate() {
                // Frames were counted against what 32 bits hold, but only per file.
                let frame = u32::try_from(part.first_frame + number as u64);
                let frame = frame.map_err(|_| Error::limits(part.values.source.path(), "DICOM: too many frames"))?;
                sparse[path as usize].push((cell, frame));
            }
        }
        for places in &mut sparse {
            places.sort_unstable();
            places.shrink_to_fit();
            if let Some(pair) = places.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                return Err(Error::unsupported(
                    parts[0].values.source.path(),
                    format!(
                        "DICOM: frames {} and {} lie at the same place: focal planes, perhaps, which cannot be read",
                        pair[0].1, pair[1].1
                    ),
                ));
            }
        }
        Ok(Self { parts, sparse: Some(sparse) })
    }

    pub(super) fn first(&self) -> &Instance {
        &self.parts[0]
    }

    /// The frames of the first part; those of the others are stored alike.
    fn picture(&self) -> Result<&Picture> {
        self.first().picture()
    }

    /// The file and the frame in it that hold a tile.
    fn frame(&self, cell: u64, cells: u64, path: usize) -> Option<(&Instance, u64)> {
        let frame = match &self.sparse {
            None => path as u64 * cells + cell,
            Some(sparse) => {
                let places = sparse.get(path)?;
                let found = places.binary_search_by_key(&cell, |&(cell, _)| cell).ok()?;
                places[found].1.into()
            }
        };
        let part = self.parts.partition_point(|part| part.first_frame <= frame).checked_sub(1)?;
        let part = &self.parts[part];
        Some((part, frame - part.first_frame))
    }
}

/// Volumes of one size whose optical paths are the channels of a picture, or one that is in colours.
#[derive(Debug)]
pub(super) struct Grid {
    shape: Shape,
    /// For each channel, or for all of them if they are colours: a volume, and an optical path of it.
    sources: Vec<(Arc<Volume>, usize)>,
    cells: Size,
}

impl Grid {
    /// The picture that volumes of one size make up.
    pub(super) fn new(volumes: Vec<Volume>) -> Result<Self> {
        let first = volumes[0].picture()?.format;
        let size = volumes[0].first().size;
        let path = volumes[0].first().values.source.path().to_owned();
        let mut names: Vec<&str> = Vec::new();
        for volume in &volumes {
            let format = volume.picture()?.format;
            let file = volume.first().values.source.path();
            if (format.size, format.sample, format.channels) != (first.size, first.sample, first.channels) {
                return Err(Error::unsupported(
                    file,
                    format!(
                        "DICOM: pictures of {size} pixels that differ in tiles, samples or channels cannot be read"
                    ),
                ));
            }
            for name in &volume.first().paths {
                if names.contains(&name.as_str()) {
                    return Err(Error::unsupported(
                        file,
                        format!(
                            "DICOM: there are several pictures of {size} pixels of the optical path {name:?}: \
                             focal planes or repetitions, perhaps, which cannot be read"
                        ),
                    ));
                }
                names.push(name);
            }
        }
        if first.channels > 1 && names.len() > 1 {
            return Err(Error::unsupported(
                path,
                format!("DICOM: {} optical paths in colours cannot be read, one can", names.len()),
            ));
        }
        let channels = first.channels * names.len();
        // Colours are of light that passes: where nothing was seen is glass. A single brightness, of light that is sent out.
        let empty = match (first.channels, first.sample) {
            (1, _) => 0,
            (_, SampleType::U8) => u16::from(u8::MAX),
            (_, SampleType::U16) => u16::MAX >> (16 - first.bits),
        };
        let shape = Shape { size, cell: first.size, channels, sample: first.sample, background: vec![empty; channels] };
        let mut sources = Vec::new();
        for volume in volumes {
            let volume = Arc::new(volume);
            sources.extend((0..volume.first().paths.len()).map(|path| (Arc::clone(&volume), path)));
        }
        Ok(Self { cells: size.cells(first.size), shape, sources })
    }

    /// The file that says what the whole picture is.
    pub(super) fn first(&self) -> &Instance {
        self.sources[0].0.first()
    }

    /// True if the channels are red, green and blue.
    pub(super) fn is_colored(&self) -> bool {
        self.shape.channels > self.sources.len()
    }

    /// The volumes, each once.
    pub(super) fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.sources.iter().filter(|(_, path)| *path == 0).map(|(volume, _)| &**volume)
    }

    /// All files, each once.
    pub(super) fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.volumes().flat_map(|volume| &volume.parts)
    }

    /// The files in which a tile lies, and the frames there, channel by channel.
    fn frames(&self, cell: TileCoord) -> impl Iterator<Item = Option<(&Instance, u64)>> {
        let number = cell.row * self.cells.width + cell.column;
        self.sources.iter().map(move |(volume, path)| volume.frame(number, self.cells.area(), *path))
    }

    fn decode_frame(&self, instance: &Instance, frame: u64) -> Result<Pixels> {
        let picture = instance.picture()?;
        let data = picture.frames.read(frame)?;
        let pixels = picture.format.decode(&data);
        // Bytes that vanished meanwhile read as zeros: neither these samples nor what is said against them counts then.
        let source = &instance.values.source;
        source.still_whole()?;
        pixels.map_err(|what| Error::format(source.path(), format!("frame {frame}: {what}")))
    }
}

impl Raster for Grid {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn decode(&self, cell: TileCoord) -> Result<Option<Pixels>> {
        if self.frames(cell).all(|frame| frame.is_none()) {
            return Ok(None);
        }
        let mut frames = self.frames(cell);
        if let ([_], Some(Some((instance, frame)))) = (&self.sources[..], frames.next()) {
            return self.decode_frame(instance, frame).map(Some);
        }
        let Shape { sample, background, .. } = &self.shape;
        let mut pixels = Pixels::filled(self.shape.cell, *sample, background);
        for (channel, frame) in self.frames(cell).enumerate() {
            if let Some((instance, frame)) = frame {
                put_channel(&mut pixels, channel, &self.decode_frame(instance, frame)?);
            }
        }
        Ok(Some(pixels))
    }

    fn prefetch(&self, cell: TileCoord) {
        for (instance, frame) in self.frames(cell).flatten() {
            // What cannot be read is for whoever reads it to complain about.
            let Ok(picture) = instance.picture() else { continue };
            if let Some(range) = picture.frames.range(frame) {
                instance.values.source.prefetch(range);
            }
        }
    }
}

/// Copies a picture of one channel into a channel of another of the same size.
fn put_channel(pixels: &mut Pixels, channel: usize, source: &Pixels) {
    fn copy<T: Copy>(to: &mut [T], channels: usize, channel: usize, from: &[T]) {
        for (pixel, &sample) in to.chunks_exact_mut(channels).zip(from) {
            pixel[channel] = sample;
        }
    }
    let channels = pixels.channels();
    match (pixels.samples_mut(), source.samples()) {
        (Samples::U8(to), Samples::U8(from)) => copy(to, channels, channel, from),
        (Samples::U16(to), Samples::U16(from)) => copy(to, channels, channel, from),
        _ => unreachable!("all volumes of a grid have one sample type"),
    }
}
