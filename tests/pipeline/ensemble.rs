//! Several models over one slide: what they say is blended one by one, and the mean of their probabilities decides.
//!
//! The reference is computed densely, in f64: for each model every tile over every pixel, weighted; the softmax of the means; the mean over
//! the models. Where it is not sure by more than `TIE`, either answer is right.

use std::path::Path;

use microtome::io::slide::SlideReader;
use microtome::io::store::{Found, MemoryImage, OmeZarr, inspect};
use microtome::io::{Class, Level, Microns, Rect, Size, TileCoord};
use microtome::unet::{
    Card, Device, Execution, Logits, MemoryEstimate, Mirroring, Model, ModelOptions, Normalization, Normalizer, Output,
    Predictor, Tile, Window as CardWindow,
};
use microtome::{
    Accumulation, Error, Existing, OnBadTile, Outcome, Product, RoiSource, Segmenter, Settings, Silent, Summary,
    TissueMode, WindowShape, store_of, verify,
};
use microtome_stitch::Window;
use microtome_testkit::{ConstantModel, FailingModel, FailingSlide, FunctionModel, SyntheticSlide};
use microtome_tile::TileGrid;

use crate::resume::StopAfter;
use crate::{assert_pyramid, assert_same, files, labels, levels_of, levels_of_store, over, repository, settings, with};

/// Probabilities that are closer to each other, or to one half, may round to either side.
const TIE: f64 = 1e-4;

/// A model whose logits are a function of the pixel and of where in the tile it lies, as those of networks are: they lean, the more so the
/// higher the class or region, towards the right and the top. How a tile is placed and weighted shows in every pixel.
#[derive(Debug)]
struct Leaning {
    model: FunctionModel,
    scale: f32,
    lean: f32,
}

impl Leaning {
    fn new(tile: (u64, u64), thresholds: &[f32], scale: f32, lean: f32) -> Self {
        Self { model: FunctionModel::new(Size::new(tile.0, tile.1), thresholds), scale, lean }
    }

    /// The same, with other words on its card.
    fn card_with(mut self, change: impl FnOnce(&mut Card)) -> Self {
        change(self.model.card_mut());
        self
    }

    /// From the logit of the function to that of the model.
    fn logit(&self, function: f32, head: usize, x: u64, y: u64) -> f32 {
        let tile = self.card().tile;
        let place = x as f32 / tile.width as f32 - y as f32 / tile.height as f32;
        function * self.scale + self.lean * (head + 1) as f32 * place
    }
}

impl Predictor for Leaning {
    fn card(&self) -> &Card {
        self.model.card()
    }

