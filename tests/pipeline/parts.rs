//! One slide, several workers: whoever does what, and however often they are stopped, the store is that of a single run.

use std::sync::Mutex;

use microtome::io::slide::{OpenOptions, open};
use microtome::io::store::Format;
use microtome::io::{Microns, TileCoord};
use microtome::unet::Normalization;
use microtome::{
    ConvertOptions, Destination, Observer, OnBadTile, Part, PartOutcome, PartSummary, Phase, Product, convert,
    store_of, verify,
};
use microtome_testkit::{CountingSlide, FailingSlide, FunctionModel, SyntheticSlide};

use crate::resume::StopAfter;
use crate::*;

fn slide() -> SyntheticSlide {
    SyntheticSlide::new(Size::new(330, 210), 5).with_mpp(Some(Microns::square(0.5)))
}

/// It needs a first pass over the slide.
fn model() -> FunctionModel {
    let mut model = FunctionModel::new(Size::new(24, 24), &[20.5, 60.5]);
    model.card_mut().normalization = vec![Normalization::ZScore; 3];
    model
}

fn part(index: u32, of: u32) -> Part {
    Part::new(index, of).unwrap()
}

fn compute(
    slide: &dyn SlideReader,
    settings: &Settings,
    output: &Path,
    part: Part,
    observer: &dyn Observer,
) -> microtome::Result<PartOutcome> {
    let model = model();
    let segmenter = Segmenter::new(&model, settings.clone()).unwrap();
    segmenter.segment_part(slide, Destination::Store(output), part, observer)
}

#[track_caller]
fn done(outcome: microtome::Result<PartOutcome>) -> PartSummary {
    match outcome {
        Ok(PartOutcome::Done(summary)) => *summary,
        other => panic!("{other:?}"),
    }
}

fn finish(slide: &dyn SlideReader, settings: &Settings, output: &Path) -> microtome::Result<Outcome> {
    let model = model();
    let segmenter = Segmenter::new(&model, settings.clone()).unwrap();
    segmenter.finish_parts(slide, Destination::Store(output), &Silent)
}

#[track_caller]
fn finished(outcome: microtome::Result<Outcome>) -> Summary {
    match outcome {
        Ok(Outcome::Done(summary)) => *summary,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: microtome::Result<T>, code: u8, words: &[&str]) {
    let error = outcome.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.exit_code(), code, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing: {text}");
    }
}

#[track_caller]
fn assert_same_stores(found: &Path, expected: &Path, products: &[Product], what: impl std::fmt::Display) {
    for &product in products {
        let [found, expected] = [found, expected].map(|mask| files(&store_of(mask, product)));
        let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "{product:?}, {what}");
        for (name, bytes) in &found {
            assert!(*bytes == expected[name], "{product:?}, {}: {what}", name.display());
        }
    }
}

/// Workers that differ in everything that may differ.
fn worker(base: &Settings, index: u32) -> Settings {
    let model = model();
    let narrow = with(base, |s| (s.threads, s.batch) = (Some(1), Some(1)));
    match index % 3 {
        0 => with(&narrow, |s| s.memory = least_memory(&slide(), &model, &narrow)),
        1 => with(base, |s| (s.threads, s.batch) = (Some(3), Some(5))),
        _ => narrow,
    }
}

