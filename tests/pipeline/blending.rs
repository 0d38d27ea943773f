//! Blended logits against a dense blend in f64 that these tests compute themselves.
//!
//! The models here say something else about a pixel in every tile that holds it, so that the weights matter. What is
//! stated, with `u = 2^-24` (half a unit in the last place of f32): of `n` tiles at a pixel, the sum of weight x logit in f32
//! is within `n u` of the sum in f64, relative to the sum of weight x |logit|. That holds for every order of `n` products and
//! additions, so it cannot fail by chance; what was measured is far below, see `errors_are_those_of_the_documentation`.

use std::collections::BTreeMap;
use std::sync::Arc;

use microtome::io::slide::SlideReader;
use microtome::io::{Rect, Size, TileCoord};
use microtome::unet::{Card, Logits, MemoryEstimate, Normalizer, Output, Predictor, Result, Tile};
use microtome::{Accumulation, WindowShape};
use microtome_stitch::{
    Accumulator, CpuAccumulator, HalfAccumulator, Planes, Sums, TileLogits, Wanted, WeightSum, Window,
};
use microtome_testkit::{ConstantModel, SyntheticSlide};
use microtome_tile::{Schedule, TileGrid, TileIndex};
use proptest::prelude::*;

use crate::{assert_pyramid, assert_same, least_memory, levels_of, segment, settings};

pub(crate) const WINDOWS: [WindowShape; 5] =
    [WindowShape::Gaussian, WindowShape::GaussianMonai, WindowShape::Constant, WindowShape::Hann, WindowShape::Linear];

/// Half a unit in the last place of f32, relatively.
const U: f64 = 1.0 / (1 << 24) as f64;

/// The logit of a class for a pixel of this darkness in column `u`, row `v` of a tile.
fn logit(class: usize, darkness: f32, u: u64, v: u64) -> f32 {
    let class = class as f32 + 1.0;
    (0.37 * darkness + 1.7 * class).sin() * 4.0 + (0.11 * class * u as f32 + 0.07 * v as f32).cos() * 3.0 - 0.2 * class
}

/// A model whose logits depend on the pixel and on where in the tile it lies.
#[derive(Debug)]
pub(crate) struct PlaceModel {
    base: ConstantModel,
}

impl PlaceModel {
    pub(crate) fn new(tile: Size, classes: usize) -> Self {
        Self { base: ConstantModel::new(tile, &vec![0.0; classes]) }
    }

    pub(crate) fn regions(mut self) -> Self {
        let class_order = (1..=self.base.card().classes.len() as u16).collect();
        self.base.card_mut().output = Output::Regions { class_order };
        let classes = self.base.card().classes.len() as u16 + 1;
        let class = |value| microtome::io::Class::with_default_color(value, format!("region {value}"));
        self.base.card_mut().classes = (0..classes).map(class).collect();
        self
    }

    /// The card, to change what a test needs otherwise.
    pub(crate) fn card_mut(&mut self) -> &mut Card {
        self.base.card_mut()
    }
}

impl Predictor for PlaceModel {
    fn card(&self) -> &Card {
        self.base.card()
    }

    fn predict(&self, tiles: &[Tile<'_>], normalizer: &Normalizer) -> Result<Vec<Logits>> {
        let mut logits = self.base.predict(tiles, normalizer)?;
        for (tile, logits) in tiles.iter().zip(&mut logits) {
            let pixels = tile.pixels.as_u8().expect("8-bit slides");
            let size = logits.size;
            let (width, channels) = (tile.at.width as usize, tile.pixels.channels());
            for (class, plane) in logits.values.chunks_exact_mut(size.area() as usize).enumerate() {
                for (i, pixel) in pixels.chunks_exact(channels).enumerate() {
                    let (u, v) = (tile.at.x as usize + i % width, tile.at.y as usize + i / width);
                    let darkness = 255.0 - f32::from(pixel[0]);
                    plane[v * size.width as usize + u] = logit(class, darkness, u as u64, v as u64);
                }
            }
        }
        Ok(logits)
    }

    fn identity(&self) -> String {
        format!("{self:?}")
    }

    fn memory(&self, batch: usize) -> MemoryEstimate {
        self.base.memory(batch)
    }
}

/// A blend of a whole picture in f64, plane by plane, row by row.
struct Dense {
    /// Sums of weight x logit.
    sums: Vec<f64>,
    /// Sums of weight x |logit|.
    magnitudes: Vec<f64>,
    /// Sums of weights, of one plane.
    weights: Vec<f64>,
    /// Tiles at each pixel.
    tiles: Vec<u32>,
}

impl Dense {
    fn new(grid: &TileGrid, window: &Window, planes: usize, logits: &TileValues) -> Self {
        let (image, tile) = (grid.image(), grid.tile());
        let n = image.area() as usize;
        let zeros = |n| vec![0.0; n];
        let mut dense =
            Self { sums: zeros(planes * n), magnitudes: zeros(planes * n), weights: zeros(n), tiles: vec![0; n] };
        for rect in (0..grid.len()).map(|i| grid.rect(TileIndex(i))) {
            let values = logits.of(rect);
            for (v, y) in (rect.y..rect.bottom()).enumerate() {
                for (u, x) in (rect.x..rect.right()).enumerate() {
                    if x < 0 || y < 0 || x >= image.width as i64 || y >= image.height as i64 {
                        continue;
                    }
                    let at = y as usize * image.width as usize + x as usize;
                    let weight = f64::from(window.row(v)[u]);
                    dense.weights[at] += weight;
                    dense.tiles[at] += 1;
                    for plane in 0..planes {
                        let logit = values[plane * tile.area() as usize + v * tile.width as usize + u];
                        dense.sums[plane * n + at] += weight * f64::from(logit);
                        dense.magnitudes[plane * n + at] += weight * f64::from(logit.abs());
                    }
                }
            }
        }
        dense
    }
}

/// The logits of every tile of a grid, computed once.
pub(crate) struct TileValues(BTreeMap<(i64, i64), Vec<f32>>);

impl TileValues {
    pub(crate) fn new(grid: &TileGrid, logits: impl Fn(Rect) -> Vec<f32>) -> Self {
        let rects = (0..grid.len()).map(|i| grid.rect(TileIndex(i)));
        Self(rects.map(|rect| ((rect.x, rect.y), logits(rect))).collect())
    }