    fn predict(&self, tiles: &[Tile<'_>], normalizer: &Normalizer) -> microtome::unet::Result<Vec<Logits>> {
        let mut all = self.model.predict(tiles, normalizer)?;
        for Logits { size, values, .. } in &mut all {
            for (i, value) in values.iter_mut().enumerate() {
                let (head, i) = (i / size.area() as usize, i as u64 % size.area());
                *value = self.logit(*value, head, i % size.width, i / size.width);
            }
        }
        Ok(all)
    }

    fn identity(&self) -> String {
        format!("{self:?}")
    }

    fn memory(&self, batch: usize) -> MemoryEstimate {
        let needed = self.model.memory(batch);
        MemoryEstimate { weights: 1000 * u64::from(self.card().heads() as u32), ..needed }
    }
}

/// The mean of the models' probabilities, pixel by pixel.
fn reference(slide: &SyntheticSlide, models: &[&Leaning]) -> Vec<Vec<f64>> {
    let image = slide.info().size();
    let heads = models[0].card().heads();
    let mut mean = vec![vec![0.0; heads]; image.area() as usize];
    for model in models {
        let card = model.card();
        let grid = TileGrid::new(image, card.tile, card.step).unwrap();
        let shape = match card.window {
            CardWindow::Gaussian => WindowShape::Gaussian,
            _ => WindowShape::Constant,
        };
        let window = Window::new(shape, card.tile);
        let mut sums = vec![vec![0.0; heads + 1]; image.area() as usize];
        for (&top, &left) in grid.rows().iter().flat_map(|y| grid.columns().iter().map(move |x| (y, x))) {
            let tile = Rect::new(left, top, card.tile.width, card.tile.height);
            let Some(visible) = tile.intersect(image.rect()) else { continue };
            for (y, x) in (visible.y..visible.bottom()).flat_map(|y| (visible.x..visible.right()).map(move |x| (y, x)))
            {
                let (u, v) = ((x - left) as u64, (y - top) as u64);
                let weight = f64::from(window.row(v as usize)[u as usize]);
                let darkness = 255.0 - f32::from(slide.pixel(x as u64, y as u64)[0]);
                let sums = &mut sums[(y as u64 * image.width + x as u64) as usize];
                for (head, function) in model.model.logits(darkness).enumerate() {
                    sums[head] += weight * f64::from(model.logit(function, head, u, v));
                }
                sums[heads] += weight;
            }
        }
        for (mean, sums) in mean.iter_mut().zip(sums) {
            let logits: Vec<f64> = sums[..heads].iter().map(|sum| sum / sums[heads]).collect();
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
            for (mean, logit) in mean.iter_mut().zip(logits) {
                let p = match card.output {
                    Output::Labels => (logit - largest).exp() / total,
                    Output::Regions { .. } => 1.0 / (1.0 + (-logit).exp()),
                };
                *mean += p / models.len() as f64;
            }
        }
    }
    mean
}

/// The label of each pixel, or `None` where it is a tie.
fn decided(mean: &[Vec<f64>], output: &Output) -> Vec<Option<u16>> {
    let decide = |p: &Vec<f64>| match output {
        Output::Labels => {
            let best = (0..p.len()).fold(0, |best, class| if p[class] > p[best] { class } else { best });
            let tied = (0..p.len()).any(|class| class != best && p[best] - p[class] < TIE);
            (!tied).then_some(best as u16)
        }
        Output::Regions { class_order } => {
            let sure = p.iter().all(|p| (p - 0.5).abs() >= TIE);
            let label = class_order.iter().zip(p).fold(0, |label, (&value, &p)| if p > 0.5 { value } else { label });
            sure.then_some(label)
        }
    };
    mean.iter().map(decide).collect()
}

/// The mask must be what is decided; of a few pixels nothing is.
#[track_caller]
fn assert_decided(size: Size, found: &[u16], decided: &[Option<u16>], what: impl std::fmt::Display) {
    let ties = decided.iter().filter(|label| label.is_none()).count();
    assert!(ties * 100 < decided.len(), "{what}: {ties} ties");
    let expected: Vec<u16> = decided.iter().zip(found).map(|(label, found)| label.unwrap_or(*found)).collect();
    assert_same(size, found, &expected, what);
}

fn dynamic<'a>(models: &[&'a Leaning]) -> Vec<&'a dyn Predictor> {
    models.iter().map(|model| *model as &dyn Predictor).collect()
}

fn ensemble<'a>(models: &[&'a Leaning], settings: &Settings) -> Segmenter<'a> {
    Segmenter::ensemble(dynamic(models), settings.clone()).unwrap_or_else(|error| panic!("{error}"))
}

fn segment(slide: &dyn SlideReader, models: &[&Leaning], settings: &Settings) -> (MemoryImage, Summary) {
    let run = ensemble(models, settings).segment_into(slide, MemoryImage::new, &Silent);
    run.unwrap_or_else(|error| panic!("{error}"))
}

fn segment_to(slide: &dyn SlideReader, models: &[&Leaning], settings: &Settings, output: &Path) -> Summary {
    match ensemble(models, settings).segment(slide, output, Existing::Keep, &Silent) {
        Ok(Outcome::Done(summary)) => *summary,
        other => panic!("{}: {other:?}", output.display()),
    }
}

/// The smallest budget, with which strips are one shard wide.
fn least_memory(slide: &dyn SlideReader, models: &[&dyn Predictor], settings: &Settings) -> u64 {
    let mut memory = 0;
    loop {
        match Segmenter::ensemble(models.to_vec(), with(settings, |s| s.memory = memory)).unwrap().plan(slide) {
            Ok(_) => return memory,
            Err(Error::Memory { needed, .. }) => memory = needed,
            Err(error) => panic!("{error}"),
        }
    }
}

/// All samples of level 0, channel by channel within each pixel.
fn samples(store: &Path) -> Vec<u8> {
    let store = OmeZarr::open(store).unwrap_or_else(|error| panic!("{error}"));
    let size = store.info().levels[0].size;
    store.read_region(Level::FINEST, size.rect()).unwrap().as_u8().unwrap().to_vec()
}

/// Glass, light and dark tissue.
const THREE: [f32; 2] = [20.5, 95.5];

/// Two that differ in everything a model may differ in: tiles, step, window, and what they say.
fn two() -> (Leaning, Leaning) {
    let small = Leaning::new((16, 16), &THREE, 0.05, 1.5).card_with(|card| card.name = "small".into());
    let large = Leaning::new((40, 56), &[40.5, 60.5], 0.03, -2.0).card_with(|card| {
        (card.step, card.window, card.name) = (0.7, CardWindow::Constant, "large".into());
        card.sha256 = "1".repeat(64);
    });
    (small, large)
}

