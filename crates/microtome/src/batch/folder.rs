//! What lies in the folder of a batch, and what of it is believed.

use std::fs::{File, Metadata};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::manifest::{Entry, Manifest, Source};
use super::shard::Shard;
use crate::output::put_under;
use crate::{Error, Result};

/// Names that are taken beside the folders of slides, but for those that end in `.jsonl`.
pub(super) const RESERVED: [&str; 4] = ["batch.json", "summary.csv", "summary.html", "results.sqlite"];

/// Names of files in the folder of a slide.
pub(super) const OF_A_SLIDE: [&str; 6] = ["done", "lease", "lease.taken", "report.json", "thumbnail.jpg", "label.jpg"];

/// Bytes of a small file of ours at most. Whatever is larger is not ours.
const MOST_BYTES: u64 = 64 << 20;

/// The folder of a batch.
#[derive(Debug, Clone)]
pub(super) struct Folder(PathBuf);

/// The folder of a slide in it.
#[derive(Debug, Clone)]
pub(super) struct SlideFolder(PathBuf);

impl Folder {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.into())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn create(&self) -> Result<()> {
        std::fs::create_dir_all(&self.0).map_err(|source| Error::Io { path: self.0.clone(), source })
    }

    /// One file for each shard, so that nobody appends to what another machine appends to.
    pub(super) fn events(&self, shard: Option<Shard>) -> PathBuf {
        match shard {
            None => self.0.join("events.jsonl"),
            Some(Shard { index, count }) => self.0.join(format!("events-{index}-of-{count}.jsonl")),
        }
    }

    pub(super) fn slides(&self) -> PathBuf {
        self.0.join("batch.json")
    }

    pub(super) fn csv(&self) -> PathBuf {
        self.0.join("summary.csv")
    }

    pub(super) fn html(&self) -> PathBuf {
        self.0.join("summary.html")
    }

    pub(super) fn database(&self) -> PathBuf {
        self.0.join("results.sqlite")
    }

    /// Who works at what, of `count` shards of the slides that have this digest.
    pub(super) fn shares(&self, count: u64, digest: &str) -> PathBuf {
        self.0.join(format!(".shards-{count}-{}.json", &digest[..16.min(digest.len())]))
    }

    pub(super) fn slide(&self, id: &str) -> SlideFolder {
        SlideFolder(self.0.join(id))
    }
}

impl SlideFolder {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn create(&self) -> Result<()> {
        std::fs::create_dir_all(&self.0).map_err(|source| Error::Io { path: self.0.clone(), source })
    }

    pub(super) fn done(&self) -> PathBuf {
        self.0.join("done")
    }

    pub(super) fn report(&self) -> PathBuf {
        self.0.join("report.json")
    }

    pub(super) fn thumbnail(&self) -> PathBuf {
        self.0.join("thumbnail.jpg")
    }

    /// The picture of the slide's label, where it was asked for.
    pub(super) fn label(&self) -> PathBuf {
        self.0.join("label.jpg")
    }

    pub(super) fn lease(&self) -> PathBuf {
        self.0.join("lease")
    }
}

/// How a slide ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// The mask is there.
    Done,
    /// There is none, and [`SlideReport::error`] says why. The next run tries again.
    Failed,
    /// Nobody has tried yet, or whoever did was stopped.
    Waiting,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Waiting => "waiting",
        })
    }
}

/// What is known of a slide of a batch: its `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SlideReport {
    /// The slide's id.
    pub id: String,
    /// The group that the manifest gives.
    pub group: Option<String>,
    /// How it ended.
    pub status: Status,
    /// The exit code that `microtome segment` would have ended with.
    pub code: u8,
    /// Why it failed, without names of files.
    pub error: Option<String>,
    /// How often it was tried, this time included.
    pub attempts: u32,
    /// When the last attempt ended: RFC 3339, UTC.
    pub finished: String,
    /// Seconds of the last attempt, from opening the slide to its report.
    pub seconds: f64,
    /// The mask, below the batch's folder.
    pub output: String,
    /// The [summary](crate::Summary) of the run that made the mask; of one whose own was lost in a crash, what its journal tells.
    pub summary: Option<Value>,
    /// Who the slide is, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
}

/// What can name a person, and is kept only where that was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Where the slide lay.
    pub slide: String,
    /// What its scanner wrote into it.
    pub properties: std::collections::BTreeMap<String, String>,
}

impl Identity {
    /// Of a slide that could not be opened, of which only the path is known.
    pub(super) fn of_path(entry: &Entry) -> Self {
        Self { slide: entry.slide.to_string(), properties: std::collections::BTreeMap::new() }
    }
}

/// The mark that a slide is done, written last of all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Done {
    pub(super) id: String,
    /// A digest of everything that is known to change the result before the slide is opened.
    pub(super) key: String,
    /// Of the slide's file or folder.
    pub(super) stamp: Option<Stamp>,
    /// 0, or 3 where parts of the slide could not be read.
    pub(super) code: u8,
}

/// By what a file is known again without being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: u64,
}

impl Stamp {
    pub(super) fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().as_ref().map(Self::from)
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self { bytes: metadata.len(), modified: since.map_or(0, |since| since.as_nanos() as u64) }
    }
}

impl Done {
    /// The mark, if there is a sound one.
    pub(super) fn read(folder: &SlideFolder) -> Option<Self> {
        json(&folder.done())
    }

