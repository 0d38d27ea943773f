//! Files that hold the weights of one network under the names that its framework gives them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::torch::{self, Value};
use crate::weights::{Weight, match_names};
use crate::{Architecture, Error, Result};

/// The tensors of a `.pth` or `.pt` file, by their plain names, and whatever lies beside them.
#[derive(Debug)]
pub(crate) struct StateDict {
    path: PathBuf,
    file: torch::File,
    tensors: BTreeMap<String, torch::Tensor>,
}

impl StateDict {
    /// Opens a file. Its tensors are what the first of these keys holds, or, with none of them, the file as a whole.
    ///
    /// # Errors
    /// If the file is no checkpoint, or holds no tensors there.
    pub(crate) fn open(path: &Path, keys: &[&str]) -> Result<Self> {
        let file = torch::File::open(path)?;
        let root = file.root();
        let weights = keys.iter().find_map(|key| file.entry(root, key)).unwrap_or(root);
        let Value::Dict(entries) = file.value(weights) else {
            return Err(Error::format(path, "no state dict: names with tensors"));
        };
        let named = entries.iter().filter_map(|(name, value)| Some((file.text(*name)?, file.tensor(*value)?)));
        let tensors: BTreeMap<_, _> = named.map(|(name, tensor)| (plain_name(name).to_owned(), tensor)).collect();
        if tensors.is_empty() {
            return Err(Error::format(path, "a state dict without tensors"));
        }
        Ok(Self { path: path.into(), file, tensors })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file, for what lies beside the tensors.
    pub(crate) fn file(&self) -> &torch::File {
        &self.file
    }

    /// The weights that the network uses, after checking that they are the ones that the file holds: each exactly once, none left over
    /// but those that play no part at inference.
    ///
    /// # Errors
    /// Lists what is missing or left over, or names a weight of another shape, or one that cannot be read.
    pub(crate) fn weights(&self, architecture: &Architecture) -> Result<BTreeMap<String, Weight>> {
        let network = architecture.network();
        let used = network.weights();
        let plays_no_part = |name: &str| {
            (name.ends_with(".num_batches_tracked") || architecture.is_unused(name))
                && !used.iter().any(|w| w.name == name)
        };
        let held = self.tensors.iter().filter(|(name, _)| !plays_no_part(name));
        match_names(&self.path, &network, held.map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice())))?;
        let read = |name: String| {
            let tensor = &self.tensors[&name];
            let values = self.file.read(tensor)?.into();
            Ok((name, Weight { shape: tensor.shape.clone(), values }))
        };
        used.iter().map(|w| read(w.name.clone())).collect()
    }
}

/// Without what wrappers put before names: `module.` (data parallel training), `_orig_mod.` (`torch.compile`).
fn plain_name(mut name: &str) -> &str {
    while let Some(rest) = ["module.", "_orig_mod."].into_iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = rest;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_recognised() {
        assert_eq!(plain_name("module._orig_mod.encoder.x"), "encoder.x");
        assert_eq!(plain_name("encoder.module.x"), "encoder.module.x");
    }
}
