//! What may already be where the mask is to go.

use std::path::Path;
use std::time::SystemTime;

use microtome::io::store::{Found, ImageSink, OmeZarr, ZarrImage, inspect};
use microtome::io::{Level, Size};
use microtome::{Error, Existing, Outcome, Result, Segmenter, Settings, Silent};
use microtome_testkit::{FunctionModel, SyntheticSlide};
use serde_json::Map;

use crate::function::THRESHOLDS;
use crate::{files, names, segment, settings, with};

fn slide() -> SyntheticSlide {
    SyntheticSlide::new(Size::new(150, 120), 31)
}

fn model() -> FunctionModel {
    FunctionModel::new(Size::new(48, 48), &THRESHOLDS)
}

fn run(output: &Path, settings: &Settings, existing: Existing) -> Result<Outcome> {
    Segmenter::new(&model(), settings.clone())?.segment(&slide(), output, existing, &Silent)
}

fn done(outcome: Result<Outcome>) {
    assert!(matches!(outcome, Ok(Outcome::Done(_))), "{outcome:?}");
}

/// The content of a folder, with the times at which it was written.
fn state(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>, SystemTime)> {
    let time = |name: &Path| std::fs::metadata(folder.join(name)).unwrap().modified().unwrap();
    files(folder).into_iter().map(|(name, bytes)| (name.clone(), bytes, time(&name))).collect()
}

#[test]
fn what_is_not_ours_is_never_touched() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes.txt");
    std::fs::write(&file, "mine").unwrap();
    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("thesis.tex"), "mine, too").unwrap();
    // A store that another program wrote.
    let store = folder.path().join("theirs.zarr");
    std::fs::create_dir(&store).unwrap();
    std::fs::write(store.join("zarr.json"), r#"{"zarr_format":3,"node_type":"group","attributes":{}}"#).unwrap();
    let before = state(folder.path());
    for path in [&file, &other, &store] {
        for existing in [Existing::Keep, Existing::Restart, Existing::Replace] {
            let error = run(path, &settings(), existing).unwrap_err();
            assert!(matches!(error, Error::OutputExists { .. }) && error.exit_code() == 2, "{error}");
            assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
        }
    }
    assert!(state(folder.path()) == before);
    #[cfg(unix)]
    {
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("nowhere"), &link).unwrap();
        assert!(matches!(run(&link, &settings(), Existing::Replace), Err(Error::OutputExists { .. })));
        assert!(link.is_symlink() && !folder.path().join("nowhere").exists());
    }
}

#[test]
fn an_empty_folder_is_as_good_as_nothing() {
    let folder = tempfile::tempdir().unwrap();
    done(run(folder.path(), &settings(), Existing::Keep));
    assert!(matches!(inspect(folder.path()).unwrap(), Found::Complete(_)));
}

#[test]
fn a_run_that_has_finished_is_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.ome.zarr");
    done(run(&path, &settings(), Existing::Keep));
    let before = state(&path);
    // Threads, batch and memory are no part of what a run is.
    let report = state(&folder.path().join("mask.ome.zarr.run"));
    for settings in [settings(), with(&settings(), |s| (s.threads, s.batch, s.memory) = (Some(1), Some(7), 1 << 30))] {
        for existing in [Existing::Keep, Existing::Restart] {
            let again = run(&path, &settings, existing);
            assert!(matches!(again, Ok(Outcome::AlreadyDone { .. })), "{again:?}");
            assert!(state(&path) == before, "the store was touched");
            assert!(state(&folder.path().join("mask.ome.zarr.run")) == report, "the report was touched");
        }
    }
    done(run(&path, &settings(), Existing::Replace));
    let after = state(&path);
    assert!(after != before && files(&path) == before.into_iter().map(|(name, bytes, _)| (name, bytes)).collect());
    assert_eq!(names(folder.path()), ["mask.ome.zarr", "mask.ome.zarr.run"]);
}

