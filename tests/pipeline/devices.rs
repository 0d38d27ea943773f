//! Networks on GPUs, as the pipeline sees them: several batches under way at once. The device is made up.

use std::time::Duration;

use microtome::io::Size;
use microtome::{Error, Segmenter, Silent};
use microtome_testkit::{DeviceModel, FailingModel, FunctionModel, SyntheticSlide};

use crate::function::THRESHOLDS;
use crate::{files, segment_to, settings, with};

fn slide() -> SyntheticSlide {
    SyntheticSlide::new(Size::new(300, 220), 4)
}

fn formula() -> FunctionModel {
    FunctionModel::new(Size::new(64, 64), &THRESHOLDS)
}

#[test]
fn batches_that_come_back_in_any_order_change_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain.ome.zarr");
    segment_to(&slide(), &formula(), &settings(), &plain);
    for (lanes, batch) in [(2, Some(1)), (3, Some(4)), (6, None)] {
        let model = DeviceModel::new(formula(), lanes, Duration::ZERO);
        let path = folder.path().join(format!("{lanes}.ome.zarr"));
        let summary = segment_to(&slide(), &model, &with(&settings(), |s| s.batch = batch), &path);
        assert!(files(&path) == files(&plain), "{lanes} lanes");
        // The device's own number counts where nobody asks for another one.
        assert_eq!(summary.memory_plan.batch, batch.unwrap_or(4));
    }
}

#[test]
fn memory_is_planned_for_every_batch_that_is_under_way() {
    let plan = |lanes| {
        let model = DeviceModel::new(formula(), lanes, Duration::ZERO);
        Segmenter::new(&model, settings()).unwrap().plan(&slide()).unwrap().memory
    };
    let (one, three) = (plan(1), plan(3));
    // Four batches of logits for one in the network, seven for three: three there, two waiting, one to be handed out, one being blended.
    assert_eq!(three.logits * 4, one.logits * 7);
    assert!(three.reading > one.reading);
}

#[test]
fn the_summary_says_how_busy_a_gpu_was_and_who_kept_it_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let segment = |each, name: &str| {
        let model = DeviceModel::new(formula(), 3, each);
        let summary = segment_to(&slide(), &model, &settings(), &folder.path().join(name));
        // Another slide counts for itself.
        let again = segment_to(&slide(), &model, &settings(), &folder.path().join(format!("again-{name}")));
        assert_eq!(summary.devices[0].tiles, again.devices[0].tiles);
        assert!(summary.segmentation <= summary.seconds);
        summary
    };
    let busy = segment(Duration::from_millis(10), "busy.ome.zarr");
    let tiles = busy.tiles.run + busy.tiles.repeated;
    assert_eq!(busy.devices[0].tiles, tiles);
    assert_eq!(busy.devices[0].busy, Duration::from_millis(10) * tiles as u32);
    let share = busy.gpu_share().unwrap();
    let seconds = busy.devices[0].busy.as_secs_f64();
    assert!(share > 0.0 && share <= 1.0 && (share - seconds / busy.segmentation).abs() < 1e-9, "{share}");
    let idle = segment(Duration::ZERO, "idle.ome.zarr");
    assert_eq!(idle.gpu_share(), Some(0.0));
    let text = idle.to_string();
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("device") || line.starts_with("GPU")).collect();
    assert_eq!(lines[0], format!("device       cuda:0, made up: {tiles} tiles, 4 at once, 0.00 s busy"));
    assert!(text.contains("\n             16 tiles at once did not fit its memory; 4 did\n"), "{text}");
    assert!(lines[1].starts_with("GPU          busy 0.0 % of "), "{text}");
    assert!(lines[1].contains("kept it waiting"), "{text}");
    let json = serde_json::to_value(&idle).unwrap();
    assert_eq!(json["devices"][0]["busy"], 0.0);
}

#[test]
fn without_gpus_nothing_is_said_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let summary = segment_to(&slide(), &formula(), &settings(), &folder.path().join("mask.ome.zarr"));
    assert!(summary.devices.is_empty() && summary.gpu_share().is_none());
    assert!(!summary.to_string().contains("GPU"));
}

#[test]
fn a_batch_that_fails_ends_the_run_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let slide = slide();
    for good in [0, 1, 9] {
        let model = DeviceModel::new(FailingModel::new(formula(), good), 3, Duration::ZERO);
        let segmenter = Segmenter::new(&model, settings()).unwrap();
        let path = folder.path().join(format!("{good}.ome.zarr"));
        let error = segmenter.segment(&slide, &path, microtome::Existing::Keep, &Silent).unwrap_err();
        assert!(matches!(error, Error::Inference { .. }), "{error}");
    }
}
