//! `fold_X/checkpoint_*.pth`: weights, and the three settings that are nowhere else.
//!
//! Content: nnU-Net 2.8.1, `nnUNetTrainer.save_checkpoint`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::bounded;
use crate::state_dict::StateDict;
use crate::torch::{File, Value};
use crate::weights::Weight;
use crate::{Architecture, Error, MirrorAxes, Result};

#[derive(Debug)]
pub(super) struct Checkpoint {
    state: StateDict,
}

impl Checkpoint {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Self::of(StateDict::open(path, &["network_weights"])?)
    }

    fn of(state: StateDict) -> Result<Self> {
        let checkpoint = Self { state };
        match checkpoint.state.checkpoint() {
            Some(file) if file.entry(file.root(), "network_weights").is_some() => Ok(checkpoint),
            _ => Err(missing(checkpoint.state.path(), "network_weights")),
        }
    }

    /// The weights in a bundle, with nothing beside them: under a key, or the file as a whole.
    pub(super) fn open_bundled(path: &Path) -> Result<Self> {
        Ok(Self { state: StateDict::open(path, &["network_weights"])? })
    }

    fn file(&self) -> &File {
        self.state.checkpoint().expect("checked on opening")
    }

    /// What is beside the weights.
    pub(super) fn settings(&self) -> Result<Settings> {
        Settings::of(self.file(), self.state.path())
    }

    /// The weights that the network uses, after checking that they are the ones that the checkpoint holds.
    pub(super) fn weights(&self, architecture: &Architecture) -> Result<BTreeMap<String, Weight>> {
        self.state.weights(architecture)
    }
}

/// What a checkpoint says beside the weights.
#[derive(Debug)]
pub(super) struct Settings {
    /// The name of the configuration that was trained.
    pub(super) configuration: String,
    /// The class that trained the network, and that could have replaced it.
    pub(super) trainer: String,
    /// The axes along which inference may mirror; a checkpoint that does not say so may not. Those of a volume are an error, of which
    /// there may be a better one to tell.
    pub(super) mirror_axes: Result<MirrorAxes>,
}

fn missing(path: &Path, what: &str) -> Error {
    Error::format(path, format!("not a checkpoint of nnU-Net v2 ({what} is missing)"))
}

impl Settings {
    /// Those of a file that holds nothing else.
    pub(super) fn read(path: &Path) -> Result<Self> {
        Self::of(&File::open(bounded::map(path)?)?, path)
    }

    fn of(file: &File, path: &Path) -> Result<Self> {
        let configuration = file.entry(file.root(), "init_args").and_then(|a| file.entry(a, "configuration"));
        let configuration = configuration.and_then(|c| file.text(c));
        let trainer = file.entry(file.root(), "trainer_name").and_then(|t| file.text(t));
        Ok(Self {
            configuration: configuration.ok_or_else(|| missing(path, "init_args.configuration"))?.to_owned(),
            trainer: trainer.ok_or_else(|| missing(path, "trainer_name"))?.to_owned(),
            mirror_axes: mirror_axes(file, path),
        })
    }
}

fn mirror_axes(file: &File, path: &Path) -> Result<MirrorAxes> {
    const KEY: &str = "inference_allowed_mirroring_axes";
    let mut axes = MirrorAxes::NONE;
    let Some(value) = file.entry(file.root(), KEY) else { return Ok(axes) };
    match file.value(value) {
        Value::None => {}
        Value::Sequence(items) => {
            for item in items {
                match file.value(*item) {
                    Value::Int(0) => axes.vertical = true,
                    Value::Int(1) => axes.horizontal = true,
                    other => {
                        let message = format!("{KEY} holds {other:?}; 2D networks have axes 0 and 1");
                        return Err(Error::format(path, message));
                    }
                }
            }
        }
        other => return Err(Error::format(path, format!("{KEY} is {other:?}, which is no tuple of axes"))),
    }
    Ok(axes)
}

/// Reads what a checkpoint says beside its weights, for fuzzing: each setting or an error.
pub(crate) fn read_settings(state: StateDict) {
    if let Ok(checkpoint) = Checkpoint::of(state) {
        let _ = checkpoint.settings();
    }
}
