//! Regions as PNG pictures: those of users, and the one that a run leaves in its folder.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use microtome_io::{Downsample, Size};
use microtome_tile::{Placement, Roi, TargetGrid};
use png::{BitDepth, ColorType};
use serde::{Deserialize, Serialize};

use super::values::Values;
use super::{Place, refuse};
use crate::output::put_with;
use crate::{Error, Result};

/// Pixels along a side at most: more than any slide has.
const MAX_SIDE: u32 = 1 << 24;
/// Pixels in all at most: a mask at full resolution of a slide of 260000 x 260000 pixels.
const MAX_PIXELS: u64 = 1 << 36;
/// Bytes of a PNG's other chunks at most.
const CHUNK_BYTES: usize = 16 << 20;
/// The keyword of the text chunk that says where a mask lies.
const KEYWORD: &str = "microtome";

/// The content of the text chunk `microtome`, as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Note {
    /// Level-0 pixels per pixel of the mask.
    downsample: Downsample,
    /// The target grid of the run that wrote it. On that grid the step is taken as it was, and not computed again, which would round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<OnTarget>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct OnTarget {
    /// Level-0 pixels per target pixel.
    downsample: Downsample,
    /// Target pixels per pixel of the mask.
    step: Downsample,
}

/// Reads a region from a grey picture, row by row: two rows are held.
pub(super) fn read(path: &Path, asked: &[String], place: Place<'_>) -> Result<Roi> {
    let fault = |error: png::DecodingError| refuse(path, format!("this PNG cannot be read: {error}"));
    let file = File::open(path).map_err(|error| refuse(path, error))?;
    let mut decoder = png::Decoder::new_with_limits(BufReader::new(file), png::Limits { bytes: CHUNK_BYTES });
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(fault)?;
    let (width, height) = (header.width, header.height);
    if width.max(height) > MAX_SIDE || u64::from(width) * u64::from(height) > MAX_PIXELS {
        let message =
            format!("a mask of {width} x {height} pixels; {MAX_SIDE} to a side and {MAX_PIXELS} in all are allowed");
        return Err(refuse(path, message));
    }
    let kind = match header.color_type {
        ColorType::Grayscale => None,
        ColorType::GrayscaleAlpha => Some("an alpha channel"),
        ColorType::Rgb | ColorType::Rgba => Some("colours"),
        ColorType::Indexed => Some("a palette"),
    };
    if let Some(kind) = kind {
        return Err(refuse(path, format!("a mask has one grey channel, and this picture has {kind}")));
    }
    if header.interlaced {
        return Err(refuse(path, "an interlaced PNG cannot be read row by row; save it without interlacing"));
    }
    let depth = header.bit_depth;
    if depth != BitDepth::One {
        // Greys of 2 and 4 bits become 8, white being 255. Single bits stay packed: masks of whole slides are read eight pixels at once.
        decoder.set_transformations(png::Transformations::EXPAND);
    }
    let mut reader = decoder.read_info().map_err(fault)?;
    if reader.info().trns.is_some() {
        return Err(refuse(path, "a mask has one grey channel, and this picture has a transparent grey"));
    }
    let size = Size::new(width.into(), height.into());
    let placement = place_of(path, note(path, reader.info())?, size, place)?;

    let mut values = Values::new(path, asked, &[])?;
    let mut placed = placement.builder(place.target.size);
    let line = reader.output_line_size(width).ok_or_else(|| refuse(path, "a row of it does not fit into memory"))?;
    let (mut row, mut above, mut runs) = (vec![0; line], Vec::new(), Vec::new());
    for _ in 0..height {
        reader.read_row(&mut row).map_err(fault)?;
        // Most rows of a mask at high resolution are those above them.
        if row != above {
            runs.clear();
            match depth {
                BitDepth::One => values.runs_of_bits(&row, size.width, &mut runs),
                BitDepth::Sixteen => {
                    let samples: Vec<u16> = row.chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]])).collect();
                    values.runs(&samples, 0, &mut runs);
                }
                _ => values.runs(&row, 0, &mut runs),
            }
            above.clone_from(&row);
        }
        placed.push_row(runs.iter().cloned()).map_err(|error| refuse(path, error))?;
    }
    reader.finish().map_err(fault)?;
    let roi = placed.finish();
    values.check(&roi)?;
    Ok(roi)
}

