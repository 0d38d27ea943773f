//! Reading `.safetensors`: a header of JSON, then the values of one tensor after the other.
//!
//! The crate `safetensors` checks that the tensors fill the file exactly, one after the other, each as long as its shape says.

use microtome_io::bytes::ByteSource;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorInfo};

use crate::stored::{Kind, Stored};
use crate::{Error, Result};

/// Names and shapes of a hundred thousand tensors.
pub(crate) const MAX_HEADER: u64 = 16 << 20;

/// True for bytes that start as such a file does: the header's length, and the header's first brace.
pub(crate) fn is_safetensors(head: &[u8]) -> bool {
    let Some((length, rest)) = head.split_first_chunk() else { return false };
    rest.first() == Some(&b'{') && u64::from_le_bytes(*length) < 1 << 40
}

/// The tensors of a file by their names, in no order; a clause for one whose values are of no kind that is read.
///
/// # Errors
/// If the header is damaged, too long, or does not describe the rest of the file.
pub(crate) fn tensors(source: &dyn ByteSource) -> Result<Vec<(String, Result<Stored, String>)>> {
    let path = source.path();
    let cut_off = || Error::format(path, "a safetensors file that is cut off");
    let head = source.read_at(0..source.len().min(8))?;
    let length = u64::from_le_bytes(*head.first_chunk().ok_or_else(cut_off)?);
    if length > MAX_HEADER {
        let message = format!("a safetensors header of {length} bytes; up to {MAX_HEADER} are read");
        return Err(Error::limits(path, message));
    }
    if 8 + length > source.len() {
        return Err(cut_off());
    }
    // A map lends the whole file without reading it; the crate looks at the header and at the length.
    let bytes = source.read_at(0..source.len())?;
    let (_, metadata) =
        SafeTensors::read_metadata(&bytes).map_err(|e| Error::format(path, format!("not safetensors: {e}")))?;
    source.still_whole()?;
    let tensor = |(name, info): (String, &TensorInfo)| {
        let kind = match info.dtype {
            Dtype::F16 => Kind::F16,
            Dtype::BF16 => Kind::Bf16,
            Dtype::F32 => Kind::F32,
            Dtype::F64 => Kind::F64,
            other => return (name, Err(format!("is {other:?}; F16, BF16, F32 and F64 are read"))),
        };
        let (start, end) = info.data_offsets;
        let at = |offset: usize| (8 + length).saturating_add(offset as u64);
        (name, Stored::dense(kind, info.shape.clone(), at(start)..at(end)).map_err(Into::into))
    };
    Ok(metadata.tensors().into_iter().map(tensor).collect())
}
