//! Power that fails at any call to the disk, of a conversion with two threads: what the disk then holds is gone on with, to the same bytes.

use std::path::Path;
use std::time::Duration;

use microtome_io::{Pixels, SampleType, Size};
use microtome_testkit::{PowerLoss, SyntheticSlide};
use proptest::prelude::*;

use super::{Conversion, ConvertOptions, Levels, convert_through};
use crate::output::Existing;
use crate::power_loss::{EVERY, files, restart};
use crate::{Error, Result, Silent, verify};

fn run(output: &Path, every: Duration, afterwards: &Path, call: usize, seed: u64) -> Result<Conversion> {
    let options = ConvertOptions {
        threads: Some(2),
        sync_every: every,
        chunk: 16,
        shard: 32,
        // Level 2 is copied.
        levels: Levels::Source,
        ..ConvertOptions::default()
    };
    let slide = SyntheticSlide::new(Size::new(120, 152), 3)
        .with_levels(&[0, 2])
        .with_tile(Size::new(32, 32))
        .with_tissue_everywhere()
        .with_associated("macro", Pixels::filled(Size::new(40, 20), SampleType::U8, &[7, 8, 9]));
    let run = output.with_extension("zarr.run");
    convert_through(&slide, output, &options, Existing::Keep, &Silent, |image| {
        PowerLoss::new(image, &run, afterwards, call, seed)
    })
}

/// True if it ended, false if the power failed.
fn ended(outcome: Result<Conversion>) -> bool {
    match outcome {
        Ok(_) => true,
        Err(Error::Write(error)) if error.to_string().ends_with("the power has failed") => false,
        Err(error) => panic!("{error}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn whatever_is_left_when_the_power_fails_a_conversion_ends_with_the_same_bytes(
        failures in prop::collection::vec((0usize..40, any::<u64>(), 0..EVERY.len()), 1..5),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (whole, afterwards) = (folder.path().join("whole.ome.zarr"), folder.path().join("afterwards"));
        run(&whole, Duration::from_hours(1), &afterwards, usize::MAX, 0).unwrap();
        let output = folder.path().join("image.ome.zarr");
        for (call, seed, every) in failures {
            if ended(run(&output, EVERY[every], &afterwards, call, seed)) {
                break;
            }
            restart(&output, &afterwards);
        }
        run(&output, Duration::ZERO, &afterwards, usize::MAX, 0).unwrap();
        prop_assert!(files(&output) == files(&whole));
        let verified = verify(&output).unwrap();
        prop_assert!(verified.faults.is_empty() && !verified.unfinished && verified.intact > 20, "{:?}", verified);
    }
}

/// The power fails at each call in turn.
#[test]
fn the_power_may_fail_at_any_call() {
    let folder = tempfile::tempdir().unwrap();
    let (output, afterwards) = (folder.path().join("image.ome.zarr"), folder.path().join("afterwards"));
    let mut expected = None;
    for call in 0.. {
        let finished = ended(run(&output, Duration::ZERO, &afterwards, call, call as u64));
        if !finished {
            restart(&output, &afterwards);
            run(&output, Duration::from_hours(1), &afterwards, usize::MAX, 0).unwrap();
        }
        let found = files(&output);
        assert!(*expected.get_or_insert_with(|| found.clone()) == found, "call {call}");
        if finished {
            // Shards of three levels, and a few times at which they are brought to the disk.
            assert!(call > 30, "only {call} calls");
            break;
        }
        for path in [output.clone(), output.with_extension("zarr.run")] {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
}
