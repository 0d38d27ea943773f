//! Runs that are stopped at random by a changing crew, and what a crash of the machine may do to what they left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use microtome::io::Size;
use microtome::io::store::{Found, inspect};
use microtome::{Error, Existing, Observer, Outcome, Result, Segmenter, Settings, Silent, Summary, TissueMode, verify};
use microtome_testkit::{FunctionModel, SyntheticSlide};
use proptest::prelude::*;

use crate::function::THRESHOLDS;
use crate::{files, least_memory, settings, with};

fn slide() -> SyntheticSlide {
    SyntheticSlide::new(Size::new(260, 230), 41)
}

fn model() -> FunctionModel {
    FunctionModel::new(Size::new(48, 48), &THRESHOLDS)
}

/// Stops at the `n`th time that it is asked.
#[derive(Debug)]
struct StopAfter(AtomicUsize);

impl StopAfter {
    fn new(n: usize) -> Self {
        Self(AtomicUsize::new(n))
    }
}

impl Observer for StopAfter {
    fn cancelled(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_err()
    }
}

fn run(output: &Path, settings: &Settings, observer: &dyn Observer) -> Result<Outcome> {
    Segmenter::new(&model(), settings.clone())?.segment(&slide(), output, Existing::Keep, observer)
}

fn done(outcome: Result<Outcome>) -> Summary {
    match outcome {
        Ok(Outcome::Done(summary)) => *summary,
        other => panic!("{other:?}"),
    }
}

/// The store of a run that nothing disturbed.
fn undisturbed(settings: &Settings) -> (BTreeMap<PathBuf, Vec<u8>>, Summary) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.ome.zarr");
    let summary = done(run(&path, settings, &Silent));
    (files(&path), summary)
}

/// Leaves a run that has finished some shards, and says how many entries its journal has.
fn stopped(path: &Path, settings: &Settings) -> usize {
    let error = run(path, settings, &StopAfter::new(12)).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
    assert!(matches!(inspect(path).unwrap(), Found::Unfinished));
    let entries = std::fs::read_to_string(journal(path)).unwrap().lines().count() - 1;
    assert!(entries > 3, "only {entries} shards were finished");
    entries
}

fn beside(path: &Path) -> PathBuf {
    path.with_file_name(format!("{}.run", path.file_name().unwrap().to_string_lossy()))
}

fn journal(path: &Path) -> PathBuf {
    beside(path).join("journal.jsonl")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    /// Stopped again and again, each time with another crew.
    #[test]
    fn the_result_is_the_same_however_often_a_run_is_stopped(
        stops in prop::collection::vec((1usize..30, 1usize..=3, prop::sample::select(vec![1usize, 3, 8]), any::<bool>()), 1..5),
        tissue in any::<bool>(),
    ) {
        let base = with(&settings(), |s| s.tissue = if tissue { TissueMode::Auto } else { TissueMode::None });
        let (expected, reference) = undisturbed(&base);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.ome.zarr");
        let mut outcome = None;
        for (n, threads, batch, narrow) in stops {
            let mut settings = with(&base, |s| (s.threads, s.batch) = (Some(threads), Some(batch)));
            if narrow {
                settings.memory = least_memory(&slide(), &model(), &settings);
            }
            match run(&path, &settings, &StopAfter::new(n)) {
                Err(Error::Interrupted) => {}
                other => {
                    outcome = Some(done(other));
                    break;
                }
            }
        }
        let summary = outcome.unwrap_or_else(|| done(run(&path, &base, &Silent)));
        prop_assert!(files(&path) == expected);
        prop_assert_eq!(&summary.areas, &reference.areas);
        let (a, b) = (summary.tiles, reference.tiles);
        prop_assert_eq!((a.grid, a.run, a.skipped), (b.grid, b.run, b.skipped));
        let verified = verify(&path).unwrap();
        prop_assert!(verified.faults.is_empty() && !verified.unfinished, "{:?}", verified);
    }
}

/// What a crash of the machine may do: the journal torn, files lost, shards that nobody noted.
#[test]
fn what_was_lost_is_computed_again() {
    let expected = undisturbed(&settings()).0;
    let damages: [fn(&Path); 6] = [
        // A line cut in the middle.
        |path| {
            let bytes = std::fs::read(journal(path)).unwrap();
            std::fs::write(journal(path), &bytes[..bytes.len() - 20]).unwrap();
        },
        // Nothing but the first line.
        |path| {
            let text = std::fs::read_to_string(journal(path)).unwrap();
            std::fs::write(journal(path), text.split_inclusive('\n').next().unwrap()).unwrap();
        },
        |path| std::fs::write(journal(path), "").unwrap(),
        |path| std::fs::remove_dir_all(beside(path)).unwrap(),
        |path| std::fs::remove_dir_all(path.join("0/c/0")).unwrap(),
        // Other bytes in a shard, and a file that a write did not get to rename.
        |path| {
            let name = files(path).into_keys().find(|name| name.starts_with("0/c")).unwrap();
            std::fs::write(path.join(name), "damaged").unwrap();
            std::fs::write(path.join("0/c/0/.0.partial"), "torn").unwrap();
        },
    ];
    for (n, damage) in damages.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.ome.zarr");
        stopped(&path, &settings());
        damage(&path);
        done(run(&path, &settings(), &Silent));
        let found = files(&path);
        let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "damage {n}");
        assert!(found == expected, "damage {n}");
    }
}