    fn of(&self, rect: Rect) -> &[f32] {
        &self.0[&(rect.x, rect.y)]
    }
}

/// What the accumulator gives over a whole picture, plane by plane, row by row, worked through in strips as a run does.
pub(crate) fn accumulate(
    grid: &TileGrid,
    window: &Arc<Window>,
    (accumulation, planes): (Accumulation, usize),
    (block, strip_blocks): (Size, u64),
    logits: &TileValues,
) -> Vec<f32> {
    let image = grid.image();
    let n = image.area() as usize;
    let mut found = vec![f32::NAN; planes * n];
    let schedule = Schedule::new(grid, None, block, strip_blocks).unwrap();
    for strip in schedule.strips() {
        let wanted = Wanted { rect: strip.rect, blocks: None };
        let sums = Sums { planes: Planes::Each(planes), weights: WeightSum::Omitted };
        let mut sums: Box<dyn Accumulator> = match accumulation {
            Accumulation::F32 => Box::new(CpuAccumulator::new(image, block, sums, window.clone(), wanted)),
            Accumulation::F16Nnunet => Box::new(HalfAccumulator::new(image, block, sums, window.clone(), wanted)),
        };
        for row in schedule.rows(&strip) {
            for rect in row.tiles.into_iter().map(|tile| grid.rect(tile.index)) {
                sums.add(&[TileLogits::whole(rect, logits.of(rect))]).unwrap();
            }
            for at in row
                .finished_blocks
                .flat_map(|row| strip.block_columns.clone().map(move |column| TileCoord { row, column }))
            {
                let rect = schedule.block_rect(at).unwrap();
                let block = sums.take(at).unwrap().expect("tiles are everywhere");
                assert_eq!(block.size, rect.size());
                for (i, &value) in block.values.iter().enumerate() {
                    let (plane, i) = (i / rect.size().area() as usize, i % rect.size().area() as usize);
                    let (x, y) = (rect.x as usize + i % rect.width as usize, rect.y as usize + i / rect.width as usize);
                    found[plane * n + y * image.width as usize + x] = value;
                }
            }
        }
        assert_eq!(sums.bytes(), 0, "every block of the strip is finished");
    }
    found
}

/// The logits of a [`PlaceModel`] over a slide.
fn place_logits(slide: &SyntheticSlide, planes: usize) -> impl Fn(Rect) -> Vec<f32> + '_ {
    let size = slide.info().size();
    move |rect| {
        let mut values = Vec::with_capacity(planes * rect.size().area() as usize);
        for class in 0..planes {
            for (v, y) in (0..).zip(rect.y..rect.bottom()) {
                for (u, x) in (0..).zip(rect.x..rect.right()) {
                    let inside = x >= 0 && y >= 0 && x < size.width as i64 && y < size.height as i64;
                    let darkness = if inside { 255.0 - f32::from(slide.pixel(x as u64, y as u64)[0]) } else { 0.0 };
                    values.push(if inside { logit(class, darkness, u, v) } else { 0.0 });
                }
            }
        }
        values
    }
}

