//! Polygons as regions of interest.

use std::ops::Range;

use microtome_io::{Downsample, Size};

use crate::roi::Roi;
use crate::target::TargetGrid;
use crate::{Error, Result};

/// A corner of a polygon, in level-0 pixels from the slide's top left corner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vertex {
    /// To the right.
    pub x: f64,
    /// Down.
    pub y: f64,
}

/// A polygon: rings of corners, the first of them its outline and the others holes, each closed from its last corner to its first.
/// Inside is what an odd number of rings surrounds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Polygon {
    /// The rings.
    pub rings: Vec<Vec<Vertex>>,
}

/// Crossings of an edge and a row of pixels at most, over all edges: some ten seconds of work, and a thousand times the outline of a
/// large slide's tissue.
const MAX_CROSSINGS: u64 = 1 << 30;

/// A side of a polygon on its way down.
#[derive(Debug, Clone, Copy)]
struct Edge {
    polygon: u32,
    /// The first row whose centres it passes, and one past the last.
    first: u32,
    end: u32,
    /// Where it is at the centres of its first row, and how far it goes per row, in pixels.
    x: f64,
    slope: f64,
}

impl Roi {
    /// The pixels of the target grid whose centres lie inside any of the polygons, one cell a pixel.
    ///
    /// The method is that of scanlines: along the centres of a row of pixels, a polygon's inside lies between its first and second
    /// crossing, its third and fourth, and so on. An edge holds its upper end and not its lower, a run its left end and not its right, so
    /// that polygons that share an edge share no pixel and leave none between them.
    ///
    /// Memory: 40 bytes per side, and the region.
    ///
    /// # Errors
    /// [`Error::Usage`] for corners that are not finite, more than 2^30 crossings of sides and rows of pixels, or more than
    /// [`Roi::MAX_RUNS`] runs.
    pub fn from_polygons(polygons: &[Polygon], grid: &TargetGrid) -> Result<Self> {
        let size = grid.size;
        let edges = edges(polygons, grid)?;
        let mut builder = Self::builder(size, Downsample { x: 1.0, y: 1.0 });
        let mut waiting = edges.iter().peekable();
        let mut active: Vec<Edge> = Vec::new();
        let mut crossings: Vec<(u32, f64)> = Vec::new();
        let last = edges.iter().map(|edge| edge.end).max().unwrap_or(0);
        for y in 0..last {
            active.retain(|edge| edge.end > y);
            while let Some(edge) = waiting.next_if(|edge| edge.first == y) {
                active.push(*edge);
            }
            crossings.clear();
            crossings.extend(active.iter().map(|edge| (edge.polygon, edge.x + edge.slope * f64::from(y - edge.first))));
            crossings.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
            // A closed ring crosses a row an even number of times, so that pairs are of one polygon.
            builder.push_row(crossings.chunks_exact(2).map(|pair| pixels(pair[0].1, pair[1].1, size)))?;
        }
        Ok(builder.finish())
    }
}

/// The pixels of a row whose centres lie between two places.
fn pixels(from: f64, to: f64, size: Size) -> Range<u64> {
    let first = |x: f64| (x - 0.5).ceil().clamp(0.0, size.width as f64) as u64;
    first(from)..first(to)
}

/// The sides that pass the centre of a row, from the uppermost.
fn edges(polygons: &[Polygon], grid: &TargetGrid) -> Result<Vec<Edge>> {
    let height = grid.size.height.min(u64::from(u32::MAX)) as f64;
    let row = |y: f64| (y - 0.5).ceil().clamp(0.0, height) as u32;
    let target = |v: &Vertex| Vertex { x: v.x / grid.downsample.x, y: v.y / grid.downsample.y };
    let mut edges = Vec::new();
    let mut crossings = 0;
    for (n, polygon) in polygons.iter().enumerate() {
        for ring in &polygon.rings {
            let next = ring.iter().skip(1).chain(ring.first());
            for (a, b) in ring.iter().zip(next) {
                let (a, b) = (target(a), target(b));
                let (top, bottom) = if a.y <= b.y { (a, b) } else { (b, a) };
                let (first, end) = (row(top.y), row(bottom.y));
                let slope = (bottom.x - top.x) / (bottom.y - top.y);
                if first >= end {
                    // Flat, or between two rows of centres, or outside the slide.
                    if [a.x, a.y, b.x, b.y].iter().all(|v| v.is_finite()) {
                        continue;
                    }
                }
                let x = top.x + slope * (f64::from(first) + 0.5 - top.y);
                if !(x.is_finite() && slope.is_finite()) {
                    return Err(Error::Usage("a corner of a polygon is no finite number of pixels".into()));
                }
                crossings += u64::from(end - first);
                edges.push(Edge { polygon: n as u32, first, end, x, slope });
            }
        }
    }
    if crossings > MAX_CROSSINGS {
        return Err(Error::Usage(format!(
            "the polygons' sides cross {crossings} rows of pixels, more than the {MAX_CROSSINGS} that are allowed: there are too many tall polygons"
        )));
    }
    edges.sort_by_key(|edge| edge.first);
    Ok(edges)
}

