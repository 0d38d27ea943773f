//! Does every tile of a slide decode?

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rayon::prelude::*;

use super::SlideReader;
use crate::{Error, Level, Rect, Result};

/// Tiles whose places are known ahead.
const AT_A_TIME: usize = 4096;

/// What [`check`] found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Checked {
    /// Tiles that were decoded, or tried.
    pub tiles: u64,
    /// What is wrong, in the order of levels, rows and columns; pictures that travel along come last.
    pub faults: Vec<Error>,
}

/// Decodes every tile of every stored level, and every picture that travels along, on rayon's pool.
///
/// `go_on` hears after each tile how many pixels of how many are done; the check ends early, with what it has found, where it
/// returns false. Memory: a decoded tile per thread.
///
/// # Errors
/// [`Error::Io`] or [`Error::Transient`] if the file cannot be read any more: what follows would say nothing about the slide.
pub fn check(slide: &dyn SlideReader, go_on: &(dyn Fn(u64, u64) -> bool + Sync)) -> Result<Checked> {
    let info = slide.info();
    let stored: Vec<Level> = (0..info.levels.len()).filter(|&level| info.levels[level].stored).map(Level).collect();
    let mut total = 0;
    for &level in &stored {
        let bounds = info.level(level)?.size.rect();
        total +=
            slide.tiles(level)?.filter_map(|tile| tile.intersect(bounds)).map(|tile| tile.size().area()).sum::<u64>();
    }
    // Each tile is wanted once.
    slide.keep_decoded(0);
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (mut tiles_read, mut faults) = (0, Vec::new());
    for level in stored {
        let bounds = info.level(level)?.size.rect();
        let mut tiles = slide.tiles(level)?.filter_map(|tile| tile.intersect(bounds));
        loop {
            let some: Vec<Rect> = tiles.by_ref().take(AT_A_TIME).collect();
            if some.is_empty() || stop.load(Ordering::Relaxed) {
                break;
            }
            let decode = |tile: &Rect| -> Result<Option<Error>> {
                if stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                // A pixel is enough: a tile is decoded as a whole. It is the one in the middle, where tiles seldom overlap.
                let middle = Rect::new(tile.x + tile.width as i64 / 2, tile.y + tile.height as i64 / 2, 1, 1);
                let fault = slide.read_region(level, middle).err();
                let pixels = tile.size().area();
                if !go_on(done.fetch_add(pixels, Ordering::Relaxed) + pixels, total) {
                    stop.store(true, Ordering::Relaxed);
                }
                match fault {
                    Some(error @ (Error::Io { .. } | Error::Transient { .. })) => Err(error),
                    fault => Ok(fault),
                }
            };
            tiles_read += some.len() as u64;
            let found = some.par_iter().map(decode).collect::<Result<Vec<_>>>()?;
            faults.extend(found.into_iter().flatten());
        }
    }
    // Where tiles overlap, one that is broken is met more than once.
    faults.dedup_by_key(|fault| fault.to_string());
    if !stop.into_inner() {
        faults.extend(info.associated.iter().filter_map(|picture| slide.read_associated(&picture.name).err()));
    }
    Ok(Checked { tiles: tiles_read, faults })
}