fn slide() -> SyntheticSlide {
    SyntheticSlide::new(Size::new(201, 167), 5).with_tissue_everywhere()
}

#[test]
fn the_mask_is_decided_by_the_mean_of_the_probabilities() {
    let slide = slide();
    let size = slide.info().size();
    let (a, b) = two();
    let c = Leaning::new((300, 24), &[60.5, 120.5], 0.1, 0.5);
    for models in [&[&a, &b][..], &[&b, &a], &[&a, &b, &c], &[&b, &b]] {
        let what = format!("{} models", models.len());
        let decided = decided(&reference(&slide, models), &Output::Labels);
        let (mask, summary) = segment(&slide, models, &settings());
        let levels = levels_of(&mask);
        assert_decided(size, &levels[0].1, &decided, &what);
        assert_pyramid(&levels, 16, &what);
        assert!((0..3).all(|class| decided.contains(&Some(class))), "{what}: the mask has all classes");
        let tiles: u64 = models.iter().map(|m| TileGrid::new(size, m.card().tile, m.card().step).unwrap().len()).sum();
        assert_eq!((summary.tiles.grid, summary.tiles.run, summary.tiles.skipped), (tiles, tiles, 0), "{what}");
        assert_eq!(summary.geometry.tilings.len(), models.len());
    }
    // It is neither of the two alone.
    let both = levels_of(&segment(&slide, &[&a, &b], &settings()).0)[0].1.clone();
    for alone in [&a, &b] {
        let alone = levels_of(&segment(&slide, &[alone], &settings()).0)[0].1.clone();
        let differing = alone.iter().zip(&both).filter(|(a, b)| a != b).count();
        assert!(differing * 50 > both.len(), "only {differing} of {} pixels differ", both.len());
    }
}

#[test]
fn two_classes_are_no_special_case() {
    let slide = slide();
    let a = Leaning::new((24, 24), &[60.5], 0.06, 2.0);
    let b = Leaning::new((64, 48), &[90.5], 0.02, -1.0);
    let decided = decided(&reference(&slide, &[&a, &b]), &Output::Labels);
    for accumulate in [Accumulation::F32, Accumulation::F16Nnunet] {
        let (mask, _) = segment(&slide, &[&a, &b], &with(&settings(), |s| s.accumulate = accumulate));
        let found = &levels_of(&mask)[0].1;
        match accumulate {
            Accumulation::F32 => assert_decided(slide.info().size(), found, &decided, "f32"),
            Accumulation::F16Nnunet => {
                let differing = found.iter().zip(&decided).filter(|(a, b)| b.is_some_and(|b| b != **a)).count();
                assert!(differing * 200 < found.len(), "{differing} pixels differ: more than f16 rounds");
            }
        }
    }
}

/// A model that is sure against two that are not: the mean of logits would follow the one, the mean of probabilities follows the two.
#[test]
fn it_is_no_mean_of_logits() {
    let slide = SyntheticSlide::new(Size::new(70, 50), 1);
    let tile = Size::new(24, 24);
    let [sure, doubtful] = [[10.0, 0.0], [0.0, 3.0]].map(|logits| ConstantModel::new(tile, &logits));
    let models: [&dyn Predictor; 3] = [&sure, &doubtful, &doubtful];
    let segmenter = Segmenter::ensemble(models.to_vec(), settings()).unwrap();
    let (mask, _) = segmenter.segment_into(&slide, MemoryImage::new, &Silent).unwrap();
    for (size, labels) in levels_of(&mask) {
        assert_same(size, &labels, &vec![1; size.area() as usize], "the majority");
    }
}

#[test]
fn regions_are_averaged_each_by_itself() {
    let slide = slide();
    let output = Output::Regions { class_order: vec![300, 2, 1] };
    let regions = |card: &mut Card| {
        card.output = Output::Regions { class_order: vec![300, 2, 1] };
        let class = |value| Class::with_default_color(value, format!("region {value}"));
        card.classes = [0, 1, 2, 300].map(class).into();
    };
    // The logit of the first region is what the lean makes of it alone.
    let a = Leaning::new((32, 32), &[30.5, 120.5], 0.04, 3.0).card_with(regions);
    let b = Leaning::new((48, 20), &[60.5, 70.5], 0.03, -2.0).card_with(regions).card_with(|card| card.step = 1.0);
    let decided = decided(&reference(&slide, &[&a, &b]), &output);
    let (mask, _) = segment(&slide, &[&a, &b], &settings());
    assert_decided(slide.info().size(), &levels_of(&mask)[0].1, &decided, "regions");
    assert!([0, 1, 2, 300].iter().all(|label| decided.contains(&Some(*label))), "the mask has all regions");
}

