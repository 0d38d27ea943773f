//! Copies of slides on a local disk, for as long as they are worked at.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use microtome_io::remote;

use super::files;
use super::folder::{Process, unique};
use super::manifest::Source;

/// Where slides are copied to before they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// A folder on a local disk.
    pub folder: PathBuf,
    /// Bytes that copies may take at once; `None`: as many as the disk has.
    pub limit: Option<u64>,
}

/// How often a long copy asks whether it should go on.
const ASK: Duration = Duration::from_millis(100);
/// Bytes that are copied between two such questions.
const PIECE: usize = 4 << 20;

/// The place for copies, and how much of it is taken.
#[derive(Debug)]
pub(super) struct Staging {
    stage: Stage,
    /// Holds what this process copies, and goes with it.
    own: PathBuf,
    taken: Mutex<u64>,
    freed: Condvar,
}

/// Why there is no copy.
#[derive(Debug)]
pub(super) enum NoCopy {
    /// The slide is larger than all copies together may be.
    TooLarge {
        bytes: u64,
        limit: u64,
    },
    /// Somebody wants to stop.
    Stopped,
    Failed(microtome_io::Error),
}

/// A copy of a slide, which goes when this is dropped.
#[derive(Debug)]
pub(super) struct Staged<'a> {
    staging: &'a Staging,
    folder: PathBuf,
    /// The slide in it.
    pub(super) slide: PathBuf,
    bytes: u64,
}

impl Staging {
    /// Makes the folder of this process, and removes what processes of this machine have left that were killed.
    pub(super) fn new(stage: &Stage) -> std::io::Result<Self> {
        std::fs::create_dir_all(&stage.folder)?;
        let staging = Self {
            stage: stage.clone(),
            own: stage.folder.join(format!("{PREFIX}{}", unique())),
            taken: Mutex::new(0),
            freed: Condvar::new(),
        };
        for entry in std::fs::read_dir(&stage.folder)? {
            let path = entry?.path();
            let is_ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
            let owner = is_ours.then(|| super::folder::json::<Process>(&path.join(OWNER))).flatten();
            if owner.is_some_and(|owner| owner.has_ended() == Some(true)) {
                // What cannot be removed takes room and does no other harm.
                let _ = std::fs::remove_dir_all(&path);
            }
        }
        std::fs::create_dir_all(&staging.own)?;
        std::fs::write(staging.own.join(OWNER), serde_json::to_vec(&Process::this())?)?;
        Ok(staging)
    }

    /// Copies a slide with what belongs to it; waits while other copies take the room.
    ///
    /// `go_on` is asked again and again.
    pub(super) fn copy(&self, id: &str, source: &Source, go_on: &dyn Fn() -> bool) -> Result<Staged<'_>, NoCopy> {
        let folder = self.own.join(id);
        match source {
            Source::File(path) => {
                let failed = |error| NoCopy::Failed(microtome_io::Error::io(path, error));
                let bytes = files::bytes_of(path).map_err(failed)?;
                self.reserve(bytes, go_on)?;
                let name = path.file_name().unwrap_or(path.as_os_str());
                let copy = Staged { staging: self, slide: folder.join(name), folder, bytes };
                for part in std::iter::once(path.clone()).chain(files::companions(path)) {
                    let to = copy.folder.join(part.file_name().unwrap_or(part.as_os_str()));
                    for (name, _) in files::files(&part).map_err(failed)? {
                        // Of a file, what is below it has no name.
                        let is_file = name.as_os_str().is_empty();
                        let below = |path: &Path| if is_file { path.to_owned() } else { path.join(&name) };
                        let (from, to) = (below(&part), below(&to));
                        copy_file(&from, &to, go_on)?;
                    }
                }
                Ok(copy)
            }
            Source::Url(url) => {
                let bytes = remote::size(url).map_err(NoCopy::Failed)?;
                self.reserve(bytes, go_on)?;
                let name = url.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("slide");
                let copy = Staged { staging: self, slide: folder.join(safe(name)), folder, bytes };
                std::fs::create_dir_all(&copy.folder)
                    .map_err(|error| NoCopy::Failed(microtome_io::Error::io(&copy.folder, error)))?;
                download(url, &copy.slide, go_on)?;
                Ok(copy)
            }
        }
    }

    /// Takes room, as soon as there is some.
    fn reserve(&self, bytes: u64, go_on: &dyn Fn() -> bool) -> Result<(), NoCopy> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(limit) = self.stage.limit {
            if bytes > limit {
                return Err(NoCopy::TooLarge { bytes, limit });
            }
            while taken.saturating_add(bytes) > limit {
                if !go_on() {
                    return Err(NoCopy::Stopped);
                }
                taken = self.freed.wait_timeout(taken, ASK).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        *taken += bytes;
        Ok(())
    }
}

