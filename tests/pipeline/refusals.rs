//! What fails says where and why, and leaves nothing behind but what the next attempt can use.

use std::sync::atomic::{AtomicUsize, Ordering};

use microtome::io::store::{Found, OmeZarr, inspect};
use microtome::io::{Level, Size, TileCoord};
use microtome::unet::Predictor;
use microtome::{
    Accumulation, Error, Existing, Observer, Phase, Result, Segmenter, Settings, Silent, TissueMode, WindowShape,
};
use microtome_testkit::{ConstantModel, FailingModel, FailingSlide, FunctionModel, SyntheticSlide};

use crate::function::THRESHOLDS;
use crate::{least_memory, names, segment, settings, with};

/// Runs what must fail. Nothing is left, or if parts were finished an unfinished store with its journal, and nothing else.
fn fails(
    slide: &dyn microtome::io::slide::SlideReader,
    model: &dyn Predictor,
    settings: &Settings,
    observer: &dyn Observer,
) -> Error {
    let folder = tempfile::tempdir().unwrap();
    let run = |existing| -> Result<_> {
        Segmenter::new(model, settings.clone())?.segment(
            slide,
            &folder.path().join("mask.ome.zarr"),
            existing,
            observer,
        )
    };
    let error = run(Existing::Keep).unwrap_err();
    let left = names(folder.path());
    if !left.is_empty() {
        assert_eq!(left, ["mask.ome.zarr", "mask.ome.zarr.run"], "left behind after: {error}");
        let store = folder.path().join("mask.ome.zarr");
        assert!(matches!(inspect(&store).unwrap(), Found::Unfinished), "left behind after: {error}");
        assert!(OmeZarr::open(&store).is_err(), "half a store opens after: {error}");
        assert!(names(&folder.path().join("mask.ome.zarr.run")).contains(&"journal.jsonl".into()));
    }
    error
}

#[test]
fn a_tile_that_cannot_be_decoded_is_named() {
    let model = FunctionModel::new(Size::new(64, 64), &THRESHOLDS);
    for (tissue, row, column) in [(TissueMode::None, 0, 0), (TissueMode::None, 2, 1), (TissueMode::Auto, 1, 2)] {
        let bad = TileCoord { row, column };
        let slide = SyntheticSlide::new(Size::new(900, 700), 3).with_tissue_everywhere();
        let slide = FailingSlide::new(slide).with_bad_tile(Level(0), bad);
        for threads in [1, 3] {
            let settings = with(&settings(), |s| (s.tissue, s.threads) = (tissue, Some(threads)));
            let error = fails(&slide, &model, &settings, &Silent);
            assert!(matches!(error, Error::Read(microtome::io::Error::Tile { .. })), "{error}");
            assert_eq!(error.exit_code(), 4);
            let text = error.to_string();
            let expected = format!("synthetic: level 0, column {column} row {row}: ");
            assert!(text.starts_with(&expected), "{text}");
        }
    }
}

#[test]
fn a_tile_that_only_the_search_for_tissue_reads_is_named_too() {
    let slide = SyntheticSlide::new(Size::new(3000, 2000), 3);
    let slide = FailingSlide::new(slide).with_bad_tile(Level(3), TileCoord { row: 0, column: 1 });
    let model = FunctionModel::new(Size::new(64, 64), &THRESHOLDS);
    let error = fails(&slide, &model, &with(&settings(), |s| s.tissue = TissueMode::Auto), &Silent);
    assert!(error.to_string().contains("level 3, column 1 row 0"), "{error}");
}

#[test]
fn a_tile_that_only_the_statistics_read_is_named_too() {
    let slide = SyntheticSlide::new(Size::new(900, 700), 3).with_islands(0);
    let slide = FailingSlide::new(slide).with_bad_tile(Level(0), TileCoord { row: 2, column: 3 });
    let mut model = FunctionModel::new(Size::new(64, 64), &THRESHOLDS);
    let settings = with(&settings(), |s| s.tissue = TissueMode::Auto);
    // Glass: without statistics nobody reads level 0.
    segment(&slide, &model, &settings);
    model.card_mut().normalization = vec![microtome::unet::Normalization::ZScore; 3];
    let error = fails(&slide, &model, &settings, &Silent);
    assert!(error.to_string().contains("level 0, column 3 row 2"), "{error}");
}

#[test]
fn a_model_that_gives_nan_names_the_tiles() {
    let slide = SyntheticSlide::new(Size::new(300, 200), 3);
    for good in [0, 7, 30] {
        let model = FailingModel::new(ConstantModel::new(Size::new(64, 64), &[0.0, 1.0]), good);
        let error = fails(&slide, &model, &with(&settings(), |s| s.batch = Some(3)), &Silent);
        assert!(matches!(error, Error::Inference { .. }) && error.exit_code() == 4, "{error}");
        let text = error.to_string();
        assert!(text.contains("synthetic: tiles from 64 x 64 at ("), "{text}");
        assert!(text.contains("not finite"), "{text}");
    }
}

#[test]
fn logits_that_f16_sums_cannot_hold_name_the_pixel() {
    let slide = SyntheticSlide::new(Size::new(300, 200), 3);
    // 7000 at a weight of 10, where f16 ends at 65504.
    let model = ConstantModel::new(Size::new(64, 64), &[0.0, 7000.0]);
    let settings = with(&settings(), |s| s.accumulate = Accumulation::F16Nnunet);
    let error = fails(&slide, &model, &settings, &Silent);
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("the logits at 1 x 1 at ("), "{error}");
    segment(&slide, &model, &with(&settings, |s| s.accumulate = Accumulation::F32));
}

