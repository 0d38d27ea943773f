//! A picture that is one whole JPEG stream: beside a slide, or inside its description.

use std::path::{Path, PathBuf};

use super::codec::jpeg;
use super::pyramid::check_limit;
use super::raster::{Raster, Shape};
use crate::{Error, Pixels, Result, SampleType, Size, TileCoord};

/// A whole JPEG stream, and where it comes from.
#[derive(Debug)]
pub(super) struct JpegPicture {
    path: PathBuf,
    stream: Vec<u8>,
    header: jpeg::Header,
    shape: Shape,
}

impl JpegPicture {
    /// Reads the header of a stream that lies in the file at `path`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a stream that is no JPEG of 1 or 3 channels, [`Error::Limits`] for too large a picture.
    pub(super) fn new(path: &Path, stream: Vec<u8>, decoded_bytes: u64) -> Result<Self> {
        let header = jpeg::read_header(&stream).map_err(|why| Error::unsupported(path, why))?;
        let size = Size::new(header.width.into(), header.height.into());
        let channels = usize::from(header.components);
        if size.is_empty() || !matches!(channels, 1 | 3) {
            return Err(Error::unsupported(path, format!("a JPEG picture of {size} pixels and {channels} channels")));
        }
        let shape = Shape { size, cell: size, channels, sample: SampleType::U8, background: vec![255; channels] };
        check_limit(path, &shape, size, decoded_bytes)?;
        Ok(Self { path: path.to_owned(), stream, header, shape })
    }
}

impl Raster for JpegPicture {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn decode(&self, _cell: TileCoord) -> Result<Option<Pixels>> {
        let samples = jpeg::decode(None, &self.stream, self.header, jpeg::Color::AsMarked)
            .map_err(|why| Error::format(&self.path, why))?;
        Ok(Some(Pixels::from_u8(self.shape.size, self.shape.channels, samples)))
    }
}