#[test]
fn parts_of_all_kinds_become_the_store_of_a_single_run() {
    let all = [Product::Probabilities, Product::Confidence, Product::Labels];
    let variants: [(&str, Settings); 4] = [
        ("every tile", settings()),
        ("tissue", with(&settings(), |s| s.tissue = TissueMode::Auto)),
        ("0.4", with(&settings(), |s| s.format = Some(Format::V0_4))),
        ("all products", with(&settings(), |s| (s.probabilities, s.confidence) = (true, true))),
    ];
    for (name, base) in variants {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole.ome.zarr");
        let single = segment_to(&slide(), &model(), &base, &whole);
        for of in [1, 2, 5, 90] {
            let output = folder.path().join(format!("{of}.ome.zarr"));
            let mut shards = 0;
            // Not in their order.
            for index in (0..of).rev() {
                let summary = done(compute(&slide(), &worker(&base, index), &output, part(index, of), &Silent));
                shards += summary.shards;
                assert!(OmeZarr::open(&output).is_err(), "{name}: half a store can be seen");
            }
            assert_eq!(shards, Size::new(330, 210).cells(Size::new(32, 32)).area());
            let summary = finished(finish(&slide(), &base, &output));
            assert_eq!((&summary.areas, summary.tiles), (&single.areas, single.tiles), "{name}, {of} parts");
            assert_eq!(summary.parts.len(), of as usize);
            let products: Vec<Product> = all.into_iter().filter(|p| base.products().contains(p)).collect();
            assert_same_stores(&output, &whole, &products, format!("{name}, {of} parts"));
            let verified = verify(&output).unwrap();
            assert!(verified.faults.is_empty() && !verified.unfinished && verified.intact > 0, "{verified:?}");
            // What is left is what a single run leaves.
            let left = |mask: &Path| names(&mask.with_extension("zarr.run"));
            assert_eq!(left(&output), left(&whole), "{name}, {of} parts");
        }
        assert!(!names(folder.path()).iter().any(|name| Path::new(name).extension().is_some_and(|e| e == "part")));
    }
}

/// Each part asks for its own tiles, and those at seams run twice.
#[test]
fn work_is_shared() {
    let folder = tempfile::tempdir().unwrap();
    let whole = segment_to(&slide(), &model(), &settings(), &folder.path().join("whole.ome.zarr"));
    let output = folder.path().join("mask.ome.zarr");
    let runs: Vec<u64> =
        (0..3).map(|i| done(compute(&slide(), &settings(), &output, part(i, 3), &Silent)).tiles.run).collect();
    let all = whole.tiles.run;
    assert!(runs.iter().all(|run| run * 3 > all * 8 / 10 && run * 3 < all * 15 / 10), "{runs:?} of {all}");
    assert!(runs.iter().sum::<u64>() > all);
}

#[test]
fn at_the_same_time_they_do_not_get_in_each_others_way() {
    let folder = tempfile::tempdir().unwrap();
    let base = with(&settings(), |s| (s.tissue, s.probabilities) = (TissueMode::Auto, true));
    let whole = folder.path().join("whole.ome.zarr");
    segment_to(&slide(), &model(), &base, &whole);
    for round in 0..6 {
        let output = folder.path().join(format!("{round}.ome.zarr"));
        let format = if round % 2 == 0 { Format::V0_5 } else { Format::V0_4 };
        let base = with(&base, |s| s.format = Some(format));
        std::thread::scope(|scope| {
            for index in 0..4 {
                let (output, settings) = (&output, worker(&base, index));
                scope.spawn(move || done(compute(&slide(), &settings, output, part(index, 4), &Silent)));
            }
        });
        finished(finish(&slide(), &base, &output));
        if format == Format::V0_5 {
            assert_same_stores(&output, &whole, &base.products(), format!("round {round}"));
        } else {
            assert_eq!(levels_of_store(&output), levels_of_store(&whole));
        }
    }
}