    /// True if it is of the same run over the same slide. A slide that is not there any more has not changed.
    pub(super) fn holds(&self, entry: &Entry, key: &str) -> bool {
        let same_slide = match &entry.slide {
            Source::Url(_) => true,
            Source::File(path) => Stamp::of(path).is_none_or(|stamp| Some(stamp) == self.stamp),
        };
        self.id == entry.id && self.key == key && same_slide
    }
}

impl SlideReport {
    pub(super) fn read(folder: &SlideFolder) -> Option<Self> {
        json(&folder.report())
    }
}

/// True if a finished store is at the path, as far as that is seen without reading it: its root metadata are written last.
pub(super) fn is_finished(store: &Path) -> bool {
    ["zarr.json", ".zattrs"].iter().any(|name| store.join(name).is_file())
}

/// A JSON file of ours; what is none is not there.
pub(super) fn json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&small(path)?).ok()
}

/// The bytes of a small file.
pub(super) fn small(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MOST_BYTES + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= MOST_BYTES).then_some(bytes)
}

/// Removes what a process was killed over while it [`put`] it there.
pub(super) fn tidy(folder: &Path) {
    crate::output::tidy_old(folder, ".");
}

/// Writes a small file that appears whole, unless it is there already with the same content. Its name until then is no other process's, on
/// whatever machine.
pub(super) fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    if small(path).is_some_and(|there| there == bytes) {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = path.with_file_name(format!(".{name}.{}.part", unique()));
    put_under(&partial, path, |mut file| file.write_all(bytes))
        .map_err(|source| Error::Io { path: path.into(), source })
}

/// The same, of a value as JSON.
pub(super) fn put_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text =
        serde_json::to_vec_pretty(value).map_err(|error| Error::Io { path: path.into(), source: error.into() })?;
    put(path, &text)
}

/// Who a process is, among all that may see the same folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    /// The machine's name.
    pub(super) host: String,
    /// What is another after each start of the machine.
    pub(super) boot: String,
    /// The space in which numbers of processes count: containers have their own.
    pub(super) space: String,
    /// The number of the process.
    pub(super) pid: u32,
    /// When it began, in ticks of the machine's clock: numbers are used again.
    pub(super) begun: Option<u64>,
}

impl Process {
    pub(super) fn this() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let space = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let pid = std::process::id();
        Self {
            host: read("/proc/sys/kernel/hostname"),
            boot: read("/proc/sys/kernel/random/boot_id"),
            space: space.to_string_lossy().into_owned(),
            pid,
            begun: begun(pid),
        }
    }

    /// Whether it has ended, which only its own machine knows; `None` on any other, and in another container.
    pub(super) fn has_ended(&self) -> Option<bool> {
        let this = Self::this();
        let here = self.host == this.host && self.boot == this.boot && self.space == this.space;
        // Without the system's word there is nothing to compare; where it hides others' processes, it hides the first one, too.
        let tells = !self.boot.is_empty() && self.begun.is_some() && begun(1).is_some();
        (here && tells).then(|| begun(self.pid) != self.begun)
    }
}

/// A part of the names of files that no other process has, on whatever machine, nor another part of this one.
pub(super) fn unique() -> String {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let Process { host, pid, .. } = Process::this();
    let host: String = host.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("{host}-{pid}-{}", MADE.fetch_add(1, Ordering::Relaxed))
}

/// When a process began; `None` if there is none of this number.
fn begun(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc(5): the name, in parentheses, may hold anything; the 22nd field is the 20th behind it. A zombie works no more.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The slides of a batch: what `report` must know of those of which there is no report.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Slides {
    pub(super) slides: Vec<Listed>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Listed {
    pub(super) id: String,
    pub(super) group: Option<String>,
}

impl Slides {
    pub(super) fn of(manifest: &Manifest) -> Self {
        let listed = |entry: &Entry| Listed { id: entry.id.clone(), group: entry.group.clone() };
        let mut slides: Vec<Listed> = manifest.entries().iter().map(listed).collect();
        slides.sort_by(|a, b| a.id.cmp(&b.id));
        Self { slides }
    }
}

/// The SHA-256 of a text, in hexadecimal.
pub(super) fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn processes_are_known_again() {
        let this = Process::this();
        assert!(!this.host.is_empty() && !this.boot.is_empty() && this.begun.is_some(), "{this:?}");
        assert_eq!(this.has_ended(), Some(false));
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let other = Process { pid: child.id(), begun: begun(child.id()), ..this.clone() };
        assert_eq!(other.has_ended(), Some(false));
        // Another process of the same number is another one.
        assert_eq!(Process { begun: Some(1), ..other.clone() }.has_ended(), Some(true));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(other.has_ended(), Some(true));
        for elsewhere in [
            Process { host: "elsewhere".into(), ..other.clone() },
            Process { boot: "before".into(), ..other.clone() },
            Process { space: "pid:[1]".into(), ..other },
        ] {
            assert_eq!(elsewhere.has_ended(), None, "nobody here can know");
        }
    }

    #[test]
    fn what_is_no_json_of_ours_is_not_there_and_what_is_the_same_is_not_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let slide = Folder::new(folder.path()).slide("a");
        slide.create().unwrap();
        for content in ["", "{", "{\"id\":1}", "\u{0}\u{0}"] {
            std::fs::write(slide.done(), content).unwrap();
            assert_eq!(Done::read(&slide), None, "{content:?}");
        }
        put(&slide.done(), b"x").unwrap();
        let before = std::fs::metadata(slide.done()).unwrap().modified().unwrap();
        put(&slide.done(), b"x").unwrap();
        assert_eq!(std::fs::metadata(slide.done()).unwrap().modified().unwrap(), before);
        assert_eq!(std::fs::read_dir(slide.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
