//! Shards that stay open between the reads of their chunks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::array::{Array, ShardFile};
use crate::Result;

/// Shards of one array that stay open, and the bytes of memory that they may take altogether: their indexes, and what an archive had to
/// unpack. A shard that takes more by itself is not kept.
const MOST: usize = 16;
const MOST_BYTES: u64 = 64 << 20;

/// The shards of an array that were read last, so that not every chunk reads an index.
#[derive(Debug, Default)]
pub(super) struct OpenShards(Mutex<VecDeque<(Vec<u64>, Arc<ShardFile>)>>);

impl OpenShards {
    /// The shard of `array`, which is always the same one, that is the file `file`. No lock is held while it is opened.
    pub(super) fn get(&self, array: &Array, file: &[u64]) -> Result<Option<Arc<ShardFile>>> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut open = lock();
            if let Some(at) = open.iter().position(|(key, _)| key == file)
                && let Some(found) = open.remove(at)
            {
                let shard = Arc::clone(&found.1);
                open.push_front(found);
                return Ok(Some(shard));
            }
        }
        let Some(shard) = array.open_shard(file)?.map(Arc::new) else { return Ok(None) };
        let mut open = lock();
        if open.iter().all(|(key, _)| key != file) {
            open.truncate(MOST - 1);
            open.push_front((file.into(), Arc::clone(&shard)));
            while open.iter().map(|(_, shard)| shard.bytes).sum::<u64>() > MOST_BYTES {
                open.pop_back();
            }
        }
        Ok(Some(shard))
    }
}
