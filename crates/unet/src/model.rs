//! A model on the host: its card, its network and its weights, not yet on a device.

use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::cpu::bf16::round;
use crate::package::is_kernel;
use crate::package::{self, PackageOptions, StagedPackage, TestVector};
use crate::weights::Fold;
use crate::{
    Architecture, Card, ChannelStatistics, Error, Execution, MirrorAxes, Network, Normalization, Output,
    Postprocessing, PrecisionNote, Predictor, Result, WeightFormat, bundle, ensemble, nnunet, recipe,
};

/// Which of a model's folds are loaded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Folds {
    /// All numbered folds that hold the checkpoint; `fold_all` where there are none. Of any other model than nnU-Net's: all that it has.
    #[default]
    Auto,
    /// `fold_all`, the network trained on all cases, as nnU-Net's `-f all`.
    All,
    /// The folds with these numbers, each once.
    List(Vec<u32>),
}

impl Folds {
    /// The name of the network that was trained on all cases.
    pub(crate) const ALL_CASES: &'static str = "fold_all";

    /// The names of the folds that are asked for, of those that `path` has; `None` where nobody asks for any.
    pub(crate) fn named(&self, path: &Path, found: &[String]) -> Result<Option<Vec<String>>> {
        let wanted: Vec<String> = match self {
            Self::Auto => return Ok(None),
            Self::All => vec![Self::ALL_CASES.into()],
            Self::List(numbers) => {
                let twice = numbers.iter().enumerate().find(|(i, number)| numbers[..*i].contains(number));
                if let Some((_, number)) = twice {
                    return Err(Error::usage(format!("the fold {number} is asked for twice; each counts once")));
                }
                numbers.iter().map(|n| format!("fold_{n}")).collect()
            }
        };
        match wanted.iter().find(|name| !found.contains(name)) {
            Some(name) => {
                let there_are =
                    if found.is_empty() { "there are none".into() } else { format!("there are {}", found.join(", ")) };
                Err(Error::format(path, format!("{name} is missing; {there_are}")))
            }
            None => Ok(Some(wanted)),
        }
    }
}

/// Which of nnU-Net's checkpoints is loaded. All other models hold only one, and refuse to be asked for the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checkpoint {
    /// `checkpoint_final.pth`, after the last epoch.
    #[default]
    Final,
    /// `checkpoint_best.pth`, the best by nnU-Net's own measure during training.
    Best,
}

impl Checkpoint {
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            Self::Final => "checkpoint_final.pth",
            Self::Best => "checkpoint_best.pth",
        }
    }

    /// What a bundle of MONAI calls the same.
    pub(crate) fn bundled_name(self) -> &'static str {
        match self {
            Self::Final => "model.pt",
            Self::Best => "best_model.pt",
        }
    }
}

/// What to load of a model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelOptions {
    /// Which folds.
    pub folds: Folds,
    /// Which checkpoint of each.
    pub checkpoint: Checkpoint,
}

/// A loaded model.
#[derive(Debug, Clone)]
pub struct Model {
    card: Card,
    architecture: Architecture,
    folds: Vec<Fold>,
    test_vector: Option<TestVector>,
    postprocessing_fault: Option<String>,
}

/// How well this crate reproduces a test vector.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Agreement {
    /// The largest absolute difference between a logit and its reference; NaN if one of them is.
    pub max_logit_difference: f32,
    /// The largest absolute reference logit, to judge the difference by.
    pub max_logit: f32,
    /// Pixels whose value in the mask differs.
    pub differing_pixels: u64,
    /// Those of them that no difference between logits explains that [`is_reproduced`](Self::is_reproduced) allows: another value is
    /// nowhere near there. Such a mask is of other classes, or of other logits.
    pub wrong_pixels: u64,
    /// Pixels of the mask.
    pub pixels: u64,
}

