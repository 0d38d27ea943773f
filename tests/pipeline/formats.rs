//! Masks in OME-Zarr 0.4.

use microtome::io::store::{Format, Found, OmeZarr, inspect};
use microtome::{Product, store_of, verify};
use microtome_testkit::{FunctionModel, SyntheticSlide};

use crate::resume::StopAfter;
use crate::*;

fn slide() -> SyntheticSlide {
    SyntheticSlide::new(Size::new(210, 330), 5).with_tissue_everywhere()
}

fn model() -> FunctionModel {
    FunctionModel::new(Size::new(24, 24), &[20.5, 60.5])
}

fn in_format(format: Format) -> Settings {
    with(&settings(), |s| (s.format, s.batch, s.probabilities) = (Some(format), Some(1), true))
}

fn run(settings: &Settings, output: &Path, observer: &dyn microtome::Observer) -> microtome::Result<Outcome> {
    Segmenter::new(&model(), settings.clone()).unwrap().segment(&slide(), output, Existing::Keep, observer)
}

#[test]
fn the_older_version_has_the_same_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let (newer, older) = (folder.path().join("newer.ome.zarr"), folder.path().join("older.ome.zarr"));
    segment_to(&slide(), &model(), &in_format(Format::V0_5), &newer);
    segment_to(&slide(), &model(), &in_format(Format::V0_4), &older);
    assert_eq!(levels_of_store(&older), levels_of_store(&newer));
    for (path, version) in [(&newer, "0.5"), (&older, "0.4")] {
        for product in [Product::Labels, Product::Probabilities] {
            assert_eq!(OmeZarr::open(store_of(path, product)).unwrap().info().version, version);
        }
    }
    let probabilities = |path: &Path| {
        let store = OmeZarr::open(store_of(path, Product::Probabilities)).unwrap();
        store.read_region(Level(0), Size::new(210, 330).rect()).unwrap()
    };
    assert!(probabilities(&older) == probabilities(&newer));
    // Another version is another run.
    match run(&in_format(Format::V0_5), &older, &Silent) {
        Err(Error::DifferentRun { differs, .. }) => assert_eq!(differs, "format: 0.4 there, 0.5 here"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stopped_run_goes_on_to_the_same_files() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.ome.zarr");
    let settings = in_format(Format::V0_4);
    segment_to(&slide(), &model(), &settings, &whole);
    let expected = (files(&whole), files(&store_of(&whole, Product::Probabilities)));
    for percent in [5, 30, 75] {
        let output = folder.path().join(format!("stopped-{percent}.ome.zarr"));
        let observer = StopAfter::new(210 * 330 * percent / 100);
        assert!(matches!(run(&settings, &output, &observer), Err(Error::Interrupted)));
        assert!(OmeZarr::open(&output).is_err() && matches!(inspect(&output), Ok(Found::Unfinished | Found::Nothing)));
        if percent == 30 {
            // A chunk that the journal names vanishes, another is cut short.
            std::fs::remove_file(output.join("0/0/0")).unwrap();
            std::fs::write(output.join("0/0/1"), b"short").unwrap();
        }
        assert!(matches!(run(&settings, &output, &Silent), Ok(Outcome::Done(_))));
        assert!((files(&output), files(&store_of(&output, Product::Probabilities))) == expected, "at {percent} %");
        assert!(matches!(run(&settings, &output, &Silent), Ok(Outcome::AlreadyDone { .. })));
    }
    let verified = verify(&whole).unwrap();
    assert!(verified.faults.is_empty() && verified.intact > 50, "{verified:?}");
    // One chunk of a shard changes, another is gone: both shards are named.
    let mut bytes = std::fs::read(whole.join("0/0/0")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(whole.join("0/0/0"), bytes).unwrap();
    std::fs::remove_file(whole.join("0/3/3")).unwrap();
    let faults = verify(&whole).unwrap().faults;
    assert_eq!(
        faults,
        [
            "whole.ome.zarr, level 0, shard column 0 row 0: the file has changed",
            "whole.ome.zarr, level 0, shard column 1 row 1: the file has changed"
        ]
    );
}