#[test]
fn the_result_of_another_run_is_kept_and_the_difference_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.ome.zarr");
    done(run(&path, &settings(), Existing::Keep));
    let before = state(&path);
    let refused = |outcome: Result<Outcome>, words: &[&str]| {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::DifferentRun { .. }) && error.exit_code() == 5, "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{word} is missing: {error}");
        }
        assert!(state(&path) == before);
    };
    let changed: [(fn(&mut Settings), &[&str]); 8] = [
        (|s| s.step = Some(0.7), &["step: 0.5 there, 0.7 here"]),
        (|s| s.tissue = microtome::TissueMode::Auto, &["tissue: null there"]),
        (|s| s.name = Some("cells".into()), &["name: function there, cells here"]),
        (|s| s.model_mpp = Some(microtome::TargetResolution::Mpp(1.0)), &["target: "]),
        (|s| (s.chunk, s.shard) = (8, 64), &["chunk: 16 there, 8 here", "shard: 32 there, 64 here"]),
        (|s| s.mpp = Some(0.3), &["resolution: "]),
        (|s| s.window = Some(microtome::WindowShape::GaussianMonai), &["window: gaussian there, gaussian-monai here"]),
        (|s| s.accumulate = microtome::Accumulation::F16Nnunet, &["accumulate: f32 there, f16-nnunet here"]),
    ];
    for (change, words) in changed {
        refused(run(&path, &with(&settings(), change), Existing::Keep), words);
    }
    // Another slide, another model.
    let model = model();
    let segmenter = Segmenter::new(&model, settings()).unwrap();
    let other = SyntheticSlide::new(Size::new(150, 120), 32);
    refused(segmenter.segment(&other, &path, Existing::Keep, &Silent), &["slide: "]);
    let mut other = FunctionModel::new(Size::new(48, 48), &THRESHOLDS);
    other.card_mut().sha256 = "1".repeat(64);
    let segmenter = Segmenter::new(&other, settings()).unwrap();
    refused(segmenter.segment(&slide(), &path, Existing::Keep, &Silent), &["model: 0000"]);

    done(run(&path, &with(&settings(), |s| s.step = Some(0.7)), Existing::Replace));
    assert_eq!(OmeZarr::open(&path).unwrap().info().attributes["run"]["step"], 0.7);
}

/// The folder of the run lies beside the store; what of others is in its place stays.
#[test]
fn a_strangers_run_folder_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.ome.zarr");
    let beside = folder.path().join("mask.ome.zarr.run");
    std::fs::write(&beside, "mine").unwrap();
    for existing in [Existing::Keep, Existing::Replace] {
        let error = run(&path, &settings(), existing).unwrap_err();
        assert!(error.to_string().starts_with(&beside.display().to_string()), "{error}");
        assert_eq!(names(folder.path()), ["mask.ome.zarr.run"]);
        assert_eq!(std::fs::read_to_string(&beside).unwrap(), "mine");
    }
    std::fs::remove_file(&beside).unwrap();
    std::fs::create_dir(&beside).unwrap();
    std::fs::write(beside.join("notes.txt"), "mine").unwrap();
    for existing in [Existing::Keep, Existing::Replace] {
        done(run(&path, &settings(), existing));
        assert_eq!(std::fs::read_to_string(beside.join("notes.txt")).unwrap(), "mine");
    }
}

#[test]
fn a_store_without_a_journal_is_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.ome.zarr");
    let reference = folder.path().join("reference.ome.zarr");
    done(run(&reference, &settings(), Existing::Keep));

    // A sink that is dropped before it is finished is what a crash leaves.
    let (mask, _) = segment(&slide(), &model(), &settings());
    let sink = ZarrImage::create(&path, mask.image().clone()).unwrap();
    let shard = mask.read_shard(Level(0), microtome::io::TileCoord { row: 1, column: 1 }).unwrap();
    sink.write_shard(Level(0), microtome::io::TileCoord { row: 0, column: 0 }, &shard).unwrap();
    drop(sink);
    assert!(matches!(inspect(&path).unwrap(), Found::Unfinished));
    assert!(OmeZarr::open(&path).is_err(), "half a store must not open");
    done(run(&path, &settings(), Existing::Keep));
    assert!(files(&path) == files(&reference));
}

#[test]
fn a_store_that_is_being_written_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.ome.zarr");
    let (mask, _) = segment(&slide(), &model(), &settings());
    let held = ZarrImage::create(&path, mask.image().clone()).unwrap();
    for existing in [Existing::Keep, Existing::Replace] {
        let error = run(&path, &settings(), existing).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }) && error.exit_code() == 2, "{error}");
        assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
    }
    // Its owner has not noticed.
    assert_eq!(mask.image().shards(Level(0)), Some(Size::new(5, 4)));
    for (level, _) in mask.image().levels.iter().enumerate() {
        let shards = mask.image().shards(Level(level)).unwrap();
        for row in 0..shards.height {
            for column in 0..shards.width {
                let at = microtome::io::TileCoord { row, column };
                held.write_shard(Level(level), at, &mask.read_shard(Level(level), at).unwrap()).unwrap();
            }
        }
    }
    held.finish(&Map::new()).unwrap();
    assert!(matches!(run(&path, &settings(), Existing::Keep), Ok(Outcome::AlreadyDone { .. })));
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing/mask.ome.zarr");
    let error = run(&path, &settings(), Existing::Keep).unwrap_err();
    assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
    assert!(names(folder.path()).is_empty());
}
