//! microtome's own model package: one folder that says everything about a model. Format: `docs/model-package.md`.

mod manifest;
mod test_vector;

pub use test_vector::TestVector;

use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use sha2::{Digest, Sha256};

use crate::model::{self, Folds, Model, ModelOptions, hexadecimal};
use crate::weights::{Fold, Weight, match_names};
use crate::{Error, Result, bounded};
use manifest::Manifest;

const MANIFEST: &str = "model.toml";
const WEIGHTS: &str = "weights.safetensors";
/// Far more than a card needs.
const MAX_MANIFEST: u64 = 1 << 20;
/// Room for names and shapes beside the values.
const MAX_HEADER: u64 = 16 << 20;

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

    let wanted: Vec<String> = match &options.folds {
        Folds::Auto | Folds::All => manifest.folds.clone(),
        Folds::List(numbers) => numbers.iter().map(|n| format!("fold_{n}")).collect(),
    };
    if let Some(name) = wanted.iter().find(|name| !manifest.folds.contains(name)) {
        return Err(Error::format(&path, format!("{name} is missing; there are {}", manifest.folds.join(", "))));
    }
    let mut names = manifest.folds.clone();
    names.sort();
    names.dedup();
    if names.len() != manifest.folds.len() || wanted.is_empty() {
        return Err(Error::format(&path, "folds must be named, each once"));
    }

    let values = network.parameters().saturating_mul(4).saturating_mul(manifest.folds.len() as u64);
    let file = folder.join(WEIGHTS);
    let bytes = bounded::read(&file, values.saturating_add(MAX_HEADER))?;
    let found = hexadecimal(&Sha256::digest(&bytes));
    if found != manifest.weights.sha256 {
        let message = format!("its sha256 is {found}, but {MANIFEST} says {}", manifest.weights.sha256);
        return Err(Error::format(&file, message));
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| Error::format(&file, e.to_string()))?;
    let mut held: Vec<(String, TensorView<'_>)> = tensors.tensors();
    if let Some((name, tensor)) = held.iter().find(|(_, t)| t.dtype() != Dtype::F32) {
        return Err(Error::unsupported(&file, format!("{name} is {:?}; F32 is supported", tensor.dtype())));
    }
    let mut folds = Vec::new();
    for name in &manifest.folds {
        let prefix = format!("{name}/");
        let (of_fold, others) = held.into_iter().partition(|(name, _)| name.starts_with(&prefix));
        let of_fold: Vec<(String, TensorView<'_>)> = of_fold;
        held = others;
        match_names(&file, &network, of_fold.iter().map(|(name, tensor)| (&name[prefix.len()..], tensor.shape())))?;
        if wanted.contains(name) {
            let weight = |(name, tensor): (String, TensorView<'_>)| {
                let values = tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                (name[prefix.len()..].to_owned(), Weight { shape: tensor.shape().to_vec(), values })
            };
            folds.push(Fold { name: name.clone(), weights: of_fold.into_iter().map(weight).collect() });
        }
    }
    if let Some((name, _)) = held.first() {
        return Err(Error::format(&file, format!("{name} belongs to no fold of {MANIFEST}")));
    }
    drop(held);
    drop(bytes);
    let test_vector = manifest.test.as_ref().map(|test| TestVector::read(folder, test, &card)).transpose()?;
    model::complete(&mut card, &architecture, &folds);
    Ok(Model::new(card, architecture, folds, test_vector))
}

pub(crate) fn save(model: &Model, folder: &Path, options: &PackageOptions) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    if std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.next().is_some() {
        return Err(Error::usage(format!("{}: the folder is not empty", folder.display())));
    }
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|e| Error::io(&path, e))
    };
    let weights = weights_file(model.folds()).map_err(|e| Error::format(folder.join(WEIGHTS), e))?;
    let test_vector = options.test_vector.as_ref().or(model.test_vector());
    let manifest = Manifest::new(model, options, hexadecimal(&Sha256::digest(&weights)), test_vector);
    let text = manifest.to_text();
    // What is written must be readable: the same checks as on loading.
    let path = folder.join(MANIFEST);
    let (card, architecture) = Manifest::parse(&path, &text)?.card();
    model::check(&path, &card, &architecture)?;
    write(WEIGHTS, &weights)?;
    if let Some(vector) = test_vector {
        vector.write(folder)?;
    }
    write(MANIFEST, text.as_bytes())
}

/// All folds in one safetensors file, `fold_0/encoder.stages...`.
fn weights_file(folds: &[Fold]) -> Result<Vec<u8>, String> {
    let mut bytes: Vec<(String, &[usize], Vec<u8>)> = Vec::new();
    for fold in folds {
        for (name, weight) in &fold.weights {
            let values = weight.values.iter().flat_map(|v| v.to_le_bytes()).collect();
            bytes.push((format!("{}/{name}", fold.name), &weight.shape, values));
        }
    }
    let views = bytes
        .iter()
        .map(|(name, shape, values)| Ok((name, TensorView::new(Dtype::F32, shape.to_vec(), values)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|e| e.to_string())?;
    safetensors::serialize(views, None).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use microtome_io::{Pixels, Rect, Size};

    use super::*;
    use crate::architecture::tests::tiny;
    use crate::model::tests::random;
    use crate::{Architecture, Execution, Mirroring, Normalizer, Tile};

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

        std::fs::write(temporary.path().join("test/mask.png"), b"no picture").unwrap();
        assert!(open(temporary.path()).unwrap_err().to_string().contains("test/mask.png: "));
        std::fs::remove_dir_all(temporary.path().join("test")).unwrap();
        assert!(open(temporary.path()).unwrap_err().to_string().contains("test/input.png: No such file"));
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
                .ends_with("weights.safetensors: incomplete metadata, file not fully covered"),
            "{}",
            forged(&bytes[..bytes.len() - 4])
        );
        let mut huge = bytes.clone();
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(forged(&huge).contains("header too large"), "{}", forged(&huge));
        for length in [0, 7, 8, 20, 200] {
            assert!(forged(&bytes[..length]).contains("weights.safetensors: "));
        }
        let at = bytes.windows(10).position(|w| w == b"seg_layers").unwrap();
        let mut renamed = bytes.clone();
        renamed[at] = b'S';
        assert!(forged(&renamed).contains("missing decoder.seg_layers.1."), "{}", forged(&renamed));
        std::fs::write(&path, vec![0; MAX_HEADER as usize + (1 << 20)]).unwrap();
        assert!(open(&folder).unwrap_err().to_string().contains("bytes; up to "));
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
        assert!(message("window = \"gaussian\"", "window = \"round\"").starts_with("line 4: unknown variant `round`"));
        assert_eq!(message("step = 0.5", "step = 1.5"), "step is 1.5; it must be above 0 and at most 1");
        assert_eq!(message("heads = 2", "heads = 3"), "3 logits, but 2 classes or regions");
        assert_eq!(message("channels = 3", "channels = 4"), "4 input channels, but 3 names and 3 normalisations");
        assert_eq!(
            message("width = 16", "width = 17"),
            "the network has a tile of 17 x 8; with these strides it must be a multiple of 2 x 4"
        );
        assert_eq!(message("value = 1", "value = 2"), "the values of classes must be 0, 1, 2, ...");
        assert_eq!(message("folds = [\"fold_0\"]", "folds = []"), "folds must be named, each once");
        assert!(
            message("kind = \"plain-conv-unet\"", "kind = \"transformer\"").contains("unknown variant `transformer`")
        );
    }
}