impl Agreement {
    /// True where summation in another order explains the differences in f32, up to 1e-4 of the largest logit: anything more is
    /// another network. The mask must be that of such logits, too.
    #[must_use]
    pub fn is_reproduced(&self) -> bool {
        self.max_logit.is_finite()
            && self.max_logit_difference <= Self::tolerance(self.max_logit)
            && self.wrong_pixels == 0
    }

    /// By how much a logit may differ, the largest being `max_logit`.
    pub(crate) fn tolerance(max_logit: f32) -> f32 {
        1e-4 * max_logit.max(1.0)
    }
}

impl Model {
    /// Loads a package (a folder with `model.toml`), an nnU-Net v2 result folder (the trainer's, or one that holds exactly one, also in a
    /// ZIP archive: `model.zip`, or `model.zip/FOLDER` if it holds several), a bundle of MONAI, or a state dict with a recipe.
    ///
    /// # Errors
    /// If the path is neither, if a file is missing, damaged or too large, or if the model asks for something that is not supported:
    /// that is named.
    pub fn open(path: impl AsRef<Path>, options: &ModelOptions) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir()
            && let Some(export) = nnunet::open_export(path)?
        {
            return export.load(options);
        }
        let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if let Some(recipe) = recipe::find(path) {
            only_checkpoint(&recipe, options)?;
            return recipe::load(&recipe, options);
        }
        if !metadata.is_dir() {
            let message = if is_weights(path) {
                BARE_WEIGHTS
            } else {
                "neither a folder nor a ZIP archive; a model is a microtome package, an nnU-Net v2 result folder, a MONAI bundle, \
                 or a state dict with a recipe (recipe.json)"
            };
            return Err(Error::unsupported(path, message));
        }
        if package::is_package(path) {
            only_checkpoint(path, options)?;
            return package::load(path, options);
        }
        if let Some(folder) = bundle::nnunet_folder(path) {
            return nnunet::load(&folder, options);
        }
        if bundle::is_bundle(path) {
            only_checkpoint(path, options)?;
            return bundle::load(path, options);
        }
        if nnunet::is_trainer_folder(path) {
            return nnunet::load(path, options);
        }
        match nnunet::trainer_folders(path)?.as_slice() {
            [one] => nnunet::load(one, options),
            [] => {
                let holds_weights = std::fs::read_dir(path)
                    .is_ok_and(|mut entries| entries.any(|e| e.is_ok_and(|entry| is_weights(&entry.path()))));
                let message = if holds_weights {
                    BARE_WEIGHTS
                } else {
                    "neither a microtome package (model.toml), a MONAI bundle (configs/inference.json) or a state dict with a recipe \
                     (recipe.json), nor an nnU-Net v2 result folder (plans.json, dataset.json, fold_*), and none below"
                };
                Err(Error::format(path, message))
            }
            several => {
                let names: Vec<String> =
                    several.iter().map(|p| p.strip_prefix(path).unwrap_or(p).display().to_string()).collect();
                Err(Error::format(path, format!("several nnU-Net results; give one of them: {}", names.join(", "))))
            }
        }
    }

    pub(crate) fn new(
        card: Card,
        architecture: Architecture,
        folds: Vec<Fold>,
        test_vector: Option<TestVector>,
    ) -> Self {
        Self { card, architecture, folds, test_vector, postprocessing_fault: None }
    }

    /// The same with what is wrong with the post-processing that comes with it, which its card then leaves out.
    pub(crate) fn with_postprocessing_fault(mut self, fault: Option<String>) -> Self {
        self.postprocessing_fault = fault;
        self
    }

    /// What the model says about itself.
    #[must_use]
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// The network's family and parameters.
    #[must_use]
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The network, layer by layer.
    #[must_use]
    pub fn network(&self) -> Network {
        self.architecture.network()
    }

    pub(crate) fn folds(&self) -> &[Fold] {
        &self.folds
    }

    /// The test vector that travels with the model, if one does.
    #[must_use]
    pub fn test_vector(&self) -> Option<&TestVector> {
        self.test_vector.as_ref()
    }

    /// Why the card tells of no post-processing, where a file that comes with the model does and cannot be read or honoured: a clause
    /// that names it. Whoever wants post-processing cannot have it; all else works.
    #[must_use]
    pub fn postprocessing_fault(&self) -> Option<&str> {
        self.postprocessing_fault.as_deref()
    }

    /// Puts the model on a device.
    ///
    /// # Errors
    /// If the device is not there or cannot compute with the precision asked for.
    pub fn predictor(&self, execution: &Execution) -> Result<Box<dyn Predictor>> {
        ensemble::predictor(self, execution)
    }

    /// Writes the model as a package into a folder that does not exist yet or is empty; it appears there whole or not at all.
    ///
    /// # Errors
    /// If the folder holds something, or cannot be written.
    pub fn save_package(&self, folder: impl AsRef<Path>, options: &PackageOptions) -> Result<()> {
        self.stage_package(folder, options)?.publish()
    }

    /// The same up to the last step, for a caller who may change his mind until then.
    ///
    /// # Errors
    /// As [`save_package`](Self::save_package).
    pub fn stage_package(&self, folder: impl AsRef<Path>, options: &PackageOptions) -> Result<StagedPackage> {
        package::stage(self, folder.as_ref(), options)
    }

    /// The model as it is once its kernels have been kept in such numbers.
    ///
    /// Where that changes a value it is another model, with another identity: what was computed or measured with the first one,
    /// its test vector and the figures on precision, does not go along.
    ///
    /// # Errors
    /// If a value is not finite, or not within reach of such numbers.
    pub fn with_kernels(mut self, format: WeightFormat) -> Result<Self> {
        self.card.precision.weights = format;
        let mut changed = false;
        for fold in &mut self.folds {
            for (name, weight) in fold.weights.iter_mut().filter(|(_, weight)| is_kernel(weight)) {
                if format == WeightFormat::F32 {
                    continue;
                }
                // An infinity or a NaN stays one, and the largest values of f32 become infinite.
                if let Some(value) = weight.values.iter().find(|v| !round(**v).is_finite()) {
                    let message =
                        format!("{}/{name} holds the value {value}, which cannot be rounded to bf16", fold.name);
                    return Err(Error::usage(message));
                }
                if weight.values.iter().any(|v| round(*v).to_bits() != v.to_bits()) {
                    weight.values = weight.values.iter().map(|v| round(*v)).collect();
                    changed = true;
                }
            }
        }
        if changed {
            self.test_vector = None;
            self.card.test_vector = None;
            self.card.precision = PrecisionNote { weights: format, ..PrecisionNote::default() };
            complete(&mut self.card, &self.architecture, &self.folds);
        }
        Ok(self)
    }

    /// Computes the test vector's logits and mask and compares them with those that came with the model.
    /// `None` if the model has no test vector.
    ///
    /// # Errors
    /// As [`predictor`](Self::predictor) and [`Predictor::predict`].
    pub fn check_test_vector(&self, execution: &Execution) -> Result<Option<Agreement>> {
        self.test_vector.as_ref().map(|vector| vector.check(self, execution)).transpose()
    }

    /// The same for a test vector that is not the model's yet.
    ///
    /// # Errors
    /// As [`check_test_vector`](Self::check_test_vector).
    pub fn check_against(&self, vector: &TestVector, execution: &Execution) -> Result<Agreement> {
        vector.check(self, execution)
    }
}

