//! The package in `tests/models/nnunet-nuclei` reproduces what nnU-Net computed for its test vector: parity with nothing but the repository.

use microtome_unet::{Arithmetic, Device, Execution, Mirroring, Model, ModelOptions, PackageOptions, Precision};

/// A package says it where it is so, and nothing where it is not.
#[test]
fn a_package_says_whether_images_are_cropped() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/models/nnunet-nuclei");
    let model = Model::open(folder, &ModelOptions::default()).unwrap();
    assert!(model.card().crop_to_nonzero, "it was imported from nnU-Net");
    let copy = tempfile::tempdir().unwrap();
    model.save_package(copy.path(), &PackageOptions::default()).unwrap();
    let copied = Model::open(copy.path(), &ModelOptions::default()).unwrap();
    assert!(copied.card().crop_to_nonzero);
    let manifest = copy.path().join("model.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    assert!(text.contains("crop_to_nonzero = true"), "{text}");
    std::fs::write(&manifest, text.replace("crop_to_nonzero = true\n", "")).unwrap();
    let whole = Model::open(copy.path(), &ModelOptions::default()).unwrap();
    assert!(!whole.card().crop_to_nonzero);
    assert_eq!(whole.card().sha256, model.card().sha256, "it changes no logit of a tile");
}

#[test]
fn nnunets_model_reproduces_its_test_vector() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/models/nnunet-nuclei");
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
