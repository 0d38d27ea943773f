//! The folder of one trainer, plans and configuration, with its folds.

use std::path::{Path, PathBuf};

use super::checkpoint::{Checkpoint, Settings};
use super::dataset::Dataset;
use super::plans::{Counts, Plans};
use super::postprocessing;
use super::trainers::Trained;
use crate::architecture::Norm;
use crate::model::{self, Folds, Model, ModelOptions};
use crate::weights::Fold;
use crate::{Card, Error, MirrorAxes, Placement, Result, Window};

/// How deep below a given path trainer folders are looked for: `nnUNet_results/Dataset/Trainer__Plans__Configuration`.
const SEARCH_DEPTH: usize = 3;
/// How many folders are looked into before giving up: nobody keeps as many results in one place.
const SEARCH_LIMIT: usize = 4096;

/// The file in the `models` folder of MONAI's bundles that holds what is beside the weights in a checkpoint of nnU-Net.
/// Layout: MONAI 1.6.1, `monai/apps/nnunet/nnunet_bundle.py`.
pub(crate) const BUNDLE_SETTINGS: &str = "nnunet_checkpoint.pth";

/// True for a folder that looks like a trainer's, though something may be missing from it.
pub(crate) fn is_trainer_folder(path: &Path) -> bool {
    // `crossval_results_*` folders hold both files but no folds.
    let files = ["plans.json", "dataset.json"].iter().filter(|name| path.join(name).is_file()).count();
    let folds = fold_names(path).is_ok_and(|names| !names.is_empty());
    folds || files == 2 && !name_of(path).starts_with("crossval_results")
}

/// The trainer folders below a folder, sorted.
pub(crate) fn trainer_folders(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut level = vec![path.to_owned()];
    let mut seen = 0;
    for _ in 0..SEARCH_DEPTH {
        let mut next = Vec::new();
        for folder in level {
            for child in folders(&folder)? {
                seen += 1;
                if seen > SEARCH_LIMIT {
                    let message = format!("more than {SEARCH_LIMIT} folders; give the folder of one trainer");
                    return Err(Error::limits(path, message));
                }
                if is_trainer_folder(&child) {
                    found.push(child);
                } else {
                    next.push(child);
                }
            }
        }
        level = next;
    }
    found.sort();
    Ok(found)
}