/// The label that the sums in f64 give at a pixel; `None` where sums in f32 may give another.
fn certain_label(dense: &Dense, at: usize, planes: usize, output: &Output) -> Option<u16> {
    let n = dense.weights.len();
    let sum = |plane: usize| dense.sums[plane * n + at];
    // One more, where the difference of two logits is summed in their place.
    let error = |plane: usize| f64::from(dense.tiles[at] + 1) * U * dense.magnitudes[plane * n + at];
    match output {
        Output::Labels => {
            let best = (0..planes).fold(0, |best, plane| if sum(plane) > sum(best) { plane } else { best });
            let certain = |plane| plane == best || sum(best) - sum(plane) > error(best) + error(plane);
            (0..planes).all(certain).then_some(best as u16)
        }
        Output::Regions { class_order } => {
            let mut label = 0;
            for (plane, &value) in class_order.iter().enumerate() {
                if sum(plane).abs() <= error(plane) {
                    return None;
                }
                label = if sum(plane) > 0.0 { value } else { label };
            }
            Some(label)
        }
    }
}

/// Sizes of pictures, from a single pixel to several tiles and shards, and of tiles.
fn sizes() -> impl Strategy<Value = (Size, Size)> {
    let size = |max: u64| (1..max, 1..max).prop_map(|(width, height)| Size::new(width, height));
    (prop_oneof![1 => Just(Size::new(1, 1)), 1 => size(9), 8 => size(150)], size(80))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A model that says the same everywhere, with nearly equal logits.
    #[test]
    fn a_constant_stays_constant(
        (size, tile) in sizes(),
        step in 0.25f64..=1.0,
        window in prop::sample::select(WINDOWS.to_vec()),
        (chunk, shard_pairs) in (prop::sample::select(vec![8u64, 16, 40]), 1u64..=2),
        spare in 0u64..200_000,
        (classes, winner) in (2usize..=4).prop_flat_map(|classes| (Just(classes), 0..classes)),
    ) {
        let logits: Vec<f32> = (0..classes).map(|class| if class == winner { 0.7001 } else { 0.7 }).collect();
        let slide = SyntheticSlide::new(size, 1);
        let model = ConstantModel::new(tile, &logits);
        let mut settings = settings();
        (settings.step, settings.window) = (Some(step), Some(window));
        (settings.chunk, settings.shard) = (chunk, 2 * chunk * shard_pairs);
        settings.memory = least_memory(&slide, &model, &settings) + spare;
        let (mask, summary) = segment(&slide, &model, &settings);
        prop_assert_eq!(summary.geometry.tilings[0].window, window);
        let levels = levels_of(&mask);
        assert_same(size, &levels[0].1, &vec![winner as u16; size.area() as usize], "level 0");
        assert_pyramid(&levels, chunk, "pyramid");
    }

    /// Sums in f32, in blocks and strips, against the dense blend.
    #[test]
    fn sums_are_within_their_rounding_of_the_dense_blend(
        (size, tile) in sizes(),
        step in 0.25f64..=1.0,
        window in prop::sample::select(WINDOWS.to_vec()),
        (block_width, block_height, strip_blocks) in (1u64..70, 1u64..70, 1u64..5),
        planes in 1usize..=3,
    ) {
        let slide = SyntheticSlide::new(size, 2);
        let grid = TileGrid::new(size, tile, step).unwrap();
        let window = Arc::new(Window::new(window, tile));
        let logits = TileValues::new(&grid, place_logits(&slide, planes));
        let dense = Dense::new(&grid, &window, planes, &logits);
        let block = Size::new(block_width, block_height);
        let found = accumulate(&grid, &window, (Accumulation::F32, planes), (block, strip_blocks), &logits);
        for (i, &sum) in found.iter().enumerate() {
            let bound = f64::from(dense.tiles[i % dense.tiles.len()]) * U * dense.magnitudes[i];
            let error = (f64::from(sum) - dense.sums[i]).abs();
            prop_assert!(error <= bound, "value {}: {} for {}, bound {}", i, sum, dense.sums[i], bound);
        }
        // Neither blocks nor strips change a bit, with either kind of sums.
        for accumulation in [Accumulation::F32, Accumulation::F16Nnunet] {
            let whole = accumulate(&grid, &window, (accumulation, planes), (size, 1), &logits);
            let cut = accumulate(&grid, &window, (accumulation, planes), (block, strip_blocks), &logits);
            prop_assert!(whole.iter().zip(&cut).all(|(a, b)| a.to_bits() == b.to_bits()), "{:?}", accumulation);
        }
    }

    /// The whole way: labels differ from those of the dense blend nowhere but where its margin is within the rounding.
    #[test]
    fn labels_are_those_of_the_dense_blend(
        (size, tile) in sizes(),
        step in 0.25f64..=1.0,
        window in prop::sample::select(WINDOWS.to_vec()),
        (chunk, shard_pairs) in (prop::sample::select(vec![8u64, 16, 40]), 1u64..=2),
        spare in 0u64..200_000,
        (threads, batch) in (1usize..=3, prop::sample::select(vec![1usize, 3, 8])),
        (planes, regions) in (2usize..=4, any::<bool>()),
    ) {
        let slide = SyntheticSlide::new(size, 3);
        let model = PlaceModel::new(tile, planes);
        let model = if regions { model.regions() } else { model };
        let mut settings = settings();
        (settings.step, settings.window) = (Some(step), Some(window));
        (settings.threads, settings.batch) = (Some(threads), Some(batch));
        (settings.chunk, settings.shard) = (chunk, 2 * chunk * shard_pairs);
        settings.memory = least_memory(&slide, &model, &settings) + spare;
        let (mask, _) = segment(&slide, &model, &settings);
        let found = levels_of(&mask).remove(0).1;
        let grid = TileGrid::new(size, tile, step).unwrap();
        let window = Window::new(window, tile);
        let dense = Dense::new(&grid, &window, planes, &TileValues::new(&grid, place_logits(&slide, planes)));
        let mut uncertain = 0;
        for (at, &label) in found.iter().enumerate() {
            match certain_label(&dense, at, planes, &model.card().output) {
                Some(expected) => prop_assert_eq!(label, expected, "pixel {}", at),
                None => uncertain += 1,
            }
        }
        // Nearly equal sums are rare: a test that skips many pixels shows nothing.
        prop_assert!(uncertain as u64 <= 2 + size.area() / 1000, "{} of {} are uncertain", uncertain, size);
    }
}

