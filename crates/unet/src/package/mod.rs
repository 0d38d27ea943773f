//! microtome's own model package: one folder that says everything about a model. Format: `docs/model-package.md`.

mod classes;
#[cfg(test)]
mod documents;
mod folds;
mod manifest;
mod staging;
mod test_vector;
mod weights;

pub use classes::ClassChange;
pub use staging::StagedPackage;
pub use test_vector::TestVector;
pub(crate) use weights::is_kernel;

use std::path::Path;

use crate::model::{self, Model, ModelOptions};
use crate::{Error, Measurement, Precision, Result, bounded};
use manifest::Manifest;

const MANIFEST: &str = "model.toml";
const WEIGHTS: &str = "weights.safetensors";
/// Far more than a card needs.
const MAX_MANIFEST: u64 = 1 << 20;

/// What a package says beyond what the model knows of itself. `None` keeps what the model says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PackageOptions {
    /// The package's name.
    pub name: Option<String>,
    /// Micrometres per pixel that the network was trained at.
    pub mpp: Option<f64>,
    /// The licence of the weights.
    pub licence: Option<String>,
    /// Who trained the model, with what, on what.
    pub provenance: Option<String>,
    /// What the model is for, and what it is not for.
    pub intended_use: Option<String>,
    /// A test vector, preferably computed by the framework that trained the model.
    pub test_vector: Option<TestVector>,
    /// In which numbers the network should compute; less than f32 needs a measurement.
    pub recommended: Option<Precision>,
    /// How far the precisions are from each other.
    pub measured: Option<Measurement>,
    /// Classes whose name, colour or code is not to be what the model says.
    pub classes: Vec<ClassChange>,
}

pub(crate) fn is_package(folder: &Path) -> bool {
    folder.join(MANIFEST).is_file()
}

pub(crate) fn load(folder: &Path, options: &ModelOptions) -> Result<Model> {
    let path = folder.join(MANIFEST);
    let manifest = Manifest::parse(&path, &bounded::read_text(&path, MAX_MANIFEST)?)?;
    let (mut card, architecture) = manifest.card();
    model::check(&path, &card, &architecture)?;
    let network = architecture.network();

    let wanted = options.folds.named(&path, &manifest.folds)?.unwrap_or_else(|| manifest.folds.clone());
    let mut names = manifest.folds.clone();
    names.sort();
    names.dedup();
    if names.len() != manifest.folds.len() || wanted.is_empty() {
        return Err(Error::format(&path, "folds must be named, each once"));
    }

    let file = folder.join(WEIGHTS);
    let folds = folds::read(&file, &manifest.weights.sha256, &network, &manifest.folds, &wanted)?;
    let mut test_vector = manifest.test.as_ref().map(|test| TestVector::read(folder, test, &card)).transpose()?;
    if wanted.len() < manifest.folds.len() {
        // Both are of all folds.
        (test_vector, card.test_vector, card.precision.measured, card.precision.recommended) = (None, None, None, None);
    }
    model::complete(&mut card, &architecture, &folds);
    Ok(Model::new(card, architecture, folds, test_vector))
}

