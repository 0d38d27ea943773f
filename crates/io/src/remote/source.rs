//! An object, read in ranges.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use object_store::ObjectMeta;

use super::bucket::Bucket;
use crate::Result;
use crate::bytes::{ByteSource, check};

/// Short ranges are cut out of blocks of so many bytes: a request takes as long as some of them, and who asks for a few bytes, such as an entry of a table,
/// mostly asks for their neighbours next.
const BLOCK: u64 = 64 << 10;
/// The longest range that is cut out of blocks.
const SHORT: u64 = BLOCK / 4;
/// Blocks that are kept.
const KEPT: usize = 8;

/// An object as it was when it was looked at: where another takes its place meanwhile, reading fails.
#[derive(Debug)]
pub(super) struct ObjectSource {
    path: PathBuf,
    bucket: Arc<Bucket>,
    object: ObjectMeta,
    /// The blocks that were asked for last, by their number, the newest first.
    blocks: Mutex<VecDeque<(u64, Arc<Vec<u8>>)>>,
}

impl ObjectSource {
    /// Bytes of memory that one takes at most besides what is asked for.
    pub(super) const HELD: u64 = KEPT as u64 * BLOCK;

    pub(super) fn new(path: PathBuf, bucket: Arc<Bucket>, object: ObjectMeta) -> Self {
        Self { path, bucket, object, blocks: Mutex::default() }
    }

    /// A block of the object. No lock is held while it is fetched.
    fn block(&self, number: u64) -> Result<Arc<Vec<u8>>> {
        let lock = || self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, block)) = lock().iter().find(|(known, _)| *known == number) {
            return Ok(Arc::clone(block));
        }
        let range = number * BLOCK..self.object.size.min((number + 1) * BLOCK);
        let block = Arc::new(self.bucket.get_range(&self.object, range, &self.path)?);
        let mut blocks = lock();
        if blocks.iter().all(|(known, _)| *known != number) {
            blocks.truncate(KEPT - 1);
            blocks.push_front((number, Arc::clone(&block)));
        }
        Ok(block)
    }
}

impl ByteSource for ObjectSource {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> u64 {
        self.object.size
    }

    fn read_at(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        let wanted = check(&self.path, &range, self.object.size)?;
        if wanted.is_empty() {
            return Ok(Cow::Borrowed(&[]));
        }
        if wanted.len() as u64 > SHORT {
            return self.bucket.get_range(&self.object, range, &self.path).map(Cow::Owned);
        }
        let mut bytes = Vec::with_capacity(wanted.len());
        for number in range.start / BLOCK..=(range.end - 1) / BLOCK {
            let (block, first) = (self.block(number)?, number * BLOCK);
            let from = range.start.max(first) - first;
            let to = (range.end - first).min(block.len() as u64);
            bytes.extend_from_slice(&block[from as usize..to as usize]);
        }
        Ok(Cow::Owned(bytes))
    }
}