/// Loads a trainer's folder.
pub(crate) fn load(folder: &Path, options: &ModelOptions) -> Result<Model> {
    let file = |name: &str| {
        let path = folder.join(name);
        let missing = || Error::format(folder, format!("{name} is missing from this nnU-Net result folder"));
        if path.is_file() { Ok(path) } else { Err(missing()) }
    };
    let (plans, dataset) = (Plans::read(&file("plans.json")?)?, Dataset::read(&file("dataset.json")?)?);
    let bundled = folder.join(BUNDLE_SETTINGS).is_file();
    let file_name = if bundled { options.checkpoint.bundled_name() } else { options.checkpoint.file_name() };
    let holds = |fold: &str| folder.join(fold).join(file_name).is_file();
    let names = select_folds(folder, &fold_names(folder)?, &options.folds, &holds)?;
    let open = |name: &String| {
        let path = file(&format!("{name}/{file_name}"))?;
        if bundled { Checkpoint::open_bundled(&path) } else { Checkpoint::open(&path) }
    };
    // As in nnU-Net, the first fold speaks for all; in a bundle, a file of its own does, and pictures are never mirrored.
    let mut first = Some(open(&names[0])?);
    let settings = if bundled {
        Settings { mirror_axes: Ok(MirrorAxes::NONE), ..Settings::read(&file(BUNDLE_SETTINGS)?)? }
    } else {
        first.as_ref().expect("just opened").settings()?
    };
    let Settings { configuration: configuration_name, trainer, mirror_axes } = settings;

    let trained = Trained::by(&trainer);
    if trained == Trained::Transformer {
        let message = format!("the trainer {trainer} trains a transformer, which is not supported; UNets are");
        return Err(Error::unsupported(folder, message));
    }
    let norm = (trained == Trained::BatchNorm).then_some(Norm::Batch { epsilon: 1e-5, affine: true });
    let counts = Counts { channels: dataset.channels.len(), heads: dataset.heads() };
    let configuration = plans.configuration(&configuration_name, counts, norm)?;
    let architecture = configuration.network;
    // Only now: those of a volume have no place here, and it is the volume that is to be named.
    let mirror_axes = mirror_axes?;

    let name = plans.dataset_name()?.map_or_else(|| name_of(folder), ToOwned::to_owned);
    let foreign = if trained == Trained::Unknown { " (none of nnU-Net's own)" } else { "" };
    let provenance = format!(
        "Trained by nnU-Net v2: {name}, configuration {configuration_name}, trainer {trainer}{foreign}, {file_name}."
    );
    let (postprocessing, fault) = match postprocessing::read(folder, &names, &dataset.classes) {
        Ok(found) => (found, None),
        // Nobody has asked for it yet.
        Err(error) => (None, Some(within(folder, &error))),
    };
    let mut card = Card {
        name,
        architecture: String::new(),
        tile: configuration.tile,
        channels: dataset.channels,
        classes: dataset.classes,
        output: dataset.output,
        mirror_axes,
        normalization: configuration.normalization,
        training: configuration.training,
        mpp: None,
        step: 0.5,
        placement: Placement::Nnunet,
        window: Window::Gaussian,
        postprocessing,
        crop_to_nonzero: true,
        folds: names.clone(),
        parameters: 0,
        sha256: String::new(),
        licence: None,
        provenance: Some(provenance),
        intended_use: None,
        test_vector: None,
        precision: crate::PrecisionNote::default(),
    };
    model::check(&folder.join("plans.json"), &card, &architecture)?;

    let mut folds = Vec::with_capacity(names.len());
    for name in names {
        let checkpoint = match first.take() {
            Some(checkpoint) => checkpoint,
            None => open(&name)?,
        };
        let weights = checkpoint.weights(&architecture).map_err(|error| match error {
            // That trainers of others train another network is the likeliest cause.
            Error::Format { path, message } if trained == Trained::Unknown => {
                let message = format!(
                    "{message}; its trainer {trainer} is none of nnU-Net's own, and may train another network than that of the plans"
                );
                Error::unsupported(path, message)
            }
            error => error,
        })?;
        folds.push(Fold { name, weights });
    }
    model::complete(&mut card, &architecture, &folds);
    Ok(Model::new(card, architecture, folds, None).with_postprocessing_fault(fault))
}

/// An error of a file in a folder, as it reads there: wherever the folder lies.
fn within(folder: &Path, error: &Error) -> String {
    let message = error.to_string();
    // Joined to nothing, a path ends in a slash.
    let start = folder.join("").display().to_string();
    message.strip_prefix(&start).unwrap_or(&message).to_owned()
}

/// The names of the folds to use, of those that there are. `holds` says whether the checkpoint is in one.
pub(super) fn select_folds(
    folder: &Path,
    found: &[String],
    folds: &Folds,
    holds: &dyn Fn(&str) -> bool,
) -> Result<Vec<String>> {
    let wanted = folds.named(folder, found)?.unwrap_or_else(|| {
        // nnU-Net's rule: folds that are still in training have no checkpoint yet. A network trained on all cases is taken where there
        // is nothing else, and where no fold has a checkpoint, it is missing from all of them.
        let whole: Vec<String> = found.iter().filter(|name| holds(name.as_str())).cloned().collect();
        let whole = if whole.is_empty() { found.to_owned() } else { whole };
        let (all, numbered): (Vec<String>, Vec<String>) = whole.into_iter().partition(|n| n == Folds::ALL_CASES);
        if numbered.is_empty() { all } else { numbered }
    });
    if wanted.is_empty() {
        return Err(Error::format(folder, "no folds (fold_0, fold_1, ... or fold_all)"));
    }
    Ok(wanted)
}

