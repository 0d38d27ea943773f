//! A store that is written into an object store.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::Opened;
use super::claim::Claim;
use super::entries::ObjectEntries;
use super::source::ObjectSource;
use crate::store::entries::Entries;
use crate::store::found::MARKER;
use crate::store::place::{Hold, Item, Kind, Mark, Place, Take, There, begun};
use crate::{Error, Result};

/// The longest content of a marker that is believed.
const MARKER_LIMIT: u64 = 4096;

/// Looks what lies at a URL.
pub(super) fn open(path: &Path) -> Result<Opened> {
    let entries = ObjectEntries::new(path)?;
    if let Some(object) = entries.bucket.head(&entries.url.key, path)? {
        return Ok(Opened::Object(Arc::new(ObjectSource::new(path.into(), Arc::clone(&entries.bucket), object))));
    }
    if entries.bucket.any(&entries.url.key, path)? {
        return Ok(Opened::Values(Arc::new(entries)));
    }
    let message = "there is nothing: neither a store nor an object";
    Err(Error::io(path, std::io::Error::new(std::io::ErrorKind::NotFound, message)))
}

/// Objects whose keys begin with that of a URL, or will.
///
/// Each value is put at once and whole, and is safe when the service says so; what was put is there for whoever asks next.
#[derive(Debug)]
pub(super) struct ObjectPlace {
    entries: ObjectEntries,
    claim: Claim,
    /// The number in the marker, once the place was taken.
    taken: OnceLock<String>,
}

impl ObjectPlace {
    pub(super) fn new(path: &Path) -> Result<Self> {
        Ok(Self { entries: ObjectEntries::new(path)?, claim: Claim::of(path), taken: OnceLock::new() })
    }

    fn marker(&self) -> Result<Option<String>> {
        let found = self.value(MARKER, MARKER_LIMIT)?;
        Ok(found.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }
}

impl Place for ObjectPlace {
    fn path(&self) -> &Path {
        &self.entries.path
    }

    fn there(&self) -> Result<There> {
        let ObjectEntries { path, url, bucket } = &self.entries;
        Ok(match bucket.head(&url.key, path)? {
            Some(_) => There::Other,
            None if bucket.any(&url.key, path)? => There::Values,
            None => There::Nothing,
        })
    }

    fn mark(&self) -> Result<Mark> {
        let Some(marker) = self.marker()? else { return Ok(Mark::None) };
        Ok(match self.claim.known()? {
            // A process that has just begun is about to put its number.
            Some((_, true)) => Mark::Held,
            Some((number, false)) if number == marker => Mark::Left,
            _ => Mark::Elsewhere,
        })
    }

    fn take(&self, how: Take) -> Result<Hold> {
        let ObjectEntries { path, url, bucket } = &self.entries;
        let (mut file, number) = self.claim.hold()?;
        let key = url.join(MARKER);
        let known = how != Take::Fresh && self.marker()?.is_some_and(|marker| marker == number);
        let number = match how {
            Take::Shared => {
                let message = "several processes can write one store in a folder, but not in an object store";
                return Err(Error::usage(path, message));
            }
            // It is ours already.
            _ if known => number,
            Take::Left => return Err(Error::usage(path, "there is no unfinished store to go on with")),
            Take::Fresh => {
                let number = self.claim.renew(&mut file)?;
                if !bucket.put_new(&key, number.as_bytes(), path)? {
                    return Err(begun(path));
                }
                number
            }
            Take::Any => {
                let number = self.claim.renew(&mut file)?;
                bucket.put(&key, number.as_bytes(), path)?;
                number
            }
        };
        // Nobody takes a place twice.
        let _ = self.taken.set(number);
        Ok(Hold(file))
    }

    fn is_ours(&self) -> Result<bool> {
        match self.taken.get() {
            None => Ok(true),
            Some(number) => Ok(self.marker()?.as_ref() == Some(number)),
        }
    }

    fn unmark(&self) -> Result<()> {
        self.delete(MARKER)?;
        self.claim.forget()
    }

    fn entries(&self) -> Result<Arc<dyn Entries>> {
        Ok(Arc::new(self.entries.clone()))
    }

    fn value(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        self.entries.get(key, limit)
    }

    fn list(&self, group: &str) -> Result<Vec<Item>> {
        let here = self.entries.url.join(group);
        let found = self.entries.bucket.list(&here, &self.entries.name(group))?;
        // But for what consoles put in the place of a folder.
        let values =
            found.objects.iter().filter(|object| object.location != here).map(|object| (&object.location, Kind::Value));
        let groups = found.common_prefixes.iter().map(|prefix| (prefix, Kind::Group));
        let item =
            |(key, kind): (&object_store::path::Path, Kind)| Some(Item { name: key.filename()?.to_owned(), kind });
        Ok(values.chain(groups).filter_map(item).collect())
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        self.entries.bucket.put(&self.entries.url.join(key), bytes, &self.entries.name(key))
    }

    fn sync(&self, _keys: &[String]) -> Result<()> {
        Ok(())
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.entries.bucket.delete(&self.entries.url.join(key), &self.entries.name(key))
    }

    fn delete_group(&self, group: &str) -> Result<()> {
        self.entries.bucket.delete_all(&self.entries.url.join(group), &self.entries.name(group))
    }

    fn keeps_whole(&self) -> bool {
        true
    }

    fn walk(&self, group: &str, found: &mut dyn FnMut(&str, u64)) -> Result<()> {
        let ObjectEntries { url, bucket, .. } = &self.entries;
        let root = url.key.as_ref().len() + 1;
        bucket.walk(&url.join(group), &self.entries.name(group), &mut |key, size| {
            if let Some(inside) = key.as_ref().get(root..) {
                found(inside, size);
            }
        })
    }
}
