//! Writing `weights.safetensors`.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::tensor::{Dtype, View};
use sha2::{Digest, Sha256};

use crate::model::hexadecimal;
use crate::weights::{Fold, Weight};
use crate::{Error, Result, WeightFormat};

/// True for a weight that [`WeightFormat::Bf16`] rounds: kernels have more than one dimension, all others are one number per channel.
pub(crate) fn is_kernel(weight: &Weight) -> bool {
    weight.shape.len() > 1
}

/// A weight whose bytes are made when they are written, so that a file takes no more memory than its largest weight.
struct Stored<'a> {
    weight: &'a Weight,
    dtype: Dtype,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.weight.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = &self.weight.values;
        match self.dtype {
            // The upper half: `write` has seen that the lower one is empty.
            Dtype::BF16 => values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    fn data_len(&self) -> usize {
        self.weight.values.len() * if self.dtype == Dtype::BF16 { 2 } else { 4 }
    }
}

/// Writes all folds into one file, `fold_0/encoder.stages...`, and gives its SHA-256.
///
/// # Errors
/// If kernels that are to be bf16 are not, or the file cannot be written.
pub(super) fn write(path: &Path, folds: &[Fold], format: WeightFormat) -> Result<String> {
    let mut stored = Vec::new();
    for fold in folds {
        for (name, weight) in &fold.weights {
            let dtype = if format == WeightFormat::Bf16 && is_kernel(weight) { Dtype::BF16 } else { Dtype::F32 };
            if dtype == Dtype::BF16 && weight.values.iter().any(|v| v.to_bits() & 0xffff != 0) {
                let message = format!("{}/{name} holds values that are no bf16", fold.name);
                return Err(Error::format(path, message));
            }
            stored.push((format!("{}/{name}", fold.name), Stored { weight, dtype }));
        }
    }
    safetensors::serialize_to_file(stored, None, path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => Error::io(path, source),
        other => Error::format(path, other.to_string()),
    })?;
    digest(path)
}

/// SHA-256 of a file, in lower-case hexadecimal.
fn digest(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer).map_err(|e| Error::io(path, e))? {
            0 => return Ok(hexadecimal(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}