fn note(path: &Path, info: &png::Info<'_>) -> Result<Option<Note>> {
    let latin =
        info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == KEYWORD).map(|chunk| chunk.text.clone());
    let utf8 = || info.utf8_text.iter().find(|chunk| chunk.keyword == KEYWORD).and_then(|chunk| chunk.get_text().ok());
    let Some(text) = latin.or_else(utf8) else { return Ok(None) };
    let note: Note = serde_json::from_str(&text)
        .map_err(|error| refuse(path, format!("its text chunk {KEYWORD:?} is not what microtome writes: {error}")))?;
    let target = note.target.into_iter().flat_map(|t| [t.downsample, t.step]);
    let factors: Vec<Downsample> = std::iter::once(note.downsample).chain(target).collect();
    if !factors.iter().flat_map(|d| [d.x, d.y]).all(|v| (1e-6..1e9).contains(&v)) {
        return Err(refuse(path, format!("its text chunk {KEYWORD:?} has a factor that is no plausible number")));
    }
    Ok(Some(note))
}

/// Where the mask lies: as its note says, else over the whole slide.
fn place_of(path: &Path, note: Option<Note>, size: Size, place: Place<'_>) -> Result<Placement> {
    let (target, slide) = (place.target, place.slide);
    let Some(note) = note else {
        check_proportions(path, size, slide)?;
        return Ok(Placement::stretched(size, target.size));
    };
    let Downsample { x, y } = note.downsample;
    let extent = (size.width as f64 * x, size.height as f64 * y);
    let fits = |extent: f64, step: f64, slide: u64| (extent - slide as f64).abs() <= step.max(1.0) + 1.0;
    if !(fits(extent.0, x, slide.width) && fits(extent.1, y, slide.height)) {
        let message = format!(
            "this mask covers a slide of about {:.0} x {:.0} pixels, and this one has {slide}",
            extent.0, extent.1
        );
        return Err(refuse(path, message));
    }
    let step = match note.target {
        Some(same) if same.downsample == target.downsample => same.step,
        _ => Downsample { x: x / target.downsample.x, y: y / target.downsample.y },
    };
    Ok(Placement { size, step, left: 0.0, top: 0.0 })
}

/// Refuses a mask that cannot be a picture of the whole slide.
pub(super) fn check_proportions(path: &Path, size: Size, slide: Size) -> Result<()> {
    // Sizes are rounded to whole pixels, so the proportions may differ by one pixel of the mask along either axis.
    let ratio = slide.height as f64 / slide.width as f64;
    let off = size.width as f64 * ratio - size.height as f64;
    if off.abs() > 1.0 + ratio {
        let message = format!("a mask of {size} pixels has not the proportions of the slide ({slide})");
        return Err(refuse(path, message));
    }
    Ok(())
}

/// Writes a region as a picture of 1 bit per cell, white where it is wanted, which [`read`] takes back as it was.
///
/// One row is held.
///
/// # Errors
/// [`Error::Io`] if it cannot be written.
pub(crate) fn write(roi: &Roi, target: &TargetGrid, path: &Path) -> Result<()> {
    let (size, step) = (roi.size(), roi.step());
    let note = Note {
        downsample: Downsample { x: step.x * target.downsample.x, y: step.y * target.downsample.y },
        target: Some(OnTarget { downsample: target.downsample, step }),
    };
    put_with(path, |file| {
        let side = |n: u64| u32::try_from(n).map_err(std::io::Error::other);
        let mut encoder = png::Encoder::new(BufWriter::new(file), side(size.width)?, side(size.height)?);
        encoder.set_color(ColorType::Grayscale);
        encoder.set_depth(BitDepth::One);
        encoder.set_compression(png::Compression::Fast);
        // A row that equals the one above becomes zeros.
        encoder.set_filter(png::Filter::Up);
        encoder.add_text_chunk(KEYWORD.into(), serde_json::to_string(&note)?)?;
        let mut header = encoder.write_header()?;
        let mut rows = header.stream_writer()?;
        for y in 0..size.height {
            rows.write_all(&packed(roi, y))?;
        }
        rows.finish()?;
        Ok(header.finish()?)
    })
    .map_err(|source| Error::Io { path: path.into(), source })
}

/// A row of cells, eight to a byte, the leftmost in the highest bit.
fn packed(roi: &Roi, y: u64) -> Vec<u8> {
    let mut row = vec![0_u8; roi.size().width.div_ceil(8) as usize];
    for run in roi.runs(y) {
        let (start, end) = (run.start as usize, run.end as usize);
        // The first bit of the run in its byte and all behind it, and all before the bit behind the run.
        let (first, last) = (0xff_u8 >> (start % 8), !(0xff_u8 >> (end % 8)));
        if start / 8 == end / 8 {
            row[start / 8] |= first & last;
        } else {
            row[start / 8] |= first;
            row[start / 8 + 1..end / 8].fill(0xff);
            if let Some(byte) = row.get_mut(end / 8) {
                *byte |= last;
            }
        }
    }
    row
}
