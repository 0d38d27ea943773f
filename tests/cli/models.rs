//! `model info` and `model import`, and that a package is the folder it was made from.

use std::path::Path;
use std::process::Command;

use microtome::io::Pixels;
use microtome_testkit::{Weights, small_package};
use serde_json::Value;

use crate::{Place, content, microtome, repository, run};

#[test]
fn a_package_is_described_and_checked() {
    let nuclei = repository("tests/models/nnunet-nuclei");
    let text = run(microtome().args(["model", "info"]).arg(&nuclei).arg("--check")).ended(0).stdout;
    for word in ["nuclei", "128 x 128", "0.5 um per pixel", "ZScore", "#e69f00", "not a diagnostic device", "check "] {
        assert!(text.contains(word), "{word} is missing: {text}");
    }
    let json = run(microtome().args(["model", "info", "--json", "--check"]).arg(&nuclei)).ended(0).stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["agreement"]["differing_pixels"], 0);
    assert_eq!(json["card"]["mpp"], 0.5);
    // A multiply-add counts as two; 4 mirrorings of one fold; a step of a half runs every pixel four times.
    let network = &json["network"];
    let flop = network["flop_per_tile_and_pass"].as_f64().unwrap();
    assert_eq!(flop, 2.0 * network["multiplications"].as_f64().unwrap());
    let per_mm2 = network["flop_per_mm2_and_pass"].as_f64().unwrap();
    assert!((per_mm2 / (flop / (128.0 * 128.0) * 4.0 * 4e6) - 1.0).abs() < 1e-9, "{per_mm2}");
    assert_eq!(
        (network["passes_per_tile"].as_u64(), network["receptive_field"]["global"].as_bool()),
        (Some(4), Some(true))
    );
    assert!(network["memory"]["weights"].as_u64() > Some(1_000_000) && network.get("layers").is_none());
    let json = run(microtome().args(["model", "info", "--json", "--layers"]).arg(&nuclei)).ended(0).stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    let layers = json["network"]["layers"].as_array().unwrap();
    let sum: u64 = layers.iter().map(|layer| layer["parameters"].as_u64().unwrap()).sum();
    assert_eq!(Some(sum), json["card"]["parameters"].as_u64());
    let text = run(microtome().args(["model", "info", "--layers"]).arg(&nuclei)).ended(0).stdout;
    assert_eq!(text.lines().filter(|line| line.contains("convolution 3x3")).count(), 18 + 1, "{text}");
}

#[test]
fn a_package_whose_weights_were_changed_is_refused() {
    let place = Place::new();
    let package = place.path("package");
    run(microtome().args(["model", "import"]).arg(repository("tests/models/nnunet-nuclei")).arg(&package)).ended(0);
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
    let ran =
        run(microtome().args(["model", "import"]).arg(repository("tests/models/nnunet-nuclei")).arg(&package)).ended(0);
    assert!(ran.stdout.contains("package") && ran.stderr.is_empty(), "{ran:?}");
    // All that it says of itself travels along, and so does the test vector.
    let info = |path: &Path| run(microtome().args(["model", "info", "--check", "--json"]).arg(path)).ended(0).stdout;
    assert_eq!(info(&package), info(&repository("tests/models/nnunet-nuclei")));
    let flags = ["--mpp", "0.5"];
    let a = segment(&place, &slide, &repository("tests/models/nnunet-nuclei"), "a.ome.zarr", &flags);
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
    run(microtome().args(["model", "import"]).arg(repository("tests/models/nnunet-nuclei")).arg(&package)).ended(0);
    let manifest = std::fs::read_to_string(package.join("model.toml")).unwrap();
    let (kept, _) = manifest.split_once("[test]").unwrap();
    std::fs::write(package.join("model.toml"), kept).unwrap();
    let ran = run(microtome().args(["model", "info", "--check"]).arg(&package)).ended(2);
    assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains("no test vector"), "{ran:?}");
}

fn import(source: &Path, package: &Path, flags: &[&str]) -> crate::Ran {
    run(microtome().args(["model", "import"]).arg(source).arg(package).args(flags))
}

fn info(package: &Path) -> Value {
    let json = run(microtome().args(["model", "info", "--check", "--json"]).arg(package)).ended(0).stdout;
    serde_json::from_str(&json).unwrap()
}

