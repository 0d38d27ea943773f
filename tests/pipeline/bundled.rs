//! The model that travels with the repository, against what nnU-Net computed for it.

use microtome::unet::{Arithmetic, Device, Execution, Mirroring, Model, ModelOptions, Precision};

use crate::repository;

#[test]
fn the_bundled_model_reproduces_its_test_vector() {
    let model = Model::open(repository("models/nuclei"), &ModelOptions::default()).unwrap();
    let vector = model.test_vector().expect("the package carries a test vector");
    assert!(vector.computed_by.contains("nnU-Net"), "{}", vector.computed_by);
    let execution = Execution {
        device: Device::Cpu,
        mirroring: Mirroring::Off,
        precision: Precision::F32,
        arithmetic: Arithmetic::Exact,
    };
    let agreement = model.check_test_vector(&execution).unwrap().unwrap();
    println!("{agreement:?}");
    assert!(agreement.max_logit_difference <= 1e-4 * agreement.max_logit, "{agreement:?}");
    assert_eq!((agreement.differing_pixels, agreement.pixels), (0, 128 * 128), "{agreement:?}");
}

#[test]
fn the_bundled_model_says_what_it_is() {
    let model = Model::open(repository("models/nuclei"), &ModelOptions::default()).unwrap();
    let card = model.card();
    assert_eq!(card.mpp, Some(0.5));
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    assert!(text(&card.intended_use).contains("not a diagnostic device"), "{card:?}");
    assert!(text(&card.provenance).contains("10 epochs") && text(&card.provenance).contains("0.869"), "{card:?}");
    assert!(!text(&card.licence).is_empty());
}