#[test]
fn a_part_that_is_stopped_anywhere_goes_on_and_one_that_is_complete_does_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.ome.zarr");
    let small_steps = with(&settings(), |s| s.batch = Some(1));
    segment_to(&slide(), &model(), &small_steps, &whole);
    let output = folder.path().join("mask.ome.zarr");
    done(compute(&slide(), &small_steps, &output, part(1, 2), &Silent));
    let mut resumed = 0;
    for percent in [0, 20, 35, 45] {
        let observer = StopAfter::new(330 * 210 * percent / 100);
        match compute(&slide(), &small_steps, &output, part(0, 2), &observer) {
            Err(Error::Interrupted) => {}
            other => panic!("at {percent} %: {other:?}"),
        }
        refused(finish(&slide(), &small_steps, &output), 2, &["part 0 of 2 is not complete"]);
    }
    let summary = done(compute(&slide(), &small_steps, &output, part(0, 2), &Silent));
    resumed += summary.resumed_shards;
    assert!(resumed > 0 && resumed < summary.shards, "{summary:?}");
    // Nothing of the slide is read for one that is complete.
    let counting = CountingSlide::new(slide());
    for index in 0..2 {
        let again = compute(&counting, &small_steps, &output, part(index, 2), &Silent).unwrap();
        assert!(matches!(again, PartOutcome::AlreadyDone { unreadable: 0 }), "{again:?}");
    }
    assert_eq!(counting.reads(Level::FINEST), 0);
    finished(finish(&slide(), &small_steps, &output));
    assert_same_stores(&output, &whole, &[Product::Labels], "stopped");
    // Nor is anything done once it is published, by anybody.
    let before = files(folder.path());
    assert!(matches!(finish(&counting, &small_steps, &output), Ok(Outcome::AlreadyDone { .. })));
    let again = compute(&counting, &small_steps, &output, part(0, 2), &Silent);
    assert!(matches!(again, Ok(PartOutcome::AlreadyDone { .. })), "{again:?}");
    let again = Segmenter::new(&model(), small_steps).unwrap().segment(&counting, &output, Existing::Keep, &Silent);
    assert!(matches!(again, Ok(Outcome::AlreadyDone { .. })), "{again:?}");
    assert!(files(folder.path()) == before);
    assert_eq!(counting.reads(Level::FINEST), 0);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("mask.ome.zarr");
    refused(finish(&slide(), &settings(), &output), 2, &["no part of it has been computed"]);
    done(compute(&slide(), &settings(), &output, part(1, 4), &Silent));
    let before = files(folder.path());
    refused(finish(&slide(), &settings(), &output), 2, &["parts 0, 2, 3 of 4 are not complete"]);
    // Other parts, other settings, and all of it at once.
    refused(
        compute(&slide(), &settings(), &output, part(0, 3), &Silent),
        5,
        &["mask.ome.zarr", "parts: 4 there, 3 here"],
    );
    let other = with(&settings(), |s| s.step = Some(1.0));
    refused(compute(&slide(), &other, &output, part(0, 4), &Silent), 5, &["of part 1/4: step: 0.5 there, 1.0 here"]);
    refused(finish(&slide(), &other, &output), 5, &["step: 0.5 there, 1.0 here"]);
    let model = model();
    let whole = |settings: Settings, existing| {
        Segmenter::new(&model, settings).unwrap().segment(&slide(), &output, existing, &Silent)
    };
    refused(whole(settings(), Existing::Keep), 5, &["parts: 4 there, none here"]);
    assert!(files(folder.path()) == before, "a refusal has changed something");
    // Unless so asked: then nothing of the parts is left.
    finished(whole(settings(), Existing::Replace));
    assert_eq!(
        names(&output.with_extension("zarr.run")),
        ["journal.jsonl", "report.html", "report.json", "statistics.json"]
    );

    // A run that was begun as a whole is not continued in parts.
    let output = folder.path().join("other.ome.zarr");
    // Without a first pass, in which it would be stopped before there is anything.
    let plain = FunctionModel::new(Size::new(24, 24), &[20.5, 60.5]);
    let segmenter = Segmenter::new(&plain, with(&settings(), |s| s.batch = Some(1))).unwrap();
    let half = StopAfter::new(330 * 210 / 2);
    assert!(segmenter.segment(&slide(), &output, Existing::Keep, &half).is_err());
    let destination = Destination::Store(&output);
    let begun = segmenter.segment_part(&slide(), destination, part(0, 3), &Silent);
    refused(begun, 5, &["parts: none there, 3 here"]);
    refused(segmenter.finish_parts(&slide(), destination, &Silent), 2, &["no part"]);
}