#[cfg(test)]
mod tests {
    use microtome_io::Level;
    use proptest::prelude::*;

    use super::*;
    use crate::target::Resampling;

    fn grid(size: Size, downsample: f64) -> TargetGrid {
        TargetGrid {
            size,
            mpp: None,
            level: Level::FINEST,
            step: Downsample { x: 1.0, y: 1.0 },
            resampling: Resampling::None,
            downsample: Downsample { x: downsample, y: downsample },
        }
    }

    fn polygon(rings: &[&[(f64, f64)]]) -> Polygon {
        let ring = |r: &&[(f64, f64)]| r.iter().map(|&(x, y)| Vertex { x, y }).collect();
        Polygon { rings: rings.iter().map(ring).collect() }
    }

    fn picture(roi: &Roi) -> Vec<String> {
        let Size { width, height } = roi.size();
        (0..height).map(|y| (0..width).map(|x| if roi.cell(x, y) { '#' } else { '.' }).collect()).collect()
    }

    #[test]
    fn holes_are_left_out_and_overlaps_are_not() {
        let outline: &[_] = &[(2.0, 2.0), (18.0, 2.0), (18.0, 10.0), (2.0, 10.0)];
        let hole: &[_] = &[(6.0, 4.0), (6.0, 8.0), (10.0, 8.0), (10.0, 4.0)];
        let other = polygon(&[&[(14.0, 6.0), (24.0, 6.0), (24.0, 30.0), (14.0, 30.0)]]);
        let roi = Roi::from_polygons(&[polygon(&[outline, hole]), other], &grid(Size::new(11, 7), 2.0)).unwrap();
        let expected =
            ["...........", ".########..", ".##..####..", ".##..######", ".##########", ".......####", ".......####"];
        assert_eq!(picture(&roi), expected);
    }

    #[test]
    fn neighbours_share_no_pixel() {
        // Two triangles of one square; the diagonal passes the centres of its pixels.
        let halves =
            [polygon(&[&[(0.0, 0.0), (8.0, 0.0), (8.0, 8.0)]]), polygon(&[&[(0.0, 0.0), (8.0, 8.0), (0.0, 8.0)]])];
        let cells = |p: &[Polygon]| Roi::from_polygons(p, &grid(Size::new(9, 9), 1.0)).unwrap().cells();
        assert_eq!((cells(&halves[..1]), cells(&halves[1..]), cells(&halves)), (36, 28, 64));
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        let grid = grid(Size::new(100, 100), 1.0);
        for far in [f64::NAN, f64::INFINITY, 1e308] {
            let odd = polygon(&[&[(0.0, 0.0), (far, 50.0), (-far, far)]]);
            let result = Roi::from_polygons(&[odd], &grid);
            assert!(result.is_err_and(|e| e.to_string().contains("finite")), "{far}");
        }
        let tall = polygon(&[&[(0.0, 0.0), (1.0, 1e9), (1.0, 0.0)]]);
        let high = TargetGrid { size: Size::new(10, 4_000_000_000), ..grid.clone() };
        let message = Roi::from_polygons(&[tall], &high).unwrap_err().to_string();
        assert!(message.contains("too many tall polygons"), "{message}");
        assert_eq!(Roi::from_polygons(&[polygon(&[&[], &[(3.0, 3.0)]])], &grid).unwrap().cells(), 0);
    }

    proptest! {
        /// The even-odd rule, point by point: a ray to the left of the pixel's centre crosses an odd number of sides.
        #[test]
        fn a_pixel_is_wanted_if_its_centre_lies_inside(
            rings in prop::collection::vec(prop::collection::vec((-9i32..70, -9i32..70), 3..7), 1..4),
            downsample in prop::sample::select(vec![0.5, 1.0, 1.7, 3.0]),
        ) {
            let rings: Vec<Vec<Vertex>> = (rings.iter())
                .map(|ring| ring.iter().map(|&(x, y)| Vertex { x: f64::from(x) * 0.6, y: f64::from(y) * 0.6 }).collect())
                .collect();
            let polygon = Polygon { rings };
            let size = Size::new(25, 21);
            let roi = Roi::from_polygons(std::slice::from_ref(&polygon), &grid(size, downsample)).unwrap();
            for y in 0..size.height {
                for x in 0..size.width {
                    let (cx, cy) = ((x as f64 + 0.5) * downsample, (y as f64 + 0.5) * downsample);
                    let mut crossed = 0;
                    let mut near = false;
                    for ring in &polygon.rings {
                        for i in 0..ring.len() {
                            let (a, b) = (ring[i], ring[(i + 1) % ring.len()]);
                            if (a.y <= cy) != (b.y <= cy) {
                                let at = a.x + (cy - a.y) * (b.x - a.x) / (b.y - a.y);
                                near |= (at - cx).abs() < 1e-6;
                                crossed += usize::from(at <= cx);
                            }
                            near |= (a.y - cy).abs() < 1e-6;
                        }
                    }
                    prop_assert!(near || roi.cell(x, y) == (crossed % 2 == 1), "pixel {x} {y}");
                }
            }
        }
    }
}
