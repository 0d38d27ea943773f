//! A slide some of whose tiles cannot be read.

use microtome_io::slide::{SlideInfo, SlideReader};
use microtome_io::{Error, Level, Pixels, Rect, Result, SampleType, TileCoord};

/// The slide as the search for tissue sees it where unreadable tiles are filled: in their place is something that no background
/// looks like, so that the network's tiles there are tried, and the tiles reported, wherever they lie.
#[derive(Debug)]
pub(crate) struct Conspicuous<'a>(pub(crate) &'a dyn SlideReader);

impl Conspicuous<'_> {
    /// Half of the range and nothing in turn: neither as bright as glass nor as dark as the background of fluorescence, nor grey.
    fn filling(&self) -> Vec<u16> {
        let info = self.0.info();
        let half = match info.sample {
            SampleType::U8 => 128,
            SampleType::U16 => 1 << 15,
        };
        (0..info.channels).map(|channel| if channel % 2 == 0 { half } else { 0 }).collect()
    }
}

impl SlideReader for Conspicuous<'_> {
    fn info(&self) -> &SlideInfo {
        self.0.info()
    }

    fn read_region(&self, level: Level, rect: Rect) -> Result<Pixels> {
        match self.0.read_region(level, rect) {
            Err(Error::Tile { .. }) => {}
            result => return result,
        }
        let info = self.0.info().level(level)?;
        let mut pixels = Pixels::filled(rect.size(), self.0.info().sample, &self.0.info().background);
        let Some(visible) = rect.intersect(info.size.rect()) else { return Ok(pixels) };
        let cells = |from: i64, to: i64, cell: u64| from as u64 / cell..(to as u64).div_ceil(cell);
        for row in cells(visible.y, visible.bottom(), info.tile.height) {
            for column in cells(visible.x, visible.right(), info.tile.width) {
                let Some(part) = (TileCoord { row, column }).rect(info.tile).intersect(visible) else { continue };
                let read = match self.0.read_region(level, part) {
                    Err(Error::Tile { .. }) => Pixels::filled(part.size(), self.0.info().sample, &self.filling()),
                    result => result?,
                };
                pixels.blit(rect, &read, part);
            }
        }
        Ok(pixels)
    }

    fn read_associated(&self, name: &str) -> Result<Pixels> {
        self.0.read_associated(name)
    }

    fn content_id(&self) -> Result<String> {
        self.0.content_id()
    }
}
