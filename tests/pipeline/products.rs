//! Probabilities and confidence beside the labels.

use microtome::io::store::{Content, OmeZarr};
use microtome::io::{Level, Size};
use microtome::{Existing, Outcome, Product, Segmenter, Silent, store_of, verify};
use microtome_testkit::{ConstantModel, FunctionModel, SyntheticSlide};

use crate::{files, names, segment_to, settings, with};

/// All samples of a level, channel by channel within each pixel.
fn samples(store: &std::path::Path, level: usize) -> (usize, Vec<u8>) {
    let store = OmeZarr::open(store).unwrap_or_else(|error| panic!("{error}"));
    let size = store.info().levels[level].size;
    let pixels = store.read_region(Level(level), size.rect()).unwrap();
    (pixels.channels(), pixels.as_u8().unwrap().to_vec())
}

#[test]
fn a_constant_model_has_constant_probabilities_exactly() {
    // np.round(255 * scipy.special.softmax(logits)); the lead of the first over the second
    let cases: [(&[f32], &[u8], u8); 3] = [
        (&[0.5, 1.75], &[57, 198], 141),
        (&[1.0, 2.0, 4.0], &[11, 29, 215], 186),
        (&[-3.0, 3.0, 0.0, 1.0], &[1, 215, 11, 29], 186),
    ];
    for (logits, expected, lead) in cases {
        for tile in [Size::new(24, 24), Size::new(31, 17)] {
            let folder = tempfile::tempdir().unwrap();
            let model = ConstantModel::new(tile, logits);
            let slide = SyntheticSlide::new(Size::new(83, 61), 1);
            let settings = with(&settings(), |s| (s.probabilities, s.confidence) = (true, true));
            let mask = folder.path().join("mask.ome.zarr");
            segment_to(&slide, &model, &settings, &mask);
            for level in 0..OmeZarr::open(&mask).unwrap().info().levels.len() {
                let (channels, found) = samples(&store_of(&mask, Product::Probabilities), level);
                assert_eq!(channels, logits.len());
                assert!(found.chunks_exact(channels).all(|p| p == expected), "{logits:?}, tile {tile}, level {level}");
                let (_, found) = samples(&store_of(&mask, Product::Confidence), level);
                assert!(found.iter().all(|&sure| sure == lead), "{logits:?}, tile {tile}, level {level}");
            }
        }
    }
}

#[test]
fn labels_are_the_same_with_and_without_and_probabilities_agree_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let slide = SyntheticSlide::new(Size::new(150, 110), 1);
    for thresholds in [&[60.5][..], &[60.5, 120.5]] {
        let model = FunctionModel::new(Size::new(40, 40), thresholds);
        let alone = folder.path().join(format!("alone{}.zarr", thresholds.len()));
        segment_to(&slide, &model, &settings(), &alone);
        let mask = folder.path().join(format!("mask{}.zarr", thresholds.len()));
        segment_to(&slide, &model, &with(&settings(), |s| s.probabilities = true), &mask);
        let labels = samples(&mask, 0).1;
        assert_eq!(labels, samples(&alone, 0).1);
        let (channels, found) = samples(&store_of(&mask, Product::Probabilities), 0);
        for (label, p) in labels.iter().zip(found.chunks_exact(channels)) {
            let largest = *p.iter().max().unwrap();
            assert_eq!(p[usize::from(*label)], largest, "{label}: {p:?}");
            // Each of so many is rounded by half a step at most.
            let sum: i32 = p.iter().map(|&v| i32::from(v)).sum();
            assert!((sum - 255).unsigned_abs() as usize <= channels / 2 + 1, "{p:?}");
        }
    }
}

#[test]
fn what_is_beside_the_mask_is_named_described_verified_and_replaced_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let mask = folder.path().join("m.ome.zarr");
    let (slide, model) = (SyntheticSlide::new(Size::new(150, 110), 1), FunctionModel::new(Size::new(40, 40), &[60.5]));
    let both = with(&settings(), |s| (s.probabilities, s.confidence) = (true, true));
    segment_to(&slide, &model, &both, &mask);
    let beside = ["m.confidence.ome.zarr", "m.ome.zarr", "m.ome.zarr.run", "m.probabilities.ome.zarr"];
    assert_eq!(names(folder.path()), beside);
    let info = OmeZarr::open(store_of(&mask, Product::Probabilities)).unwrap().info().clone();
    let Content::Image { channels } = &info.content else { panic!("{:?}", info.content) };
    assert_eq!(channels.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["class 0", "class 1"]);
    assert_eq!(info.method.as_deref(), Some("mean"));

    let found = verify(&mask).unwrap();
    assert!(found.faults.is_empty() && found.intact > 0, "{found:?}");
    let shard = store_of(&mask, Product::Confidence).join("0/c/0/0/0");
    std::fs::write(&shard, b"another").unwrap();
    assert_eq!(
        verify(&mask).unwrap().faults,
        ["m.confidence.ome.zarr, level 0, shard column 0 row 0: the file has changed"]
    );

    let run = |settings: &microtome::Settings, existing| {
        Segmenter::new(&model, settings.clone()).unwrap().segment(&slide, &mask, existing, &Silent)
    };
    assert!(matches!(run(&both, Existing::Keep), Ok(Outcome::AlreadyDone { unreadable: 0 })));
    // Without one of its parts it is not done.
    std::fs::remove_dir_all(store_of(&mask, Product::Probabilities)).unwrap();
    let error = run(&both, Existing::Keep).unwrap_err();
    assert!(error.exit_code() == 5 && error.to_string().contains("m.probabilities.ome.zarr"), "{error}");
    assert!(matches!(run(&both, Existing::Replace), Ok(Outcome::Done(_))));
    assert!(verify(&mask).unwrap().faults.is_empty());
}

#[test]
fn a_stopped_run_goes_on_with_every_part() {
    let folder = tempfile::tempdir().unwrap();
    let slide = SyntheticSlide::new(Size::new(300, 260), 1);
    let model = FunctionModel::new(Size::new(40, 40), &[60.5]);
    let both = with(&settings(), |s| {
        (s.probabilities, s.confidence) = (true, true);
        s.sync_every = std::time::Duration::ZERO;
    });
    let whole = folder.path().join("whole.zarr");
    segment_to(&slide, &model, &both, &whole);

    let mask = folder.path().join("mask.zarr");
    let mut stops = 0;
    for after in [0.1, 0.3, 0.35, 0.6, 0.9, 2.0] {
        let stop = StopAt { share: after, now: std::sync::atomic::AtomicBool::new(false) };
        match Segmenter::new(&model, both.clone()).unwrap().segment(&slide, &mask, Existing::Keep, &stop) {
            Ok(Outcome::Done(_)) => break,
            Ok(Outcome::AlreadyDone { .. }) => panic!("done already"),
            Err(error) => assert_eq!(error.exit_code(), 130, "{error}"),
        }
        stops += 1;
    }
    assert!(stops >= 4, "{stops}");
    for product in [Product::Labels, Product::Probabilities, Product::Confidence] {
        assert!(files(&store_of(&mask, product)) == files(&store_of(&whole, product)), "{product:?}");
    }
}

struct StopAt {
    share: f64,
    now: std::sync::atomic::AtomicBool,
}

impl microtome::Observer for StopAt {
    fn progress(&self, done: u64, total: u64) {
        self.now.fetch_or(done as f64 > self.share * total as f64, std::sync::atomic::Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        self.now.load(std::sync::atomic::Ordering::Relaxed)
    }
}
