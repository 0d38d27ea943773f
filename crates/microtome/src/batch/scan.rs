//! A manifest of a tree of folders: which slides lie there?

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use microtome_io::slide::{self, OpenOptions, SlideInfo};
use microtome_io::store::{Content, OmeZarr};
use serde_json::{Map, Value, json};

use super::files;
use super::manifest::{NOTES, Notation, check_id};
use crate::{Error, Result};

/// What is taken for a slide, by the ending of its name.
const SLIDES: [&str; 22] = [
    "svs", "tif", "tiff", "btf", "tf2", "tf8", "ndpi", "ndpis", "scn", "bif", "qptiff", "mrxs", "vms", "vmu", "czi",
    "svslide", "dcm", "dicom", "zip", "ozx", "isyntax", "vsi",
];
/// What is taken for one only if so asked: such pictures are as often thumbnails, labels and drawings.
const PICTURES: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
/// Folders below each other: more than any archive has.
const MOST_DEPTH: usize = 64;

/// How slides are looked for.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ScanOptions {
    /// How slides are opened.
    pub open: OpenOptions,
    /// Take PNG, JPEG and WebP pictures for slides, too.
    pub pictures: bool,
    /// Call slides by numbers, `slide-001`, in place of the names of their files, which can be names of patients.
    pub numbers: bool,
}

/// Something that looks like a slide and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The file or folder.
    pub path: PathBuf,
    /// Why, with the path.
    pub message: String,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Slides, in the order of their paths.
    slides: Vec<Found>,
    /// What could not be read.
    pub unreadable: Vec<Unreadable>,
    /// What was passed over, and why, for whoever misses it.
    pub passed_over: Vec<Unreadable>,
    numbers: bool,
}

#[derive(Debug)]
struct Found {
    path: PathBuf,
    info: SlideInfo,
    bytes: u64,
}

/// Looks for slides in a folder and all folders below it. Each is opened, none is decoded.
///
/// A DICOM series, an OME-Zarr image and a MIRAX slide with its folder are one slide each. Label images, such as our masks, are none. Names that
/// begin with a dot are passed over.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read; what cannot be read below it is [listed](Scan::unreadable).
pub fn scan(folder: &Path, options: &ScanOptions) -> Result<Scan> {
    let root = std::path::absolute(folder).map_err(|source| Error::Io { path: folder.into(), source })?;
    std::fs::read_dir(&root).map_err(|source| Error::Io { path: folder.into(), source })?;
    let mut scan = Scan { numbers: options.numbers, ..Scan::default() };
    scan.folder(&root, options, &mut BTreeSet::new(), 0);
    scan.slides.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(scan)
}

