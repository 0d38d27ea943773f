//! The package in `models/nuclei` reproduces what nnU-Net computed for its test vector: parity with nothing but the repository.

use microtome_unet::{Arithmetic, Device, Execution, Mirroring, Model, ModelOptions, Precision};

#[test]
fn the_bundled_model_reproduces_its_test_vector() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/nuclei");
    let model = Model::open(folder, &ModelOptions::default()).unwrap();
    assert_eq!(model.card().test_vector.as_deref(), Some("nnU-Net 2.8.1"));
    let execution = Execution {
        device: Device::Cpu,
        mirroring: Mirroring::AsTrained,
        precision: Precision::F32,
        arithmetic: Arithmetic::Exact,
    };
    let agreement = model.check_test_vector(&execution).unwrap().unwrap();
    println!("{agreement:?}");
    assert!(agreement.max_logit_difference <= 1e-4, "{agreement:?}");
    assert_eq!(agreement.differing_pixels, 0, "{agreement:?}");
}