fn fold_names(folder: &Path) -> Result<Vec<String>> {
    Ok(sorted_folds(folders(folder)?.into_iter().map(|path| name_of(&path))))
}

/// Of these names those of folds: `fold_0`, `fold_1`, ... by number, then `fold_all`.
pub(super) fn sorted_folds(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let key = |name: &str| match name.strip_prefix("fold_")? {
        "all" => Some(u32::MAX),
        number => number.parse::<u32>().ok().filter(|n| n.to_string() == number),
    };
    let mut found: Vec<(u32, String)> = names.into_iter().filter_map(|name| Some((key(&name)?, name))).collect();
    found.sort();
    found.dedup();
    found.into_iter().map(|(_, name)| name).collect()
}

pub(super) fn folders(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
    let mut found = Vec::new();
    for entry in entries.take(SEARCH_LIMIT) {
        let child = entry.map_err(|e| Error::io(path, e))?.path();
        if child.is_dir() {
            found.push(child);
        }
    }
    Ok(found)
}

pub(super) fn name_of(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Checkpoint as Which;
    use crate::nnunet::plans::tests::plans;
    use crate::torch::fixture::{Item, dict, save};
    use crate::{Execution, MirrorAxes, Mirroring, Normalizer, PackageOptions, Postprocessing, Tile};

    const AXES: &str = "inference_allowed_mirroring_axes";

    /// The weights of the network in `plans`, each of a fold's own, under the names of a wrapped network, with second names
    /// and heads of deep supervision beside them.
    fn weights(fold: usize) -> Vec<(String, Item)> {
        let names = network().weights();
        let mut entries = Vec::new();
        for (i, weight) in names.iter().enumerate() {
            let n: usize = weight.shape.iter().product();
            let values = (0..n).map(|j| ((i * 31 + j * 17 + fold * 7) % 23) as f32 / 23.0 - 0.4).collect();
            entries.push((format!("module.{}", weight.name), Item::Tensor(weight.shape.clone(), values)));
        }
        entries
            .push(("module.encoder.stages.0.0.convs.0.all_modules.0.weight".into(), Item::Tensor(vec![1], vec![0.0])));
        entries
            .push(("module.decoder.encoder.stages.0.0.convs.0.conv.weight".into(), Item::Tensor(vec![1], vec![0.0])));
        entries.push(("module.decoder.seg_layers.7.weight".into(), Item::Tensor(vec![1], vec![0.0])));
        entries
    }

    fn network() -> crate::Network {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plans.json");
        std::fs::write(&path, plans().to_string()).unwrap();
        Plans::read(&path)
            .unwrap()
            .configuration("2d", Counts { channels: 1, heads: 2 }, None)
            .unwrap()
            .network
            .network()
    }

    fn write_fold(folder: &Path, name: &str, weights: Vec<(String, Item)>, others: Vec<(&str, Item)>) {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        let mut entries = vec![("network_weights".to_owned(), Item::Dict(weights))];
        entries.extend(others.into_iter().map(|(k, v)| (k.to_owned(), v)));
        save(&folder.join(name).join("checkpoint_final.pth"), &Item::Dict(entries));
    }

    fn settings() -> Vec<(&'static str, Item)> {
        vec![
            ("init_args", dict([("configuration", Item::Text("2d".into()))])),
            ("trainer_name", Item::Text("nnUNetTrainer".into())),
            (AXES, Item::Tuple(vec![Item::Int(0), Item::Int(1)])),
        ]
    }

    /// A trainer's folder with two folds.
    fn trainer(folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        let plans = plans().to_string().replace("\"median\":null", "\"median\":NaN");
        std::fs::write(folder.join("plans.json"), plans).unwrap();
        let dataset = json!({"channel_names": {"0": "grey"}, "labels": {"background": 0, "cell": 1, "ignore": 2}});
        std::fs::write(folder.join("dataset.json"), dataset.to_string()).unwrap();
        for fold in [0, 1] {
            write_fold(folder, &format!("fold_{fold}"), weights(fold), settings());
        }
    }

    fn logits(model: &Model) -> Vec<f32> {
        let samples = (0..8 * 16).map(|i| (i * 37 % 251) as u8).collect();
        let pixels = microtome_io::Pixels::from_u8(model.card().tile, 1, samples);
        let statistics = crate::ChannelStatistics { mean: 120.0, std: 70.0, min: 0.0, max: 250.0 };
        let normalizer = Normalizer::new(&model.card().normalization, &[statistics]).unwrap();
        let execution = Execution { mirroring: Mirroring::AsTrained, ..Execution::default() };
        model.predictor(&execution).unwrap().predict(&[Tile::full(&pixels)], &normalizer).unwrap().remove(0).values
    }

    // As MONAI's `convert_nnunet_to_monai_bundle` leaves it: the weights apart from all else, and nobody mirrors.
    #[test]
    fn a_bundle_of_monai_holds_the_same_network() {
        let temporary = tempfile::tempdir().unwrap();
        let (results, bundle) = (temporary.path().join("results"), temporary.path().join("bundle"));
        trainer(&results);
        let models = bundle.join("models");
        for (fold, entries) in [(0, weights(0)), (1, weights(1))] {
            std::fs::create_dir_all(models.join(format!("fold_{fold}"))).unwrap();
            let content = dict([("network_weights", Item::Dict(entries))]);
            save(&models.join(format!("fold_{fold}/model.pt")), &content);
        }
        for file in ["plans.json", "dataset.json"] {
            std::fs::copy(results.join(file), models.join(file)).unwrap();
        }
        let [configuration, trainer, axes] = settings().try_into().unwrap();
        save(&models.join(BUNDLE_SETTINGS), &dict([configuration, trainer, axes]));
        let open = |path: &Path| Model::open(path, &ModelOptions::default()).unwrap();
        let (original, copy) = (open(&results), open(&bundle));
        assert_eq!(copy.folds(), original.folds());
        assert_eq!(copy.card().classes, original.card().classes);
        assert_eq!(copy.card().mirror_axes, MirrorAxes::NONE);
        assert!(copy.card().provenance.as_deref().is_some_and(|p| p.ends_with("model.pt.")));
        let best = ModelOptions { checkpoint: Which::Best, ..ModelOptions::default() };
        let error = Model::open(&bundle, &best).unwrap_err().to_string();
        assert!(error.contains("fold_0/best_model.pt is missing"), "{error}");
    }

    #[test]
    fn folds_are_averaged_and_survive_the_package() {
        let folder = tempfile::tempdir().unwrap();
        let (results, package) = (folder.path().join("results"), folder.path().join("package"));
        let path = results.join("Dataset001_Test/nnUNetTrainer__nnUNetPlans__2d");
        trainer(&path);
        let found = json!({
            "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"],
            "postprocessing_kwargs": [{"labels_or_regions": [1]}]
        });
        std::fs::create_dir(path.join("crossval_results_folds_0_1")).unwrap();
        std::fs::write(path.join("crossval_results_folds_0_1/postprocessing.json"), found.to_string()).unwrap();
        let open = |folds| Model::open(&results, &ModelOptions { folds, ..ModelOptions::default() }).unwrap();
        let both = open(Folds::Auto);
        assert_eq!(both.card().folds, ["fold_0", "fold_1"]);
        assert_eq!(both.card().mirror_axes, MirrorAxes::BOTH);
        assert_eq!(both.card().postprocessing, Some(vec![Postprocessing::KeepLargest { values: vec![1] }]));
        let (zero, one, mean) =
            (logits(&open(Folds::List(vec![0]))), logits(&open(Folds::List(vec![1]))), logits(&both));
        assert_ne!(zero, one);
        for ((a, b), mean) in zero.iter().zip(&one).zip(&mean) {
            assert!(((a + b) / 2.0 - mean).abs() <= 1e-6 * mean.abs().max(1.0), "{a} {b} {mean}");
        }
        both.save_package(&package, &PackageOptions::default()).unwrap();
        let copy = Model::open(&package, &ModelOptions::default()).unwrap();
        assert_eq!(logits(&copy), mean);
        assert_eq!(copy.card().sha256, both.card().sha256);
        assert_eq!(copy.card().postprocessing, both.card().postprocessing);
        let second =
            Model::open(&package, &ModelOptions { folds: Folds::List(vec![1]), ..ModelOptions::default() }).unwrap();
        assert_eq!(logits(&second), one);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("trainer");
        let message = |change: &dyn Fn(&Path), options: &ModelOptions| {
            if folder.exists() {
                std::fs::remove_dir_all(&folder).unwrap();
            }
            trainer(&folder);
            change(&folder);
            let error = Model::open(&folder, options).unwrap_err().to_string();
            error.replace(&format!("{}", folder.display()), "FOLDER")
        };
        let auto = ModelOptions::default();
        let fold = |weights: Vec<(String, Item)>, others: Vec<(&'static str, Item)>| {
            move |folder: &Path| write_fold(folder, "fold_0", weights.clone(), others.clone())
        };
        let without = |key: &str| settings().into_iter().filter(|(k, _)| *k != key).collect::<Vec<_>>();
        let with = |key: &'static str, value: Item| [without(key), vec![(key, value)]].concat();

        for name in ["plans.json", "dataset.json"] {
            let removed = message(&|f| std::fs::remove_file(f.join(name)).unwrap(), &auto);
            assert_eq!(removed, format!("FOLDER: {name} is missing from this nnU-Net result folder"));
        }
        assert_eq!(
            message(&|_| {}, &ModelOptions { folds: Folds::List(vec![3]), ..auto.clone() }),
            "FOLDER: fold_3 is missing; there are fold_0, fold_1"
        );
        assert_eq!(
            message(&|_| {}, &ModelOptions { folds: Folds::All, ..auto.clone() }),
            "FOLDER: fold_all is missing; there are fold_0, fold_1"
        );
        assert_eq!(
            message(&|_| {}, &ModelOptions { checkpoint: Which::Best, ..auto.clone() }),
            "FOLDER: fold_0/checkpoint_best.pth is missing from this nnU-Net result folder"
        );
        let prefix = "FOLDER/fold_0/checkpoint_final.pth: ";
        assert_eq!(
            message(&fold(weights(0), without("init_args")), &auto),
            format!("{prefix}not a checkpoint of nnU-Net v2 (init_args.configuration is missing)")
        );
        assert_eq!(
            message(&fold(weights(0), with(AXES, Item::Tuple(vec![Item::Int(2)]))), &auto),
            format!("{prefix}{AXES} holds Int(2); 2D networks have axes 0 and 1")
        );
        assert_eq!(
            message(&fold(weights(0), with("trainer_name", Item::Text("nnUNet_Primus_M_Trainer".into()))), &auto),
            "FOLDER: the trainer nnUNet_Primus_M_Trainer trains a transformer, which is not supported; UNets are"
        );
        assert_eq!(
            message(&fold(weights(0), with("init_args", dict([("configuration", Item::Text("3d".into()))]))), &auto),
            "FOLDER/plans.json: configurations.3d is missing; there are 2d"
        );
        let volume = json!({"patch_size": [8, 8, 8], "spacing": [1, 0.5, 0.5]});
        let of_volume = |folder: &Path| {
            let mut plans = plans();
            plans["configurations"]["3d_lowres"] = volume.clone();
            std::fs::write(folder.join("plans.json"), plans.to_string()).unwrap();
            let mut settings = with("init_args", dict([("configuration", Item::Text("3d_lowres".into()))]));
            settings[1] = (AXES, Item::Tuple(vec![Item::Int(0), Item::Int(1), Item::Int(2)]));
            write_fold(folder, "fold_0", weights(0), settings);
        };
        assert_eq!(
            message(&of_volume, &auto),
            "FOLDER/plans.json: the configuration 3d_lowres is a network for volumes, with patches of 8 x 8 x 8 voxels of \
             1 x 0.5 x 0.5 mm; two-dimensional configurations (such as this data set's 2d) are supported"
        );
        let mut renamed = weights(0);
        renamed[0].0 = "module.encoder.other".into();
        let foreign = with("trainer_name", Item::Text("nnUNetTrainer_mine".into()));
        assert!(
            message(&fold(renamed.clone(), foreign), &auto).ends_with(
                "; its trainer nnUNetTrainer_mine is none of nnU-Net's own, and may train another network than that of the plans"
            )
        );
        assert_eq!(
            message(&fold(renamed, settings()), &auto),
            format!(
                "{prefix}its weights are not this network's: missing encoder.stages.0.0.convs.0.conv.weight; unused encoder.other"
            )
        );
        let mut reshaped = weights(0);
        reshaped[0].1 = Item::Tensor(vec![4, 3, 3, 3], vec![0.0; 108]);
        assert_eq!(
            message(&fold(reshaped, settings()), &auto),
            format!(
                "{prefix}encoder.stages.0.0.convs.0.conv.weight has the shape [4, 3, 3, 3], but the network's is [4, 1, 3, 3]"
            )
        );
        // A fold of another network than the first one's.
        let mut wider = weights(1);
        wider.retain(|(name, _)| !name.contains("seg_layers.0.bias"));
        assert!(
            message(&|folder| write_fold(folder, "fold_1", wider.clone(), settings()), &auto)
                .ends_with("fold_1/checkpoint_final.pth: its weights are not this network's: missing decoder.seg_layers.0.bias; unused none")
        );
        // Batch normalisation has weights that this checkpoint lacks: the trainer's name alone decides.
        assert!(
            message(&fold(weights(0), with("trainer_name", Item::Text("nnUNetTrainerBN".into()))), &auto)
                .contains("missing encoder.stages.0.0.convs.0.norm.running_mean")
        );
        assert!(
            message(&|f| std::fs::write(f.join("plans.json"), "{").unwrap(), &auto)
                .starts_with("FOLDER/plans.json: not JSON: ")
        );
        assert!(
            message(&fold(weights(0), with(AXES, Item::Text("0".into()))), &auto).contains("which is no tuple of axes")
        );
    }

    #[test]
    fn trainers_that_change_training_alone_are_accepted() {
        let temporary = tempfile::tempdir().unwrap();
        trainer(temporary.path());
        std::fs::rename(temporary.path().join("fold_1"), temporary.path().join("fold_all")).unwrap();
        let provenance = |name: &str, folds| {
            let mut settings = settings();
            settings[1].1 = Item::Text(name.into());
            settings[2].1 = Item::Tuple(vec![Item::Int(0)]);
            for fold in ["fold_0", "fold_all"] {
                write_fold(temporary.path(), fold, weights(0), settings.clone());
            }
            let model = Model::open(temporary.path(), &ModelOptions { folds, ..ModelOptions::default() }).unwrap();
            assert_eq!(model.card().mirror_axes, MirrorAxes { vertical: true, horizontal: false });
            (model.card().folds.join(" "), model.card().provenance.clone().unwrap_or_default())
        };
        let (folds, text) = provenance("nnUNetTrainer_onlyMirror01", Folds::Auto);
        assert_eq!(folds, "fold_0", "a network of all cases is used if it is asked for, or if there is nothing else");
        assert!(text.ends_with("trainer nnUNetTrainer_onlyMirror01, checkpoint_final.pth."), "{text}");
        let (folds, text) = provenance("nnUNetTrainer_mine", Folds::All);
        assert_eq!(folds, "fold_all");
        assert!(text.contains("trainer nnUNetTrainer_mine (none of nnU-Net's own), "), "{text}");
        std::fs::remove_dir_all(temporary.path().join("fold_0")).unwrap();
        let model = Model::open(temporary.path(), &ModelOptions::default()).unwrap();
        assert_eq!(model.card().folds, ["fold_all"]);
    }

    #[test]
    fn a_fold_in_training_is_left_out_unless_it_is_asked_for() {
        let temporary = tempfile::tempdir().unwrap();
        trainer(temporary.path());
        write_fold(temporary.path(), "fold_all", weights(2), settings());
        let remove = |fold: &str| {
            let folder = temporary.path().join(fold);
            std::fs::rename(folder.join("checkpoint_final.pth"), folder.join("checkpoint_latest.pth")).unwrap();
        };
        let open = |folds| {
            let model = Model::open(temporary.path(), &ModelOptions { folds, ..ModelOptions::default() });
            model.map(|model| model.card().folds.join(" ")).map_err(|e| e.to_string())
        };
        remove("fold_1");
        assert_eq!(open(Folds::Auto), Ok("fold_0".into()));
        let message = open(Folds::List(vec![0, 1])).unwrap_err();
        assert!(message.contains("fold_1/checkpoint_final.pth is missing from this nnU-Net result"), "{message}");
        remove("fold_0");
        assert_eq!(open(Folds::Auto), Ok("fold_all".into()));
        remove("fold_all");
        assert!(open(Folds::Auto).unwrap_err().contains("fold_0/checkpoint_final.pth is missing"));
    }

    #[test]
    fn post_processing_that_cannot_be_read_is_no_fault_of_the_network() {
        let temporary = tempfile::tempdir().unwrap();
        trainer(temporary.path());
        let name = "crossval_results_folds_0_1/postprocessing.json";
        std::fs::create_dir(temporary.path().join("crossval_results_folds_0_1")).unwrap();
        let fault = |content: &str| {
            std::fs::write(temporary.path().join(name), content).unwrap();
            let model = Model::open(temporary.path(), &ModelOptions::default()).unwrap();
            assert_eq!(model.card().postprocessing, None);
            model.postprocessing_fault().unwrap().to_owned()
        };
        // As a run leaves it that was interrupted.
        assert!(fault("").starts_with(&format!("{name}: not JSON: ")), "{}", fault(""));
        assert_eq!(
            fault(r#"{"postprocessing_fns": ["fill"], "postprocessing_kwargs": [{}]}"#),
            format!(
                "{name}: postprocessing_fns \"fill\" is not supported; remove_all_but_largest_component_from_segmentation is"
            )
        );
        let nothing = r#"{"postprocessing_fns": [], "postprocessing_kwargs": []}"#;
        std::fs::write(temporary.path().join(name), nothing).unwrap();
        let model = Model::open(temporary.path(), &ModelOptions::default()).unwrap();
        assert_eq!((model.card().postprocessing.as_deref(), model.postprocessing_fault()), (Some(&[][..]), None));
    }

    #[test]
    fn a_checkpoint_without_axes_is_not_mirrored() {
        let temporary = tempfile::tempdir().unwrap();
        trainer(temporary.path());
        for value in [None, Some(Item::None), Some(Item::Tuple(Vec::new()))] {
            let others: Vec<_> =
                settings().into_iter().filter(|(k, _)| *k != AXES).chain(value.map(|v| (AXES, v))).collect();
            write_fold(temporary.path(), "fold_0", weights(0), others);
            let model = Model::open(temporary.path(), &ModelOptions::default()).unwrap();
            assert_eq!(model.card().mirror_axes, MirrorAxes::NONE);
        }
    }

    #[test]
    fn of_several_results_one_must_be_chosen() {
        let temporary = tempfile::tempdir().unwrap();
        trainer(&temporary.path().join("A/one"));
        trainer(&temporary.path().join("A/two"));
        std::fs::create_dir_all(temporary.path().join("A/one/crossval_results_folds_0_1")).unwrap();
        let error = Model::open(temporary.path(), &ModelOptions::default()).unwrap_err().to_string();
        assert!(error.ends_with("several nnU-Net results; give one of them: A/one, A/two"), "{error}");
    }
}
