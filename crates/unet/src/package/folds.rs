//! Reading the weights of a package: all folds in one safetensors file, `fold_0/encoder.stages...`.

use std::collections::BTreeMap;
use std::path::Path;

use microtome_io::bytes::ByteSource;
use sha2::{Digest, Sha256};

use super::MANIFEST;
use crate::model::hexadecimal;
use crate::stored::Stored;
use crate::weights::{Fold, Weight, match_names};
use crate::{Error, Network, Result, bounded, safetensors_file};

/// Bytes hashed at a time.
const PIECE: u64 = 1 << 20;

/// The folds that are wanted, of those that the manifest names. Nothing but their values is allocated: the file is hashed and read where
/// it is mapped.
///
/// # Errors
/// If the file's digest is not the manifest's, or if it does not hold exactly the network's weights for each fold.
pub(super) fn read(
    path: &Path,
    sha256: &str,
    network: &Network,
    all: &[String],
    wanted: &[String],
) -> Result<Vec<Fold>> {
    let source = &*bounded::map(path)?;
    let values = network.parameters().saturating_mul(4).saturating_mul(all.len() as u64);
    let most = values.saturating_add(safetensors_file::MAX_HEADER);
    if source.len() > most {
        return Err(Error::limits(path, format!("{} bytes; up to {most} are read", source.len())));
    }
    let found = digest(source)?;
    if found != sha256 {
        return Err(Error::format(path, format!("its sha256 is {found}, but {MANIFEST} says {sha256}")));
    }
    let mut held: BTreeMap<String, Stored> = BTreeMap::new();
    for (name, tensor) in safetensors_file::tensors(source)? {
        let tensor = tensor.map_err(|clause| Error::unsupported(path, format!("{name} {clause}")))?;
        held.insert(name, tensor);
    }
    let mut folds = Vec::new();
    for fold in all {
        let prefix = format!("{fold}/");
        let (of_fold, others) = held.into_iter().partition(|(name, _)| name.starts_with(&prefix));
        let of_fold: BTreeMap<String, Stored> = of_fold;
        held = others;
        match_names(path, network, of_fold.iter().map(|(name, tensor)| (&name[prefix.len()..], tensor.shape())))?;
        if wanted.contains(fold) {
            let weight = |(name, tensor): (&String, &Stored)| {
                let values = tensor.read(source)?;
                Ok((name[prefix.len()..].to_owned(), Weight { shape: tensor.shape().to_vec(), values }))
            };
            folds.push(Fold { name: fold.clone(), weights: of_fold.iter().map(weight).collect::<Result<_>>()? });
        }
    }
    match held.first_key_value() {
        Some((name, _)) => Err(Error::format(path, format!("{name} belongs to no fold of {MANIFEST}"))),
        None => Ok(folds),
    }
}

/// The SHA-256 of a file, in hexadecimal.
fn digest(source: &dyn ByteSource) -> Result<String> {
    let mut hash = Sha256::new();
    let mut at = 0;
    while at < source.len() {
        let end = source.len().min(at + PIECE);
        hash.update(source.read_at(at..end)?);
        at = end;
    }
    source.still_whole()?;
    Ok(hexadecimal(&hash.finalize()))
}