/// The numbers in `docs/blending.md`: the largest errors of both kinds of sums over a picture of 500 x 400 pixels in
/// tiles of 128 x 128, three planes.
#[test]
fn errors_are_those_of_the_documentation() {
    let slide = SyntheticSlide::new(Size::new(500, 400), 4);
    let (size, tile, planes) = (slide.info().size(), Size::new(128, 128), 3);
    let values = [0.5, 0.25].map(|step| {
        let grid = TileGrid::new(size, tile, step).unwrap();
        (step, TileValues::new(&grid, place_logits(&slide, planes)), grid)
    });
    for (step, shape, f32_bound, half_bounds) in ERRORS {
        let (_, logits, grid) = values.iter().find(|of| of.0 == step).unwrap();
        let window = Arc::new(Window::new(shape, tile));
        let dense = Dense::new(grid, &window, planes, logits);
        let n = dense.weights.len();
        let of = |accumulation| accumulate(grid, &window, (accumulation, planes), (Size::new(256, 256), 1), logits);
        let worst = |errors: &mut dyn Iterator<Item = f64>| errors.fold(0.0, f64::max);
        let single = of(Accumulation::F32);
        let mut relative =
            (0..single.len()).map(|i| (f64::from(single[i]) - dense.sums[i]).abs() / dense.magnitudes[i]);
        let single = worst(&mut relative);
        let most = dense.tiles.iter().max().unwrap();
        println!("{shape:?}, step {step}, up to {most} tiles: f32 {:.2} u", single / U);
        assert!(single <= f32_bound * U, "{shape:?}, step {step}: {:.3} u", single / U);
        let Some((everywhere_bound, inner_bound)) = half_bounds else { continue };
        let half = of(Accumulation::F16Nnunet);
        let error = |i: usize| (f64::from(half[i]) - dense.sums[i] / dense.weights[i % n]).abs();
        let inner = |i: &usize| {
            let (x, y) = ((i % n) as u64 % size.width, (i % n) as u64 / size.width);
            (32..size.width - 32).contains(&x) && (32..size.height - 32).contains(&y)
        };
        let everywhere = worst(&mut (0..half.len()).map(error));
        let inner = worst(&mut (0..half.len()).filter(inner).map(error));
        println!("  f16 {everywhere:.4}, more than 32 pixels from the edge {inner:.4}");
        assert!(everywhere <= everywhere_bound && inner <= inner_bound, "{shape:?}, {step}: {everywhere}, {inner}");
    }
}

/// Step, window, and what was measured: f32 in units of 2^-24, relative to the sum of weight x |logit|; f16 in logits (which are
/// between -8 and 8 here), everywhere and away from the edge of the picture.
const ERRORS: [(f64, WindowShape, f64, Option<(f64, f64)>); 7] = [
    (0.5, WindowShape::Gaussian, 4.3, Some((0.022, 0.0135))),
    (0.25, WindowShape::Gaussian, 6.0, Some((0.022, 0.0175))),
    (0.5, WindowShape::Constant, 3.1, Some((0.0059, 0.0059))),
    (0.25, WindowShape::Constant, 5.2, Some((0.0095, 0.0095))),
    (0.5, WindowShape::GaussianMonai, 4.1, None),
    (0.5, WindowShape::Hann, 4.0, None),
    (0.5, WindowShape::Linear, 3.5, None),
];
