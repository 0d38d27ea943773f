//! No seam is visible where tiles, blocks or strips end.
//!
//! The model: logits are a smooth function of the picture, and on top of it each tile is biased, as networks with instance
//! normalisation and padded borders are: by a constant of its own, and more towards the tile's border. The measure: the mean
//! absolute difference of neighbouring pixels across the lines in question, less that across all other lines.
//! The noise: this difference is taken in bands of 64 pixels along the lines, about as long as the biases are
//! correlated; its standard error over the bands is the noise. A seam is a difference of more than three times that.

use std::sync::Arc;

use microtome::io::{Rect, Size};
use microtome::{Accumulation, WindowShape};
use microtome_stitch::Window;
use microtome_tile::TileGrid;

use crate::blending::{TileValues, accumulate};

const IMAGE: Size = Size { width: 1100, height: 900 };
const TILE: Size = Size { width: 128, height: 128 };
const BLOCK: Size = Size { width: 96, height: 80 };
const STRIP_BLOCKS: u64 = 3;
const BAND: usize = 64;

/// Waves of several lengths and directions, in logits: length in pixels, direction and phase in radians.
const WAVES: [(f64, f64, f64); 5] =
    [(61.0, 0.3, 0.1), (83.0, 1.2, 2.0), (113.0, 2.1, 4.0), (157.0, 2.8, 1.0), (199.0, 0.8, 3.0)];

fn smooth(x: f64, y: f64) -> f64 {
    let wave = |(length, direction, phase): (f64, f64, f64)| {
        ((x * direction.cos() + y * direction.sin()) * std::f64::consts::TAU / length + phase).sin()
    };
    WAVES.into_iter().map(wave).sum()
}

/// Between -0.4 and 0.4, another for each tile.
fn bias_of(rect: Rect) -> f64 {
    let mixed =
        (rect.x as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (rect.y as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed >> 11) as f64 / (1u64 << 53) as f64 - 0.5) * 0.8
}

/// Logits, and ones, whose blend is the sum of the weights.
fn logits(rect: Rect) -> Vec<f32> {
    let bias = bias_of(rect);
    // Four times as large at the border as in the middle, where it falls off within 8 pixels.
    let towards_border = |at: i64, side: u64| 1.5 * (-(at.min(side as i64 - 1 - at) as f64) / 8.0).exp();
    let mut values = Vec::with_capacity(2 * rect.size().area() as usize);
    for (v, y) in (0..).zip(rect.y..rect.bottom()) {
        for (u, x) in (0..).zip(rect.x..rect.right()) {
            let scale = 1.0 + towards_border(u, rect.width) + towards_border(v, rect.height);
            values.push((smooth(x as f64, y as f64) + bias * scale) as f32);
        }
    }
    values.resize(values.len() * 2, 1.0);
    values
}

/// A blended map, row by row.
struct Map {
    size: Size,
    values: Vec<f64>,
}

impl Map {
    /// Mean logits.
    fn blend(shape: WindowShape, grid: &TileGrid, logits: &TileValues) -> Self {
        let window = Arc::new(Window::new(shape, TILE));
        let sums = accumulate(grid, &window, (Accumulation::F32, 2), (BLOCK, STRIP_BLOCKS), logits);
        let (logits, weights) = sums.split_at(IMAGE.area() as usize);
        let values = logits.iter().zip(weights).map(|(&l, &w)| f64::from(l) / f64::from(w)).collect();
        Self { size: IMAGE, values }
    }

    fn probabilities(&self) -> Self {
        Self { size: self.size, values: self.values.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect() }
    }

    /// A fault that the measure must find: every other column of blocks is off by so much.
    fn with_shifted_blocks(&self, by: f64) -> Self {
        let shift = |i: usize| (i as u64 % self.size.width / BLOCK.width % 2) as f64 * by;
        Self { size: self.size, values: self.values.iter().enumerate().map(|(i, v)| v + shift(i)).collect() }
    }

    fn transposed(&self) -> Self {
        let (width, height) = (self.size.width as usize, self.size.height as usize);
        let values = (0..width).flat_map(|x| (0..height).map(move |y| self.values[y * width + x])).collect();
        Self { size: Size::new(self.size.height, self.size.width), values }
    }

