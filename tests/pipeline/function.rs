//! A model that is a function of the pixel gives that function of every pixel, however the slide is cut.

use microtome::io::Size;
use microtome::io::slide::SlideReader;
use microtome::unet::{Output, Window};
use microtome::{Bytes, Segmenter};
use microtome_testkit::{FunctionModel, SyntheticSlide};
use proptest::prelude::*;

use crate::{assert_pyramid, assert_same, least_memory, levels_of, over, segment, settings};

/// Glass (darkness 12) is class 1, light tissue 2, dark tissue 3, so that nothing that is missing looks right.
pub(crate) const THRESHOLDS: [f32; 3] = [5.5, 20.5, 85.5];

/// The mask that the model must give on level 0.
pub(crate) fn expected(slide: &SyntheticSlide, model: &FunctionModel) -> Vec<u16> {
    over(slide.info().size(), |x, y| model.class(&slide.pixel(x, y)))
}

#[test]
fn the_mask_is_the_same_for_every_tiling() {
    let slide = SyntheticSlide::new(Size::new(201, 167), 5);
    for (width, height) in [(16, 16), (33, 20), (64, 128), (256, 256)] {
        for window in [Window::Gaussian, Window::Constant] {
            let mut model = FunctionModel::new(Size::new(width, height), &THRESHOLDS);
            model.card_mut().window = window;
            let expected = expected(&slide, &model);
            for step in [0.25, 0.5, 0.8, 1.0] {
                let mut settings = settings();
                settings.step = Some(step);
                let (mask, _) = segment(&slide, &model, &settings);
                let what = format!("tiles of {width} x {height}, step {step}, {window:?}");
                assert_same(slide.info().size(), &levels_of(&mask)[0].1, &expected, what);
            }
        }
    }
}

#[test]
fn the_mask_is_the_same_for_every_width_of_the_strips() {
    let slide = SyntheticSlide::new(Size::new(230, 150), 6);
    let model = FunctionModel::new(Size::new(40, 40), &THRESHOLDS);
    let expected = expected(&slide, &model);
    for (chunk, shard) in [(16, 32), (8, 64), (32, 64), (512, 2048)] {
        let mut settings = settings();
        (settings.chunk, settings.shard) = (chunk, shard);
        let least = least_memory(&slide, &model, &settings);
        let mut widths = Vec::new();
        // From one shard to the whole slide.
        for more in [0, 64 << 10, 256 << 10, 16 << 20] {
            settings.memory = least + more;
            let (mask, summary) = segment(&slide, &model, &settings);
            let what = format!("chunks of {chunk}, shards of {shard}, {}", Bytes(settings.memory));
            let levels = levels_of(&mask);
            assert_same(slide.info().size(), &levels[0].1, &expected, &what);
            assert_pyramid(&levels, chunk, &what);
            let width = summary.memory_plan.strip_width;
            assert!(summary.memory_plan.total() <= settings.memory, "{what}");
            assert_eq!(summary.tiles.repeated == 0, width == 230, "{what}: strips of {width}");
            widths.push(width);
        }
        assert_eq!((widths[0], widths[3]), (shard.min(230), 230), "{widths:?}");
        assert!(widths.is_sorted(), "{widths:?}");
        assert!(shard > 32 || widths[1] > 32 && widths[1] < 230, "no strip of several shards: {widths:?}");
    }
}

#[test]
fn regions_of_a_function_overwrite_each_other_in_their_order() {
    let slide = SyntheticSlide::new(Size::new(150, 140), 8);
    let mut model = FunctionModel::new(Size::new(48, 48), &[20.5, 85.5]);
    // Logits: 0; d - 20.5; (d - 20.5) + (d - 85.5). The first is never positive.
    model.card_mut().output = Output::Regions { class_order: vec![9, 2, 1] };
    let expected = over(slide.info().size(), |x, y| {
        let darkness = 255.0 - f32::from(slide.pixel(x, y)[0]);
        let (light, dark) = (darkness > 20.5, 2.0 * darkness > 106.0);
        if dark { 1 } else { u16::from(light) * 2 }
    });
    let (mask, _) = segment(&slide, &model, &settings());
    assert_same(slide.info().size(), &levels_of(&mask)[0].1, &expected, "regions");
    assert_eq!(expected.iter().collect::<std::collections::BTreeSet<_>>().len(), 3, "the slide shows all of them");
}

#[test]
fn the_order_of_progress_is_told() {
    #[derive(Debug, Default)]
    struct Watcher(std::sync::Mutex<Vec<(u64, u64)>>);
    impl microtome::Observer for Watcher {
        fn progress(&self, done: u64, total: u64) {
            self.0.lock().unwrap().push((done, total));
        }
    }
    let slide = SyntheticSlide::new(Size::new(200, 170), 5);
    let model = FunctionModel::new(Size::new(32, 32), &THRESHOLDS);
    let mut settings = settings();
    settings.memory = least_memory(&slide, &model, &settings);
    let watcher = Watcher::default();
    let segmenter = Segmenter::new(&model, settings).unwrap();
    segmenter.segment_into(&slide, microtome::io::store::MemoryImage::new, &watcher).unwrap();
    let seen = watcher.0.into_inner().unwrap();
    assert!(seen.is_sorted() && seen.iter().all(|&(_, total)| total == 200 * 170), "{seen:?}");
    assert_eq!(seen.last(), Some(&(200 * 170, 200 * 170)));
    assert!(seen.len() > 10, "{seen:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Everything at once: sizes, tiles, steps, windows, threads, batches, chunks, shards, memory.
    #[test]
    fn neither_cut_nor_crew_changes_a_pixel(
        (width, height) in (1u64..150, 1u64..130),
        (tile_width, tile_height) in (8u64..80, 8u64..80),
        step in 0.25f64..=1.0,
        window in prop::sample::select(crate::blending::WINDOWS.to_vec()),
        threads in 1usize..=3,
        batch in prop::sample::select(vec![1usize, 3, 8]),
        chunk in prop::sample::select(vec![8u64, 16, 40]),
        shard_pairs in 1u64..=2,
        spare in 0u64..200_000,
        seed in any::<u64>(),
    ) {
        let slide = SyntheticSlide::new(Size::new(width, height), seed);
        let model = FunctionModel::new(Size::new(tile_width, tile_height), &THRESHOLDS);
        let mut settings = settings();
        (settings.step, settings.threads, settings.batch) = (Some(step), Some(threads), Some(batch));
        settings.window = Some(window);
        (settings.chunk, settings.shard) = (chunk, 2 * chunk * shard_pairs);
        settings.memory = least_memory(&slide, &model, &settings) + spare;
        let (mask, summary) = segment(&slide, &model, &settings);
        prop_assert_eq!(summary.tiles.run, summary.tiles.grid);
        let levels = levels_of(&mask);
        assert_same(Size::new(width, height), &levels[0].1, &expected(&slide, &model), "level 0");
        assert_pyramid(&levels, chunk, "pyramid");
    }
}