/// What is said of weights with nothing beside them.
pub(crate) const BARE_WEIGHTS: &str = "weights alone do not say what network they are of: write a recipe.json beside them, which names \
                                       the network, its tile, normalisation and classes (docs/model-package.md, \"A bare state dict\")";

/// True for the name of a file that holds weights and nothing else that matters.
fn is_weights(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    ["pth", "pt", "ckpt", "safetensors"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// Refuses to look for the best checkpoint where there is only one.
fn only_checkpoint(path: &Path, options: &ModelOptions) -> Result<()> {
    match options.checkpoint {
        Checkpoint::Final => Ok(()),
        Checkpoint::Best => Err(Error::usage(format!(
            "{}: the best checkpoint is asked for, but only results of nnU-Net keep one beside the last",
            path.display()
        ))),
    }
}

/// Checks that the parts of a model fit each other, before weights are read. `path` is the file that says so.
pub(crate) fn check(path: &Path, card: &Card, architecture: &Architecture) -> Result<()> {
    let wrong = |message: String| Err(Error::format(path, message));
    if let Err(message) = architecture.check(card.tile) {
        return Err(Error::unsupported(path, format!("the network has {message}")));
    }
    if let Err(message) = check_words(card) {
        return wrong(message);
    }
    let channels = architecture.channels();
    if card.channels.len() != channels || card.normalization.len() != channels {
        let message = format!(
            "{channels} input channels, but {} names and {} normalisations",
            card.channels.len(),
            card.normalization.len()
        );
        return wrong(message);
    }
    for (name, normalization) in card.channels.iter().zip(&card.normalization) {
        if let Err(message) = normalization.check() {
            return wrong(format!("the normalisation of {name} {message}"));
        }
    }
    if let Some(training) = &card.training
        && (training.len() != channels || !training.iter().all(ChannelStatistics::is_possible))
    {
        return wrong(format!("the training statistics are not those of {channels} channels"));
    }
    if card.heads() != architecture.heads() {
        return wrong(format!("{} logits, but {} classes or regions", architecture.heads(), card.heads()));
    }
    if !card.classes.iter().any(|c| c.value == 0) || !card.classes.is_sorted_by(|a, b| a.value < b.value) {
        return wrong("classes must ascend by value and start with 0, background".into());
    }
    match &card.output {
        Output::Labels => {
            if !card.classes.iter().enumerate().all(|(i, c)| usize::from(c.value) == i) {
                return wrong("the values of classes must be 0, 1, 2, ...".into());
            }
        }
        Output::Regions { class_order } => {
            if let Some(value) = class_order.iter().find(|v| !card.classes.iter().any(|c| c.value == **v)) {
                return wrong(format!("a region sets the value {value}, which is no class"));
            }
        }
    }
    for Postprocessing::KeepLargest { values } in card.postprocessing.iter().flatten() {
        let known = |value: &u16| *value != 0 && card.classes.iter().any(|c| c.value == *value);
        if values.is_empty() || !values.iter().all(known) || !values.is_sorted_by(|a, b| a < b) {
            return wrong(format!(
                "postprocessing keeps the largest component of {values:?}, which are no ascending classes"
            ));
        }
    }
    if card.mpp.is_some_and(|mpp| !(mpp.is_finite() && mpp > 0.0)) {
        return wrong(format!("mpp is {}; it must be positive", card.mpp.unwrap_or_default()));
    }
    if let Err(message) = card.precision.check() {
        return wrong(message);
    }
    // What tiles can be laid with (`TileGrid` of microtome-tile), said before anybody waits for it.
    // One less an overlap of 0.9 is a little less than a tenth.
    if !(0.1 - 1e-9..=1.0).contains(&card.step) {
        return wrong(format!("step is {}; it must be in 0.1 to 1", card.step));
    }
    Ok(())
}

/// Refuses names and texts that could do something to the terminal that shows them. Texts may have lines.
fn check_words(card: &Card) -> Result<(), String> {
    let class = |c: &microtome_io::Class| [Some(c.name.clone()), c.code.clone()].into_iter().flatten();
    let names = [&card.name].into_iter().chain(&card.channels).chain(&card.folds).cloned();
    if let Some(name) = names.chain(card.classes.iter().flat_map(class)).find(|n| n.contains(char::is_control)) {
        return Err(format!("the name {name} holds a control character"));
    }
    let measured = card.precision.measured.iter().flat_map(|m| [&m.picture, &m.computed_by]);
    let texts = [&card.licence, &card.provenance, &card.intended_use, &card.test_vector].into_iter().flatten();
    let harmful = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    match texts.chain(measured).find(|text| text.contains(harmful)) {
        None => Ok(()),
        Some(text) => Err(format!("a text holds a control character: {text}")),
    }
}

/// Fills in what follows from the network and the weights.
pub(crate) fn complete(card: &mut Card, architecture: &Architecture, folds: &[Fold]) {
    let parameters = architecture.network().parameters();
    card.architecture = format!("{architecture}, {parameters} parameters");
    card.parameters = parameters;
    card.folds = folds.iter().map(|f| f.name.clone()).collect();
    card.sha256 = identity(card, architecture, folds);
}

/// The settings that, with the weights, decide what a tile's logits are and what they mean.
#[derive(Serialize)]
struct Identity<'a> {
    architecture: &'a Architecture,
    tile: microtome_io::Size,
    normalization: &'a [Normalization],
    mirror_axes: MirrorAxes,
    output: &'a Output,
    values: Vec<u16>,
}

fn identity(card: &Card, architecture: &Architecture, folds: &[Fold]) -> String {
    let settings = Identity {
        architecture,
        tile: card.tile,
        normalization: &card.normalization,
        mirror_axes: card.mirror_axes,
        output: &card.output,
        values: card.classes.iter().map(|c| c.value).collect(),
    };
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(&settings).expect("plain data with text keys"));
    for fold in folds {
        for (name, weight) in &fold.weights {
            hash.update(name.as_bytes());
            let mut bytes = Vec::with_capacity(4 * weight.values.len().min(1 << 16));
            for chunk in weight.values.chunks(1 << 16) {
                bytes.clear();
                bytes.extend(chunk.iter().flat_map(|v| v.to_le_bytes()));
                hash.update(&bytes);
            }
        }
    }
    hexadecimal(&hash.finalize())
}

