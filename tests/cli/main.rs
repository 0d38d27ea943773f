//! The program that people run: exit codes, messages, files, signals.
//!
//! Everything here starts the built binary. Slides are small pictures, the model is nnU-Net's of `tests/models`.

mod batch;
mod converting;
mod deepzoom;
mod faults;
mod kills;
mod labels;
mod models;
mod outputs;
mod parts;
mod pictures;
mod postprocessing;
mod products;
mod reading;
mod refusals;
mod regions;
mod signals;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use microtome::io::slide::{OpenOptions, SlideReader, open};
use microtome::io::{Level, Pixels, Rect, Size};
use microtome::preview::{PreviewOptions, save};
use tempfile::TempDir;

/// A folder of its own for each test, with a slide in it.
struct Place {
    folder: TempDir,
}

/// What a run of the program said.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A picture of 300 x 200 pixels of stained tissue: the model's own test picture, side by side.
    fn slide(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let tile = read(&repository("tests/models/nnunet-nuclei/test/input.png"));
        let size = Size::new(300, 200);
        let mut picture = Pixels::filled(size, tile.sample_type(), &[0; 3]);
        for y in (0..size.height).step_by(tile.size().height as usize) {
            for x in (0..size.width).step_by(tile.size().width as usize) {
                let at = Rect::new(x as i64, y as i64, tile.size().width, tile.size().height);
                picture.blit(size.rect(), &tile, at);
            }
        }
        save(&picture, &path, PreviewOptions::default()).unwrap();
        path
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// `microtome segment` with that model, every tile once, without mirroring.
    fn segment(&self, slides: &[&Path], output: &Path) -> Command {
        let mut command = microtome();
        command
            .arg("segment")
            .args(slides)
            .arg("-m")
            .arg(repository("tests/models/nnunet-nuclei"))
            .arg("-o")
            .arg(output);
        command.args(["--model-mpp", "native", "--no-tta", "--step-size", "1", "--tissue", "none"]);
        command.args(["--memory", "1GiB", "--threads", "2"]);
        command
    }

    /// Every file here, by its path, with its content; folders have none.
    fn content(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        content(self.folder.path())
    }
}

/// Every file and folder under a folder.
fn content(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().to_owned();
            if path.is_dir() && !path.is_symlink() {
                found.insert(name, None);
                folders.push(path);
            } else {
                found.insert(name, Some(std::fs::read(&path).unwrap_or_default()));
            }
        }
    }
    found
}

fn microtome() -> Command {
    Command::new(env!("CARGO_BIN_EXE_microtome"))
}

fn run(command: &mut Command) -> Ran {
    let output = command.stdin(Stdio::null()).output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Ran {
    /// It ended with this code, and did not panic.
    #[track_caller]
    fn ended(self, code: i32) -> Self {
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// It ended with this code and one line on stderr, an error with all these words; stdout is empty.
    #[track_caller]
    fn refused(self, code: i32, words: &[&str]) {
        let ran = self.ended(code);
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.ends_with('\n'), "{ran:?}");
        for word in words {
            assert!(ran.stderr.contains(word), "{word:?} is missing: {ran:?}");
        }
        assert_eq!(ran.stdout, "", "{ran:?}");
    }
}

/// A file of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// All pixels of a picture.
fn read(path: &Path) -> Pixels {
    let slide: Box<dyn SlideReader> = open(path, &OpenOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    slide.read_region(Level::FINEST, slide.info().size().rect()).unwrap_or_else(|error| panic!("{error}"))
}
