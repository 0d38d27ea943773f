//! The weights of a network on the host, by name.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::network::WeightShape;
use crate::{Error, Network, Result};

/// One weight.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Weight {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Arc<[f32]>,
}

impl Weight {
    /// The same with the axes of kernels exchanged.
    pub(crate) fn transposed(self) -> Self {
        let [outer, inner, height, width] = self.shape[..] else { return self };
        let plane = |p: usize| {
            let values = &self.values[p * height * width..][..height * width];
            (0..width).flat_map(move |x| (0..height).map(move |y| values[y * width + x]))
        };
        let values = (0..outer * inner).flat_map(plane).collect();
        Self { shape: vec![outer, inner, width, height], values }
    }

    /// The same with other places for the outermost entries: of each `factor` x `factor` of them that follow each other, which lie row by
    /// row, rows become columns.
    pub(crate) fn with_transposed_blocks(self, factor: usize) -> Self {
        let Some(&outer) = self.shape.first().filter(|outer| **outer > 0) else { return self };
        let block = factor * factor;
        let one = self.values.len() / outer;
        let from = |entry: usize| entry / block * block + entry % factor * factor + entry % block / factor;
        let values = (0..outer).flat_map(|entry| &self.values[from(entry) * one..][..one]).copied().collect();
        Self { values, ..self }
    }
}

/// One set of weights: exactly those that the network uses.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fold {
    /// As nnU-Net names the folder: `fold_0`, `fold_all`.
    pub(crate) name: String,
    pub(crate) weights: BTreeMap<String, Weight>,
}

/// Compares what a file holds with what a network uses, by name and shape: every weight exactly once.
///
/// # Errors
/// Lists what is missing, what is left over, or the first weight of a wrong shape.
pub(crate) fn match_names<'a>(
    path: &Path,
    network: &Network,
    held: impl Iterator<Item = (&'a str, &'a [usize])>,
) -> Result<()> {
    let used = network.weights();
    let held: BTreeMap<&str, &[usize]> = held.collect();
    let missing: Vec<&str> = used.iter().map(|w| w.name.as_str()).filter(|n| !held.contains_key(n)).collect();
    let names: std::collections::BTreeSet<&str> = used.iter().map(|w| w.name.as_str()).collect();
    let unused: Vec<&str> = held.keys().copied().filter(|n| !names.contains(n)).collect();
    if !missing.is_empty() || !unused.is_empty() {
        let message =
            format!("its weights are not this network's: missing {}; unused {}", list(&missing), list(&unused));
        return Err(Error::format(path, message));
    }
    let wrong = used.iter().find(|WeightShape { name, shape }| held[name.as_str()] != shape.as_slice());
    match wrong {
        None => Ok(()),
        Some(WeightShape { name, shape }) => {
            let found = held[name.as_str()];
            Err(Error::format(path, format!("{name} has the shape {found:?}, but the network's is {shape:?}")))
        }
    }
}

/// The first few names, and how many more there are.
fn list(names: &[&str]) -> String {
    const SHOWN: usize = 6;
    match names.len() {
        0 => "none".into(),
        n if n <= SHOWN => names.join(", "),
        n => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_transposed_and_nothing_else() {
        let values = |n: u16| (0..n).map(f32::from).collect();
        let kernel = Weight { shape: vec![1, 2, 2, 3], values: values(12) }.transposed();
        assert_eq!(kernel.shape, [1, 2, 3, 2]);
        assert_eq!(*kernel.values, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0]);
        let bias = Weight { shape: vec![4], values: values(4) };
        assert_eq!(bias.clone().transposed(), bias);
        let blocks = Weight { shape: vec![8, 2], values: values(16) }.with_transposed_blocks(2);
        let expected = [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0, 8.0, 9.0, 12.0, 13.0, 10.0, 11.0, 14.0, 15.0];
        assert_eq!((blocks.shape, &*blocks.values), (vec![8, 2], expected.as_slice()));
    }
}
