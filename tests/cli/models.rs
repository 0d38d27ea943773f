//! `model info` and `model import`, and that a package is the folder it was made from.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::{Place, content, microtome, repository, run};

#[test]
fn the_bundled_model_is_described_and_checked() {
    let nuclei = repository("models/nuclei");
    let text = run(microtome().args(["model", "info"]).arg(&nuclei).arg("--check")).ended(0).stdout;
    for word in ["nuclei", "128 x 128", "0.5 um per pixel", "ZScore", "#e69f00", "not a diagnostic device", "check "] {
        assert!(text.contains(word), "{word} is missing: {text}");
    }
    let json = run(microtome().args(["model", "info", "--json", "--check"]).arg(&nuclei)).ended(0).stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["agreement"]["differing_pixels"], 0);
    assert_eq!(json["card"]["mpp"], 0.5);
}

#[test]
fn a_package_whose_weights_were_changed_is_refused() {
    let place = Place::new();
    let package = place.path("package");
    run(microtome().args(["model", "import"]).arg(repository("models/nuclei")).arg(&package)).ended(0);
    let weights = package.join("weights.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    run(microtome().args(["model", "info"]).arg(&package)).refused(2, &["weights.safetensors", "sha256"]);
}

/// Segments with a model; the store must be the one of the other model, byte for byte.
fn segment(place: &Place, slide: &Path, model: &Path, output: &str, flags: &[&str]) -> std::path::PathBuf {
    let output = place.path(output);
    let mut command: Command = microtome();
    command.arg("segment").arg(slide).arg("-m").arg(model).arg("-o").arg(&output).args(flags);
    run(command.args(["--no-tta", "--tissue", "none", "--quiet"])).ended(0);
    output
}

#[test]
fn a_copy_of_a_package_gives_the_same_mask() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let package = place.path("package");
    let ran = run(microtome().args(["model", "import"]).arg(repository("models/nuclei")).arg(&package)).ended(0);
    assert!(ran.stdout.contains("package") && ran.stderr.is_empty(), "{ran:?}");
    // All that it says of itself travels along, and so does the test vector.
    let info = |path: &Path| run(microtome().args(["model", "info", "--check", "--json"]).arg(path)).ended(0).stdout;
    assert_eq!(info(&package), info(&repository("models/nuclei")));
    let flags = ["--mpp", "0.5"];
    let a = segment(&place, &slide, &repository("models/nuclei"), "a.ome.zarr", &flags);
    let b = segment(&place, &slide, &package, "b.ome.zarr", &flags);
    assert!(content(&a) == content(&b));
}

#[test]
fn a_package_is_the_nnunet_folder_it_was_made_from() {
    let Some(nnunet) = microtome_testkit::data("models/nnunet-v2-plain/Dataset501_DSBStained") else { return };
    let place = Place::new();
    let slide = place.slide("slide.png");
    let package = place.path("package");
    let import = |flags: &[&str]| run(microtome().args(["model", "import"]).arg(&nnunet).arg(&package).args(flags));
    let before = place.content();
    import(&[]).refused(2, &["--model-mpp"]);
    for wrong in ["0", "nan", "-2"] {
        import(&[&format!("--model-mpp={wrong}")]).refused(2, &["model-mpp"]);
    }
    assert!(place.content() == before, "something was left behind");
    import(&["--model-mpp", "0.5", "--licence", "CC0-1.0", "--provenance", "made for a test"]).ended(0);
    let text = run(microtome().args(["model", "info"]).arg(&package)).ended(0).stdout;
    for word in ["Dataset501_DSBStained", "0.5 um per pixel", "CC0-1.0", "made for a test"] {
        assert!(text.contains(word), "{word} is missing: {text}");
    }

    let a = segment(&place, &slide, &nnunet, "a.ome.zarr", &["--mpp", "0.5", "--model-mpp", "0.5"]);
    let b = segment(&place, &slide, &package, "b.ome.zarr", &["--mpp", "0.5"]);
    assert!(content(&a) == content(&b), "the folder and the package give different masks");

    // What is there is not overwritten, and without a test vector there is nothing to check.
    let before = place.content();
    import(&["--model-mpp", "0.5"]).refused(2, &["package"]);
    assert!(place.content() == before);
    run(microtome().args(["model", "info"]).arg(&nnunet)).ended(0);
}

#[test]
fn a_model_without_a_test_vector_cannot_be_checked() {
    let place = Place::new();
    let package = place.path("package");
    run(microtome().args(["model", "import"]).arg(repository("models/nuclei")).arg(&package)).ended(0);
    let manifest = std::fs::read_to_string(package.join("model.toml")).unwrap();
    let (kept, _) = manifest.split_once("[test]").unwrap();
    std::fs::write(package.join("model.toml"), kept).unwrap();
    let ran = run(microtome().args(["model", "info", "--check"]).arg(&package)).ended(2);
    assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains("no test vector"), "{ran:?}");
}