#[test]
fn probabilities_and_confidence_are_those_of_the_mean() {
    let folder = tempfile::tempdir().unwrap();
    let slide = slide();
    let (a, b) = two();
    let mean = reference(&slide, &[&a, &b]);
    let mask = folder.path().join("mask.ome.zarr");
    let alone = folder.path().join("alone.ome.zarr");
    segment_to(&slide, &[&a, &b], &settings(), &alone);
    segment_to(&slide, &[&a, &b], &with(&settings(), |s| (s.probabilities, s.confidence) = (true, true)), &mask);
    assert_eq!(levels_of_store(&mask), levels_of_store(&alone), "labels do not depend on what else is written");
    let close = |found: u8, p: f64| (f64::from(found) - 255.0 * p).abs() <= 0.5 + 255.0 * TIE;
    let found = samples(&store_of(&mask, Product::Probabilities));
    for (i, (found, mean)) in found.chunks_exact(3).zip(&mean).enumerate() {
        assert!(found.iter().zip(mean).all(|(&found, &p)| close(found, p)), "pixel {i}: {found:?} for {mean:?}");
    }
    let found = samples(&store_of(&mask, Product::Confidence));
    for (i, (&found, mean)) in found.iter().zip(&mean).enumerate() {
        let mut sorted = mean.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(close(found, sorted[2] - sorted[1]), "pixel {i}: {found} for {mean:?}");
    }
    assert!(verify(&mask).unwrap().faults.is_empty());
}

/// Every file of the store is the same for any number of threads, any batch, any budget, tiles between strips run twice or kept.
fn assert_deterministic(slide: &SyntheticSlide, models: &[&dyn Predictor], base: &Settings) {
    let folder = tempfile::tempdir().unwrap();
    let base = &with(base, |s| s.probabilities = true);
    let narrow = |threads, batch| {
        least_memory(slide, models, &with(base, |s| (s.threads, s.batch) = (Some(threads), Some(batch))))
    };
    let mut reference = None;
    for (n, (threads, batch, memory, scratch)) in [
        (1, 1, base.memory, None),
        (3, 8, base.memory, None),
        (2, 3, narrow(2, 3), None),
        (1, 2, narrow(1, 2) + (256 << 10), None),
        (2, 3, narrow(2, 3), Some(folder.path())),
        (1, 1, narrow(1, 1), Some(folder.path())),
    ]
    .into_iter()
    .enumerate()
    {
        let path = folder.path().join(format!("{n}.ome.zarr"));
        let settings = with(base, |s| {
            (s.threads, s.batch, s.memory) = (Some(threads), Some(batch), memory);
            s.scratch = scratch.map(Into::into);
        });
        let segmenter = Segmenter::ensemble(models.to_vec(), settings).unwrap();
        let Outcome::Done(summary) = segmenter.segment(slide, &path, Existing::Keep, &Silent).unwrap() else {
            panic!("done already")
        };
        let what = format!("{threads} threads, batches of {batch}, {memory} bytes, {scratch:?}");
        assert_eq!(summary.scratch_bytes > 0, scratch.is_some(), "{what}");
        assert!(summary.memory_plan.total() <= memory, "{what}");
        assert_eq!(summary.tiles.repeated == 0, memory == base.memory, "{what}");
        let found = (files(&path), files(&store_of(&path, Product::Probabilities)));
        assert!(*reference.get_or_insert_with(|| found.clone()) == found, "{what}");
    }
}

#[test]
fn neither_threads_nor_batches_nor_strips_change_a_byte() {
    let (a, b) = two();
    let c = Leaning::new((96, 20), &[60.5, 120.5], 0.1, 0.5);
    let slide = SyntheticSlide::new(Size::new(300, 220), 4);
    assert_deterministic(&slide, &dynamic(&[&a, &b, &c]), &settings());
    assert_deterministic(&slide, &dynamic(&[&b, &a]), &with(&settings(), |s| s.tissue = TissueMode::Auto));
}

fn nuclei(mirroring: Mirroring) -> Box<dyn Predictor> {
    let model = Model::open(repository("tests/models/nnunet-nuclei"), &ModelOptions::default()).unwrap();
    model.predictor(&Execution { device: Device::Cpu, mirroring, ..Execution::default() }).unwrap()
}