    /// What the gradient across these lines is more than across all others. A line at `x` lies between columns `x - 1` and `x`.
    fn seam(&self, lines: &[u64]) -> Seam {
        let width = self.size.width as usize;
        let bands: Vec<(f64, f64)> = self
            .values
            .chunks_exact(BAND * width)
            .map(|band| {
                let mean = |on: bool| {
                    let columns: Vec<usize> = (1..width).filter(|&x| lines.contains(&(x as u64)) == on).collect();
                    let row = |row: &[f64]| columns.iter().map(|&x| (row[x] - row[x - 1]).abs()).sum::<f64>();
                    band.chunks_exact(width).map(row).sum::<f64>() / (columns.len() * BAND) as f64
                };
                (mean(true), mean(false))
            })
            .collect();
        let n = bands.len() as f64;
        let elsewhere = bands.iter().map(|b| b.1).sum::<f64>() / n;
        let excess = bands.iter().map(|b| b.0 - b.1).sum::<f64>() / n;
        let variance = bands.iter().map(|b| (b.0 - b.1 - excess).powi(2)).sum::<f64>() / (n - 1.0);
        Seam { elsewhere, excess, noise: (variance / n).sqrt() }
    }
}

/// In units of the map per pixel.
#[derive(Debug)]
struct Seam {
    elsewhere: f64,
    excess: f64,
    noise: f64,
}

impl Seam {
    fn visible(&self) -> bool {
        self.excess > 3.0 * self.noise
    }
}

/// Where tiles begin or end along an axis.
fn tile_lines(starts: &[i64], tile: u64, image: u64) -> Vec<u64> {
    let ends = starts.iter().map(|&start| start + tile as i64);
    let inside = |&x: &i64| x > 0 && x < image as i64;
    starts.iter().copied().chain(ends).filter(inside).map(|x| x as u64).collect()
}

fn multiples(of: u64, image: u64) -> Vec<u64> {
    (of..image).step_by(of as usize).collect()
}

/// Every kind of line, along both axes, in logits and in probabilities.
fn seams(shape: WindowShape, grid: &TileGrid, values: &TileValues) -> Vec<(&'static str, Seam)> {
    let map = Map::blend(shape, grid, values);
    let mut found = Vec::new();
    for (kind, across) in [("probabilities", map.probabilities()), ("logits", map)] {
        let down = across.transposed();
        println!("{shape:?}, {} x {} tiles, {kind}:", grid.columns().len(), grid.rows().len());
        for (what, map, lines) in [
            ("tiles, across", &across, tile_lines(grid.columns(), TILE.width, IMAGE.width)),
            ("tiles, down", &down, tile_lines(grid.rows(), TILE.height, IMAGE.height)),
            ("blocks, across", &across, multiples(BLOCK.width, IMAGE.width)),
            ("blocks, down", &down, multiples(BLOCK.height, IMAGE.height)),
            ("strips", &across, multiples(BLOCK.width * STRIP_BLOCKS, IMAGE.width)),
        ] {
            let seam = map.seam(&lines);
            println!("  {what}: {:.5} elsewhere, {:+.5} there, noise {:.5}", seam.elsewhere, seam.excess, seam.noise);
            found.push((what, seam));
        }
    }
    found
}

#[test]
fn no_seam_is_visible_with_a_window_that_falls_off() {
    let grid = TileGrid::new(IMAGE, TILE, 0.5).unwrap();
    let values = TileValues::new(&grid, logits);
    for shape in [WindowShape::Gaussian, WindowShape::GaussianMonai, WindowShape::Hann, WindowShape::Linear] {
        for (what, seam) in seams(shape, &grid, &values) {
            assert!(!seam.visible(), "{shape:?}, {what}: {seam:?}");
        }
    }
}

/// The same measure sees what it must see: constant weights, with and without overlap.
#[test]
fn seams_of_constant_weights_are_visible() {
    for step in [1.0, 0.5] {
        let grid = TileGrid::new(IMAGE, TILE, step).unwrap();
        for (what, seam) in seams(WindowShape::Constant, &grid, &TileValues::new(&grid, logits)) {
            let tiles = what.starts_with("tiles");
            assert!(!tiles || seam.visible() && seam.excess > seam.elsewhere, "{what}, step {step}: {seam:?}");
        }
    }
}

#[test]
fn a_seam_of_a_fifth_of_a_logit_between_blocks_is_visible() {
    let grid = TileGrid::new(IMAGE, TILE, 0.5).unwrap();
    let map = Map::blend(WindowShape::Gaussian, &grid, &TileValues::new(&grid, logits));
    let lines = multiples(BLOCK.width, IMAGE.width);
    assert!(!map.seam(&lines).visible());
    let seam = map.with_shifted_blocks(0.2).seam(&lines);
    assert!(seam.visible(), "{seam:?}");
}
