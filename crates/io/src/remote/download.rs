//! An object becomes a file.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use object_store::ObjectMeta;

use super::entries::ObjectEntries;
use crate::bytes::ByteSource;
use crate::{Error, Result};

/// Bytes that are asked for at once, and how many such ranges are under way.
const RANGE: u64 = 8 << 20;
const AT_ONCE: usize = 4;

fn object(path: &Path) -> Result<(ObjectEntries, ObjectMeta)> {
    let entries = ObjectEntries::new(path)?;
    let Some(object) = entries.bucket.head(&entries.url.key, path)? else {
        let message = "there is no such object";
        return Err(Error::io(path, std::io::Error::new(std::io::ErrorKind::NotFound, message)));
    };
    Ok((entries, object))
}

pub(super) fn size(url: &str) -> Result<u64> {
    Ok(object(Path::new(url))?.1.size)
}

pub(super) fn download(url: &str, to: &Path) -> Result<u64> {
    let path = Path::new(url);
    let (entries, object) = object(path)?;
    let source: Arc<dyn ByteSource> =
        Arc::new(super::source::ObjectSource::new(path.into(), Arc::clone(&entries.bucket), object));
    let name = to.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    // Of several processes that stage the same object, each has a file of its own until one is whole.
    let partial = to.with_file_name(format!(".{name}.{}.partial", std::process::id()));
    let written = write(&*source, &partial).and_then(|()| fs::rename(&partial, to).map_err(|e| Error::io(to, e)));
    written.inspect_err(|_| {
        // The error that counts is the one at hand.
        let _ = fs::remove_file(&partial);
    })?;
    Ok(source.len())
}

fn write(source: &dyn ByteSource, partial: &Path) -> Result<()> {
    let io = |e| Error::io(partial, e);
    let mut file = File::create(partial).map_err(io)?;
    let mut starts = (0..source.len()).step_by(RANGE as usize).peekable();
    while starts.peek().is_some() {
        let some: Vec<u64> = starts.by_ref().take(AT_ONCE).collect();
        let ranges = std::thread::scope(|scope| {
            let read = |start: u64| source.read_at(start..source.len().min(start + RANGE));
            let threads: Vec<_> = some.iter().map(|&start| scope.spawn(move || read(start))).collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
        });
        for range in ranges {
            let range = range.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            file.write_all(&range).map_err(io)?;
        }
        // What waits for the disk counts as memory.
        file.sync_data().map_err(io)?;
    }
    file.sync_all().map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::{download, in_memory};

    /// Ranges as they come, across blocks and at the ends; and copied as a whole, in several ranges at once.
    #[test]
    fn an_object_is_read_in_ranges_and_copied() {
        let folder = tempfile::tempdir().unwrap();
        in_memory("ranges", folder.path());
        let content: Vec<u8> = (0..41_000_000_u32).map(|i| (i % 251) as u8).collect();
        let entries = ObjectEntries::new(Path::new("s3://ranges/slide.svs")).unwrap();
        entries.bucket.put(&entries.url.key, &content, &entries.path).unwrap();
        let crate::remote::Opened::Object(source) = crate::remote::open(&entries.path).unwrap() else {
            panic!("it is one object")
        };
        assert_eq!(source.len(), content.len() as u64);
        let end = content.len() as u64;
        for range in
            [0..1, 65_530..65_545, 65_536..65_536, 100_000..300_000, end - 5..end, end - 200_000..end, end..end]
        {
            let expected = &content[range.start as usize..range.end as usize];
            assert!(&*source.read_at(range.clone()).unwrap() == expected, "{range:?}");
        }
        for range in [0..end + 1, end..u64::MAX] {
            assert!(matches!(source.read_at(range), Err(Error::Format { .. })));
        }
        let copy = folder.path().join("copy.svs");
        fs::write(&copy, "an older one").unwrap();
        assert_eq!(download("s3://ranges/slide.svs", &copy).unwrap(), end);
        assert!(fs::read(&copy).unwrap() == content);
        let missing = folder.path().join("missing.svs");
        let error = download("s3://ranges/missing.svs", &missing).unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("no such object"), "{error}");
        assert!(matches!(download("slide.svs", &missing), Err(Error::Usage { .. })));
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["copy.svs"], "nothing half is left");
    }
}
