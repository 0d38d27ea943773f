//! Power that fails at any call to the disk: what the disk then holds is gone on with, to the same bytes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use microtome_io::Size;
use microtome_io::store::Format;
use microtome_testkit::{FunctionModel, PowerLoss, SyntheticSlide};
use microtome_tile::TargetResolution;
use proptest::prelude::*;

use crate::output::Existing;
use crate::settings::{Settings, TissueMode};
use crate::{Error, Outcome, Result, Segmenter, Silent, verify};

/// How often finished shards are noted: each at once, now and then, only at the end.
pub(crate) const EVERY: [Duration; 3] = [Duration::ZERO, Duration::from_millis(3), Duration::from_hours(1)];

const FORMATS: [Format; 2] = [Format::V0_5, Format::V0_4];

fn run(format: Format, output: &Path, every: Duration, afterwards: &Path, call: usize, seed: u64) -> Result<Outcome> {
    let settings = Settings {
        format: Some(format),
        model_mpp: Some(TargetResolution::Native),
        tissue: TissueMode::None,
        threads: Some(2),
        sync_every: every,
        chunk: 16,
        shard: 32,
        ..Settings::default()
    };
    let slide = SyntheticSlide::new(Size::new(120, 150), 3).with_tissue_everywhere();
    let model = FunctionModel::new(Size::new(24, 24), &[20.5, 60.5]);
    let run = output.with_extension("zarr.run");
    Segmenter::new(&model, settings)?.segment_through(&slide, output, None, Existing::Keep, &Silent, |image| {
        PowerLoss::new(image, &run, afterwards, call, seed)
    })
}

pub(crate) fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.strip_prefix(folder).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// What is left after a failure takes the place of what was there before.
pub(crate) fn restart(output: &Path, afterwards: &Path) {
    for path in [output.to_owned(), output.with_extension("zarr.run")] {
        if path.exists() {
            std::fs::remove_dir_all(&path).unwrap();
        }
        std::fs::rename(afterwards.join(path.file_name().unwrap()), &path).unwrap();
    }
    std::fs::remove_dir_all(afterwards).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn whatever_is_left_when_the_power_fails_the_run_ends_with_the_same_bytes(
        failures in prop::collection::vec((0usize..60, any::<u64>(), 0..EVERY.len()), 1..5),
        format in prop::sample::select(FORMATS.to_vec()),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (whole, afterwards) = (folder.path().join("whole.ome.zarr"), folder.path().join("afterwards"));
        run(format, &whole, Duration::from_hours(1), &afterwards, usize::MAX, 0).unwrap();
        let output = folder.path().join("mask.ome.zarr");
        for (call, seed, every) in failures {
            match run(format, &output, EVERY[every], &afterwards, call, seed) {
                Err(Error::Write(error)) if error.to_string().ends_with("the power has failed") => {}
                // Fewer calls were left to be made.
                Ok(_) => break,
                Err(error) => panic!("{error}"),
            }
            restart(&output, &afterwards);
        }
        run(format, &output, Duration::ZERO, &afterwards, usize::MAX, 0).unwrap();
        prop_assert!(files(&output) == files(&whole));
        let verified = verify(&output).unwrap();
        prop_assert!(verified.faults.is_empty() && !verified.unfinished && verified.intact > 20, "{:?}", verified);
    }
}

/// The power fails at each call in turn.
#[test]
fn the_power_may_fail_at_any_call() {
    FORMATS.iter().for_each(|&format| fails_at_each_call(format));
}

fn fails_at_each_call(format: Format) {
    let folder = tempfile::tempdir().unwrap();
    let (output, afterwards) = (folder.path().join("mask.ome.zarr"), folder.path().join("afterwards"));
    let mut expected = None;
    for call in 0.. {
        let finished = run(format, &output, Duration::ZERO, &afterwards, call, call as u64);
        if finished.is_err() {
            restart(&output, &afterwards);
            run(format, &output, Duration::from_hours(1), &afterwards, usize::MAX, 0).unwrap();
        }
        let found = files(&output);
        assert!(*expected.get_or_insert_with(|| found.clone()) == found, "call {call}");
        if finished.is_ok() {
            assert!(call > 50, "only {call} calls");
            break;
        }
        for path in [output.clone(), output.with_extension("zarr.run")] {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
}