#[test]
fn weights_in_bf16_make_half_a_file_and_another_model() {
    let place = Place::new();
    let (nuclei, package) = (repository("tests/models/nnunet-nuclei"), place.path("package"));
    import(&nuclei, &package, &["--weights", "bf16"]).ended(0);
    let size = |folder: &Path| std::fs::metadata(folder.join("weights.safetensors")).unwrap().len();
    assert!(size(&package) < size(&nuclei) * 6 / 10);
    let (before, after) = (info(&nuclei), info(&package));
    assert_eq!(after["card"]["precision"]["weights"], "bf16");
    assert_ne!(after["card"]["sha256"], before["card"]["sha256"]);
    // nnU-Net's vector was of other weights: ours takes its place, and says how far off it is.
    let text = std::fs::read_to_string(package.join("model.toml")).unwrap();
    for word in
        ["(not the original framework)", "from what nnU-Net 2.8.1 computed before the weights were rounded to bf16"]
    {
        assert!(text.contains(word), "{word} is missing: {text}");
    }
    let same = |file: &str| std::fs::read(nuclei.join(file)).unwrap() == std::fs::read(package.join(file)).unwrap();
    let read = |folder: &Path| crate::read(&folder.join("test/input.png"));
    assert!(!same("test/logits.safetensors") && read(&nuclei) == read(&package));
    // Of the same values the identity is the same, however they are kept.
    let wide = place.path("wide");
    import(&package, &wide, &["--weights", "f32"]).ended(0);
    assert_eq!((size(&wide), &info(&wide)["card"]["sha256"]), (size(&nuclei), &after["card"]["sha256"]));
}

