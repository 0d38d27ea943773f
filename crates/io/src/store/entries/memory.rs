//! A store in memory, for fuzzing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::Entries;
use crate::bytes::{ByteSource, Memory};
use crate::{Error, Result};

/// Values in memory. A key that is not there has the value of the key `*`, if that is.
#[derive(Debug, Default)]
pub(crate) struct MemoryEntries(pub(crate) BTreeMap<String, Vec<u8>>);

impl MemoryEntries {
    fn find(&self, key: &str) -> Option<&Vec<u8>> {
        let name = key.rsplit('/').next()?;
        let metadata = ["zarr.json", "METADATA.ome.xml"].contains(&name) || name.starts_with('.');
        self.0.get(key).or_else(|| self.0.get("*").filter(|_| !metadata))
    }
}

impl Entries for MemoryEntries {
    fn path(&self) -> &Path {
        Path::new("memory.zarr")
    }

    fn get(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        match self.find(key) {
            Some(value) if value.len() as u64 > limit => {
                Err(Error::limits(self.name(key), format!("{} bytes are more than {limit}", value.len())))
            }
            value => Ok(value.cloned()),
        }
    }

    fn open(&self, key: &str) -> Result<Option<Arc<dyn ByteSource>>> {
        Ok(match self.find(key) {
            Some(value) => Some(Arc::new(Memory::new(self.name(key), value.clone()))),
            None => None,
        })
    }

    fn contains(&self, key: &str) -> Result<bool> {
        Ok(self.find(key).is_some())
    }
}