impl Scan {
    /// How many slides were found.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slides.len()
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slides.is_empty()
    }

    fn folder(&mut self, folder: &Path, options: &ScanOptions, seen: &mut BTreeSet<PathBuf>, depth: usize) {
        // Links may lead in circles.
        let is_new = std::fs::canonicalize(folder).is_ok_and(|folder| seen.insert(folder));
        if !is_new || depth > MOST_DEPTH {
            return;
        }
        let mut paths = Vec::new();
        match std::fs::read_dir(folder) {
            Ok(entries) => paths.extend(entries.filter_map(|entry| Some(entry.ok()?.path()))),
            Err(error) => return self.bad(folder, &error.to_string()),
        }
        paths.retain(|path| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.')));
        paths.sort();
        if ["zarr.json", ".zattrs", ".zgroup"].iter().any(|name| folder.join(name).is_file()) {
            return self.store(folder, options);
        }
        let ending = |path: &Path| path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        let (folders, mut files): (Vec<PathBuf>, Vec<PathBuf>) = paths.into_iter().partition(|path| path.is_dir());
        // The folder of a slide of several files is no place for others.
        let companions: BTreeSet<PathBuf> =
            files.iter().filter(|file| ending(file) == "mrxs").map(|file| file.with_extension("")).collect();
        let is_dicom = |file: &PathBuf| matches!(ending(file).as_str(), "dcm" | "dicom") || begins_as_dicom(file);
        if files.iter().any(is_dicom) {
            match slide::open(folder, &options.open) {
                Ok(slide) => {
                    let info = slide.info().clone();
                    self.good(folder, info, files::files(folder).map(|files| files.iter().map(|(_, n)| n).sum()));
                    files.retain(|file| !is_dicom(file));
                }
                // Several series in a folder: each is opened by one of its files.
                Err(microtome_io::Error::Usage { .. }) => {
                    let (series, others): (Vec<_>, Vec<_>) = files.into_iter().partition(is_dicom);
                    self.series(&series, options);
                    files = others;
                }
                Err(error) => {
                    self.bad(folder, &error.to_string());
                    files.retain(|file| !is_dicom(file));
                }
            }
        }
        for file in files {
            let ending = ending(&file);
            let is_slide = SLIDES.contains(&ending.as_str());
            if !(is_slide || options.pictures && PICTURES.contains(&ending.as_str())) {
                continue;
            }
            match slide::open(&file, &options.open) {
                Ok(slide) => self.good(&file, slide.info().clone(), files::bytes_of(&file)),
                Err(error) => self.bad(&file, &error.to_string()),
            }
        }
        for below in folders.iter().filter(|below| !companions.contains(*below)) {
            self.folder(below, options, seen, depth + 1);
        }
    }

    /// Slides of DICOM files that lie together: of each the first file stands for it.
    fn series(&mut self, files: &[PathBuf], options: &ScanOptions) {
        let mut known = BTreeSet::new();
        for file in files {
            match slide::open(file, &options.open) {
                Ok(slide) => match slide.content_id() {
                    Ok(id) if !known.insert(id.clone()) => {}
                    Ok(_) => self.good(file, slide.info().clone(), std::fs::metadata(file).map(|m| m.len())),
                    Err(error) => self.bad(file, &error.to_string()),
                },
                Err(error) => self.bad(file, &error.to_string()),
            }
        }
    }

    /// A store is a slide, unless it is a mask; what lies in it is its own.
    fn store(&mut self, folder: &Path, options: &ScanOptions) {
        let labels = OmeZarr::open(folder).is_ok_and(|store| matches!(store.info().content, Content::Labels { .. }));
        if labels {
            let message = format!("{}: is a label image, and no slide", folder.display());
            return self.passed_over.push(Unreadable { path: folder.into(), message });
        }
        match slide::open(folder, &options.open) {
            Ok(slide) => {
                let bytes = files::files(folder).map(|files| files.iter().map(|(_, n)| n).sum());
                self.good(folder, slide.info().clone(), bytes);
            }
            Err(error) => self.bad(folder, &error.to_string()),
        }
    }

    fn good(&mut self, path: &Path, info: SlideInfo, bytes: std::io::Result<u64>) {
        let is_text = |text: &str| !text.chars().any(char::is_control) && text.trim() == text;
        if !path.to_str().is_some_and(is_text) {
            let message =
                "a manifest cannot hold its name, which is not UTF-8, or has control characters or blanks at an end";
            return self.bad(path, message);
        }
        match bytes {
            Ok(bytes) => self.slides.push(Found { path: path.into(), info, bytes }),
            Err(error) => self.bad(path, &error.to_string()),
        }
    }

    fn bad(&mut self, path: &Path, message: &str) {
        let name = path.display().to_string();
        let message = if message.contains(&name) { message.to_owned() } else { format!("{name}: {message}") };
        self.unreadable.push(Unreadable { path: path.into(), message });
    }

    /// An id for each slide: the name of its file without its ending, with what is above it where that is not the only one, in letters that
    /// names of folders may have. Or numbers.
    fn ids(&self) -> Vec<String> {
        if self.numbers {
            let digits = self.slides.len().to_string().len().max(3);
            return (1..=self.slides.len()).map(|n| format!("slide-{n:0digits$}")).collect();
        }
        let mut ids: Vec<String> = self.slides.iter().map(|found| id(&found.path, 0)).collect();
        for above in 1..8 {
            let mut count: BTreeMap<String, usize> = BTreeMap::new();
            ids.iter().for_each(|id| *count.entry(id.to_lowercase()).or_default() += 1);
            for (id_, found) in ids.iter_mut().zip(&self.slides) {
                if count[&id_.to_lowercase()] > 1 {
                    *id_ = id(&found.path, above);
                }
            }
        }
        // Whatever is still the same has a number behind it.
        let mut taken = BTreeSet::new();
        for id in &mut ids {
            let name = id.clone();
            let mut n = 1;
            while !taken.insert(id.to_lowercase()) {
                n += 1;
                *id = format!("{name}-{n}");
            }
        }
        ids
    }

    /// The manifest as a text, written as the name of the file says; paths are relative to the folder of `path` where they lie below it. Without a
    /// file it is CSV with absolute paths.
    ///
    /// `mpp` is what the slide says of itself, where that is the same along both axes; [`Batch`](super::Batch) takes it as the slide's word then.
    /// Whoever corrects it overrules the slide.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name with another ending than a manifest's, or a slide whose path is no text.
    pub fn manifest(&self, path: Option<&Path>) -> Result<String> {
        let notation = path.map_or(Ok(Notation::Csv), Notation::of)?;
        let home = path.and_then(|path| std::path::absolute(path).ok()?.parent().map(Path::to_path_buf));
        let columns: Vec<&str> = ["slide", "id", "mpp"].into_iter().chain(NOTES).collect();
        let mut rows: Vec<Map<String, Value>> = Vec::new();
        for (found, id) in self.slides.iter().zip(self.ids()) {
            let slide = home.as_deref().and_then(|home| found.path.strip_prefix(home).ok()).unwrap_or(&found.path);
            let Some(slide) = slide.to_str() else {
                return Err(Error::Usage(format!("{}: a manifest is text, and this is none", slide.display())));
            };
            let resolution = found.info.resolution.as_ref();
            let size = found.info.size();
            let values = [
                json!(slide),
                json!(id),
                json!(resolution.filter(|r| r.mpp.x == r.mpp.y).map(|r| r.mpp.x)),
                json!(resolution.map(|r| r.source.to_string())),
                json!(found.info.format),
                json!(size.width),
                json!(size.height),
                json!(found.bytes),
            ];
            rows.push(columns.iter().map(|name| (*name).to_owned()).zip(values).collect());
        }
        if notation == Notation::JsonLines {
            return Ok(rows.into_iter().map(|row| format!("{}\n", Value::Object(row))).collect());
        }
        let mut writer = csv::WriterBuilder::new().delimiter(notation.separator()).from_writer(Vec::new());
        let cell = |value: &Value| match value {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let failed = |error: csv::Error| Error::Usage(format!("the manifest cannot be written: {error}"));
        writer.write_record(&columns).map_err(failed)?;
        for row in &rows {
            writer.write_record(columns.iter().map(|name| cell(&row[*name]))).map_err(failed)?;
        }
        let bytes = writer.into_inner().map_err(|error| failed(error.into_error().into()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Slides whose resolution is not known, or not the same along both axes: their column `mpp` is empty.
    pub fn without_mpp(&self) -> impl Iterator<Item = (&Path, &'static str)> {
        self.slides.iter().filter_map(|found| match &found.info.resolution {
            None => Some((found.path.as_path(), "does not state its resolution")),
            Some(r) if r.mpp.x != r.mpp.y => Some((found.path.as_path(), "has pixels that are not square")),
            Some(_) => None,
        })
    }
}

/// The name of a file without its ending, and so many folders above it before it.
fn id(path: &Path, above: usize) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let lower = name.to_lowercase();
    let endings = [".ome.zarr.zip", ".ome.zarr", ".ome.tiff", ".ome.tif", ".zarr"];
    let stem = match endings.iter().find(|ending| lower.ends_with(*ending)) {
        Some(ending) => name[..name.len() - ending.len()].to_owned(),
        None if path.is_dir() => name,
        None => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
    };
    let mut parts: Vec<String> = path
        .ancestors()
        .skip(1)
        .take(above)
        .filter_map(|folder| Some(folder.file_name()?.to_string_lossy().into_owned()))
        .collect();
    parts.reverse();
    parts.push(stem);
    let text: String = parts
        .join("_")
        .chars()
        .map(|c| if c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | ' ' | '(' | ')') { c } else { '_' })
        .collect();
    let text = text.trim_start_matches(['.', '-', ' ']).trim_end_matches(['.', ' ']);
    // Room for a number behind it.
    let mut short = text.to_owned();
    while short.len() > 100 {
        short.pop();
    }
    if check_id(&short).is_ok() {
        short
    } else {
        format!("slide_{}", short.trim_matches(['.', ' '])).trim_end_matches('_').into()
    }
}

/// True for what DICOM's part 10 begins with, whatever the file is called.
fn begins_as_dicom(file: &Path) -> bool {
    use std::io::Read;
    if file.extension().is_some() {
        return false;
    }
    let mut head = [0; 132];
    let read = std::fs::File::open(file).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && &head[128..] == b"DICM"
}

#[cfg(test)]
mod tests {
    use microtome_testkit::tiff::TiffSlide;

    use super::super::{Manifest, Source};
    use super::*;

    #[test]
    fn a_tree_becomes_a_manifest() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, mpp: Option<f64>| {
            let path = place.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut slide = TiffSlide::rgb(&[(64, 48)], |_, x, y, _| (x * y % 256) as u16);
            // Pixels per centimetre.
            slide.resolution = mpp.map(|mpp| (10_000.0 / mpp, 10_000.0 / mpp, 3));
            slide.write(&path).unwrap();
        };
        write("a/one.tif", Some(0.5));
        write("b/one.tif", None);
        write("b/two, left.tiff", Some(0.25));
        write("b/.hidden.tif", None);
        std::fs::write(place.path().join("b/bad.svs"), "no slide").unwrap();
        std::fs::write(place.path().join("b/notes.txt"), "no slide either").unwrap();
        // As MIRAX lies: the file cannot be read in this build, and its folder is passed over.
        write("c/x/Data.tif", None);
        std::fs::write(place.path().join("c/x.mrxs"), "MIRAX").unwrap();
        let found = scan(place.path(), &ScanOptions::default()).unwrap();
        let names: Vec<_> = found.unreadable.iter().map(|bad| bad.path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["bad.svs", "x.mrxs"], "{:?}", found.unreadable);
        assert_eq!((found.len(), found.without_mpp().count()), (3, 1));

        for name in ["archive.csv", "archive.tsv", "archive.jsonl"] {
            let list = place.path().join(name);
            std::fs::write(&list, found.manifest(Some(&list)).unwrap()).unwrap();
            let manifest = Manifest::read(&list).unwrap();
            let ids: Vec<&str> = manifest.entries().iter().map(|entry| entry.id.as_str()).collect();
            assert_eq!(ids, ["a_one", "b_one", "two_ left"], "{name}");
            let [one, other, two] = manifest.entries() else { unreachable!() };
            assert_eq!(one.slide, Source::File(std::path::absolute(place.path().join("a/one.tif")).unwrap()));
            assert_eq!((one.mpp, other.mpp, two.mpp), (Some(0.5), None, Some(0.25)));
            assert_eq!(one.bytes, Some(std::fs::metadata(place.path().join("a/one.tif")).unwrap().len()));
            assert_eq!(manifest.missing(), []);
        }
        assert!(found.manifest(None).unwrap().contains(&place.path().join("a/one.tif").display().to_string()));
        let numbers = ScanOptions { numbers: true, ..ScanOptions::default() };
        assert!(scan(place.path(), &numbers).unwrap().manifest(None).unwrap().contains(",slide-002,"));
    }

    /// Other systems' disks refuse such names.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_name_that_no_manifest_can_hold_is_listed_as_unreadable() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let place = tempfile::tempdir().unwrap();
        let slide = TiffSlide::rgb(&[(64, 48)], |_, x, y, _| (x * y % 256) as u16);
        for name in [&b"M\xfcller.tif"[..], b"a\nb.tif", b"good.tif"] {
            slide.write(&place.path().join(OsStr::from_bytes(name))).unwrap();
        }
        let found = scan(place.path(), &ScanOptions::default()).unwrap();
        assert_eq!((found.len(), found.unreadable.len()), (1, 2), "{:?}", found.unreadable);
        for bad in &found.unreadable {
            assert!(bad.message.contains("a manifest cannot hold its name"), "{bad:?}");
        }
        let text = found.manifest(None).unwrap();
        assert!(text.lines().count() == 2 && text.contains("good.tif"), "{text}");
    }

    #[test]
    fn whatever_a_file_is_called_its_id_is_the_name_of_a_folder() {
        for (name, expected) in [
            ("x/a.svs", "a"),
            ("x/a.ome.tif", "a"),
            ("x/a b?.svs", "a b_"),
            ("x/-rf.svs", "rf"),
            ("x/...svs", "slide"),
            ("x/summary.csv.svs", "slide_summary.csv"),
            ("x/Müller.ndpi", "Müller"),
        ] {
            assert_eq!(id(Path::new(name), 0), expected, "{name}");
        }
        assert_eq!(id(Path::new("/x/y/a.svs"), 2), "x_y_a");
        let long = id(Path::new(&format!("{}.svs", "é".repeat(200))), 0);
        assert!(check_id(&long).is_ok() && long.len() <= 100);
    }
}
