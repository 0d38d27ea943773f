//! Which part of an image is not black: nnU-Net looks at no more.

use std::sync::atomic::{AtomicBool, Ordering};

use microtome_io::{Pixels, Rect, Samples, Size};
use rayon::prelude::*;

use crate::reader::Reader;
use crate::statistics::{Damage, ImageStatistics};
use crate::{Error, Result};

/// Pieces that are read at a time: for each of them the same is known beforehand, so that neither what is read nor what cannot be read
/// depends on threads.
const GROUP: usize = 8;
/// The corners of a picture without black borders say that it has none.
const CORNER: Size = Size::new(64, 64);
/// Around what cannot be read, pieces of this size count as not black.
const SMALLEST_PIECE: u64 = 16;

/// The smallest rectangle of the target grid that holds every pixel of which any sample is not 0; the whole grid where all are 0.
/// nnU-Net crops every image to it (2.8.1, `crop_to_nonzero`; in two dimensions it fills no holes).
///
/// The search goes inwards from each edge, on the current rayon pool, and ends at the first pixel that is not black, so that the middle
/// of the picture is never read, and next to nothing of one without black borders. What lies in a tile of the slide that cannot be decoded
/// is an error or counts as not black, as `damage` says.
///
/// Memory: a piece of [`ImageStatistics::PIECE`] per thread. `progress` is told the pixels of each piece that was read; once it says
/// `false`, the search is given up and there is no result.
///
/// # Errors
/// [`Error::Slide`] if a part of the slide cannot be read that the search needs.
pub fn nonzero(reader: Reader<'_>, damage: Damage, progress: &(dyn Fn(u64) -> bool + Sync)) -> Result<Option<Rect>> {
    let size = reader.grid().size;
    let mut search = Search { reader, damage, progress, going: AtomicBool::new(true), seen: None };
    let (right, bottom) = (size.width - CORNER.width.min(size.width), size.height - CORNER.height.min(size.height));
    let corners = [(0, 0), (right, bottom)].map(|(x, y)| Rect::new(x as i64, y as i64, CORNER.width, CORNER.height));
    search.read(corners.into_iter().filter_map(|corner| corner.intersect(size.rect())))?;
    for edge in [Edge::Top, Edge::Bottom, Edge::Left, Edge::Right] {
        search.from(edge)?;
        if edge == Edge::Top && search.seen.is_none() {
            // All is black.
            break;
        }
    }
    Ok(search.going.into_inner().then_some(search.seen.unwrap_or(size.rect())))
}

/// Where a search begins. Left and right come last: above and below of what was seen all is black by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    Top,
    Bottom,
    Left,
    Right,
}

struct Search<'a> {
    reader: Reader<'a>,
    damage: Damage,
    progress: &'a (dyn Fn(u64) -> bool + Sync),
    going: AtomicBool,
    /// The smallest rectangle around the pixels that were met and are not black.
    seen: Option<Rect>,
}