const PREFIX: &str = "microtome-stage-";
const OWNER: &str = "owner.json";

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now is by the next process on this machine.
        let _ = std::fs::remove_dir_all(&self.own);
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
        *self.staging.taken.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
        self.staging.freed.notify_all();
    }
}

/// The last part of a key, as the name of a file: keys may hold anything.
fn safe(name: &str) -> String {
    let name: String = name.chars().map(|c| if c.is_control() || matches!(c, '/' | '\\') { '_' } else { c }).collect();
    if name.trim_matches('.').is_empty() { "slide".into() } else { name }
}

fn copy_file(from: &Path, to: &Path, go_on: &dyn Fn() -> bool) -> Result<(), NoCopy> {
    let reading = |error| NoCopy::Failed(microtome_io::Error::io(from, error));
    let writing = |error| NoCopy::Failed(microtome_io::Error::io(to, error));
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).map_err(writing)?;
    }
    let mut source = File::open(from).map_err(reading)?;
    let mut copy = File::create(to).map_err(writing)?;
    let mut buffer = vec![0; PIECE];
    loop {
        if !go_on() {
            return Err(NoCopy::Stopped);
        }
        match source.read(&mut buffer).map_err(reading)? {
            0 => return Ok(()),
            n => copy.write_all(&buffer[..n]).map_err(writing)?,
        }
    }
}