/// Lower-case hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or('0');
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;

    use microtome_io::{Class, Size};

    use super::*;
    use crate::Window;
    use crate::weights::Weight;

    /// The folder of the model that nnU-Net trained, or `None` after saying so.
    pub(crate) fn reference_model() -> Option<PathBuf> {
        microtome_testkit::data("models/nnunet-v2-plain")
    }

    /// A model with weights that look random and are the same on every machine.
    pub(crate) fn random(architecture: Architecture, tile: Size) -> Model {
        let mut state = 1_u32;
        let mut value = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from((state >> 16) as u16) / 65536.0
        };
        let mut weight = |name: &str, shape: Vec<usize>| {
            let n: usize = shape.iter().product();
            // As networks are initialised: small where many values are summed, positive where a root is taken.
            let width = 2.0 / ((n / shape[0]).max(1) as f32).sqrt();
            let shift = if name.ends_with("running_var") || name.ends_with("norm.weight") { 0.5 } else { -0.5 };
            let values = (0..n).map(|_| (value() + shift) * if shape.len() == 1 { 1.0 } else { width }).collect();
            Weight { shape, values }
        };
        let weights = architecture.network().weights();
        let weights = weights.into_iter().map(|w| (w.name.clone(), weight(&w.name, w.shape))).collect();
        let folds = vec![Fold { name: "fold_0".into(), weights }];
        let mut card = Card {
            name: "random".into(),
            architecture: String::new(),
            tile,
            channels: (0..architecture.channels()).map(|c| format!("channel {c}")).collect(),
            classes: (0..architecture.heads())
                .map(|v| Class::with_default_color(v as u16, format!("class {v}")))
                .collect(),
            output: Output::Labels,
            mirror_axes: MirrorAxes::BOTH,
            normalization: vec![Normalization::RgbTo01; architecture.channels()],
            training: None,
            mpp: None,
            step: 0.5,
            placement: crate::Placement::Nnunet,
            window: Window::Gaussian,
            postprocessing: None,
            crop_to_nonzero: false,
            folds: Vec::new(),
            parameters: 0,
            sha256: String::new(),
            licence: None,
            provenance: None,
            intended_use: None,
            test_vector: None,
            precision: crate::PrecisionNote::default(),
        };
        check(Path::new("random"), &card, &architecture).unwrap();
        complete(&mut card, &architecture, &folds);
        Model::new(card, architecture, folds, None)
    }

    impl Model {
        pub(crate) fn card_mut(&mut self) -> &mut Card {
            &mut self.card
        }

        /// Sets every value of a weight.
        pub(crate) fn change_weight(&mut self, name: &str, value: f32) {
            let weight = self.folds[0].weights.get_mut(name).unwrap();
            weight.values = vec![value; weight.values.len()].into();
        }
    }

    #[test]
    fn the_identity_covers_weights_and_settings_but_not_words() {
        let model = || random(Architecture::PlainConvUnet(crate::architecture::tests::tiny()), Size::new(8, 8));
        let identity_after = |change: fn(&mut Model)| {
            let mut model = model();
            change(&mut model);
            complete(&mut model.card, &model.architecture, &model.folds);
            model.card.sha256
        };
        let original = model().card.sha256;
        assert_eq!(original.len(), 64);
        assert_eq!(identity_after(|m| m.card.name = "other".into()), original);
        assert_eq!(identity_after(|m| m.card.mpp = Some(0.25)), original);
        assert_ne!(identity_after(|m| m.card.tile = Size::new(16, 8)), original);
        assert_ne!(identity_after(|m| m.card.normalization[1] = Normalization::ZScore), original);
        assert_ne!(identity_after(|m| m.card.mirror_axes = MirrorAxes::NONE), original);
        assert_ne!(identity_after(|m| m.change_weight("decoder.seg_layers.1.bias", 1.0)), original);
    }

    #[test]
    fn a_path_that_holds_no_model_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let message = |path: &Path| Model::open(path, &ModelOptions::default()).unwrap_err().to_string();
        let file = folder.path().join("model.zip");
        std::fs::write(&file, "x").unwrap();
        let known = "neither a folder nor a ZIP archive; a model is a microtome package, an nnU-Net v2 result folder, a MONAI bundle, \
                     or a state dict with a recipe (recipe.json)";
        assert!(message(&file).ends_with(known));
        let folder_without = message(folder.path());
        for word in ["model.toml", "configs/inference.json", "recipe.json", "plans.json"] {
            assert!(folder_without.contains(word), "{word}: {folder_without}");
        }
        assert!(message(&folder.path().join("missing")).contains("missing: No such file"));
    }

    #[test]
    fn weights_alone_are_told_what_they_lack() {
        let folder = tempfile::tempdir().unwrap();
        let message = |path: &Path| Model::open(path, &ModelOptions::default()).unwrap_err().to_string();
        // A ZIP archive, as PyTorch writes them, and a file that is none.
        let checkpoint = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/checkpoints/kinds.pth");
        std::fs::copy(checkpoint, folder.path().join("weights.pth")).unwrap();
        std::fs::write(folder.path().join("weights.safetensors"), "x").unwrap();
        for path in ["weights.pth", "weights.safetensors", ""].map(|name| folder.path().join(name)) {
            assert_eq!(message(&path), format!("{}: {BARE_WEIGHTS}", path.display()));
        }
    }

    #[test]
    fn a_fold_is_asked_for_once_and_must_be_there() {
        let found = ["fold_0", "fold_1"].map(String::from);
        let named = |folds: Folds| folds.named(Path::new("model"), &found).map_err(|e| e.to_string());
        assert_eq!(named(Folds::Auto), Ok(None));
        assert_eq!(named(Folds::List(vec![1, 0])), Ok(Some(vec!["fold_1".into(), "fold_0".into()])));
        assert_eq!(named(Folds::List(vec![0, 1, 0])), Err("the fold 0 is asked for twice; each counts once".into()));
        assert_eq!(named(Folds::All), Err("model: fold_all is missing; there are fold_0, fold_1".into()));
        assert_eq!(
            Folds::List(vec![2]).named(Path::new("model"), &[]).unwrap_err().to_string(),
            "model: fold_2 is missing; there are none"
        );
    }
}