#[test]
fn classes_have_the_names_colours_and_codes_that_are_given() {
    let place = Place::new();
    let package = place.path("package");
    let table = |entry: &str| place.file("classes.json", format!("{{\"classes\": [{entry}]}}"));
    let with = |table: &Path| {
        import(&repository("tests/models/nnunet-nuclei"), &package, &["--classes", table.to_str().unwrap()])
    };
    with(&table(r##"{"value": 2, "color": "#ffffff"}"##)).refused(2, &["no class of the value 2"]);
    with(&table(r#"{"value": 1, "color": "orange"}"#)).refused(2, &["classes.json", "classes[0].color", "#rrggbb"]);
    with(&place.path("missing.json")).refused(2, &["missing.json"]);
    assert!(!package.exists());
    with(&table(r##"{"value": 1, "color": "#0072b2", "code": "SCT 84640000"}"##)).ended(0);
    let text = run(microtome().args(["model", "info"]).arg(&package)).ended(0).stdout;
    assert!(text.contains("1 nucleus, #0072b2, SCT 84640000"), "{text}");
    assert_eq!(info(&package)["card"]["sha256"], info(&repository("tests/models/nnunet-nuclei"))["card"]["sha256"]);
}

#[test]
fn a_vector_by_the_original_framework_is_taken_if_it_is_reproduced() {
    let place = Place::new();
    let (nuclei, package, vector) =
        (repository("tests/models/nnunet-nuclei"), place.path("package"), place.path("vector"));
    std::fs::create_dir(&vector).unwrap();
    for file in ["input.png", "logits.safetensors", "mask.png"] {
        std::fs::copy(nuclei.join("test").join(file), vector.join(file)).unwrap();
    }
    let flags = ["--test-vector", vector.to_str().unwrap()];
    import(&nuclei, &package, &flags).refused(2, &["test.toml"]);
    place.file("vector/test.toml", "computed_by = \"a friend\"\nmethod = \"by hand\"\n");
    import(&nuclei, &package, &flags).ended(0);
    assert_eq!(info(&package)["card"]["test_vector"], "a friend");
    // The same logits for another picture.
    let slide = crate::read(&vector.join("input.png"));
    let mut samples = slide.as_u8().unwrap().to_vec();
    samples.reverse();
    let turned = Pixels::from_u8(slide.size(), 3, samples);
    microtome::preview::save(&turned, &vector.join("input.png"), microtome::preview::PreviewOptions::default())
        .unwrap();
    import(&nuclei, &place.path("other"), &flags).refused(2, &["vector", "does not reproduce it"]);
    assert!(!place.path("other").exists());
}

#[test]
fn a_model_without_a_test_vector_gets_one_that_says_whose_it_is() {
    let place = Place::new();
    let residual = repository("crates/unet/tests/nnunet/residual-encoder");
    import(&residual, &place.path("package"), &[]).refused(2, &["--model-mpp"]);
    let twice = ["--model-mpp", "0.5", "--folds", "0,0"];
    import(&repository("tests/models/nnunet-nuclei"), &place.path("twice"), &twice).refused(2, &["fold"]);
    import(&residual, &place.path("package"), &["--model-mpp", "0.5"]).ended(0);
    let text = run(microtome().args(["model", "info", "--check"]).arg(place.path("package"))).ended(0).stdout;
    for word in ["(not the original framework)", "machines compute alike"] {
        assert!(text.contains(word), "{word} is missing: {text}");
    }
    // Of a picture that is given, unless it is larger than a tile.
    let image = repository("tests/models/nnunet-nuclei/test/input.png");
    let flags = ["--model-mpp", "0.5", "--test-image", image.to_str().unwrap()];
    import(&residual, &place.path("other"), &flags).refused(2, &["input.png", "no larger than"]);
    import(&repository("tests/models/nnunet-nuclei"), &place.path("other"), &flags).ended(0);
    assert!(crate::read(&place.path("other/test/input.png")) == crate::read(&image));
    // One that is not reproduced: another weight behind the same digest would be needed, so the reference is changed.
    let logits = place.path("package/test/logits.safetensors");
    let mut bytes = std::fs::read(&logits).unwrap();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&1e6_f32.to_le_bytes());
    std::fs::write(&logits, bytes).unwrap();
    let ran = run(microtome().args(["model", "info", "--check"]).arg(place.path("package"))).ended(3);
    assert!(ran.stderr.contains("not reproduced"), "{ran:?}");
}

#[test]
fn a_recommendation_is_measured_and_followed_where_the_device_is_fast() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let (nuclei, package) = (repository("tests/models/nnunet-nuclei"), place.path("package"));
    import(&nuclei, &package, &["--recommend", "bf16"]).refused(2, &["--measure"]);
    assert!(!package.exists());
    let flags = ["--recommend", "bf16", "--measure", slide.to_str().unwrap(), "--device", "cpu"];
    let ran = import(&nuclei, &package, &flags).ended(0);
    assert!(ran.stdout.contains("bf16: ") && ran.stdout.contains("of 60000 pixels ("), "{ran:?}");
    let note = &info(&package)["card"]["precision"];
    let share = |precision: &str| note["measured"]["disagreement"][precision].as_f64().unwrap();
    assert!(share("f32") < 0.001 && share("bf16") > 0.0 && share("bf16") < 0.05, "{note}");
    let picture = note["measured"]["picture"].as_str().unwrap();
    assert_eq!(
        (note["recommended"].as_str(), picture),
        (Some("bf16"), "slide.png: 300 x 200 pixels as they are, every tile, without mirroring")
    );

    let segment = |name: &str, flags: &[&str]| {
        let mut command = microtome();
        command.arg("segment").arg(&slide).arg("-m").arg(&package).arg("-o").arg(place.path(name));
        command
            .args(["--mpp", "0.5", "--no-tta", "--device", "cpu", "--json"])
            .args(flags)
            .env("MICROTOME_ISA", "portable");
        let json: Value = serde_json::from_str(&run(&mut command).ended(0).stdout).unwrap();
        let choice = &json["outcome"]["done"]["precision"];
        format!("{}, {}", choice["precision"].as_str().unwrap(), choice["reason"].as_str().unwrap())
    };
    let without = "f32, because this CPU has no instructions for bf16, which the model recommends";
    assert_eq!(segment("a.ome.zarr", &[]), without);
    assert_eq!(segment("b.ome.zarr", &["--exact"]), "f32, as exact arithmetic is");
    assert_eq!(segment("c.ome.zarr", &["--precision", "bf16"]), "bf16, as asked for");
}

#[test]
fn several_models_run_together_or_are_refused_by_name() {
    let place = Place::new();
    let slide = place.slide("slide.png");
    let nuclei = repository("tests/models/nnunet-nuclei");
    let command = |models: &[&Path], output: &str| {
        let mut command = microtome();
        command.arg("segment").arg(&slide).arg("-o").arg(place.path(output));
        command.args(["--model-mpp", "native", "--no-tta", "--tissue", "none", "--step-size", "1"]);
        models.iter().for_each(|model| {
            command.arg("-m").arg(model);
        });
        command
    };
    // The same model twice says what it says alone.
    run(&mut command(&[&nuclei], "once.ome.zarr")).ended(0);
    let planned = run(command(&[&nuclei, &nuclei], "twice.ome.zarr").args(["--dry-run", "--json"])).ended(0).stdout;
    let planned: Value = serde_json::from_str(&planned).unwrap();
    assert_eq!(planned["forecast"]["geometry"]["tilings"].as_array().unwrap().len(), 2);
    let text = run(&mut command(&[&nuclei, &nuclei], "twice.ome.zarr")).ended(0).stdout;
    assert!(text.contains("2 models, the mean of their probabilities"), "{text}");
    let [once, twice] = ["once.ome.zarr", "twice.ome.zarr"].map(|output| {
        let store = microtome::io::store::OmeZarr::open(place.path(output)).unwrap();
        let size = store.info().levels[0].size;
        store.read_region(microtome::io::Level::FINEST, size.rect()).unwrap().as_u8().unwrap().to_vec()
    });
    assert!(once == twice && once.contains(&1));
    run(microtome().arg("verify").arg(place.path("twice.ome.zarr"))).ended(0);
    // Another run, and done already.
    run(&mut command(&[&nuclei], "twice.ome.zarr")).refused(5, &["model: ["]);
    run(&mut command(&[&nuclei, &nuclei], "twice.ome.zarr")).ended(0);

    let small = place.path("small");
    small_package(&small, Weights::Plain);
    run(&mut command(&[&nuclei, &small], "mask.ome.zarr"))
        .refused(2, &["nuclei and small cannot run together", "something"]);
    run(&mut command(&[&nuclei, &place.path("missing")], "mask.ome.zarr")).refused(2, &["missing"]);
    run(command(&[&nuclei, &nuclei], "mask.ome.zarr").args(["--memory", "90MiB"])).refused(6, &["--memory"]);
    assert!(!place.path("mask.ome.zarr").exists());
}