/// Writes all but the last step: where the package appears.
pub(crate) fn stage(model: &Model, folder: &Path, options: &PackageOptions) -> Result<StagedPackage> {
    classes::check(&options.classes, model.card())?;
    let test_vector = options.test_vector.as_ref().or(model.test_vector());
    let manifest = |sha256| Manifest::new(model, options, sha256, test_vector);
    // What is written must be readable: the same checks as on loading, before anything is written.
    let path = folder.join(MANIFEST);
    let (card, architecture) = Manifest::parse(&path, &manifest(String::new()).to_text())?.card();
    model::check(&path, &card, &architecture)?;

    let staged = StagedPackage::new(folder)?;
    let sha256 = weights::write(&staged.path().join(WEIGHTS), model.folds(), model.card().precision.weights)?;
    if let Some(vector) = test_vector {
        vector.write(staged.path())?;
    }
    let path = staged.path().join(MANIFEST);
    std::fs::write(&path, manifest(sha256).to_text()).map_err(|e| Error::io(&path, e))?;
    Ok(staged)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use microtome_io::{Pixels, Rect, Size};
    use safetensors::SafeTensors;
    use safetensors::tensor::{Dtype, TensorView};
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::architecture::PlainConvUnet;
    use crate::architecture::tests::tiny;
    use crate::model::hexadecimal;
    use crate::model::tests::random;
    use crate::{Architecture, Disagreement, Execution, Mirroring, Normalizer, PrecisionNote, Tile, WeightFormat};

    fn model() -> Model {
        random(Architecture::PlainConvUnet(tiny()), Size::new(16, 8))
    }

    fn saved() -> (tempfile::TempDir, PathBuf) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("package");
        model().save_package(&folder, &PackageOptions::default()).unwrap();
        (temporary, folder)
    }

    fn open(folder: &Path) -> Result<Model> {
        Model::open(folder, &ModelOptions::default())
    }

    #[test]
    fn everything_survives_the_package() {
        let temporary = tempfile::tempdir().unwrap();
        let mut parameters = tiny();
        parameters.norm = crate::architecture::Norm::Batch { epsilon: 1e-3, affine: false };
        parameters.activation = crate::architecture::Activation::None;
        let original = random(Architecture::PlainConvUnet(parameters), Size::new(16, 8));
        let options = PackageOptions {
            name: Some("a \"name\"".into()),
            mpp: Some(0.2525),
            licence: Some("CC0-1.0".into()),
            ..PackageOptions::default()
        };
        original.save_package(temporary.path(), &options).unwrap();
        let copy = open(temporary.path()).unwrap();
        let mut expected = original.card().clone();
        (expected.name, expected.mpp, expected.licence) = ("a \"name\"".into(), options.mpp, options.licence.clone());
        assert_eq!(copy.card(), &expected);
        assert_eq!(copy.architecture(), original.architecture());
        assert_eq!(copy.folds(), original.folds());
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_test_vector_travels_along_and_is_checked() {
        let model = model();
        // Smaller than the tile: 7 x 5 pixels, padded by half of what is missing, rounded down.
        let size = Size::new(7, 5);
        let input = Pixels::from_u8(size, 3, (0..7 * 5 * 3).map(|i| (i * 53 % 256) as u8).collect());
        let normalizer = Normalizer::new(&model.card().normalization, &[]).unwrap();
        let predictor = model.predictor(&Execution { mirroring: Mirroring::Off, ..Execution::default() }).unwrap();
        let at = Rect::new(4, 1, 7, 5);
        let full = predictor.predict(&[Tile { pixels: &input, at }], &normalizer).unwrap().remove(0);
        let value = |h: usize, y: usize, x: usize| full.values[(h * 8 + y + 1) * 16 + x + 4];
        let values: Vec<f32> = (0..70).map(|i| value(i / 35, i / 7 % 5, i % 7)).collect();
        let mut mask: Vec<u8> = (0..35).map(|i| u8::from(values[35 + i] > values[i])).collect();
        mask[3] ^= 1;
        let vector = TestVector {
            input,
            logits: crate::Logits { heads: 2, size, values: values.iter().map(|v| v + 0.25).collect() },
            mask,
            computed_by: "a test".into(),
            method: "by hand".into(),
        };
        let temporary = tempfile::tempdir().unwrap();
        let options = PackageOptions { test_vector: Some(vector.clone()), ..PackageOptions::default() };
        model.save_package(temporary.path(), &options).unwrap();
        let copy = open(temporary.path()).unwrap();
        assert_eq!(copy.test_vector(), Some(&vector));
        assert_eq!(copy.card().test_vector.as_deref(), Some("a test"));
        let agreement = copy.check_test_vector(&Execution::default()).unwrap().unwrap();
        assert!((agreement.max_logit_difference - 0.25).abs() < 1e-5, "{agreement:?}");
        assert_eq!((agreement.differing_pixels, agreement.pixels), (1, 35));
        assert!(!agreement.is_reproduced());

        std::fs::write(temporary.path().join("test/mask.png"), b"no picture").unwrap();
        assert!(open(temporary.path()).unwrap_err().to_string().contains("test/mask.png: "));
        std::fs::remove_dir_all(temporary.path().join("test")).unwrap();
        assert!(open(temporary.path()).unwrap_err().to_string().contains("test/input.png: No such file"));
    }

    #[test]
    fn kernels_in_bf16_are_rounded_once() {
        let temporary = tempfile::tempdir().unwrap();
        let original = model();
        let vector = TestVector::compute(&original, None).unwrap();
        let measured = Measurement {
            picture: "a picture".into(),
            computed_by: "a test".into(),
            pixels: 4,
            disagreement: Disagreement { bf16: Some(0.25), ..Disagreement::default() },
        };
        let options = PackageOptions {
            test_vector: vector,
            recommended: Some(Precision::Bf16),
            measured: Some(measured.clone()),
            ..PackageOptions::default()
        };
        original.save_package(temporary.path().join("f32"), &options).unwrap();
        let single = open(&temporary.path().join("f32")).unwrap();
        let note =
            PrecisionNote { weights: WeightFormat::F32, recommended: options.recommended, measured: Some(measured) };
        assert_eq!((&single.card().precision, single.card().test_vector.is_some()), (&note, true));

        let rounded = single.clone().with_kernels(WeightFormat::Bf16).unwrap();
        // What was said of other weights is not said of these.
        let note = PrecisionNote { weights: WeightFormat::Bf16, ..PrecisionNote::default() };
        assert_eq!(
            (&rounded.card().precision, &rounded.card().test_vector, rounded.test_vector()),
            (&note, &None, None)
        );
        assert_ne!(rounded.card().sha256, original.card().sha256);
        rounded.save_package(temporary.path().join("bf16"), &PackageOptions::default()).unwrap();
        let text = std::fs::read_to_string(temporary.path().join("bf16").join(MANIFEST)).unwrap();
        assert!(text.contains("kernels = \"bf16\""), "{text}");
        let half = open(&temporary.path().join("bf16")).unwrap();
        assert_eq!((half.card(), half.folds()), (rounded.card(), rounded.folds()));
        for (name, weight) in &half.folds()[0].weights {
            let before = &original.folds()[0].weights[name];
            let exact = weight.values == before.values;
            let near = weight.values.iter().zip(&*before.values).all(|(a, b)| (a - b).abs() <= b.abs() / 256.0);
            assert!(near && exact != is_kernel(before), "{name}");
        }
        let bytes = |name: &str| std::fs::read(temporary.path().join(name).join(WEIGHTS)).unwrap();
        let file = bytes("bf16");
        let tensors = SafeTensors::deserialize(&file).unwrap();
        for (name, tensor) in tensors.tensors() {
            assert_eq!(tensor.dtype(), if tensor.shape().len() > 1 { Dtype::BF16 } else { Dtype::F32 }, "{name}");
        }

        // Back in f32 the values stay, and with them the identity.
        let options =
            PackageOptions { test_vector: TestVector::compute(&half, None).unwrap(), ..PackageOptions::default() };
        half.clone()
            .with_kernels(WeightFormat::F32)
            .unwrap()
            .save_package(temporary.path().join("wide"), &options)
            .unwrap();
        let wide = open(&temporary.path().join("wide")).unwrap();
        assert_eq!((&wide.card().sha256, wide.folds()), (&half.card().sha256, half.folds()));
        assert!(bytes("wide").len() > file.len() * 3 / 2);
        // And to bf16 again: nothing changes, so the test vector stays.
        let again = wide.with_kernels(WeightFormat::Bf16).unwrap();
        assert!(again.test_vector().is_some());
        again.save_package(temporary.path().join("again"), &PackageOptions::default()).unwrap();
        assert!(bytes("again") == file);
    }

    #[test]
    fn what_bf16_cannot_hold_is_refused() {
        let name = "decoder.seg_layers.1.weight";
        for value in [f32::NAN, f32::INFINITY, f32::MAX] {
            let mut model = model();
            model.change_weight(name, value);
            let message = model.with_kernels(WeightFormat::Bf16).unwrap_err().to_string();
            assert_eq!(message, format!("fold_0/{name} holds the value {value}, which cannot be rounded to bf16"));
        }
        // A package that says bf16 of kernels which are not: it is not written on with other values.
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("package");
        model().save_package(&folder, &PackageOptions::default()).unwrap();
        let text = std::fs::read_to_string(folder.join(MANIFEST)).unwrap();
        std::fs::write(folder.join(MANIFEST), text.replace("[weights]\n", "[weights]\nkernels = \"bf16\"\n")).unwrap();
        let message = open(&folder).unwrap().save_package(temporary.path().join("copy"), &PackageOptions::default());
        assert!(message.unwrap_err().to_string().ends_with(" holds values that are no bf16"));
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_package_appears_whole_or_not_at_all() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("a/b/package");
        let staged = model().stage_package(&folder, &PackageOptions::default()).unwrap();
        let beside = |folder: &Path| {
            let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            names.collect::<Vec<_>>()
        };
        let parent = temporary.path().join("a/b");
        let [name]: [String; 1] = beside(&parent).try_into().unwrap();
        let start = format!(".package.{}-", std::process::id());
        assert!(name.starts_with(&start) && Path::new(&name).extension().is_some_and(|e| e == "part"), "{name}");
        // What a process of the same number leaves behind, as every one has in its container, is in nobody's way.
        let other = model().stage_package(&folder, &PackageOptions::default()).unwrap();
        assert_eq!(beside(&parent).len(), 2);
        drop((staged, other));
        assert_eq!(beside(&parent), [""; 0]);
        let staged = model().stage_package(&folder, &PackageOptions::default()).unwrap();
        // Somebody else was faster.
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("theirs"), "x").unwrap();
        assert!(staged.publish().unwrap_err().to_string().starts_with(&folder.display().to_string()));
        assert_eq!((beside(&parent), beside(&folder)), (vec!["package".into()], vec!["theirs".into()]));
        // An empty folder is as good as none, and names of no folder are refused.
        std::fs::remove_file(folder.join("theirs")).unwrap();
        model().save_package(&folder, &PackageOptions::default()).unwrap();
        assert_eq!(beside(&folder).len(), 2);
        let error = model().save_package("/", &PackageOptions::default()).unwrap_err().to_string();
        assert_eq!(error, "/: not the name of a folder");
        let file = folder.join(MANIFEST);
        assert!(
            model().save_package(&file, &PackageOptions::default()).unwrap_err().to_string().contains("model.toml: ")
        );
    }

    #[test]
    fn classes_are_renamed_and_coloured_by_value() {
        let temporary = tempfile::tempdir().unwrap();
        let save = |classes: Vec<ClassChange>| {
            let options = PackageOptions { classes, ..PackageOptions::default() };
            model().save_package(temporary.path().join("package"), &options).map_err(|e| e.to_string())
        };
        let change = |value| ClassChange { value, color: Some([1, 2, 3]), ..ClassChange::default() };
        assert_eq!(save(vec![change(2)]).unwrap_err(), "the model has no class of the value 2; it has 0, 1");
        assert_eq!(save(vec![change(1), change(1)]).unwrap_err(), "the class of the value 1 is given twice");
        save(vec![ClassChange { code: Some("SCT 84640000".into()), ..change(1) }]).unwrap();
        let copy = open(&temporary.path().join("package")).unwrap();
        let [background, one] = copy.card().classes.as_slice() else { panic!("two classes") };
        assert_eq!(background, &model().card().classes[0]);
        assert_eq!((one.name.as_str(), one.color, one.code.as_deref()), ("class 1", [1, 2, 3], Some("SCT 84640000")));
        assert_eq!(copy.card().sha256, model().card().sha256);
    }

    #[test]
    fn a_vector_of_our_own_says_so() {
        let model = model();
        let vector = TestVector::compute(&model, None).unwrap().unwrap();
        assert!(vector.is_own() && vector.computed_by.starts_with("microtome "), "{}", vector.computed_by);
        assert_eq!((vector.input.size(), vector.input.channels()), (Size::new(16, 8), 3));
        assert!(model.check_against(&vector, &Execution::default()).unwrap().is_reproduced());
        let output = crate::Output::Labels;
        assert_eq!(vector.agreement(&vector, &output).unwrap().max_logit_difference, 0.0);
        let small = Pixels::from_u8(Size::new(7, 5), 3, vec![9; 105]);
        let other = TestVector::compute(&model, Some(&small)).unwrap().unwrap();
        assert_eq!(other.logits.values.len(), 70);
        assert!(vector.agreement(&other, &output).is_err());
        // Four channels are no picture.
        let four = random(Architecture::PlainConvUnet(PlainConvUnet { channels: 4, ..tiny() }), Size::new(16, 8));
        assert_eq!(TestVector::compute(&four, None).unwrap(), None);

        // A folder as another framework would write it.
        let temporary = tempfile::tempdir().unwrap();
        vector.write(temporary.path()).unwrap();
        let folder = temporary.path().join("test");
        let read = |about: &str| {
            std::fs::write(folder.join("test.toml"), about).unwrap();
            TestVector::open(&folder, model.card()).map_err(|e| e.to_string())
        };
        let theirs = TestVector { computed_by: "nnU-Net 2.8.1".into(), method: "by hand".into(), ..vector.clone() };
        assert_eq!(read("computed_by = \"nnU-Net 2.8.1\"\nmethod = \"by hand\"\n").unwrap(), theirs);
        assert!(!theirs.is_own());
        assert!(
            read("computed_by = \" \"\nmethod = \"\"").unwrap_err().ends_with("it must say who computed the vector")
        );
        assert!(read("method = \"by hand\"").unwrap_err().contains("missing field `computed_by`"));
        assert!(read("computed_by = \"a\"\nby = 1").unwrap_err().contains("unknown field `by`"));
    }

    #[test]
    fn a_vector_that_says_nothing_or_means_something_else_is_not_reproduced() {
        let temporary = tempfile::tempdir().unwrap();
        let mut model = model();
        // Both regions are everywhere.
        model.change_weight("decoder.seg_layers.1.bias", 100.0);
        model.card_mut().output = crate::Output::Regions { class_order: vec![0, 1] };
        let vector = TestVector::compute(&model, None).unwrap().unwrap();
        let check = |model: &Model, vector: &TestVector| model.check_against(vector, &Execution::default()).unwrap();
        let same = check(&model, &vector);
        assert!(same.is_reproduced() && same.wrong_pixels == 0, "{same:?}");
        // Logits with which nothing can be compared are refused as they are read, and if they come another way.
        for value in [f32::NAN, f32::INFINITY] {
            let mut odd = vector.clone();
            odd.logits.values[3] = value;
            assert!(!check(&model, &odd).is_reproduced(), "{value}");
            odd.write(temporary.path()).unwrap();
            let folder = temporary.path().join("test");
            std::fs::write(folder.join("test.toml"), "computed_by = \"a\"\nmethod = \"b\"\n").unwrap();
            let message = TestVector::open(&folder, model.card()).unwrap_err().to_string();
            assert!(message.ends_with("logits.safetensors: logits holds a value that is not finite"), "{message}");
        }
        // The same logits with another mask, or with regions in another order.
        let mut other = vector.clone();
        other.mask[5] = 0;
        let found = check(&model, &other);
        assert!((found.differing_pixels, found.wrong_pixels) == (1, 1) && !found.is_reproduced(), "{found:?}");
        model.card_mut().output = crate::Output::Regions { class_order: vec![1, 0] };
        let found = check(&model, &vector);
        assert!(found.wrong_pixels == found.pixels && !found.is_reproduced(), "{found:?}");
        assert!(found.max_logit_difference < 1e-2, "{found:?}");
    }

    #[test]
    fn all_asks_a_package_for_the_fold_of_all_cases() {
        let (_temporary, folder) = saved();
        let of = |folds| Model::open(&folder, &ModelOptions { folds, ..ModelOptions::default() });
        let message = of(crate::Folds::All).unwrap_err().to_string();
        assert!(message.ends_with("model.toml: fold_all is missing; there are fold_0"), "{message}");
        assert!(of(crate::Folds::List(vec![0, 0])).unwrap_err().to_string().contains("asked for twice"));
    }

    #[test]
    fn a_folder_that_holds_something_is_left_alone() {
        let (_temporary, folder) = saved();
        let error = model().save_package(&folder, &PackageOptions::default()).unwrap_err().to_string();
        assert!(error.ends_with("package: the folder is not empty"), "{error}");
    }

    #[test]
    fn damaged_weights_are_refused() {
        let (_temporary, folder) = saved();
        let path = folder.join(WEIGHTS);
        let bytes = std::fs::read(&path).unwrap();
        let message = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            open(&folder).unwrap_err().to_string()
        };
        assert!(message(&bytes[..bytes.len() - 1]).contains("weights.safetensors: its sha256 is "));
        assert!(message(&[]).contains("its sha256 is e3b0c442"));
        // With the right digest, what the safetensors crate or the match of names finds.
        let text = std::fs::read_to_string(folder.join(MANIFEST)).unwrap();
        let digest = hexadecimal(&Sha256::digest(&bytes));
        let forged = |new: &[u8]| {
            let text = text.replace(&digest, &hexadecimal(&Sha256::digest(new)));
            std::fs::write(folder.join(MANIFEST), text).unwrap();
            message(new)
        };
        assert!(
            forged(&bytes[..bytes.len() - 4])
                .ends_with("weights.safetensors: not safetensors: incomplete metadata, file not fully covered"),
            "{}",
            forged(&bytes[..bytes.len() - 4])
        );
        let mut huge = bytes.clone();
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(
            forged(&huge).contains("a safetensors header of 18446744073709551615 bytes; up to "),
            "{}",
            forged(&huge)
        );
        for length in [0, 7, 8, 20, 200] {
            assert!(forged(&bytes[..length]).contains("weights.safetensors: "));
        }
        let at = bytes.windows(10).position(|w| w == b"seg_layers").unwrap();
        let mut renamed = bytes.clone();
        renamed[at] = b'S';
        assert!(forged(&renamed).contains("missing decoder.seg_layers.1."), "{}", forged(&renamed));
        std::fs::write(&path, vec![0; crate::safetensors_file::MAX_HEADER as usize + (1 << 20)]).unwrap();
        assert!(open(&folder).unwrap_err().to_string().contains("bytes; up to "));
    }

    /// Every optional key, and none.
    fn manifests(folder: &Path) -> [PathBuf; 2] {
        let [bare, full] = ["bare", "full"].map(|name| folder.join(name));
        model().save_package(&bare, &PackageOptions::default()).unwrap();
        let numbers = crate::ChannelStatistics { mean: 1.0, std: 2.0, min: 0.0, max: 9.0 };
        let mut model = model().with_kernels(WeightFormat::Bf16).unwrap();
        model.card_mut().training = Some(vec![numbers; 3]);
        let ct = crate::Normalization::Ct { lower: 0.0, upper: 1.0, mean: 0.5, std: 0.1 };
        model.card_mut().normalization = vec![ct, crate::Normalization::None, crate::Normalization::ZScore];
        model.card_mut().output = crate::Output::Regions { class_order: vec![1, 1] };
        let options = PackageOptions {
            name: Some("full".into()),
            mpp: Some(0.5),
            licence: Some("CC0-1.0".into()),
            provenance: Some("made for a test".into()),
            intended_use: Some("none".into()),
            test_vector: TestVector::compute(&model, None).unwrap(),
            recommended: Some(Precision::F16),
            measured: Some(Measurement {
                picture: "a picture".into(),
                computed_by: "a test".into(),
                pixels: 3,
                disagreement: Disagreement { f32: Some(0.0), bf16: Some(0.5), f16: Some(1.0) },
            }),
            classes: vec![ClassChange { value: 1, code: Some("SCT 1".into()), ..ClassChange::default() }],
        };
        model.save_package(&full, &options).unwrap();
        open(&full).unwrap();
        [bare, full].map(|folder| folder.join(MANIFEST))
    }

    const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/model-package.schema.json");

    #[test]
    fn the_schema_accepts_what_is_written_and_no_other_key() {
        let Some(python) = std::env::var_os("MICROTOME_PYTHON") else {
            microtome_testkit::skip(
                "MICROTOME_PYTHON names no interpreter with jsonschema; `cargo xtask test` makes one",
            );
            return;
        };
        let temporary = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/check_schema.py");
        let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nuclei/model.toml");
        let mut command = std::process::Command::new(python);
        let output = command.arg(script).arg(SCHEMA).args(manifests(temporary.path())).arg(bundled).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.starts_with(b"3 manifests accepted, "), "{}", String::from_utf8_lossy(&output.stdout));
    }

    #[test]
    fn a_misspelt_key_of_any_table_is_an_error() {
        let temporary = tempfile::tempdir().unwrap();
        let [_, full] = manifests(temporary.path());
        let text = std::fs::read_to_string(&full).unwrap();
        let mut tried = 0;
        for (number, line) in text.lines().enumerate() {
            let Some((key, value)) = line.split_once(" = ") else { continue };
            let changed: Vec<String> = text
                .lines()
                .enumerate()
                .map(|(n, l)| if n == number { format!("{key}s = {value}") } else { l.to_owned() })
                .collect();
            let error = Manifest::parse(&full, &changed.join("\n")).map(|_| ()).unwrap_err().to_string();
            assert!(
                ["unknown field", "missing", "data did not match"].iter().any(|w| error.contains(w)),
                "{line}: {error}"
            );
            tried += 1;
        }
        assert!(tried > 40, "{tried} keys");
    }

    #[test]
    fn weights_of_half_the_width_are_widened() {
        let (_temporary, folder) = saved();
        let (path, manifest) = (folder.join(WEIGHTS), folder.join(MANIFEST));
        let (bytes, text) = (std::fs::read(&path).unwrap(), std::fs::read_to_string(&manifest).unwrap());
        let expected = open(&folder).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        // bf16 is the upper half of an f32.
        let narrow: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .iter()
            .map(|(name, t)| {
                let halves = t.data().chunks_exact(4).flat_map(|b| [b[2], b[3]]).collect();
                (name.to_owned(), t.shape().to_vec(), halves)
            })
            .collect();
        let views = narrow.iter().map(|(n, s, b)| (n, TensorView::new(Dtype::BF16, s.clone(), b).unwrap()));
        let narrow = safetensors::serialize(views, None).unwrap();
        std::fs::write(&path, &narrow).unwrap();
        let digest = |bytes: &[u8]| hexadecimal(&Sha256::digest(bytes));
        std::fs::write(&manifest, text.replace(&digest(&bytes), &digest(&narrow))).unwrap();
        let found = open(&folder).unwrap();
        for (name, weight) in &expected.folds()[0].weights {
            let cut: Vec<f32> = weight.values.iter().map(|v| f32::from_bits(v.to_bits() & 0xffff_0000)).collect();
            assert_eq!(*found.folds()[0].weights[name].values, cut, "{name}");
        }
    }

    #[test]
    fn what_is_wrong_with_the_manifest_is_said_with_its_line() {
        let (_temporary, folder) = saved();
        let path = folder.join(MANIFEST);
        let text = std::fs::read_to_string(&path).unwrap();
        let message = |from: &str, to: &str| {
            assert!(text.contains(from), "{from}");
            std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
            let error = open(&folder).unwrap_err().to_string();
            error.replace(&format!("{}: ", path.display()), "")
        };
        assert_eq!(
            message("format_version = 1", "format_version = 2"),
            "format_version 2 is not supported; this build reads 1"
        );
        assert_eq!(message("format_version = 1", ""), "format_version is missing");
        assert!(message("step = 0.5", "step = ?").starts_with("line 3: "));
        assert!(message("step = 0.5", "stap = 0.5").contains("unknown field `stap`"));
        assert!(message("window = \"gaussian\"", "window = \"round\"").starts_with("line 5: unknown variant `round`"));
        for step in ["1.5", "0.05", "nan"] {
            let found = message("step = 0.5", &format!("step = {step}"));
            assert_eq!(found.to_lowercase(), format!("step is {step}; it must be in 0.1 to 1"));
        }
        assert_eq!(message("heads = 2", "heads = 3"), "3 logits, but 2 classes or regions");
        assert_eq!(message("channels = 3", "channels = 4"), "4 input channels, but 3 names and 3 normalisations");
        assert_eq!(
            message("width = 16", "width = 17"),
            "the network has a tile of 17 x 8; with these strides it must be a multiple of 2 x 4"
        );
        assert_eq!(message("value = 1", "value = 2"), "the values of classes must be 0, 1, 2, ...");
        assert_eq!(message("folds = [\"fold_0\"]", "folds = []"), "folds must be named, each once");
        assert_eq!(
            message("name = \"class 1\"", "name = \"\\u001b[2J\""),
            "the name \\u{1b}[2J holds a control character"
        );
        assert_eq!(
            message("step = 0.5", "step = 0.5\nlicence = \"one\\ntwo\\u001b[2J\""),
            "a text holds a control character: one\\ntwo\\u{1b}[2J"
        );
        assert!(
            message("kind = \"plain-conv-unet\"", "kind = \"transformer\"").contains("unknown variant `transformer`")
        );
        // What a scheme, a kind of output or a nonlinearity has no use for, too.
        for (from, to) in [
            ("scheme = \"rgb-to01\"", "scheme = \"rgb-to01\"\nlower = 0.0"),
            ("kind = \"labels\"", "kind = \"labels\"\nclass_order = [1]"),
        ] {
            let message = message(from, to);
            assert!(message.contains("unknown field") && message.contains("there are no fields"), "{message}");
        }
    }
}