#[test]
fn other_channels_than_the_models_are_refused() {
    let slide = SyntheticSlide::new(Size::new(300, 200), 3);
    let mut model = ConstantModel::new(Size::new(64, 64), &[0.0, 1.0]);
    model.card_mut().channels = vec!["grey".into()];
    model.card_mut().normalization.truncate(1);
    let error = fails(&slide, &model, &settings(), &Silent);
    assert_eq!(error.exit_code(), 2);
    assert_eq!(error.to_string(), "synthetic: the slide has 3 channels of 8 bits and the model wants 1");
}

#[test]
fn too_little_memory_is_refused_with_both_figures() {
    let slide = SyntheticSlide::new(Size::new(1000, 900), 3);
    let model = FunctionModel::new(Size::new(256, 256), &THRESHOLDS);
    let base = with(&settings(), |s| (s.batch, s.chunk, s.shard) = (Some(64), 64, 128));
    let least = least_memory(&slide, &model, &base);
    let error = fails(&slide, &model, &with(&base, |s| s.memory = least - 1), &Silent);
    let Error::Memory { needed, budget, ref hint } = error else { panic!("{error}") };
    assert!(budget == least - 1 && needed > budget && needed <= least, "{error}; {least} is enough");
    assert_eq!(error.exit_code(), 6);
    // The largest batch that would do, and it does.
    assert!(hint.contains("--batch 63"), "{hint}");
    segment(&slide, &model, &with(&base, |s| (s.memory, s.batch) = (least - 1, Some(63))));
    segment(&slide, &model, &with(&base, |s| s.memory = least));

    let error = fails(&slide, &model, &with(&base, |s| s.memory = 100 << 20), &Silent);
    let text = error.to_string();
    let Error::Memory { needed, .. } = error else { panic!("{error}") };
    assert!(text.contains("100.00 MiB") && text.contains(&microtome::Bytes(needed).to_string()), "{text}");
    // What it proposes is enough.
    let proposed = text.rsplit_once("--memory ").unwrap().1.parse::<microtome::Bytes>().unwrap();
    segment(&slide, &model, &with(&base, |s| s.memory = proposed.0));
}

#[test]
fn a_batch_that_nobody_asked_for_is_as_large_as_fits() {
    let slide = SyntheticSlide::new(Size::new(1000, 900), 3);
    let model = FunctionModel::new(Size::new(256, 256), &THRESHOLDS);
    let base = with(&settings(), |s| (s.batch, s.chunk, s.shard) = (None, 64, 128));
    let batch = |settings: &Settings| {
        Segmenter::new(&model, settings.clone()).unwrap().plan(&slide).map(|plan| plan.memory.batch)
    };
    assert_eq!(batch(&with(&base, |s| s.memory = 1 << 30)).unwrap(), 4);
    assert_eq!(batch(&with(&base, |s| (s.memory, s.threads) = (1 << 30, Some(9)))).unwrap(), 9);
    let least = |tiles| least_memory(&slide, &model, &with(&base, |s| s.batch = Some(tiles)));
    for tiles in 1..4 {
        assert_eq!(batch(&with(&base, |s| s.memory = least(tiles))).unwrap(), tiles);
    }
    // Less than one tile needs: no smaller batch is proposed, because there is none.
    let error = batch(&with(&base, |s| s.memory = least(1) - 1)).unwrap_err().to_string();
    assert!(error.contains("--memory") && !error.contains("--batch"), "{error}");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let slide = SyntheticSlide::new(Size::new(100, 90), 3);
    let model = FunctionModel::new(Size::new(32, 32), &THRESHOLDS);
    let wrong: [fn(&mut Settings); 13] = [
        |s| s.batch = Some(0),
        |s| s.batch = Some(usize::MAX),
        |s| s.shard = 1 << 32,
        |s| s.threads = Some(0),
        |s| s.step = Some(0.0),
        |s| s.step = Some(1.01),
        |s| s.step = Some(f64::NAN),
        |s| s.chunk = 0,
        |s| s.shard = 0,
        |s| s.shard = 48,
        |s| s.chunk = 100,
        |s| (s.chunk, s.shard) = (u64::MAX, u64::MAX),
        |s| (s.accumulate, s.window) = (Accumulation::F16Nnunet, Some(WindowShape::Hann)),
    ];
    for (n, change) in wrong.into_iter().enumerate() {
        let error = fails(&slide, &model, &with(&settings(), change), &Silent);
        assert_eq!(error.exit_code(), 2, "{n}: {error}");
    }
}

/// Stops at the `n`th time that it is asked.
#[derive(Debug)]
struct StopAfter {
    n: usize,
    asked: AtomicUsize,
    phases: std::sync::Mutex<Vec<Phase>>,
}

impl Observer for StopAfter {
    fn phase(&self, phase: Phase) {
        self.phases.lock().unwrap().push(phase);
    }

    fn cancelled(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) >= self.n
    }
}

#[test]
fn a_run_that_is_stopped_leaves_nothing() {
    let slide = SyntheticSlide::new(Size::new(400, 300), 3);
    let mut model = FunctionModel::new(Size::new(64, 64), &THRESHOLDS);
    model.card_mut().normalization = vec![microtome::unet::Normalization::ZScore; 3];
    for n in [0, 1, 2, 10, 20] {
        let observer = StopAfter { n, asked: AtomicUsize::new(0), phases: std::sync::Mutex::default() };
        let settings = with(&settings(), |s| s.tissue = TissueMode::Auto);
        let error = fails(&slide, &model, &settings, &observer);
        assert!(matches!(error, Error::Interrupted) && error.exit_code() == 130, "{error}");
        let phases = observer.phases.into_inner().unwrap();
        assert!([Phase::Tissue, Phase::Statistics, Phase::Segmentation].starts_with(&phases), "{phases:?}");
    }
}
