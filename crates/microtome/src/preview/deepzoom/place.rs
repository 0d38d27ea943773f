//! Where a DeepZoom image goes: `NAME.dzi` and the folder `NAME_files` beside it.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::output::Existing;
use crate::{Error, Result};

/// What a `.dzi` file says that it is.
pub(super) const NAMESPACE: &str = "http://schemas.microsoft.com/deepzoom/2008";

/// The two names of an image.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The description, which is written last.
    pub(super) description: PathBuf,
    /// The folder of the tiles.
    pub(super) folder: PathBuf,
}

impl Place {
    /// The names for an output `NAME.dzi`.
    ///
    /// # Errors
    /// [`Error::Usage`] for another ending.
    pub(super) fn of(output: &Path) -> Result<Self> {
        let is_dzi = output.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("dzi"));
        let (true, Some(stem)) = (is_dzi, output.file_stem()) else {
            return Err(Error::Usage(format!("{}: DeepZoom images are written as NAME.dzi", output.display())));
        };
        let mut name = stem.to_os_string();
        name.push("_files");
        Ok(Self { description: output.into(), folder: output.with_file_name(name) })
    }

    /// Locks the folder of the tiles for as long as the file lives. Where folders cannot be locked there is none.
    fn lock(&self) -> Result<Option<File>> {
        let Ok(folder) = File::open(&self.folder) else { return Ok(None) };
        match folder.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Error::InUse { path: self.folder.clone() }),
            locked => Ok(locked.is_ok().then_some(folder)),
        }
    }

    /// Makes the folder, and room for it if that is wanted: what is removed is an image of our kind and nothing else, its description first.
    /// While what it gives lives, others are refused.
    ///
    /// # Errors
    /// [`Error::OutputExists`] for what is there and may not be replaced, [`Error::InUse`] if another process is at it, [`Error::Io`].
    pub(super) fn claim(&self, existing: Existing) -> Result<Option<File>> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { path: path.clone(), source }
        };
        // Nothing is touched before all that is there has been looked at.
        let described = fs::symlink_metadata(&self.description).is_ok();
        let tiles = fs::symlink_metadata(&self.folder).is_ok();
        if described {
            if existing != Existing::Replace {
                return Err(exists(&self.description, "a file", "; --overwrite replaces a DeepZoom image"));
            }
            if !is_description(&self.description) {
                return Err(exists(&self.description, "a file", ", and it describes no DeepZoom image"));
            }
        }
        if tiles {
            if existing == Existing::Keep {
                let hint = ", of an image that was not finished, perhaps; --overwrite replaces it";
                return Err(exists(&self.folder, "a folder", hint));
            }
            if let Some(stranger) = stranger(&self.folder).map_err(io(&self.folder))? {
                return Err(exists(&stranger, "something", ", and a DeepZoom image has nothing of that name"));
            }
        }
        let left = if tiles { self.lock()? } else { None };
        if described {
            fs::remove_file(&self.description).map_err(io(&self.description))?;
        }
        if tiles {
            self.remove_tiles().map_err(io(&self.folder))?;
        }
        drop(left);
        fs::create_dir(&self.folder).map_err(|error| match error.kind() {
            // Nothing was there a moment ago.
            ErrorKind::AlreadyExists => Error::InUse { path: self.folder.clone() },
            _ => io(&self.folder)(error),
        })?;
        self.lock()
    }

    /// Removes what [`stranger`] has found to be tiles.
    fn remove_tiles(&self) -> std::io::Result<()> {
        for level in fs::read_dir(&self.folder)? {
            let level = level?.path();
            for tile in fs::read_dir(&level)? {
                fs::remove_file(tile?.path())?;
            }
            fs::remove_dir(&level)?;
        }
        fs::remove_dir(&self.folder)
    }
}

fn exists(path: &Path, found: &str, hint: &'static str) -> Error {
    Error::OutputExists { path: path.into(), found: found.into(), hint }
}

