//! `fold_X/checkpoint_*.pth`: weights, and the three settings that are nowhere else.
//!
//! Content: nnU-Net 2.8.1, `nnUNetTrainer.save_checkpoint`; names of weights: dynamic-network-architectures 0.4.4.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::torch::{self, Value};
use crate::weights::{Weight, match_names};
use crate::{Error, MirrorAxes, Network, Result};

#[derive(Debug)]
pub(super) struct Checkpoint {
    path: PathBuf,
    file: torch::File,
    /// What inference could use, by its plain name.
    tensors: BTreeMap<String, torch::Tensor>,
}

impl Checkpoint {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = torch::File::open(path)?;
        let missing = |what: &str| Error::format(path, format!("not a checkpoint of nnU-Net v2 ({what} is missing)"));
        let weights = file.entry(file.root(), "network_weights").ok_or_else(|| missing("network_weights"))?;
        let Value::Dict(entries) = file.value(weights) else { return Err(missing("network_weights")) };
        let named =
            entries.iter().filter_map(|(name, value)| Some((plain_name(file.text(*name)?), file.tensor(*value)?)));
        let tensors =
            named.filter(|(name, _)| is_original(name)).map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        Ok(Self { path: path.into(), tensors, file })
    }

    /// The name of the configuration that was trained.
    pub(super) fn configuration(&self) -> Result<&str> {
        let arguments = self.file.entry(self.file.root(), "init_args");
        let name = arguments.and_then(|a| self.file.entry(a, "configuration")).and_then(|c| self.file.text(c));
        name.ok_or_else(|| {
            Error::format(&self.path, "not a checkpoint of nnU-Net v2 (init_args.configuration is missing)")
        })
    }

    /// The class that trained the network, and that could have replaced it.
    pub(super) fn trainer(&self) -> Result<&str> {
        let name = self.file.entry(self.file.root(), "trainer_name").and_then(|t| self.file.text(t));
        name.ok_or_else(|| Error::format(&self.path, "not a checkpoint of nnU-Net v2 (trainer_name is missing)"))
    }

    /// The axes along which inference may mirror; a checkpoint that does not say so may not.
    pub(super) fn mirror_axes(&self) -> Result<MirrorAxes> {
        const KEY: &str = "inference_allowed_mirroring_axes";
        let mut axes = MirrorAxes::NONE;
        let Some(value) = self.file.entry(self.file.root(), KEY) else { return Ok(axes) };
        match self.file.value(value) {
            Value::None => {}
            Value::Sequence(items) => {
                for item in items {
                    match self.file.value(*item) {
                        Value::Int(0) => axes.vertical = true,
                        Value::Int(1) => axes.horizontal = true,
                        other => {
                            return Err(Error::format(
                                &self.path,
                                format!("{KEY} holds {other:?}; 2D networks have axes 0 and 1"),
                            ));
                        }
                    }
                }
            }
            other => return Err(Error::format(&self.path, format!("{KEY} is {other:?}, which is no tuple of axes"))),
        }
        Ok(axes)
    }

    /// The weights that the network uses, after checking that they are the ones that the checkpoint holds.
    pub(super) fn weights(&self, network: &Network) -> Result<BTreeMap<String, Weight>> {
        let used = network.weights();
        // Heads of deep supervision are trained with the network and left alone at inference.
        let held = self
            .tensors
            .iter()
            .filter(|(name, _)| !name.starts_with("decoder.seg_layers.") || used.iter().any(|w| &w.name == *name));
        match_names(&self.path, network, held.map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice())))?;
        let read = |name: String| {
            let tensor = &self.tensors[&name];
            let values = self.file.read(tensor)?.into();
            Ok((name, Weight { shape: tensor.shape.clone(), values }))
        };
        used.into_iter().map(|w| read(w.name)).collect()
    }
}

/// Without what wrappers put before names: `module.` (data parallel training), `_orig_mod.` (`torch.compile`).
fn plain_name(mut name: &str) -> &str {
    while let Some(rest) = ["module.", "_orig_mod."].into_iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = rest;
    }
    name
}

/// False for the second names under which the same tensors are saved, and for counters of batches.
fn is_original(name: &str) -> bool {
    !name.contains(".all_modules.") && !name.starts_with("decoder.encoder.") && !name.ends_with(".num_batches_tracked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_and_second_names_are_recognised() {
        assert_eq!(plain_name("module._orig_mod.encoder.x"), "encoder.x");
        assert_eq!(plain_name("encoder.module.x"), "encoder.module.x");
        assert!(is_original("encoder.stages.0.0.convs.0.conv.weight"));
        assert!(!is_original("encoder.stages.0.0.convs.0.all_modules.0.weight"));
        assert!(!is_original("decoder.encoder.stages.0.0.convs.0.conv.weight"));
        assert!(!is_original("encoder.stages.0.0.convs.0.norm.num_batches_tracked"));
    }
}
