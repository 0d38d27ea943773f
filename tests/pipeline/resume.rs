//! Runs that are stopped, and go on.

use std::sync::atomic::{AtomicBool, Ordering};

use microtome::{Observer, verify};
use microtome_testkit::{CountingSlide, FailingSlide, FunctionModel, SyntheticSlide};

use super::*;

/// Asks the run to stop once so many pixels of the mask are done.
pub(crate) struct StopAfter {
    pixels: u64,
    reached: AtomicBool,
}

impl StopAfter {
    pub(crate) fn new(pixels: u64) -> Self {
        Self { pixels, reached: AtomicBool::new(pixels == 0) }
    }
}

impl Observer for StopAfter {
    fn progress(&self, done: u64, _total: u64) {
        if done >= self.pixels {
            self.reached.store(true, Ordering::Relaxed);
        }
    }

    fn cancelled(&self) -> bool {
        self.reached.load(Ordering::Relaxed)
    }
}

fn slide() -> SyntheticSlide {
    SyntheticSlide::new(Size::new(210, 330), 5).with_tissue_everywhere()
}

fn model() -> FunctionModel {
    FunctionModel::new(Size::new(24, 24), &[20.5, 60.5])
}

/// A batch of one tile and strips of one shard make many moments to stop at.
fn small_steps() -> Settings {
    with(&settings(), |s| s.batch = Some(1))
}

fn run(settings: &Settings, output: &Path, existing: Existing, observer: &dyn Observer) -> microtome::Result<Outcome> {
    let model = model();
    Segmenter::new(&model, settings.clone()).unwrap().segment(&slide(), output, existing, observer)
}

fn resumed(outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Done(summary) => summary.resumed_shards,
        Outcome::AlreadyDone { .. } => panic!("done already"),
    }
}

#[test]
fn a_run_that_is_stopped_anywhere_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.ome.zarr");
    let uninterrupted = segment_to(&slide(), &model(), &small_steps(), &whole);
    let expected = files(&whole);
    // Not the very end: what is read by then, and nothing is left to stop, is finished.
    for percent in [0, 5, 30, 60, 75] {
        let output = folder.path().join(format!("stopped-{percent}.ome.zarr"));
        let area = 210 * 330;
        let mut kept = 0;
        // Stopped three times, ever a little further on.
        for more in [0, 2, 4] {
            let observer = StopAfter::new(area * (percent + more) / 100);
            match run(&small_steps(), &output, Existing::Keep, &observer) {
                Err(Error::Interrupted) => {}
                other => panic!("at {percent} + {more} %: {other:?}"),
            }
            assert!(OmeZarr::open(&output).is_err(), "half a store can be seen");
        }
        match run(&small_steps(), &output, Existing::Keep, &Silent).unwrap() {
            Outcome::Done(summary) => {
                kept += summary.resumed_shards;
                assert_eq!(summary.areas, uninterrupted.areas, "pixels counted before the stop are not lost");
                assert_eq!(summary.tiles, uninterrupted.tiles);
            }
            Outcome::AlreadyDone { .. } => panic!("done already"),
        }
        assert!(kept > 0 || percent < 30, "at {percent} % something must have been kept");
        assert_eq!(files(&output), expected, "stopped at {percent} %");
    }
}

#[test]
fn what_is_finished_is_not_computed_again() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("mask.ome.zarr");
    let model = model();
    let segmenter = Segmenter::new(&model, small_steps()).unwrap();
    let all = CountingSlide::new(slide());
    segmenter.segment(&all, &folder.path().join("all.ome.zarr"), Existing::Keep, &Silent).unwrap();
    let observer = StopAfter::new(210 * 330 * 8 / 10);
    assert!(segmenter.segment(&slide(), &output, Existing::Keep, &observer).is_err());
    let rest = CountingSlide::new(slide());
    segmenter.segment(&rest, &output, Existing::Keep, &Silent).unwrap();
    let (rest, all) = (rest.reads(Level::FINEST), all.reads(Level::FINEST));
    assert!(rest * 2 < all, "{rest} of {all} tiles were read again after four fifths were done");
}

#[test]
fn a_shard_that_was_lost_is_computed_again() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.ome.zarr");
    segment_to(&slide(), &model(), &small_steps(), &whole);
    let output = folder.path().join("mask.ome.zarr");
    assert!(run(&small_steps(), &output, Existing::Keep, &StopAfter::new(210 * 330 / 2)).is_err());
    // One that the journal names vanishes, another is cut short: as after a crash of a disk that lied.
    std::fs::remove_file(output.join("0/c/0/0")).unwrap();
    std::fs::write(output.join("0/c/1/0"), b"short").unwrap();
    assert!(resumed(run(&small_steps(), &output, Existing::Keep, &Silent).unwrap()) > 0);
    assert_eq!(files(&output), files(&whole));
}

#[test]
fn a_run_goes_on_only_with_the_same_settings() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("mask.ome.zarr");
    let half = || StopAfter::new(210 * 330 / 2);
    assert!(run(&small_steps(), &output, Existing::Keep, &half()).is_err());
    let other = with(&small_steps(), |s| s.step = Some(1.0));
    match run(&other, &output, Existing::Keep, &Silent) {
        Err(Error::DifferentRun { differs, .. }) => assert_eq!(differs, "step: 0.5 there, 1.0 here"),
        other => panic!("{other:?}"),
    }
    // Threads, batch and memory are no settings of the result.
    let same = with(&small_steps(), |s| (s.threads, s.batch) = (Some(1), Some(5)));
    assert!(resumed(run(&same, &output, Existing::Keep, &Silent).unwrap()) > 0);

    assert!(run(&other, &output, Existing::Replace, &half()).is_err());
    assert_eq!(resumed(run(&other, &output, Existing::Restart, &Silent).unwrap()), 0);
}

#[test]
fn a_tile_that_fails_keeps_what_was_finished() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("mask.ome.zarr");
    let model = model();
    // One shard wide, so that there is something finished above the bad tile.
    let tall = || SyntheticSlide::new(Size::new(30, 400), 5).with_tile(Size::new(16, 16)).with_tissue_everywhere();
    let segmenter = Segmenter::new(&model, small_steps()).unwrap();
    let bad = FailingSlide::new(tall()).with_bad_tile(Level::FINEST, microtome::io::TileCoord { row: 20, column: 1 });
    let error = segmenter.segment(&bad, &output, Existing::Keep, &Silent).unwrap_err().to_string();
    assert!(error.contains("level 0, column 1 row 20"), "{error}");
    assert!(resumed(segmenter.segment(&tall(), &output, Existing::Keep, &Silent).unwrap()) >= 5);
}

#[test]
fn verification_names_every_changed_shard() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("mask.ome.zarr");
    segment_to(&slide(), &model(), &small_steps(), &output);
    let found = verify(&output).unwrap();
    let shards = microtome::io::Size::new(210, 330).cells(Size::new(32, 32)).area();
    assert!(found.faults.is_empty() && found.intact + found.background > shards, "{found:?}");

    let file = output.join("0/c/2/3");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[10] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    std::fs::remove_file(output.join("1/c/0/0")).unwrap();
    assert_eq!(
        verify(&output).unwrap().faults,
        [
            "mask.ome.zarr, level 0, shard column 3 row 2: the file has changed",
            "mask.ome.zarr, level 1, shard column 0 row 0: the file is missing"
        ]
    );
}
