//! The level that one hop leaves to the next: a raster in a file without a name, so that nothing is left of it however the process ends.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use microtome_io::{Pixels, Rect, SampleType, Samples, Size};

use crate::{Error, Result};

/// Written pages that may wait for the disk: they count as memory.
const SYNC_BYTES: u64 = 16 << 20;

/// A level on the disk: its rows one after the other, samples of 16 bits with the low byte first.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: PathBuf,
    size: Size,
    channels: usize,
    sample: SampleType,
    /// A cursor that all share: a cell brings a hundred rows of a few hundred bytes once in a tenth of a second.
    file: Mutex<Cursor>,
}

#[derive(Debug)]
struct Cursor {
    file: File,
    unsynced: u64,
}

impl Scratch {
    /// Room for a level of this size, in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] if no file can be made there.
    pub(super) fn new(folder: &Path, size: Size, channels: usize, sample: SampleType) -> Result<Self> {
        let file = tempfile::tempfile_in(folder).map_err(|source| Error::Io { path: folder.into(), source })?;
        Ok(Self { folder: folder.into(), size, channels, sample, file: Mutex::new(Cursor { file, unsynced: 0 }) })
    }

    fn pixel_bytes(&self) -> u64 {
        (self.channels * self.sample.bytes()) as u64
    }

    /// Writes the part `part` of pixels that lie at `at`.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk refuses.
    pub(super) fn write(&self, pixels: &Pixels, at: Rect, part: Rect) -> Result<()> {
        let mut cursor = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut row_bytes = Vec::new();
        for y in part.y..part.bottom() {
            let first = ((y - at.y) as u64 * at.width + (part.x - at.x) as u64) as usize * self.channels;
            let row = first..first + part.width as usize * self.channels;
            row_bytes.clear();
            match pixels.samples() {
                Samples::U8(samples) => row_bytes.extend_from_slice(&samples[row]),
                Samples::U16(samples) => row_bytes.extend(samples[row].iter().flat_map(|sample| sample.to_le_bytes())),
            }
            cursor.write(self.offset(part.x, y), &row_bytes).map_err(|source| self.failed(source))?;
        }
        Ok(())
    }

    /// The pixels of a rectangle inside the level.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk refuses.
    pub(super) fn read(&self, rect: Rect) -> Result<Pixels> {
        let row = (rect.width * self.pixel_bytes()) as usize;
        let mut bytes = vec![0; row * rect.height as usize];
        let mut cursor = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        for (y, row) in (rect.y..).zip(bytes.chunks_exact_mut(row)) {
            cursor.read(self.offset(rect.x, y), row).map_err(|source| self.failed(source))?;
        }
        drop(cursor);
        Ok(match self.sample {
            SampleType::U8 => Pixels::from_u8(rect.size(), self.channels, bytes),
            SampleType::U16 => {
                let samples = bytes.as_chunks::<2>().0.iter().map(|&pair| u16::from_le_bytes(pair)).collect();
                Pixels::from_u16(rect.size(), self.channels, samples)
            }
        })
    }

    fn offset(&self, x: i64, y: i64) -> u64 {
        (y as u64 * self.size.width + x as u64) * self.pixel_bytes()
    }

    fn failed(&self, source: std::io::Error) -> Error {
        Error::Io { path: self.folder.clone(), source }
    }
}

impl Cursor {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        self.file.write_all(bytes)?;
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= SYNC_BYTES {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(())
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        self.file.read_exact(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_back_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let size = Size::new(50, 30);
        for sample in [SampleType::U8, SampleType::U16] {
            let scratch = Scratch::new(folder.path(), size, 3, sample).unwrap();
            let value = |i: u64| (i * 7919 % 65521) as u16;
            let all: Vec<u16> = (0..size.area() * 3).map(value).collect();
            let whole = match sample {
                SampleType::U8 => Pixels::from_u8(size, 3, all.iter().map(|&v| v as u8).collect()),
                SampleType::U16 => Pixels::from_u16(size, 3, all),
            };
            for y in (0..30).step_by(8) {
                for x in (0..50).step_by(16) {
                    let part = Rect::new(x, y, 16, 8).intersect(size.rect()).unwrap();
                    scratch.write(&whole, size.rect(), part).unwrap();
                }
            }
            assert_eq!(scratch.read(size.rect()).unwrap(), whole);
            let part = Rect::new(13, 5, 20, 11);
            let mut expected = Pixels::filled(part.size(), sample, &[0; 3]);
            expected.blit(part, &whole, size.rect());
            assert_eq!(scratch.read(part).unwrap(), expected);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
    }
}