/// True for a file that says in its first bytes that it describes a DeepZoom image.
fn is_description(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(4096).read_to_end(&mut head));
    // Its start is enough: the namespace is that of the root element.
    read.is_ok() && String::from_utf8_lossy(&head).contains("//schemas.microsoft.com/deepzoom/")
}

/// Something in a folder of tiles that is none: not `LEVEL/COLUMN_ROW.jpg` or the like. Links are not followed.
fn stranger(folder: &Path) -> std::io::Result<Option<PathBuf>> {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_tile = |name: &str| {
        let Some((place, ending)) = name.split_once('.') else { return false };
        let Some((column, row)) = place.split_once('_') else { return false };
        number(column) && number(row) && matches!(ending, "jpg" | "jpeg" | "png" | "webp")
    };
    if !fs::symlink_metadata(folder)?.is_dir() {
        return Ok(Some(folder.into()));
    }
    for level in fs::read_dir(folder)? {
        let level = level?;
        if !level.file_type()?.is_dir() || !level.file_name().to_str().is_some_and(number) {
            return Ok(Some(level.path()));
        }
        for tile in fs::read_dir(level.path())? {
            let tile = tile?;
            if !tile.file_type()?.is_file() || !tile.file_name().to_str().is_some_and(is_tile) {
                return Ok(Some(tile.path()));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tiles_and_descriptions_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::of(&folder.path().join("slide.dzi")).unwrap();
        assert!(Place::of(Path::new("slide.png")).is_err() && Place::of(Path::new("dzi")).is_err());
        place.claim(Existing::Keep).unwrap();
        assert!(place.folder.ends_with("slide_files") && place.folder.is_dir());
        for tile in ["3/0_0.jpg", "12/17_4.png"] {
            let tile = place.folder.join(tile);
            fs::create_dir(tile.parent().unwrap()).unwrap();
            fs::write(tile, "tile").unwrap();
        }
        let refused = |existing| assert!(matches!(place.claim(existing), Err(Error::OutputExists { .. })));
        refused(Existing::Keep);
        place.claim(Existing::Restart).unwrap();
        assert_eq!(fs::read_dir(&place.folder).unwrap().count(), 0);

        fs::write(
            &place.description,
            "<?xml version=\"1.0\"?><Image xmlns=\"http://schemas.microsoft.com/deepzoom/2008\"/>",
        )
        .unwrap();
        refused(Existing::Keep);
        refused(Existing::Restart);
        for stranger in ["notes.txt", "3/notes.txt", "3/0_0.jpg.bak", "3/4/0_0.jpg", "three/0_0.jpg"] {
            let path = place.folder.join(stranger);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "mine").unwrap();
            refused(Existing::Replace);
            assert!(path.exists() && place.description.exists(), "{stranger}");
            fs::remove_dir_all(&place.folder).unwrap();
            fs::create_dir(&place.folder).unwrap();
        }
        place.claim(Existing::Replace).unwrap();
        assert!(!place.description.exists());
        fs::write(&place.description, "my notes").unwrap();
        refused(Existing::Replace);
        assert!(place.description.exists());
    }

    #[cfg(unix)]
    #[test]
    fn what_another_is_making_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::of(&folder.path().join("slide.dzi")).unwrap();
        let held = place.claim(Existing::Keep).unwrap();
        fs::create_dir(place.folder.join("0")).unwrap();
        for existing in [Existing::Restart, Existing::Replace] {
            let claimed = place.claim(existing);
            assert!(matches!(claimed, Err(Error::InUse { .. })), "{claimed:?}");
            assert!(place.folder.join("0").exists());
        }
        drop(held);
        let held = place.claim(Existing::Replace).unwrap();
        assert!(held.is_some() && !place.folder.join("0").exists());
        assert!(matches!(place.claim(Existing::Replace), Err(Error::InUse { .. })));
    }
}
