//! A store whose values are objects.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bucket::Bucket;
use super::source::ObjectSource;
use super::url::Url;
use crate::Result;
use crate::bytes::ByteSource;
use crate::store::entries::Entries;

/// The objects whose keys begin with that of a URL.
#[derive(Debug, Clone)]
pub(super) struct ObjectEntries {
    pub(super) path: PathBuf,
    pub(super) url: Url,
    pub(super) bucket: Arc<Bucket>,
}

impl ObjectEntries {
    pub(super) fn new(path: &Path) -> Result<Self> {
        let url = Url::parse(path)?;
        let bucket = Bucket::of(&url, path)?;
        Ok(Self { path: path.into(), url, bucket })
    }
}

impl Entries for ObjectEntries {
    fn path(&self) -> &Path {
        &self.path
    }

    fn get(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        self.bucket.get(&self.url.join(key), limit, &self.name(key))
    }

    fn open(&self, key: &str) -> Result<Option<Arc<dyn ByteSource>>> {
        let name = self.name(key);
        let object = self.bucket.head(&self.url.join(key), &name)?;
        Ok(object
            .map(|object| Arc::new(ObjectSource::new(name, Arc::clone(&self.bucket), object)) as Arc<dyn ByteSource>))
    }

    fn contains(&self, key: &str) -> Result<bool> {
        Ok(self.bucket.head(&self.url.join(key), &self.name(key))?.is_some())
    }

    fn held_bytes(&self, _key: &str) -> u64 {
        ObjectSource::HELD
    }

    /// Opening one asks the service.
    fn reads_ahead(&self) -> bool {
        false
    }
}