/// Real arithmetic, and statistics of the whole slide that both models share.
#[test]
fn networks_run_together() {
    let folder = tempfile::tempdir().unwrap();
    let slide = SyntheticSlide::new(Size::new(200, 170), 4).with_tissue_everywhere();
    let base = with(&settings(), |s| (s.chunk, s.shard) = (32, 64));
    let (mirrored, plain) = (nuclei(Mirroring::AsTrained), nuclei(Mirroring::Off));
    let models = [mirrored.as_ref(), plain.as_ref()];
    assert_deterministic(&slide, &models, &base);
    let probabilities = |models: &[&dyn Predictor], name: &str| {
        let path = folder.path().join(name);
        let settings = with(&base, |s| s.probabilities = true);
        let segmenter = Segmenter::ensemble(models.to_vec(), settings).unwrap();
        segmenter.segment(&slide, &path, Existing::Keep, &Silent).unwrap();
        samples(&store_of(&path, Product::Probabilities))
    };
    let [a, b] = [("a", models[0]), ("b", models[1])].map(|(name, model)| probabilities(&[model], name));
    let both = probabilities(&models, "both");
    for ((a, b), both) in a.iter().zip(&b).zip(&both) {
        let mean = f64::midpoint(f64::from(*a), f64::from(*b));
        assert!((mean - f64::from(*both)).abs() <= 1.0, "{both} for the mean of {a} and {b}");
    }
    assert!(a != b && both != a);
    assert!(folder.path().join("both.run/statistics.json").is_file());
}

#[test]
fn a_run_that_is_stopped_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let slide = SyntheticSlide::new(Size::new(210, 330), 5).with_tissue_everywhere();
    let (a, b) = two();
    let steps = with(&settings(), |s| (s.batch, s.probabilities) = (Some(1), true));
    let whole = folder.path().join("whole.ome.zarr");
    let uninterrupted = segment_to(&slide, &[&a, &b], &steps, &whole);
    let pair = |mask: &Path| (files(mask), files(&store_of(mask, Product::Probabilities)));
    for percent in [5, 40, 75] {
        let output = folder.path().join(format!("stopped-{percent}.ome.zarr"));
        for more in [0, 3] {
            let observer = StopAfter::new(210 * 330 * (percent + more) / 100);
            let stopped = ensemble(&[&a, &b], &steps).segment(&slide, &output, Existing::Keep, &observer);
            assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
        }
        // Other models, fewer of them, or in another order, are another run.
        for others in [&[&b, &a][..], &[&a], &[&a, &b, &b]] {
            match ensemble(others, &steps).segment(&slide, &output, Existing::Keep, &Silent) {
                Err(Error::DifferentRun { differs, .. }) => assert!(differs.contains("model: "), "{differs}"),
                other => panic!("{other:?}"),
            }
        }
        let summary = segment_to(&slide, &[&a, &b], &steps, &output);
        assert!(summary.resumed_shards > 0 || percent < 40);
        assert_eq!((&summary.areas, summary.tiles), (&uninterrupted.areas, uninterrupted.tiles));
        assert_eq!(pair(&output), pair(&whole), "stopped at {percent} %");
        let again = ensemble(&[&a, &b], &steps).segment(&slide, &output, Existing::Keep, &Silent);
        assert!(matches!(again, Ok(Outcome::AlreadyDone { .. })), "{again:?}");
    }
}

