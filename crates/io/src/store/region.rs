//! A rectangle of a level, chunk by chunk.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::array::{Array, Grid, ShardFile};
use super::multiscale::Axes;
use super::open_shards::OpenShards;
use crate::{Error, Pixels, Rect, Result, SampleType, Samples, TileCoord};

/// A rectangle of a level on its way into the result.
pub(super) struct Region<'a> {
    array: &'a Array,
    axes: &'a Axes,
    rect: Rect,
    /// What of `rect` the level holds.
    inside: Rect,
    /// The channels that are read; the result has no others.
    channels: Range<usize>,
    result: Mutex<Pixels>,
    /// Shards that are open already.
    open: Option<&'a OpenShards>,
    /// True once a chunk was found.
    any: AtomicBool,
}

/// The chunk and what is wrong with it.
pub(super) type Fault = (TileCoord, Error);

impl<'a> Region<'a> {
    /// All channels of `rect`, of which the level holds `inside`. They are put into `result`, which is as large as `rect` and holds what is outside.
    pub(super) fn new(array: &'a Array, axes: &'a Axes, rect: Rect, inside: Rect, result: Pixels) -> Self {
        let channels = 0..axes.channel.map_or(1, |c| array.shape[c] as usize);
        Self {
            array,
            axes,
            rect,
            inside,
            channels,
            result: Mutex::new(result),
            open: None,
            any: AtomicBool::new(false),
        }
    }

    /// Only these channels, at least one. The result has as many.
    pub(super) fn channels(self, channels: Range<usize>) -> Self {
        Self { channels, ..self }
    }

    /// Shards are looked for there before they are opened.
    pub(super) fn open(self, open: &'a OpenShards) -> Self {
        Self { open: Some(open), ..self }
    }

    /// Reads on this thread, and returns `None` if nothing of it is stored.
    pub(super) fn read_if_stored(self) -> Result<Option<Pixels>, Fault> {
        self.each_in_order()?;
        Ok(self.any.load(Ordering::Relaxed).then(|| self.into_result()))
    }

    /// Reads on this thread.
    pub(super) fn read_in_order(self) -> Result<Pixels, Fault> {
        self.each_in_order()?;
        Ok(self.into_result())
    }

    fn each_in_order(&self) -> Result<(), Fault> {
        let files = self.files();
        for file in (0..files.count()).map(|n| files.get(n)) {
            let (opened, chunks) = self.open_file(&file)?;
            (0..chunks.count()).try_for_each(|n| self.read_chunk(opened.as_deref(), &chunks.get(n)))?;
        }
        Ok(())
    }

    /// Says that the region will be read soon.
    pub(super) fn prefetch(&self) {
        let files = self.files();
        for file in (0..files.count()).map(|n| files.get(n)) {
            let Ok((opened, chunks)) = self.open_file(&file) else { return };
            (0..chunks.count()).for_each(|n| self.array.prefetch(opened.as_deref(), &chunks.get(n)));
        }
    }

    /// Reads on rayon's pool.
    pub(super) fn read_in_parallel(self) -> Result<Pixels, Fault> {
        let files = self.files();
        (0..files.count()).into_par_iter().try_for_each(|n| {
            let (opened, chunks) = self.open_file(&files.get(n))?;
            (0..chunks.count()).into_par_iter().try_for_each(|n| self.read_chunk(opened.as_deref(), &chunks.get(n)))
        })?;
        Ok(self.into_result())
    }