#[cfg(feature = "remote")]
#[test]
fn in_an_object_store_no_part_is_begun() {
    let folder = tempfile::tempdir().unwrap();
    microtome::io::remote::in_memory("parts", folder.path());
    let output = Path::new("s3://parts/mask.ome.zarr");
    refused(compute(&slide(), &settings(), output, part(0, 2), &Silent), 2, &["mask.ome.zarr: several processes"]);
    assert!(names(folder.path()).is_empty());
}

#[test]
fn what_is_left_of_a_mask_that_was_removed_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("mask.ome.zarr");
    segment_to(&slide(), &model(), &settings(), &output);
    std::fs::remove_dir_all(&output).unwrap();
    let begun = compute(&slide(), &settings(), &output, part(0, 2), &Silent);
    assert!(matches!(begun, Err(Error::Usage(_))), "{begun:?}");
    refused(begun, 2, &["mask.ome.zarr.run: ", "remove it first"]);
    std::fs::remove_dir_all(output.with_extension("zarr.run")).unwrap();
    done(compute(&slide(), &settings(), &output, part(0, 2), &Silent));
}

/// Runs something in the middle of a part.
struct InBetween<F>(Mutex<Option<F>>);

impl<F: FnOnce() + Send> Observer for InBetween<F> {
    fn phase(&self, phase: Phase) {
        if phase == Phase::Segmentation
            && let Some(run) = self.0.lock().unwrap().take()
        {
            run();
        }
    }
}

#[test]
fn who_is_at_work_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("mask.ome.zarr");
    done(compute(&slide(), &settings(), &output, part(1, 2), &Silent));
    let during = || {
        refused(compute(&slide(), &settings(), &output, part(0, 2), &Silent), 2, &["another process"]);
        refused(finish(&slide(), &settings(), &output), 2, &["part 0 of 2 is not complete"]);
        let whole =
            Segmenter::new(&model(), settings()).unwrap().segment(&slide(), &output, Existing::Replace, &Silent);
        refused(whole, 2, &["another process"]);
        let other = compute(&slide(), &settings(), &output, part(1, 2), &Silent);
        assert!(matches!(other, Ok(PartOutcome::AlreadyDone { .. })), "{other:?}");
    };
    let observer = InBetween(Mutex::new(Some(during)));
    done(compute(&slide(), &settings(), &output, part(0, 2), &observer));
    assert!(observer.0.lock().unwrap().is_none());
    finished(finish(&slide(), &settings(), &output));
    let whole = folder.path().join("whole.ome.zarr");
    segment_to(&slide(), &model(), &settings(), &whole);
    assert_same_stores(&output, &whole, &[Product::Labels], "disturbed");
}

#[test]
fn shards_that_were_lost_are_computed_again_by_those_whose_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.ome.zarr");
    segment_to(&slide(), &model(), &settings(), &whole);
    let output = folder.path().join("mask.ome.zarr");
    for index in 0..3 {
        done(compute(&slide(), &settings(), &output, part(index, 3), &Silent));
    }
    // Of the last part's, level 0, and the whole of level 1 that was built of the first part's.
    let last = files(&output).into_keys().filter(|name| name.starts_with("0/c")).max().unwrap();
    std::fs::write(output.join(&last), b"short").unwrap();
    let first = files(&output).into_keys().find(|name| name.starts_with("1/c")).unwrap();
    std::fs::remove_file(output.join(&first)).unwrap();
    refused(finish(&slide(), &settings(), &output), 2, &["of 3 ", "damaged and to be computed again"]);
    for index in 0..3 {
        compute(&slide(), &settings(), &output, part(index, 3), &Silent).unwrap();
    }
    finished(finish(&slide(), &settings(), &output));
    assert_same_stores(&output, &whole, &[Product::Labels], "repaired");

    // Where the store is gone, all of it is.
    let output = folder.path().join("gone.ome.zarr");
    for index in 0..2 {
        done(compute(&slide(), &settings(), &output, part(index, 2), &Silent));
    }
    std::fs::remove_dir_all(&output).unwrap();
    refused(finish(&slide(), &settings(), &output), 2, &["not there any more"]);
    for index in 0..2 {
        done(compute(&slide(), &settings(), &output, part(index, 2), &Silent));
    }
    finished(finish(&slide(), &settings(), &output));
    assert_same_stores(&output, &whole, &[Product::Labels], "computed twice");
}

