//! A level of a store as a [`Raster`], so that it is read as the levels of all other slides.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::array::Array;
use super::multiscale::Axes;
use super::open_shards::OpenShards;
use super::region::Region;
use crate::slide::Limits;
use crate::slide::raster::{Raster, Shape};
use crate::{Error, Pixels, Rect, Result, TileCoord};

/// A level of a store. Its cells are the chunks of y and x; a cell has all channels, which may lie in chunks of their own.
#[derive(Debug)]
pub(crate) struct LevelRaster {
    path: PathBuf,
    array: Arc<Array>,
    axes: Arc<Axes>,
    shape: Shape,
    open: OpenShards,
}

impl LevelRaster {
    /// # Errors
    /// [`Error::Limits`] if all channels of a cell take more than `Limits::decoded_bytes`.
    pub(super) fn new(
        path: &Path,
        array: &Arc<Array>,
        axes: &Arc<Axes>,
        background: u16,
        limits: &Limits,
    ) -> Result<Self> {
        let channels = axes.channel.map_or(1, |c| array.shape[c] as usize);
        let shape = Shape {
            size: axes.plane(&array.shape),
            cell: axes.plane(&array.chunk),
            channels,
            sample: array.sample,
            background: vec![background; channels],
        };
        let inside = shape.cell.rect().intersect(shape.size.rect()).map_or(0, |cell| cell.size().area());
        let bytes = inside.saturating_mul((channels * shape.sample.bytes()) as u64);
        if bytes > limits.decoded_bytes {
            let (cell, limit) = (shape.cell, limits.decoded_bytes);
            return Err(Error::limits(
                path,
                format!("chunks of {cell} pixels with {channels} channels take {bytes} bytes, the limit is {limit}"),
            ));
        }
        Ok(Self {
            path: path.into(),
            array: Arc::clone(array),
            axes: Arc::clone(axes),
            shape,
            open: OpenShards::default(),
        })
    }

    /// What of the level lies in a cell.
    fn inside(&self, cell: TileCoord) -> Option<Rect> {
        cell.rect(self.shape.cell).intersect(self.shape.size.rect())
    }
}

impl Raster for LevelRaster {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn decode(&self, cell: TileCoord) -> Result<Option<Pixels>> {
        let Some(rect) = self.inside(cell) else {
            return Err(Error::format(&self.path, "there is no such chunk"));
        };
        let fill = self.array.fill;
        let blank = || Pixels::filled(rect.size(), self.shape.sample, &vec![fill; self.shape.channels]);
        let region = Region::new(&self.array, &self.axes, rect, rect, blank()).open(&self.open);
        let pixels = region.read_if_stored().map_err(|(_, error)| match error {
            Error::Io { .. } | Error::Transient { .. } => error,
            other => Error::format(&self.path, other.to_string()),
        })?;
        // What is left out has the background's colour, which is the fill value of level 0.
        let differs = self.shape.background.first() != Some(&fill);
        Ok(pixels.or_else(|| differs.then(blank)))
    }

    fn prefetch(&self, cell: TileCoord) {
        if let Some(rect) = self.inside(cell).filter(|_| self.array.reads_ahead()) {
            let nothing = Pixels::filled(crate::Size::new(0, 0), self.shape.sample, &[]);
            Region::new(&self.array, &self.axes, rect, rect, nothing).open(&self.open).prefetch();
        }
    }
}
