//! The same slide, model and settings give the same bytes.

use microtome::io::Size;
use microtome::unet::{Device, Execution, Model, ModelOptions, Predictor};
use microtome::{Settings, TissueMode};
use microtome_testkit::{FunctionModel, SyntheticSlide};

use crate::function::THRESHOLDS;
use crate::{files, least_memory, repository, segment_to, settings, with};

/// Every file of the store is the same for any number of threads, any batch, and strips of one shard or of all, tiles between them run
/// twice or kept.
fn check(slide: &SyntheticSlide, model: &dyn Predictor, base: &Settings) {
    let folder = tempfile::tempdir().unwrap();
    let narrow = |threads, batch| {
        least_memory(slide, model, &with(base, |s| (s.threads, s.batch) = (Some(threads), Some(batch))))
    };
    let mut reference = None;
    let mut widths = Vec::new();
    for (n, (threads, batch, memory, scratch)) in [
        (1, 1, base.memory, None),
        (2, 1, base.memory, None),
        (2, 3, base.memory, None),
        (3, 8, base.memory, None),
        (2, 1, narrow(2, 1), None),
        (1, 3, narrow(1, 3), None),
        (2, 1, narrow(2, 1), Some(folder.path())),
        (1, 3, narrow(1, 3), Some(folder.path())),
    ]
    .into_iter()
    .enumerate()
    {
        let path = folder.path().join(format!("{n}.ome.zarr"));
        let settings = with(base, |s| {
            (s.threads, s.batch, s.memory) = (Some(threads), Some(batch), memory);
            s.scratch = scratch.map(Into::into);
        });
        let summary = segment_to(slide, model, &settings, &path);
        assert_eq!(summary.scratch_bytes > 0, scratch.is_some());
        widths.push(summary.memory_plan.strip_width);
        let found = files(&path);
        let reference = reference.get_or_insert_with(|| found.clone());
        let names = |files: &std::collections::BTreeMap<_, _>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(reference), "{threads} threads, batches of {batch}, {memory} bytes");
        for (name, bytes) in &found {
            assert!(
                *bytes == reference[name],
                "{}: {threads} threads, batches of {batch}, {memory} bytes",
                name.display()
            );
        }
    }
    assert!(widths[5] < widths[0], "both budgets gave strips of the same width: {widths:?}");
    let shards = reference.unwrap().keys().filter(|name| name.starts_with("0/c")).count();
    assert!(shards > 3, "a mask of {shards} shards shows little");
}

#[test]
fn a_formula_gives_the_same_bytes() {
    let slide = SyntheticSlide::new(Size::new(300, 220), 4);
    let model = FunctionModel::new(Size::new(64, 64), &THRESHOLDS);
    check(&slide, &model, &settings());
    check(&slide, &model, &with(&settings(), |s| s.tissue = TissueMode::Auto));
}

/// Instance normalisation, mirroring, statistics of the whole slide: all the arithmetic of a real network.
#[test]
fn a_network_gives_the_same_bytes() {
    let model = Model::open(repository("tests/models/nnunet-nuclei"), &ModelOptions::default()).unwrap();
    let predictor = model.predictor(&Execution { device: Device::Cpu, ..Execution::default() }).unwrap();
    let slide = SyntheticSlide::new(Size::new(200, 170), 4).with_tissue_everywhere();
    let mut settings = settings();
    (settings.chunk, settings.shard) = (32, 64);
    check(&slide, predictor.as_ref(), &settings);
}
