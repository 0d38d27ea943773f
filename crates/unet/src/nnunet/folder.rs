//! The folder of one trainer, plans and configuration, with its folds.

use std::path::{Path, PathBuf};

use super::checkpoint::Checkpoint;
use super::dataset::Dataset;
use super::plans::Plans;
use crate::architecture::Norm;
use crate::model::{self, Folds, Model, ModelOptions};
use crate::weights::Fold;
use crate::{Architecture, Card, Error, MirrorAxes, Result, Window};

/// How deep below a given path trainer folders are looked for: `nnUNet_results/Dataset/Trainer__Plans__Configuration`.
const SEARCH_DEPTH: usize = 3;
/// How many folders are looked into before giving up: nobody keeps as many results in one place.
const SEARCH_LIMIT: usize = 4096;

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
    let names = select_folds(folder, &options.folds)?;
    let open = |name: &String| {
        let checkpoint = format!("{name}/{}", options.checkpoint.file_name());
        Checkpoint::open(&file(&checkpoint)?)
    };
    // As in nnU-Net, the first fold speaks for all.
    let mut first = Some(open(&names[0])?);
    let checkpoint = first.as_ref().expect("just opened");
    let configuration_name = checkpoint.configuration()?.to_owned();
    let trainer = checkpoint.trainer()?.to_owned();
    let mirror_axes = checkpoint.mirror_axes()?;

    let configuration = plans.configuration(&configuration_name, dataset.channels.len())?;
    let mut network = configuration.network;
    if trainer.contains("Primus") {
        let message = format!("the trainer {trainer} trains a transformer, which is not supported; PlainConvUNet is");
        return Err(Error::unsupported(folder, message));
    }
    if trainer == "nnUNetTrainerBN" {
        network.norm = Norm::Batch { epsilon: 1e-5, affine: true };
    }
    network.channels = dataset.channels.len();
    network.heads = 0;

    let name = plans.dataset_name()?.map_or_else(|| name_of(folder), ToOwned::to_owned);
    let provenance = format!(
        "Trained by nnU-Net v2: {name}, configuration {configuration_name}, trainer {trainer}, {}.",
        options.checkpoint.file_name()
    );
    let mut card = Card {
        name,
        architecture: String::new(),
        tile: configuration.tile,
        channels: dataset.channels,
        classes: dataset.classes,
        output: dataset.output,
        mirror_axes: MirrorAxes { ..mirror_axes },
        normalization: configuration.normalization,
        mpp: None,
        step: 0.5,
        window: Window::Gaussian,
        folds: names.clone(),
        parameters: 0,
        sha256: String::new(),
        licence: None,
        provenance: Some(provenance),
        intended_use: None,
        test_vector: None,
    };
    network.heads = card.heads();
    let architecture = Architecture::PlainConvUnet(network);
    model::check(&folder.join("plans.json"), &card, &architecture)?;

    let layers = architecture.network();
    let mut folds = Vec::with_capacity(names.len());
    for name in names {
        let checkpoint = match first.take() {
            Some(checkpoint) => checkpoint,
            None => open(&name)?,
        };
        folds.push(Fold { weights: checkpoint.weights(&layers)?, name });
    }
    model::complete(&mut card, &architecture, &folds);
    Ok(Model::new(card, architecture, folds, None))
}

/// The names of the folds to use, as folders of the trainer.
fn select_folds(folder: &Path, folds: &Folds) -> Result<Vec<String>> {
    const ALL: &str = "fold_all";
    let found = fold_names(folder)?;
    let there_are =
        || if found.is_empty() { "there are none".into() } else { format!("there are {}", found.join(", ")) };
    let wanted: Vec<String> = match folds {
        Folds::Auto => {
            // nnU-Net's rule; a network trained on all cases is taken where there is nothing else.
            let numbered: Vec<String> = found.iter().filter(|n| *n != ALL).cloned().collect();
            if numbered.is_empty() { found.clone() } else { numbered }
        }
        Folds::All => vec![ALL.into()],
        Folds::List(numbers) => numbers.iter().map(|n| format!("fold_{n}")).collect(),
    };
    if let Some(name) = wanted.iter().find(|name| !found.contains(name)) {
        return Err(Error::format(folder, format!("{name} is missing; {}", there_are())));
    }
    if wanted.is_empty() {
        return Err(Error::format(folder, "no folds (fold_0, fold_1, ... or fold_all)"));
    }
    Ok(wanted)
}

/// `fold_0`, `fold_1`, ... by number, then `fold_all`.
fn fold_names(folder: &Path) -> Result<Vec<String>> {
    let names = folders(folder)?.into_iter().map(|path| name_of(&path));
    let key = |name: &str| match name.strip_prefix("fold_")? {
        "all" => Some(u32::MAX),
        number => number.parse::<u32>().ok().filter(|n| n.to_string() == number),
    };
    let mut found: Vec<(u32, String)> = names.filter_map(|name| Some((key(&name)?, name))).collect();
    found.sort();
    Ok(found.into_iter().map(|(_, name)| name).collect())
}

fn folders(path: &Path) -> Result<Vec<PathBuf>> {
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

fn name_of(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}