impl Search<'_> {
    /// Looks at everything between an edge and what was seen, band by band.
    fn from(&mut self, edge: Edge) -> Result<()> {
        let size = self.reader.grid().size;
        let cells = size.cells(ImageStatistics::PIECE);
        let across = matches!(edge, Edge::Top | Edge::Bottom);
        let (bands, length) = if across { (cells.height, cells.width) } else { (cells.width, cells.height) };
        for band in 0..bands {
            let band = if matches!(edge, Edge::Top | Edge::Left) { band } else { bands - 1 - band };
            let mut at = 0;
            while at < length {
                let open = self.open(edge);
                let group = at..(at + GROUP as u64).min(length);
                at = group.end;
                let pieces = group.filter_map(|i| {
                    let (row, column) = if across { (band, i) } else { (i, band) };
                    microtome_io::TileCoord { row, column }.rect(ImageStatistics::PIECE).intersect(open?)
                });
                self.read(pieces)?;
            }
        }
        Ok(())
    }

    /// Where a pixel that is not black would bring what was seen closer to an edge.
    fn open(&self, edge: Edge) -> Option<Rect> {
        let image = self.reader.grid().size.rect();
        let Some(seen) = self.seen else { return Some(image) };
        let open = match edge {
            Edge::Top => Rect::new(0, 0, image.width, seen.y as u64),
            Edge::Bottom => Rect::new(0, seen.bottom(), image.width, image.bottom().abs_diff(seen.bottom())),
            Edge::Left => Rect::new(0, seen.y, seen.x as u64, seen.height),
            Edge::Right => Rect::new(seen.right(), seen.y, image.right().abs_diff(seen.right()), seen.height),
        };
        (!open.is_empty()).then_some(open)
    }

    /// Looks at pieces.
    fn read(&mut self, pieces: impl Iterator<Item = Rect>) -> Result<()> {
        let pieces: Vec<Rect> = pieces.collect();
        let this = &*self;
        let seen = pieces
            .into_par_iter()
            .map(|piece| {
                if !this.going.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let seen = this.piece(piece)?;
                if !(this.progress)(piece.size().area()) {
                    this.going.store(false, Ordering::Relaxed);
                }
                Ok(seen)
            })
            .try_reduce(|| None, |a, b| Ok::<_, Error>(around(a, b)))?;
        self.seen = around(self.seen, seen);
        Ok(())
    }

    /// What is not black of a piece.
    fn piece(&self, piece: Rect) -> Result<Option<Rect>> {
        match self.reader.read(piece) {
            Ok(pixels) => Ok(bounds(&pixels).map(|b| Rect::new(piece.x + b.x, piece.y + b.y, b.width, b.height))),
            Err(Error::Slide(microtome_io::Error::Tile { .. })) if self.damage == Damage::LeftOut => {
                // Closer and closer around what cannot be read.
                let Size { width, height } = piece.size();
                if width.max(height) <= SMALLEST_PIECE {
                    return Ok(Some(piece));
                }
                let half = Size::new(width.div_ceil(2), height.div_ceil(2));
                let quarters = [(0, 0), (1, 0), (0, 1), (1, 1)].into_iter().filter_map(|(right, below)| {
                    let (x, y) = (piece.x + (right * half.width) as i64, piece.y + (below * half.height) as i64);
                    Rect::new(x, y, half.width, half.height).intersect(piece)
                });
                quarters.map(|quarter| self.piece(quarter)).try_fold(None, |seen, next| Ok(around(seen, next?)))
            }
            Err(error) => Err(error),
        }
    }
}

/// The smallest rectangle around both.
fn around(a: Option<Rect>, b: Option<Rect>) -> Option<Rect> {
    let (Some(a), Some(b)) = (a, b) else { return a.or(b) };
    let (x, y) = (a.x.min(b.x), a.y.min(b.y));
    let (right, bottom) = (a.right().max(b.right()), a.bottom().max(b.bottom()));
    Some(Rect::new(x, y, right.abs_diff(x), bottom.abs_diff(y)))
}

/// The smallest rectangle around the pixels of a picture that are not black.
fn bounds(pixels: &Pixels) -> Option<Rect> {
    let (width, channels) = (pixels.size().width as usize, pixels.channels());
    match pixels.samples() {
        Samples::U8(samples) => bounds_of(samples, width, channels),
        Samples::U16(samples) => bounds_of(samples, width, channels),
    }
}

fn bounds_of<T: Copy + Default + PartialEq>(samples: &[T], width: usize, channels: usize) -> Option<Rect> {
    let zero = T::default();
    let (mut rows, mut columns) = (None, (width, 0));
    for (y, row) in samples.chunks_exact(width * channels).enumerate() {
        let Some(first) = row.iter().position(|&sample| sample != zero) else { continue };
        let last = row.iter().rposition(|&sample| sample != zero).unwrap_or(first);
        let (top, _) = rows.unwrap_or((y, y));
        rows = Some((top, y));
        columns = (columns.0.min(first / channels), columns.1.max(last / channels));
    }
    let ((top, bottom), (left, right)) = (rows?, columns);
    Some(Rect::new(left as i64, top as i64, (right - left + 1) as u64, (bottom - top + 1) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_sample_counts() {
        let size = Size::new(7, 5);
        let mut samples = vec![0u16; 7 * 5 * 3];
        let bounds = |samples: &[u16]| bounds(&Pixels::from_u16(size, 3, samples.to_vec()));
        assert_eq!(bounds(&samples), None);
        samples[(2 * 7 + 4) * 3 + 2] = 256;
        assert_eq!(bounds(&samples), Some(Rect::new(4, 2, 1, 1)));
        samples[(3 * 7 + 1) * 3 + 1] = 1;
        assert_eq!(bounds(&samples), Some(Rect::new(1, 2, 4, 2)));
        samples[0] = 1;
        assert_eq!(bounds(&samples), Some(Rect::new(0, 0, 5, 4)));
    }
}
