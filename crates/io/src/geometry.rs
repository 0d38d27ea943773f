//! Sizes, positions and resolutions, named so that x and y cannot be swapped on the way.
//!
//! The coordinate system is the same everywhere: x to the right, y down, origin at the top left corner of the slide,
//! pixel `(x, y)` covering `[x, x + 1) × [y, y + 1)`, so that pixel centres lie at `+0.5`.

use serde::{Deserialize, Serialize};

/// A resolution level of a slide or a store; 0 is the finest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Level(pub usize);

impl Level {
    /// The finest level.
    pub const FINEST: Self = Self(0);
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Pixels from left to right.
    pub width: u64,
    /// Pixels from top to bottom.
    pub height: u64,
}

impl Size {
    /// A size of `width` × `height` pixels.
    #[must_use]
    pub const fn new(width: u64, height: u64) -> Self {
        Self { width, height }
    }

    /// Number of pixels.
    #[must_use]
    pub const fn area(self) -> u64 {
        self.width.saturating_mul(self.height)
    }

    /// True where there is no pixel.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.width == 0 || self.height == 0
    }

    /// The whole picture as a rectangle at the origin.
    #[must_use]
    pub const fn rect(self) -> Rect {
        Rect { x: 0, y: 0, width: self.width, height: self.height }
    }

    /// How many cells of `cell` cover this size, per axis; the last ones may stick out.
    ///
    /// # Panics
    /// If `cell` is empty.
    #[must_use]
    pub const fn cells(self, cell: Self) -> Self {
        Self { width: self.width.div_ceil(cell.width), height: self.height.div_ceil(cell.height) }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {}", self.width, self.height)
    }
}

/// A pixel position; negative outside the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Point {
    /// To the right.
    pub x: i64,
    /// Down.
    pub y: i64,
}

/// Column and row of a cell in a regular grid: a stored tile, a chunk, a shard or a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TileCoord {
    /// From the top, 0 first. (Declared first, so that the derived order is row by row.)
    pub row: u64,
    /// From the left, 0 first.
    pub column: u64,
}

impl TileCoord {
    /// The rectangle of this cell in a grid of cells of size `cell`.
    #[must_use]
    pub const fn rect(self, cell: Size) -> Rect {
        Rect {
            x: (self.column * cell.width) as i64,
            y: (self.row * cell.height) as i64,
            width: cell.width,
            height: cell.height,
        }
    }
}

impl std::fmt::Display for TileCoord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "column {} row {}", self.column, self.row)
    }
}

/// A rectangle of pixels, half open: it holds `x..x + width` and `y..y + height`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rect {
    /// Leftmost column.
    pub x: i64,
    /// Topmost row.
    pub y: i64,
    /// Pixels from left to right.
    pub width: u64,
    /// Pixels from top to bottom.
    pub height: u64,
}

impl Rect {
    /// The rectangle `x..x + width`, `y..y + height`.
    #[must_use]
    pub const fn new(x: i64, y: i64, width: u64, height: u64) -> Self {
        Self { x, y, width, height }
    }

    /// Width and height.
    #[must_use]
    pub const fn size(self) -> Size {
        Size { width: self.width, height: self.height }
    }

    /// True where there is no pixel.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.size().is_empty()
    }

    /// One past the last column.
    #[must_use]
    pub const fn right(self) -> i64 {
        self.x.saturating_add_unsigned(self.width)
    }

    /// One past the last row.
    #[must_use]
    pub const fn bottom(self) -> i64 {
        self.y.saturating_add_unsigned(self.height)
    }

    /// What both rectangles hold, or `None` where they share no pixel.
    #[must_use]
    pub fn intersect(self, other: Self) -> Option<Self> {
        let (x, y) = (self.x.max(other.x), self.y.max(other.y));
        let (right, bottom) = (self.right().min(other.right()), self.bottom().min(other.bottom()));
        (x < right && y < bottom).then(|| Self::new(x, y, right.abs_diff(x), bottom.abs_diff(y)))
    }

    /// True if every pixel of `other` is one of this rectangle's.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        other.is_empty() || self.intersect(other) == Some(other)
    }
}

impl std::fmt::Display for Rect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at ({}, {})", self.size(), self.x, self.y)
    }
}

/// Micrometres per pixel along each axis.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Microns {
    /// Along x.
    pub x: f64,
    /// Along y.
    pub y: f64,
}

impl Microns {
    /// The same resolution along both axes.
    #[must_use]
    pub const fn square(mpp: f64) -> Self {
        Self { x: mpp, y: mpp }
    }

    /// The resolution of a level that is `downsample` times coarser.
    #[must_use]
    pub fn at(self, downsample: Downsample) -> Self {
        Self { x: self.x * downsample.x, y: self.y * downsample.y }
    }
}

/// How many level-0 pixels one pixel spans along each axis.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Downsample {
    /// Along x.
    pub x: f64,
    /// Along y.
    pub y: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rectangles_intersect_half_open() {
        let a = Rect::new(0, 0, 10, 10);
        assert_eq!(a.intersect(Rect::new(10, 0, 5, 5)), None, "touching is not sharing");
        assert_eq!(a.intersect(Rect::new(-5, 8, 7, 7)), Some(Rect::new(0, 8, 2, 2)));
        assert_eq!(a.intersect(Rect::new(3, 3, 0, 4)), None, "an empty rectangle shares nothing");
        assert!(a.contains(Rect::new(0, 0, 10, 10)) && !a.contains(Rect::new(0, 0, 11, 10)));
    }

    #[test]
    fn the_order_of_cells_is_row_by_row() {
        assert!(TileCoord { row: 0, column: 9 } < TileCoord { row: 1, column: 0 });
    }
}
