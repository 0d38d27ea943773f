//! Which files a slide is made of, as far as names tell.

use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Folders below each other: more than any store has.
const MOST_DEPTH: usize = 32;

/// The files and folders that lie beside a slide and are parts of it: the folder of a MIRAX slide, the other files of a DICOM series.
/// What only the slide's content names (the files of a VMS, or of an OME-TIFF in several) is not among them.
pub(super) fn companions(slide: &Path) -> Vec<PathBuf> {
    let ending = slide.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    match ending.as_str() {
        "mrxs" => Some(slide.with_extension("")).filter(|folder| folder.is_dir()).into_iter().collect(),
        "dcm" | "dicom" => {
            let beside = slide.parent().and_then(|folder| std::fs::read_dir(folder).ok());
            let others = beside.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
            let mut others: Vec<_> =
                others.filter(|path| path.is_file() && path.file_name() != slide.file_name()).collect();
            others.sort();
            others
        }
        _ => Vec::new(),
    }
}

/// All files of a file or a folder, each with its path below it (empty for a file), in the order of names.
///
/// # Errors
/// If a folder cannot be read.
pub(super) fn files(path: &Path) -> std::io::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    collect(path, &PathBuf::new(), &mut found, 0)?;
    found.sort();
    Ok(found)
}

fn collect(path: &Path, name: &Path, found: &mut Vec<(PathBuf, u64)>, depth: usize) -> std::io::Result<()> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_dir() {
        found.push((name.into(), metadata.len()));
        return Ok(());
    }
    if depth == MOST_DEPTH {
        return Err(std::io::Error::other("folders lie in each other without end"));
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        collect(&entry.path(), &name.join(entry.file_name()), found, depth + 1)?;
    }
    Ok(())
}

/// Bytes of a slide with its companions.
///
/// # Errors
/// If one of them cannot be seen.
pub(super) fn bytes_of(slide: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for part in std::iter::once(slide.to_owned()).chain(companions(slide)) {
        bytes += files(&part)?.iter().map(|(_, bytes)| bytes).sum::<u64>();
    }
    Ok(bytes)
}

/// The SHA-256 of a slide's file, or of the names, lengths and bytes of all files of its folder, in hexadecimal. Companions count, too.
///
/// # Errors
/// If one of them cannot be read.
pub(super) fn digest_of(slide: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for (part, number) in std::iter::once(slide.to_owned()).chain(companions(slide)).zip(0_u64..) {
        for (name, bytes) in files(&part)? {
            // A slide in one file has the digest that `sha256sum` prints.
            if number > 0 || !name.as_os_str().is_empty() {
                hash.update(name.to_string_lossy().as_bytes());
                hash.update([0]);
                hash.update(bytes.to_le_bytes());
            }
            let path = if name.as_os_str().is_empty() { part.clone() } else { part.join(&name) };
            let mut file = std::fs::File::open(path)?;
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    n => hash.update(&buffer[..n]),
                }
            }
        }
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slide_is_its_files() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = place.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let mirax = write("a.mrxs", b"12");
        write("a/Data0000.dat", b"345");
        write("a/Slidedat.ini", b"6");
        write("b.svs", b"abc");
        assert_eq!(bytes_of(&mirax).unwrap(), 6);
        assert_eq!(bytes_of(&place.path().join("a")).unwrap(), 4);
        assert!(bytes_of(&place.path().join("none")).is_err());
        // Of `printf abc | sha256sum`.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest_of(&place.path().join("b.svs")).unwrap(), abc);
        let before = digest_of(&mirax).unwrap();
        write("a/Data0000.dat", b"346");
        assert_ne!(digest_of(&mirax).unwrap(), before, "companions count");
    }
}