/// Inside the region the mask is that of the whole slide, outside it is background.
#[test]
fn only_the_region_runs() {
    let folder = tempfile::tempdir().unwrap();
    let slide = slide();
    let size = slide.info().size();
    let (a, b) = two();
    let whole = levels_of(&segment(&slide, &[&a, &b], &settings()).0)[0].1.clone();
    let path = folder.path().join("region.geojson");
    std::fs::write(&path, r#"{"type":"Polygon","coordinates":[[[61,43],[150,43],[150,99],[61,99],[61,43]]]}"#).unwrap();
    let inside = |x: u64, y: u64| (61..150).contains(&x) && (43..99).contains(&y);
    let given = with(&settings(), |s| s.roi = Some(RoiSource { path, values: Vec::new() }));
    let (mask, summary) = segment(&slide, &[&a, &b], &given);
    let expected = over(size, |x, y| if inside(x, y) { whole[(y * size.width + x) as usize] } else { 0 });
    assert_same(size, &levels_of(&mask)[0].1, &expected, "region");
    assert!(summary.tiles.skipped > 0 && summary.tiles.run > 0);
}

/// What either model would have seen a bad tile for is background.
#[test]
fn a_tile_that_cannot_be_read_is_background_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let size = Size::new(201, 167);
    let good = || SyntheticSlide::new(size, 5).with_tile(Size::new(16, 16)).with_tissue_everywhere();
    let bad = || FailingSlide::new(good()).with_bad_tile(Level::FINEST, TileCoord { row: 4, column: 6 });
    let (a, b) = two();
    let error = ensemble(&[&a, &b], &settings()).segment_into(&bad(), MemoryImage::new, &Silent).unwrap_err();
    assert!(error.to_string().contains("level 0, column 6 row 4"), "{error}");

    let whole = levels_of(&segment(&good(), &[&a, &b], &settings()).0)[0].1.clone();
    let stored = Rect::new(6 * 16, 4 * 16, 16, 16);
    let mut gone = vec![false; size.area() as usize];
    for model in [&a, &b] {
        let grid = TileGrid::new(size, model.card().tile, model.card().step).unwrap();
        let tiles = grid.rows().iter().flat_map(|&y| grid.columns().iter().map(move |&x| (x, y)));
        let tiles = tiles.map(|(x, y)| Rect::new(x, y, grid.tile().width, grid.tile().height));
        for tile in tiles.filter(|tile| tile.intersect(stored).is_some()) {
            for (y, x) in (tile.y..tile.bottom()).flat_map(|y| (tile.x..tile.right()).map(move |x| (y, x))) {
                gone[(y * size.width as i64 + x) as usize] = true;
            }
        }
    }
    let expected = over(size, |x, y| {
        let i = (y * size.width + x) as usize;
        if gone[i] { 0 } else { whole[i] }
    });
    let fill = with(&settings(), |s| s.on_bad_tile = OnBadTile::Fill);
    let narrow = with(&fill, |s| s.memory = least_memory(&bad(), &dynamic(&[&a, &b]), &fill));
    let kept = with(&narrow, |s| s.scratch = Some(folder.path().into()));
    for (settings, what) in [(fill, "whole"), (narrow, "in strips"), (kept, "in strips, kept")] {
        let (mask, summary) = segment(&bad(), &[&a, &b], &settings);
        assert_same(size, &levels_of(&mask)[0].1, &expected, what);
        assert_eq!(summary.unreadable.len(), 1, "{what}");
    }
}

#[test]
fn the_plan_counts_all_models() {
    let slide = slide();
    let (a, b) = two();
    let plan =
        |models: &[&Leaning]| ensemble(models, &with(&settings(), |s| s.probabilities = true)).plan(&slide).unwrap();
    let (alone, other, both) = (plan(&[&a]), plan(&[&b]), plan(&[&a, &b]));
    let [a_plan, b_plan, plan] = [&alone, &other, &both].map(|plan| plan.memory);
    assert_eq!(both.tiles, alone.tiles + other.tiles);
    assert_eq!(plan.weights, a_plan.weights + b_plan.weights);
    // And the mean of a block of 16 x 16 pixels and three classes for each of two threads.
    assert_eq!(plan.sums, a_plan.sums + b_plan.sums + 2 * 16 * 16 * 3 * 4);
    assert_eq!(plan.activations, a_plan.activations.max(b_plan.activations));
    assert_eq!((plan.logits, plan.labels), (a_plan.logits.max(b_plan.logits), a_plan.labels));
    assert!(plan.total() < a_plan.total() + b_plan.total());

    let least = least_memory(&slide, &dynamic(&[&a, &b]), &settings());
    let refused = with(&settings(), |s| s.memory = least - 1);
    let error = ensemble(&[&a, &b], &refused).plan(&slide).unwrap_err();
    assert!(matches!(error, Error::Memory { needed, budget, .. } if budget == least - 1 && needed > budget), "{error}");
    let narrow = with(&settings(), |s| s.memory = least);
    assert_eq!(ensemble(&[&a, &b], &narrow).plan(&slide).unwrap().memory.strip_width, 32);
}

/// Without a wish each model has the batch that its tiles ask for.
#[test]
fn a_batch_is_of_one_model() {
    let slide = SyntheticSlide::new(Size::new(600, 300), 5).with_tissue_everywhere();
    let (a, _) = two();
    let large = Leaning::new((300, 300), &THREE, 0.05, 1.0);
    let plan = |models: &[&Leaning]| {
        let settings = with(&settings(), |s| s.batch = None);
        ensemble(models, &settings).plan(&slide).unwrap().memory
    };
    let (small, large_plan, both) = (plan(&[&a]), plan(&[&large]), plan(&[&a, &large]));
    assert_eq!((small.batch, large_plan.batch, both.batch), (16, 4, 16));
    assert_eq!(both.activations, large_plan.activations);
}