    fn into_result(self) -> Pixels {
        self.result.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first and last index along an axis that the region needs.
    fn needs(&self, axis: usize) -> (u64, u64) {
        let span = |at: i64, n: u64| (at as u64, at as u64 + n - 1);
        match axis {
            _ if axis == self.axes.x => span(self.inside.x, self.inside.width),
            _ if axis == self.axes.y => span(self.inside.y, self.inside.height),
            _ if self.axes.channel == Some(axis) => (self.channels.start as u64, self.channels.end as u64 - 1),
            _ => (0, 0),
        }
    }

    /// The first and last chunk that the region needs, per axis.
    fn chunks(&self) -> Vec<(u64, u64)> {
        let chunk = |axis: usize, side: u64| {
            let (first, last) = self.needs(axis);
            (first / side, last / side)
        };
        self.array.chunk.iter().enumerate().map(|(axis, &side)| chunk(axis, side)).collect()
    }

    fn files(&self) -> Grid {
        let (first, last): (Vec<u64>, Vec<u64>) = self.chunks().into_iter().unzip();
        let (first, last) = (self.array.file_of(&first), self.array.file_of(&last));
        Grid::new(first.into_iter().zip(last).collect())
    }

    /// Opens a file if it is a shard, and says which of its chunks the region needs.
    fn open_file(&self, file: &[u64]) -> Result<(Option<Arc<ShardFile>>, Grid), Fault> {
        let (per_file, needed) = (self.array.chunks_per_file(), self.chunks());
        let here: Vec<(u64, u64)> = (file.iter().zip(&per_file).zip(&needed))
            .map(|((&file, &n), &(first, last))| (first.max(file * n), last.min(file * n + (n - 1))))
            .collect();
        let chunks = Grid::new(here);
        if self.array.is_unsharded() {
            return Ok((None, chunks));
        }
        let opened = match self.open {
            Some(open) => open.get(self.array, file),
            None => self.array.open_shard(file).map(|shard| shard.map(Arc::new)),
        };
        Ok((opened.map_err(|error| (self.tile(&chunks.get(0)), error))?, chunks))
    }

    fn tile(&self, chunk: &[u64]) -> TileCoord {
        TileCoord { row: chunk[self.axes.y], column: chunk[self.axes.x] }
    }

    fn read_chunk(&self, shard: Option<&ShardFile>, chunk: &[u64]) -> Result<(), Fault> {
        let decoded = self.array.read_chunk(shard, chunk).map_err(|error| (self.tile(chunk), error))?;
        let fill = self.array.fill;
        let Some(decoded) = decoded else {
            if fill != 0 {
                let strides = vec![0; chunk.len()];
                match self.array.sample {
                    SampleType::U8 => self.place(chunk, &[fill as u8], &strides, u8_mut(&mut self.result())),
                    SampleType::U16 => self.place(chunk, &[fill], &strides, u16_mut(&mut self.result())),
                }
            }
            return Ok(());
        };
        self.any.store(true, Ordering::Relaxed);
        let strides = decoded.strides.clone();
        match self.array.sample {
            SampleType::U8 => {
                let samples = decoded.into_u8();
                self.place(chunk, &samples, &strides, u8_mut(&mut self.result()));
            }
            SampleType::U16 => {
                let samples = decoded.into_u16();
                self.place(chunk, &samples, &strides, u16_mut(&mut self.result()));
            }
        }
        Ok(())
    }

    /// The result, to be held only for as long as a chunk is copied into it.
    fn result(&self) -> std::sync::MutexGuard<'_, Pixels> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies what the region needs of a chunk.
    fn place<T: Copy>(&self, chunk: &[u64], samples: &[T], strides: &[usize], result: &mut [T]) {
        let side = |axis: usize| self.array.chunk[axis];
        // From and to which index, within the whole array.
        let span = |axis: usize| {
            let (first, last) = self.needs(axis);
            let start = chunk[axis] * side(axis);
            (first.max(start), last.min(start + (side(axis) - 1)), start)
        };
        let (x0, x1, chunk_x) = span(self.axes.x);
        let (y0, y1, chunk_y) = span(self.axes.y);
        let channels = self.channels.len();
        let (c0, c1, chunk_c) = self.axes.channel.map_or((0, 0, 0), span);
        let channel_stride = self.axes.channel.map_or(0, |c| strides[c]);
        let (x_stride, y_stride) = (strides[self.axes.x], strides[self.axes.y]);
        let n = (x1 - x0 + 1) as usize;
        for y in y0..=y1 {
            let row = (y as i64 - self.rect.y) as usize * self.rect.width as usize;
            let to = (row + (x0 as i64 - self.rect.x) as usize) * channels;
            for c in c0..=c1 {
                let from = (y - chunk_y) as usize * y_stride
                    + (x0 - chunk_x) as usize * x_stride
                    + (c - chunk_c) as usize * channel_stride;
                if channels == 1 && x_stride == 1 {
                    result[to..to + n].copy_from_slice(&samples[from..from + n]);
                } else {
                    let to = result[to + c as usize - self.channels.start..].iter_mut().step_by(channels);
                    to.zip(0..n).for_each(|(to, x)| *to = samples[from + x * x_stride]);
                }
            }
        }
    }
}

fn u8_mut(pixels: &mut Pixels) -> &mut [u8] {
    match pixels.samples_mut() {
        Samples::U8(v) => v,
        Samples::U16(_) => unreachable!("the result was made with the array's sample type"),
    }
}

fn u16_mut(pixels: &mut Pixels) -> &mut [u16] {
    match pixels.samples_mut() {
        Samples::U16(v) => v,
        Samples::U8(_) => unreachable!("the result was made with the array's sample type"),
    }
}