#[test]
fn tiles_that_cannot_be_read_are_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    let filling = with(&settings(), |s| s.on_bad_tile = OnBadTile::Fill);
    let bad = |row, column| TileCoord { row, column };
    let slide = (0..3).fold(FailingSlide::new(slide().with_tile(Size::new(64, 64))), |slide, column| {
        slide.with_bad_tile(Level::FINEST, bad(1, column))
    });
    let whole = folder.path().join("whole.ome.zarr");
    let single = segment_to(&slide, &model(), &filling, &whole);
    assert_eq!(single.unreadable.len(), 3);
    let output = folder.path().join("mask.ome.zarr");
    let met: Vec<usize> =
        (0..4).map(|i| done(compute(&slide, &filling, &output, part(i, 4), &Silent)).unreadable.len()).collect();
    assert!(met.iter().sum::<usize>() > 3, "none is met by two: {met:?}");
    let summary = finished(finish(&slide, &filling, &output));
    assert_eq!(summary.unreadable.len(), 3);
    assert_same_stores(&output, &whole, &[Product::Labels], "damaged");
}

#[test]
fn a_label_of_an_image_is_listed_when_it_is_finished() {
    let folder = tempfile::tempdir().unwrap();
    let base = with(&settings(), |s| (s.name, s.probabilities) = (Some("cells".into()), true));
    for format in [Format::V0_5, Format::V0_4] {
        let [single, shared] = ["single", "shared"].map(|name| {
            let path = folder.path().join(format!("{name}-{format}.ome.zarr"));
            let mut options = ConvertOptions::default();
            options.encoding.format = format;
            convert(&slide(), &path, &options, Existing::Keep, &Silent).unwrap();
            path
        });
        let model = model();
        let segmenter = Segmenter::new(&model, base.clone()).unwrap();
        let open = |path: &Path| open(path, &OpenOptions::default()).unwrap();
        segmenter.segment_label(open(&single).as_ref(), &single, Existing::Keep, &Silent).unwrap();
        let before = files(&shared);
        for index in 0..3 {
            let destination = Destination::Image(&shared);
            done(segmenter.segment_part(open(&shared).as_ref(), destination, part(index, 3), &Silent));
        }
        assert!(before.iter().all(|(name, bytes)| files(&shared)[name] == *bytes));
        finished(segmenter.finish_parts(open(&shared).as_ref(), Destination::Image(&shared), &Silent));
        // The images are the same, and so are their labels.
        let [single, shared] = [single, shared].map(|image| image.join("labels/cells"));
        assert_same_stores(&shared, &single, &[Product::Labels, Product::Probabilities], format);
    }
}

#[test]
fn parts_are_written_as_they_are_read() {
    for text in ["0/1", "3/4", "0/4096"] {
        assert_eq!(text.parse::<Part>().unwrap().to_string(), text);
    }
    for (text, word) in [
        ("4/4", "from 0 to 3"),
        ("0/0", "0 parts"),
        ("0/5000", "1 to 4096"),
        ("2", "I/N"),
        ("-1/2", "I/N"),
        ("a/b", "I/N"),
    ] {
        refused(text.parse::<Part>(), 2, &[word]);
    }
}