#[test]
fn a_forecast_is_of_all_models() {
    let slide = slide();
    let (a, b) = two();
    let scratch = std::env::temp_dir();
    let narrow = with(&settings(), |s| {
        s.memory = least_memory(&slide, &dynamic(&[&a, &b]), s);
        s.scratch = Some(scratch.clone());
    });
    let forecast = ensemble(&[&a, &b], &narrow).forecast(&slide, &Silent).unwrap();
    let (_, summary) = segment(&slide, &[&a, &b], &narrow);
    assert_eq!(forecast.tiles, summary.tiles);
    assert!(forecast.tiles.repeated > 0 && forecast.disk.scratch * 20 >= summary.scratch_bytes);
    assert!(forecast.seconds.unwrap().total > 0.0);
}

#[test]
fn the_report_and_the_store_name_all_models() {
    let folder = tempfile::tempdir().unwrap();
    let mask = folder.path().join("mask.ome.zarr");
    let (a, b) = two();
    let summary = segment_to(&slide(), &[&a, &b], &settings(), &mask);
    assert_eq!(summary.model, "small + large");
    let text = summary.to_string();
    assert!(text.contains("2 models, the mean of their probabilities"), "{text}");
    assert!(text.contains("model        large: "), "{text}");
    let page = std::fs::read_to_string(folder.path().join("mask.ome.zarr.run/report.html")).unwrap();
    for words in [
        "Model 1",
        "Model 2",
        "16 x 16 pixels, step 0.5 of a tile, placed as nnunet does, small",
        "40 x 56 pixels, step 0.7 of a tile, placed as nnunet does, large",
    ] {
        assert!(page.contains(words), "{words}");
    }
    let report = std::fs::read(folder.path().join("mask.ome.zarr.run/report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["geometry"]["tilings"][1]["sha256"], "1".repeat(64));
    let Found::Complete(attributes) = inspect(&mask).unwrap() else { panic!("the mask is complete") };
    let run = &attributes["run"];
    assert_eq!(run["model"], serde_json::json!(["0".repeat(64), "1".repeat(64)]));
    assert_eq!(run["step"], serde_json::json!([0.5, 0.7]));
}

#[test]
fn a_model_that_fails_is_named() {
    let (a, b) = two();
    let failing = FailingModel::new(b, 3);
    let segmenter = Segmenter::ensemble(vec![&a, &failing], settings()).unwrap();
    let error = segmenter.segment_into(&slide(), MemoryImage::new, &Silent).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("of the model large") && text.contains("finite"), "{text}");
}

#[test]
fn models_that_mean_something_else_are_refused_by_name() {
    let (a, _) = two();
    let refused = |change: fn(&mut Card)| {
        let other = two().1.card_with(change);
        let error = Segmenter::ensemble(vec![&a, &other], settings()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    let together = "the models small and large cannot run together: ";
    let cases: [(fn(&mut Card), &str); 6] = [
        (
            |card| card.classes[2].name = "stroma".into(),
            "the values of one mask mean 0 class 0, 1 class 1, 2 class 2, those of the other 0 class 0, 1 class 1, 2 stroma",
        ),
        (
            |card| card.classes.truncate(2),
            "the values of one mask mean 0 class 0, 1 class 1, 2 class 2, those of the other 0 class 0, 1 class 1",
        ),
        (
            |card| card.output = Output::Regions { class_order: vec![1, 2, 2] },
            "one has classes, and the other regions, which may overlap",
        ),
        (|card| card.channels.truncate(1), "one takes 3 channels, the other 1"),
        (|card| card.channels.reverse(), "one takes the channels R, G, B, the other B, G, R"),
        (
            |card| card.channels = ["g", "R", "b"].map(Into::into).into(),
            "one takes the channels R, G, B, the other g, R, b",
        ),
    ];
    for (change, words) in cases {
        assert_eq!(refused(change), format!("{together}{words}"));
    }
    // Other names of channels and other colours are no other meaning.
    let other = two().1.card_with(|card| {
        card.channels = ["red", "green", "blue"].map(Into::into).into();
        card.classes[1].color = [1, 2, 3];
    });
    assert!(Segmenter::ensemble(vec![&a, &other], settings()).is_ok());
    assert!(Segmenter::ensemble(Vec::new(), settings()).unwrap_err().to_string().contains("no model"));

    let regions = |order: &'static [u16]| {
        two().1.card_with(move |card| card.output = Output::Regions { class_order: order.to_vec() })
    };
    let (one, other) = (regions(&[1, 2, 2]), regions(&[2, 1, 2]));
    let error = Segmenter::ensemble(vec![&one, &other], settings()).unwrap_err().to_string();
    assert!(
        error.ends_with("the regions of one set the values [1, 2, 2], those of the other [2, 1, 2], in this order"),
        "{error}"
    );
}

#[test]
fn models_of_another_resolution_are_refused_by_name() {
    let slide = slide().with_mpp(Some(Microns::square(0.25)));
    let own = with(&settings(), |s| s.model_mpp = None);
    let plan = |mpps: [Option<f64>; 2], settings: &Settings| {
        let (mut a, mut b) = two();
        (a.model.card_mut().mpp, b.model.card_mut().mpp) = (mpps[0], mpps[1]);
        ensemble(&[&a, &b], settings).plan(&slide).map(|plan| plan.geometry.target)
    };
    let error = plan([Some(0.25), Some(0.5)], &own).unwrap_err().to_string();
    let expected = "the model large works at 0.5 um per pixel, and the first, small, at 0.25: models that run together need one \
                    resolution, to within 2 % (--mpp-tolerance); --model-mpp makes all of them run at the one it gives";
    assert_eq!(error, expected);
    let error = plan([Some(0.25), None], &own).unwrap_err().to_string();
    assert!(error.contains("the model large does not say at which resolution it works"), "{error}");
    // Within the tolerance the first's counts, and what the user says counts for all.
    let first = plan([Some(0.25), None], &settings()).unwrap();
    assert_eq!(plan([Some(0.25), Some(0.2549)], &own).unwrap(), first);
    assert!(plan([Some(0.25), Some(0.256)], &own).is_err());
    assert!(plan([Some(0.25), Some(0.256)], &with(&own, |s| s.mpp_tolerance = 0.05)).is_ok());
    assert_eq!(plan([Some(0.25), Some(0.5)], &settings()).unwrap(), first);
}

/// Where one model needs statistics and the other does not, one pass over the slide serves the run.
#[test]
fn each_model_is_normalised_in_its_own_way() {
    #[derive(Debug)]
    struct Normalised(ConstantModel);
    impl Predictor for Normalised {
        fn card(&self) -> &Card {
            self.0.card()
        }
        /// The second logit is the normalised red, less a tenth.
        fn predict(&self, tiles: &[Tile<'_>], normalizer: &Normalizer) -> microtome::unet::Result<Vec<Logits>> {
            let mut all = self.0.predict(tiles, normalizer)?;
            for (logits, tile) in all.iter_mut().zip(tiles) {
                let (size, area) = (logits.size, logits.size.area() as usize);
                for (i, pixel) in tile.pixels.as_u8().unwrap().chunks_exact(3).enumerate() {
                    let (x, y) = (i as i64 % tile.at.width as i64, i as i64 / tile.at.width as i64);
                    let at = (tile.at.y + y) as usize * size.width as usize + (tile.at.x + x) as usize;
                    logits.values[area + at] = normalizer.apply(0, f32::from(pixel[0])) - 0.1;
                }
            }
            Ok(all)
        }
        fn identity(&self) -> String {
            format!("{self:?}")
        }
        fn memory(&self, batch: usize) -> MemoryEstimate {
            self.0.memory(batch)
        }
    }
    let model = |scheme, tile| {
        let mut model = ConstantModel::new(Size::new(tile, tile), &[0.0, 0.0]);
        model.card_mut().normalization = vec![scheme; 3];
        Normalised(model)
    };
    let slide = slide();
    let size = slide.info().size();
    let red: Vec<f64> = over(size, |x, y| u16::from(slide.pixel(x, y)[0])).into_iter().map(f64::from).collect();
    let mean = red.iter().sum::<f64>() / red.len() as f64;
    let std = (red.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / red.len() as f64).sqrt();
    let p = |logit: f64| 1.0 / (1.0 + (-(logit - 0.1)).exp());
    let decided: Vec<_> = red
        .iter()
        .map(|v| {
            let p = f64::midpoint(p((v - mean) / std), p(v / 255.0));
            ((p - 0.5).abs() > TIE).then_some(u16::from(p > 0.5))
        })
        .collect();
    let (a, b) = (model(Normalization::ZScore, 24), model(Normalization::RgbTo01, 40));
    let segmenter = Segmenter::ensemble(vec![&a, &b], settings()).unwrap();
    let (mask, summary) = segmenter.segment_into(&slide, MemoryImage::new, &Silent).unwrap();
    assert_decided(size, &labels(&mask.level(Level::FINEST).unwrap()), &decided, "z-score and a 255th");
    assert!(!summary.stages.statistics.busy.is_zero());
    assert!([0, 1].iter().all(|label| decided.contains(&Some(*label))));
}
