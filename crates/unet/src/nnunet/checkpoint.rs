//! `fold_X/checkpoint_*.pth`: weights, and the three settings that are nowhere else.
//!
//! Content: nnU-Net 2.8.1, `nnUNetTrainer.save_checkpoint`.

use std::collections::BTreeMap;
use std::path::Path;

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
        let state = StateDict::open(path, &["network_weights"])?;
        let checkpoint = Self { state };
        match checkpoint.state.checkpoint() {
            Some(file) if file.entry(file.root(), "network_weights").is_some() => Ok(checkpoint),
            _ => Err(checkpoint.missing("network_weights")),
        }
    }

    fn file(&self) -> &File {
        self.state.checkpoint().expect("checked on opening")
    }

    fn missing(&self, what: &str) -> Error {
        Error::format(self.state.path(), format!("not a checkpoint of nnU-Net v2 ({what} is missing)"))
    }

    /// The name of the configuration that was trained.
    pub(super) fn configuration(&self) -> Result<&str> {
        let file = self.file();
        let arguments = file.entry(file.root(), "init_args");
        let name = arguments.and_then(|a| file.entry(a, "configuration")).and_then(|c| file.text(c));
        name.ok_or_else(|| self.missing("init_args.configuration"))
    }

    /// The class that trained the network, and that could have replaced it.
    pub(super) fn trainer(&self) -> Result<&str> {
        let file = self.file();
        let name = file.entry(file.root(), "trainer_name").and_then(|t| file.text(t));
        name.ok_or_else(|| self.missing("trainer_name"))
    }

    /// The axes along which inference may mirror; a checkpoint that does not say so may not.
    pub(super) fn mirror_axes(&self) -> Result<MirrorAxes> {
        const KEY: &str = "inference_allowed_mirroring_axes";
        let (file, path) = (self.file(), self.state.path());
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

    /// The weights that the network uses, after checking that they are the ones that the checkpoint holds.
    pub(super) fn weights(&self, architecture: &Architecture) -> Result<BTreeMap<String, Weight>> {
        self.state.weights(architecture)
    }
}
