//! A node of a store: a group or an array, and what is written about it.

use std::path::PathBuf;

use serde_json::Value;

use super::entries::{Entries, join};
use super::found::{METADATA, METADATA_LIMIT};
use crate::{Error, Result};

/// A group or an array, of Zarr 2 or 3.
#[derive(Debug)]
pub(super) struct Node {
    /// The key of the document that tells most of it: `zarr.json`, or in version 2 `.zattrs` of a group and `.zarray` of an array.
    pub(super) key: String,
    /// What messages call that document.
    pub(super) path: PathBuf,
    /// The version of Zarr, 2 or 3.
    pub(super) format: u8,
    pub(super) is_array: bool,
    pub(super) attributes: Value,
    /// Names of the axes of an array of version 3.
    pub(super) dimension_names: Value,
}

impl Node {
    /// Reads the metadata of the node at `group` (empty: the root), if there is one. Where both versions are, the newer one counts.
    pub(super) fn read(entries: &dyn Entries, group: &str) -> Result<Option<Self>> {
        let read = |key: &str| -> Result<Option<Value>> {
            let Some(bytes) = entries.get(key, METADATA_LIMIT)? else { return Ok(None) };
            let document = serde_json::from_slice(&bytes);
            document.map(Some).map_err(|e| Error::format(entries.name(key), e.to_string()))
        };
        let key = join(group, METADATA);
        if let Some(mut document) = read(&key)? {
            return Ok(Some(Self {
                path: entries.name(&key),
                key,
                format: 3,
                is_array: document["node_type"] == "array",
                attributes: take(&mut document, "attributes"),
                dimension_names: take(&mut document, "dimension_names"),
            }));
        }
        let (zattrs, zarray) = (join(group, ".zattrs"), join(group, ".zarray"));
        let attributes = read(&zattrs)?;
        let is_array = entries.contains(&zarray)?;
        if attributes.is_none() && !is_array && !entries.contains(&join(group, ".zgroup"))? {
            return Ok(None);
        }
        let key = if is_array { zarray } else { zattrs };
        Ok(Some(Self {
            path: entries.name(&key),
            key,
            format: 2,
            is_array,
            attributes: attributes.unwrap_or_default(),
            dimension_names: Value::Null,
        }))
    }

    /// What OME-NGFF says of it: in version 3 under a key of its own.
    pub(super) fn ome(&mut self) -> Value {
        if self.format == 3 { take(&mut self.attributes, "ome") } else { self.attributes.take() }
    }
}

/// Takes a key's value out of an object; null if there is none, or if this is no object.
pub(super) fn take(document: &mut Value, key: &str) -> Value {
    document.get_mut(key).map(Value::take).unwrap_or_default()
}
