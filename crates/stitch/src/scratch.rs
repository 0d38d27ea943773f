//! Logits that the next strip needs, kept on disk.
//!
//! A tile that reaches over the edge between two strips adds to both. Either the network runs for it once in each, or what it
//! says of the next strip waits here: a queue, because the next strip asks in the order in which this one found them. The
//! logits come back as they were, bit for bit, so neither way changes a byte of the mask.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use microtome_io::Rect;
use microtome_tile::TileIndex;

use crate::{Error, Result};

/// Written pages that may wait for the disk: they count as memory.
const SYNC_BYTES: u64 = 16 << 20;

/// Two queues in a folder: one that the strip at hand takes from, and one that it fills for the next.
///
/// The files have no names, so nothing is left of them however the process ends.
#[derive(Debug)]
pub struct Scratch {
    folder: PathBuf,
    /// What the strip before has left.
    from: BufReader<File>,
    /// What the next one will find.
    to: File,
    unsynced: u64,
    written: u64,
    bytes: Vec<u8>,
}

/// What a tile says of the part of it that lies in the next strips.
#[derive(Debug, Clone, PartialEq)]
pub enum Kept {
    /// Its logits there: planes × height × width.
    Logits {
        /// The part, in target pixels.
        part: Rect,
        /// Plane by plane, row by row.
        values: Vec<f32>,
    },
    /// The tile could not be read.
    Unreadable,
}

impl Scratch {
    /// Empty queues.
    ///
    /// # Errors
    /// [`Error::Scratch`] if files cannot be made in `folder`.
    pub fn new(folder: &Path) -> Result<Self> {
        let file = || tempfile::tempfile_in(folder).map_err(|source| Error::Scratch { folder: folder.into(), source });
        let (from, to) = (BufReader::with_capacity(1 << 20, file()?), file()?);
        Ok(Self { folder: folder.into(), from, to, unsynced: 0, written: 0, bytes: Vec::new() })
    }

    /// The next strip begins: what was kept is there to be taken, and what was not taken is forgotten.
    ///
    /// # Errors
    /// [`Error::Scratch`] if the files cannot be rewound.
    pub fn turn(&mut self) -> Result<()> {
        let folder = self.folder.clone();
        let mut turn = || -> std::io::Result<()> {
            self.to.sync_data()?;
            std::mem::swap(self.from.get_mut(), &mut self.to);
            self.from.seek(SeekFrom::Start(0))?;
            self.to.set_len(0)?;
            self.to.seek(SeekFrom::Start(0))?;
            self.unsynced = 0;
            Ok(())
        };
        turn().map_err(|source| Error::Scratch { folder, source })
    }

    /// Keeps what a tile says for the next strip.
    ///
    /// # Errors
    /// [`Error::Scratch`] if the disk refuses.
    pub fn keep(&mut self, tile: TileIndex, kept: &Kept) -> Result<()> {
        self.bytes.clear();
        let (part, values) = match kept {
            Kept::Logits { part, values } => (*part, values.as_slice()),
            Kept::Unreadable => (Rect::new(0, 0, 0, 0), [].as_slice()),
        };
        let head = [tile.0, part.x as u64, part.y as u64, part.width, part.height, values.len() as u64];
        self.bytes.extend(head.iter().flat_map(|n| n.to_le_bytes()));
        self.bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let written = self.to.write_all(&self.bytes).and_then(|()| {
            self.unsynced += self.bytes.len() as u64;
            self.written += self.bytes.len() as u64;
            if self.unsynced >= SYNC_BYTES {
                self.unsynced = 0;
                return self.to.sync_data();
            }
            Ok(())
        });
        written.map_err(|source| Error::Scratch { folder: self.folder.clone(), source })
    }

    /// Takes what the strip before kept of a tile. Tiles are asked for in the order in which they were kept.
    ///
    /// # Errors
    /// [`Error::Scratch`] if the disk fails, or another tile comes next.
    pub fn take(&mut self, tile: TileIndex) -> Result<Kept> {
        let failed = |source| Error::Scratch { folder: self.folder.clone(), source };
        let mut head = [0u8; 48];
        self.from.read_exact(&mut head).map_err(failed)?;
        let field = |i: usize| head[i * 8..][..8].iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
        if field(0) != tile.0 {
            let message = format!("tile {} was kept where tile {} is asked for", field(0), tile.0);
            return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidData, message)));
        }
        let part = Rect::new(field(1) as i64, field(2) as i64, field(3), field(4));
        if part.is_empty() {
            return Ok(Kept::Unreadable);
        }
        self.bytes.resize(field(5) as usize * 4, 0);
        self.from.read_exact(&mut self.bytes).map_err(failed)?;
        let values = self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(Kept::Logits { part, values })
    }

    /// Bytes written so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(x: i64, seed: f32) -> Kept {
        Kept::Logits { part: Rect::new(x, -3, 2, 2), values: vec![seed, -0.0, f32::MIN_POSITIVE, seed * 1e30] }
    }

    #[test]
    fn what_is_kept_comes_back_in_order_in_the_next_strip_and_no_later() {
        let folder = tempfile::tempdir().unwrap();
        let mut scratch = Scratch::new(folder.path()).unwrap();
        scratch.keep(TileIndex(3), &logits(-7, 1.5)).unwrap();
        scratch.keep(TileIndex(9), &Kept::Unreadable).unwrap();
        scratch.turn().unwrap();
        scratch.keep(TileIndex(9), &logits(40, 0.1)).unwrap();
        assert_eq!(scratch.take(TileIndex(3)).unwrap(), logits(-7, 1.5));
        assert_eq!(scratch.take(TileIndex(9)).unwrap(), Kept::Unreadable);
        assert!(matches!(scratch.take(TileIndex(10)), Err(Error::Scratch { .. })), "no more was kept");
        scratch.turn().unwrap();
        assert!(matches!(scratch.take(TileIndex(8)), Err(Error::Scratch { .. })), "another tile comes next");
        scratch.keep(TileIndex(1), &logits(0, 2.0)).unwrap();
        scratch.turn().unwrap();
        assert_eq!(scratch.take(TileIndex(1)).unwrap(), logits(0, 2.0));
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none(), "the files have no names");
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        let error = Scratch::new(&gone).unwrap_err().to_string();
        assert!(error.contains("gone"), "{error}");
    }
}