/// A journal of other content than ours is nothing to go on with, and nothing to throw away.
#[test]
fn a_journal_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.ome.zarr");
    stopped(&path, &settings());
    std::fs::write(journal(&path), "dear diary\n").unwrap();
    let error = run(&path, &settings(), &Silent).unwrap_err();
    assert!(error.to_string().contains("journal.jsonl") && error.to_string().contains("line 1"), "{error}");
    assert_eq!(std::fs::read_to_string(journal(&path)).unwrap(), "dear diary\n");
}

/// Puts a folder in the place of the journal, and then stops.
struct Hides(PathBuf);

impl Observer for Hides {
    fn cancelled(&self) -> bool {
        if std::fs::remove_file(&self.0).is_ok() {
            std::fs::create_dir(&self.0).unwrap();
        }
        self.0.is_dir()
    }
}

#[test]
fn what_a_journal_cannot_say_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.ome.zarr");
    let error = run(&path, &settings(), &Hides(journal(&path))).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
    assert_eq!(inspect(&path).unwrap(), Found::Unfinished);
    let error = run(&path, &settings(), &Silent).unwrap_err();
    assert!(error.to_string().contains("journal.jsonl"), "{error}");
    std::fs::remove_dir(journal(&path)).unwrap();
    done(run(&path, &settings(), &Silent));
}

#[test]
fn what_a_kill_left_half_written_beside_a_finished_mask_goes_once_it_is_old() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.ome.zarr");
    done(run(&path, &settings(), &Silent));
    let [old, new, mine] =
        ["report.html.1-0.part", "report.json.2-0.part", "notes.txt"].map(|name| beside(&path).join(name));
    for (file, hours) in [(&old, 2), (&new, 0), (&mine, 2)] {
        let file = std::fs::File::create(file).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(hours)).unwrap();
    }
    assert!(matches!(run(&path, &settings(), &Silent), Ok(Outcome::AlreadyDone { .. })));
    assert!(!old.exists() && new.exists() && mine.exists());
}

/// The statistics of the first pass are kept with the run.
#[test]
fn statistics_are_taken_once() {
    #[derive(Debug, Default)]
    struct Phases(std::sync::Mutex<Vec<microtome::Phase>>, AtomicUsize);
    impl Observer for Phases {
        fn phase(&self, phase: microtome::Phase) {
            self.0.lock().unwrap().push(phase);
        }
        fn cancelled(&self) -> bool {
            // Only while tiles run.
            self.0.lock().unwrap().last() == Some(&microtome::Phase::Segmentation)
                && self.1.fetch_add(1, Ordering::Relaxed) >= 12
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.ome.zarr");
    let mut model = model();
    model.card_mut().normalization = vec![microtome::unet::Normalization::ZScore; 3];
    let segmenter = Segmenter::new(&model, settings()).unwrap();
    let first = Phases::default();
    assert!(segmenter.segment(&slide(), &path, Existing::Keep, &first).is_err());
    let again = Phases(std::sync::Mutex::default(), AtomicUsize::new(0));
    let _ = segmenter.segment(&slide(), &path, Existing::Keep, &again);
    let phases = |watcher: Phases| watcher.0.into_inner().unwrap();
    assert_eq!(phases(first), [microtome::Phase::Statistics, microtome::Phase::Segmentation]);
    assert_eq!(phases(again), [microtome::Phase::Segmentation]);
}

#[test]
fn without_a_journal_there_is_nothing_to_verify_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.ome.zarr");
    stopped(&path, &settings());
    let unfinished = verify(&path).unwrap();
    assert!(unfinished.unfinished && unfinished.faults.is_empty() && unfinished.intact > 3, "{unfinished:?}");
    done(run(&path, &settings(), &Silent));
    std::fs::remove_dir_all(beside(&path)).unwrap();
    for (path, word) in [(path.as_path(), "no journal"), (folder.path(), "no store of microtome")] {
        let error = verify(path).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(word), "{error}");
    }
}
