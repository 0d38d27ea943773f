//! A picture that is stored in cells: what a level of a slide is made of, whatever the container.

use std::sync::Arc;

use super::mosaic::Grid;
use crate::{Pixels, Result, SampleType, Size, TileCoord};

/// How a raster is cut into cells, and what its pixels are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    /// The raster in pixels.
    pub(crate) size: Size,
    /// A cell in pixels, or the largest one where they are not alike. Cells lie side by side from the top left corner; those at
    /// the right and at the bottom may stick out.
    pub(crate) cell: Size,
    /// Samples per pixel.
    pub(crate) channels: usize,
    /// How a sample is stored.
    pub(crate) sample: SampleType,
    /// The value of cells that the file leaves out, one value per channel.
    pub(crate) background: Vec<u16>,
}

impl Shape {
    /// Bytes of a decoded cell.
    pub(crate) fn cell_bytes(&self) -> u64 {
        self.cell.area().saturating_mul((self.channels * self.sample.bytes()) as u64)
    }
}

/// A picture that is stored in cells (tiles, strips, frames, chunks), each of which can be decoded by itself: a page of a
/// TIFF, the frames of a DICOM series, a level of an OME-Zarr image.
///
/// The implementation knows neither the level that it is nor a cache, and decodes from many threads at once.
pub(crate) trait Raster: Send + Sync + std::fmt::Debug {
    /// Size, cells and samples.
    fn shape(&self) -> &Shape;

    /// Where the cells lie.
    fn grid(&self) -> Grid {
        self.shape().cell.into()
    }

    /// Decodes a cell, or returns `None` if the file leaves it out.
    ///
    /// The result is at least as large as the part of the cell that lies inside the raster.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) if it cannot be decoded. It is for the caller to say which cell that was.
    fn decode(&self, cell: TileCoord) -> Result<Option<Pixels>>;

    /// A cell as a JPEG file of its own, not decoded, as large as a cell also where it sticks out; `None` where it is left out, or not
    /// stored as baseline JPEG of exactly the pixels that [`decode`](Self::decode) gives.
    ///
    /// # Errors
    /// As [`decode`](Self::decode), as far as faults are seen without decoding.
    fn jpeg(&self, cell: TileCoord) -> Result<Option<Vec<u8>>> {
        let _ = cell;
        Ok(None)
    }

    /// Says that a cell will be wanted soon, so that the system can fetch its bytes meanwhile.
    fn prefetch(&self, cell: TileCoord) {
        let _ = cell;
    }
}

/// A raster that several levels are made of.
impl<T: Raster> Raster for Arc<T> {
    fn shape(&self) -> &Shape {
        (**self).shape()
    }

    fn decode(&self, cell: TileCoord) -> Result<Option<Pixels>> {
        (**self).decode(cell)
    }

    fn grid(&self) -> Grid {
        (**self).grid()
    }

    fn jpeg(&self, cell: TileCoord) -> Result<Option<Vec<u8>>> {
        (**self).jpeg(cell)
    }

    fn prefetch(&self, cell: TileCoord) {
        (**self).prefetch(cell);
    }
}