/// Downloads on a thread of its own: a transfer cannot be interrupted, and whoever stops must not wait for it.
fn download(url: &str, to: &Path, go_on: &dyn Fn() -> bool) -> Result<u64, NoCopy> {
    let (sender, receiver) = channel();
    let failed = |error| NoCopy::Failed(microtome_io::Error::io(url, error));
    let (address, to) = (url.to_owned(), to.to_owned());
    std::thread::Builder::new()
        .name("download".into())
        .spawn(move || {
            // Nobody listens any more where somebody wanted to stop.
            let _ = sender.send(remote::download(&address, &to));
        })
        .map_err(failed)?;
    loop {
        match receiver.recv_timeout(ASK) {
            Ok(result) => return result.map_err(NoCopy::Failed),
            Err(RecvTimeoutError::Timeout) if go_on() => {}
            Err(RecvTimeoutError::Timeout) => return Err(NoCopy::Stopped),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(failed(std::io::Error::other("the transfer ended without a word")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf, Stage) {
        let place = tempfile::tempdir().unwrap();
        let slides = place.path().join("slides");
        std::fs::create_dir(&slides).unwrap();
        let stage = Stage { folder: place.path().join("stage"), limit: Some(100) };
        (place, slides, stage)
    }

    fn write(path: PathBuf, bytes: usize) -> Source {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, vec![7; bytes]).unwrap();
        Source::File(path)
    }

    fn there(stage: &Stage) -> usize {
        files::files(&stage.folder).unwrap().iter().filter(|(name, _)| !name.ends_with(OWNER)).count()
    }

    #[test]
    fn a_copy_has_all_files_and_goes_with_its_owner() {
        let (_place, slides, stage) = place();
        let mirax = write(slides.join("a.mrxs"), 10);
        write(slides.join("a/Data.dat"), 20);
        write(slides.join("b.svs"), 30);
        let folder = Source::File(slides.join("a"));
        let staging = Staging::new(&stage).unwrap();
        let copy = staging.copy("one", &mirax, &|| true).unwrap();
        assert_eq!(files::bytes_of(&copy.slide).unwrap(), 30);
        assert!(copy.slide.with_extension("").join("Data.dat").is_file() && there(&stage) == 2);
        let other = staging.copy("two", &folder, &|| true).unwrap();
        assert_eq!((files::bytes_of(&other.slide).unwrap(), there(&stage)), (20, 3));
        drop((copy, other));
        assert_eq!(there(&stage), 0);
        drop(staging);
        assert_eq!(std::fs::read_dir(&stage.folder).unwrap().count(), 0);
    }

    #[test]
    fn copies_wait_for_room_and_what_never_fits_is_refused() {
        let (_place, slides, stage) = place();
        let (small, large) = (write(slides.join("a.svs"), 60), write(slides.join("b.svs"), 101));
        let staging = Staging::new(&stage).unwrap();
        let refused = staging.copy("large", &large, &|| true).unwrap_err();
        assert!(matches!(refused, NoCopy::TooLarge { bytes: 101, limit: 100 }), "{refused:?}");
        let one = staging.copy("one", &small, &|| true).unwrap();
        // There is no room for a second one, and whoever waits is asked.
        let stopped = staging.copy("two", &small, &|| false).unwrap_err();
        assert!(matches!(stopped, NoCopy::Stopped), "{stopped:?}");
        std::thread::scope(|scope| {
            let two = scope.spawn(|| staging.copy("two", &small, &|| true).map(|copy| copy.bytes));
            std::thread::sleep(Duration::from_millis(300));
            assert!(!two.is_finished());
            drop(one);
            assert_eq!(two.join().unwrap().unwrap(), 60);
        });
        assert_eq!(*staging.taken.lock().unwrap(), 0);
    }

    #[test]
    #[cfg(feature = "remote")]
    fn an_object_is_fetched_once_there_is_room_for_it() {
        use microtome_io::store::{Format, make_group};
        let (place, slides, mut stage) = place();
        remote::in_memory("staged", place.path());
        make_group("s3://staged/a.zarr", "x", Format::V0_5).unwrap();
        let url = "s3://staged/a.zarr/x/zarr.json";
        let (object, size) = (Source::Url(url.into()), remote::size(url).unwrap());
        stage.limit = Some(size - 1);
        let refused = Staging::new(&stage).unwrap().copy("large", &object, &|| true).map(|copy| copy.bytes);
        assert!(matches!(refused, Err(NoCopy::TooLarge { bytes, .. }) if bytes == size), "{refused:?}");
        stage.limit = Some(size);
        let staging = Staging::new(&stage).unwrap();
        let small = staging.copy("small", &write(slides.join("a.svs"), 1), &|| true).unwrap();
        let waits = || {
            assert_eq!(there(&stage), 1, "it was fetched before there was room");
            false
        };
        assert!(matches!(staging.copy("object", &object, &waits), Err(NoCopy::Stopped)));
        drop(small);
        let copy = staging.copy("object", &object, &|| true).unwrap();
        assert_eq!(files::bytes_of(&copy.slide).unwrap(), size);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_a_process_left_that_was_killed_is_removed() {
        let (_place, _, stage) = place();
        let left = |name: &str, process: &Process| {
            let folder = stage.folder.join(format!("{PREFIX}{name}"));
            std::fs::create_dir_all(folder.join("a")).unwrap();
            std::fs::write(folder.join(OWNER), serde_json::to_vec(process).unwrap()).unwrap();
            folder
        };
        let dead = left("dead", &Process { begun: Some(1), ..Process::this() });
        let alive = left("alive", &Process::this());
        let elsewhere = left("elsewhere", &Process { host: "elsewhere".into(), ..Process::this() });
        let foreign = stage.folder.join("mine");
        std::fs::create_dir(&foreign).unwrap();
        drop(Staging::new(&stage).unwrap());
        assert!(!dead.exists() && alive.exists() && elsewhere.exists() && foreign.exists());
    }

    #[test]
    fn names_of_keys_are_names_of_files() {
        for (key, expected) in [("a.svs", "a.svs"), ("..", "slide"), ("a\\b\u{7}", "a_b_"), ("", "slide")] {
            assert_eq!(safe(key), expected);
        }
    }
}
