//! No compression.

/// Copies the samples.
pub(crate) fn decode(data: &[u8], out: &mut [u8]) -> Result<(), String> {
    let (have, want) = (data.len(), out.len());
    out.copy_from_slice(data.get(..want).ok_or_else(|| format!("has {have} of {want} bytes"))?);
    Ok(())
}
