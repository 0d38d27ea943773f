//! The list of slides that an archive consists of.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use microtome_io::remote;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::folder::{OF_A_SLIDE, RESERVED};
use crate::{Error, Result};

/// Bytes of a manifest at most: a million slides with long paths have a fifth of it.
const MOST_BYTES: u64 = 1 << 30;
/// Bytes of an id at most: it names a folder, and names of files are made of it.
const MOST_ID_BYTES: usize = 120;
/// Lines of faults that are collected. A file of another kind would give one for each of its lines.
const MOST_FAULTS: usize = 100;

/// Columns that decide something.
const COLUMNS: [&str; 8] = ["slide", "id", "mpp", "roi", "roi_value", "level", "group", "out"];
/// Columns that `microtome manifest` writes for people, and of which only `bytes` is read again: shards are balanced by it.
pub(super) const NOTES: [&str; 5] = ["mpp_source", "format", "width", "height", "bytes"];

/// Where a slide lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file or a folder; the path is absolute.
    File(PathBuf),
    /// An object in a store, `s3://BUCKET/KEY`: it is read in ranges where it is, or copied to a local disk before.
    Url(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// A slide of a manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The line of the manifest, from 1 on.
    pub line: u64,
    /// Where it lies.
    pub slide: Source,
    /// What it is called in everything that is written: the name of its folder.
    pub id: String,
    /// Micrometres per level-0 pixel, in place of what the slide says. The very number that the slide says is no other word than the slide's.
    pub mpp: Option<f64>,
    /// A region to run in: a PNG, GeoJSON, or an OME-Zarr label image.
    pub roi: Option<PathBuf>,
    /// Which of its values are wanted; those of the whole batch where this is empty.
    pub roi_values: Vec<String>,
    /// The slide's level to run at, as it is, in place of the model's resolution.
    pub level: Option<usize>,
    /// A word of the user's own, which tables repeat: a patient's number, a cohort, a stain.
    pub group: Option<String>,
    /// Where the mask goes, below the batch's folder; `ID/mask.ome.zarr` if the manifest does not say.
    pub out: PathBuf,
    /// Bytes of the slide, as the manifest states them.
    pub bytes: Option<u64>,
}

/// What is wrong with a line of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The line, from 1 on.
    pub line: u64,
    /// What is wrong, as a clause.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// The slides of an archive, each with an id of its own.
///
/// A manifest is CSV (`.csv`), TSV (`.tsv`, `.tab`) with a line of names of columns, or JSON Lines (`.jsonl`, `.ndjson`) with an object in each line.
/// `slide` and `id` are needed; `mpp`, `roi`, `roi_value`, `level`, `group` and `out` are optional, in any order; a cell that is empty is not
/// given. Paths that are relative are so to the manifest's folder.
///
/// A manifest is untrusted: an id is the name of a folder and nothing else, and no `out` leads out of the batch's folder.
///
/// ```
/// use microtome::batch::Manifest;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("archive.csv");
/// std::fs::write(&path, "slide,id,group\nslides/a.svs,case-1,liver\nslides/b.svs,case-2,\n")?;
/// let manifest = Manifest::read(&path)?;
/// assert_eq!(manifest.entries()[1].id, "case-2");
///
/// std::fs::write(&path, "slide,id,mpp\na.svs,../up,\nb.svs,b,wide\n")?;
/// let faults = Manifest::read(&path).unwrap_err().to_string();
/// assert!(faults.contains("line 2") && faults.contains("line 3"), "{faults}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    path: PathBuf,
    entries: Vec<Entry>,
}

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notation {
    Csv,
    Tsv,
    JsonLines,
}

impl Notation {
    pub(super) fn of(path: &Path) -> Result<Self> {
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        match ending.as_str() {
            "csv" => Ok(Self::Csv),
            "tsv" | "tab" => Ok(Self::Tsv),
            "jsonl" | "ndjson" => Ok(Self::JsonLines),
            _ => Err(Error::Usage(format!(
                "{}: the name of a manifest ends in .csv, .tsv or .jsonl, which says how it is written",
                path.display()
            ))),
        }
    }

    pub(super) fn separator(self) -> u8 {
        if self == Self::Tsv { b'\t' } else { b',' }
    }
}

/// A line, as cells by the name of their column.
type Line = (u64, BTreeMap<String, String>);

/// Faults, as far as they are collected.
#[derive(Default)]
struct Faults {
    found: Vec<Fault>,
    /// Further ones, that are only counted.
    more: u64,
}

impl Faults {
    fn add(&mut self, line: u64, message: impl Into<String>) {
        if self.found.len() < MOST_FAULTS {
            self.found.push(Fault { line, message: message.into() });
        } else {
            self.more += 1;
        }
    }
}

impl Manifest {
    /// Reads a manifest, and finds all that is wrong with it at once.
    ///
    /// Files that are not there are no fault of the manifest's: [`missing`](Self::missing) names them, and each is a slide that fails.
    ///
    /// # Errors
    /// [`Error::Manifest`] with the line of each fault, [`Error::Io`] if it cannot be read, [`Error::Usage`] for a name with another ending.
    pub fn read(path: &Path) -> Result<Self> {
        let notation = Notation::of(path)?;
        let io = |source| Error::Io { path: path.into(), source };
        let metadata = std::fs::metadata(path).map_err(io)?;
        if !metadata.is_file() || metadata.len() > MOST_BYTES {
            return Err(Error::Usage(format!("{}: a manifest is a file of at most 1 GiB", path.display())));
        }
        let bytes = std::fs::read(path).map_err(io)?;
        let absolute = std::path::absolute(path).map_err(io)?;
        let folder = absolute.parent().unwrap_or(Path::new("/"));
        let mut faults = Faults::default();
        let entries = parse(&bytes, notation, folder, &mut faults);
        if faults.found.is_empty() {
            return Ok(Self { path: path.into(), entries });
        }
        faults.found.sort_by_key(|fault| fault.line);
        if let (more @ 1.., Some(last)) = (faults.more, faults.found.last()) {
            let (line, message) = (last.line, format!("and there are {more} more faults"));
            faults.found.push(Fault { line, message });
        }
        Err(Error::Manifest { path: path.into(), faults: faults.found })
    }

    /// The file that was read.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The slides, in the order of the manifest; never empty.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Slides and regions that are not there now, by their lines.
    #[must_use]
    pub fn missing(&self) -> Vec<Fault> {
        self.entries.iter().flat_map(Entry::missing).collect()
    }
}

impl Entry {
    /// What of it is not there now.
    pub(super) fn missing(&self) -> impl Iterator<Item = Fault> {
        let slide = match &self.slide {
            Source::File(path) => Some(path.as_path()),
            Source::Url(_) => None,
        };
        let all = [("slide", slide), ("region", self.roi.as_deref())];
        all.into_iter().filter_map(|(what, path)| {
            let error = std::fs::metadata(path?).err()?;
            Some(Fault { line: self.line, message: format!("the {what} of {}: {error}", self.id) })
        })
    }
}

fn parse(bytes: &[u8], notation: Notation, folder: &Path, faults: &mut Faults) -> Vec<Entry> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        faults.add(1, "the text is UTF-16, as some programs export it: save it as UTF-8");
        return Vec::new();
    }
    // Spreadsheets begin UTF-8 with a mark.
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            faults.add(line_at(bytes, error.valid_up_to()), "the text is not UTF-8: save it as UTF-8");
            return Vec::new();
        }
    };
    let lines = match notation {
        Notation::JsonLines => json_lines(text, faults),
        table => table_lines(text, table, faults),
    };
    if lines.is_empty() && faults.found.is_empty() {
        faults.add(1, "there is no slide in it");
    }
    let entries: Vec<Entry> = lines.iter().filter_map(|(line, cells)| entry(*line, cells, folder, faults)).collect();
    unique(&entries, faults);
    entries
}

/// The line of a byte, from 1 on. A line ends with a line feed, a carriage return, or both.
fn line_at(bytes: &[u8], at: usize) -> u64 {
    let before = &bytes[..at];
    let feeds = before.iter().filter(|&&b| b == b'\n').count();
    let returns = before.iter().enumerate().filter(|&(i, &b)| b == b'\r' && bytes.get(i + 1) != Some(&b'\n')).count();
    (feeds + returns) as u64 + 1
}

fn table_lines(text: &str, notation: Notation, faults: &mut Faults) -> Vec<Line> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(notation.separator())
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes());
    // Lines are counted here: the reader counts those that are empty, and the second half of a CRLF, to the record behind them.
    let bytes = text.as_bytes();
    let (mut counted, mut line) = (0, 1);
    let mut records = Vec::new();
    let mut record = csv::StringRecord::new();
    loop {
        let start = reader.position().byte() as usize;
        match reader.read_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                faults.add(line, error.to_string());
                return Vec::new();
            }
        }
        let start = start + bytes[start..].iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        line += line_at(&bytes[counted..], start - counted) - 1;
        counted = start;
        let cells: Vec<String> = record.iter().map(|cell| cell.trim().to_owned()).collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            records.push((line, cells));
        }
    }
    let mut records = records.into_iter();
    let Some((header_line, header)) = records.next() else { return Vec::new() };
    let header: Vec<String> = header.into_iter().map(|name| name.to_lowercase()).collect();
    for (column, name) in header.iter().enumerate() {
        if !COLUMNS.contains(&name.as_str()) && !NOTES.contains(&name.as_str()) {
            let hint = match name {
                name if notation == Notation::Csv && header.len() == 1 && name.contains(';') => {
                    "; columns of .csv are separated by commas"
                }
                name if notation == Notation::Csv && header.len() == 1 && name.contains('\t') => {
                    "; columns separated by tabs are .tsv"
                }
                _ => "",
            };
            faults.add(header_line, format!("unknown column {name:?}; known are {}{hint}", COLUMNS.join(", ")));
        } else if header[..column].contains(name) {
            faults.add(header_line, format!("the column {name} is there twice"));
        }
    }
    for needed in ["slide", "id"] {
        if !header.iter().any(|name| name == needed) {
            faults.add(header_line, format!("there is no column {needed}"));
        }
    }
    if !faults.found.is_empty() {
        // Further lines mean nothing without their names, but for their number of cells.
        return Vec::new();
    }
    let mut lines = Vec::new();
    for (line, cells) in records {
        if cells.len() == header.len() {
            lines.push((line, header.iter().cloned().zip(cells).collect()));
        } else {
            faults.add(line, format!("{} cells, and {} columns", cells.len(), header.len()));
        }
    }
    lines
}

/// An object of JSON Lines, as far as its values can be cells.
#[derive(Deserialize)]
struct Object(#[serde(deserialize_with = "no_name_twice")] Map<String, Value>);

/// An object of which no name is there twice: JSON leaves open which of them counts.
fn no_name_twice<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Map<String, Value>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object such as {\"slide\": \"a.svs\", \"id\": \"a\"}")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut map = Map::new();
            while let Some((name, value)) = access.next_entry::<String, Value>()? {
                if map.contains_key(&name) {
                    return Err(serde::de::Error::custom(format!("{name} is there twice")));
                }
                map.insert(name, value);
            }
            Ok(map)
        }
    }
    deserializer.deserialize_map(Visitor)
}

fn json_lines(text: &str, faults: &mut Faults) -> Vec<Line> {
    let mut lines = Vec::new();
    for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
        let Object(object) = match serde_json::from_str(text) {
            Ok(object) => object,
            Err(error) => {
                // The position in the line is behind the message; its own line is always 1.
                let said = error.to_string();
                faults.add(line, said.split(" at line ").next().unwrap_or(&said));
                continue;
            }
        };
        let mut cells = BTreeMap::new();
        let mut sound = true;
        for (name, value) in object {
            if !COLUMNS.contains(&name.as_str()) && !NOTES.contains(&name.as_str()) {
                faults.add(line, format!("unknown name {name:?}; known are {}", COLUMNS.join(", ")));
                sound = false;
                continue;
            }
            let cell = match value {
                Value::Null => continue,
                Value::String(text) => text.trim().to_owned(),
                Value::Number(number) => number.to_string(),
                _ => {
                    faults.add(line, format!("{name} is neither text nor a number"));
                    sound = false;
                    continue;
                }
            };
            cells.insert(name, cell);
        }
        if sound {
            lines.push((line, cells));
        }
    }
    lines
}

/// What a line says, unless something is wrong with it.
fn entry(line: u64, cells: &BTreeMap<String, String>, folder: &Path, faults: &mut Faults) -> Option<Entry> {
    let before = faults.found.len();
    let cell = |name: &str| cells.get(name).map(String::as_str).filter(|cell| !cell.is_empty());
    for (name, text) in cells {
        if let Some(c) = text.chars().find(|c| c.is_control()) {
            let quote = if matches!(c, '\n' | '\r') { ": is a quote not closed?" } else { "" };
            faults.add(line, format!("{name} holds the control character {c:?}{quote}"));
            return None;
        }
    }
    let slide = match cell("slide") {
        Some(url) if remote::is_url(url) => Some(Source::Url(url.into())),
        Some(url) if url.contains("://") => {
            faults.add(line, format!("slide: {url:?} is no file, and of addresses only s3:// is read"));
            None
        }
        Some(path) => Some(Source::File(folder.join(path))),
        None => {
            faults.add(line, "there is no slide");
            None
        }
    };
    let id = cell("id").unwrap_or_default();
    if let Err(message) = check_id(id) {
        faults.add(line, message);
    }
    let mpp = cell("mpp").and_then(|text| match text.parse::<f64>() {
        Ok(mpp) if (0.01..=100.0).contains(&mpp) => Some(mpp),
        _ => {
            let message = format!("mpp: {text:?} is no number of micrometres per pixel from 0.01 to 100");
            faults.add(line, message);
            None
        }
    });
    let level = cell("level").and_then(|text| match text.parse::<usize>() {
        Ok(level) if level < 64 => Some(level),
        _ => {
            faults.add(line, format!("level: {text:?} is no level; 0 is the finest"));
            None
        }
    });
    let bytes = cell("bytes").and_then(|text| {
        let bytes = text.parse::<u64>().ok();
        if bytes.is_none() {
            faults.add(line, format!("bytes: {text:?} is no whole number"));
        }
        bytes
    });
    let roi_values: Vec<String> =
        cell("roi_value").into_iter().flat_map(|text| text.split([',', ';'])).map(|v| v.trim().to_owned()).collect();
    if !roi_values.is_empty() && cell("roi").is_none() {
        faults.add(line, "roi_value says what is wanted of a region, and there is no roi");
    }
    if let Some(group) = cell("group").filter(|group| group.starts_with(['=', '+', '-', '@'])) {
        faults.add(line, format!("group: {group:?} would be a formula in a spreadsheet"));
    }
    let out = match cell("out") {
        None => Path::new(id).join("mask.ome.zarr"),
        Some(text) => match check_out(text) {
            Ok(out) => out,
            Err(message) => {
                faults.add(line, message);
                return None;
            }
        },
    };
    let slide = slide.filter(|_| faults.found.len() == before)?;
    Some(Entry {
        line,
        slide,
        id: id.into(),
        mpp,
        roi: cell("roi").map(|path| folder.join(path)),
        roi_values,
        level,
        group: cell("group").map(Into::into),
        out,
        bytes,
    })
}

/// An id is the name of a folder, on any disk and in any shell.
pub(super) fn check_id(id: &str) -> Result<(), String> {
    let forbidden = |c: char| c.is_control() || "/\\:*?\"<>|".contains(c);
    match id {
        "" => Err("there is no id".into()),
        id if id.len() > MOST_ID_BYTES => Err(format!("id: {} bytes; it may have {MOST_ID_BYTES}", id.len())),
        id if id.starts_with(['.', '-', ' ', '=', '+', '@']) || id.ends_with(['.', ' ']) => {
            Err(format!("id: {id:?} names a folder: it cannot begin with . - = + @, nor end with a dot"))
        }
        id => match id.chars().find(|&c| forbidden(c)) {
            Some(c) => Err(format!("id: {id:?} names a folder, and {c:?} cannot be in it")),
            None if RESERVED.iter().any(|name| id.eq_ignore_ascii_case(name)) || is_events(id) => {
                Err(format!("id: {id:?} is the name of a file that is written beside the slides' folders"))
            }
            None => Ok(()),
        },
    }
}

fn is_events(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("jsonl"))
}

/// A store below the batch's folder.
fn check_out(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.components().all(|part| matches!(part, Component::Normal(_))) || text.contains('\\') {
        return Err(format!("out: {text:?} leads out of the output folder: it is a path below that, without . and .."));
    }
    if path.extension().is_none_or(|ending| ending != "zarr") {
        return Err(format!("out: {text:?} is no name of a store: it ends in .zarr"));
    }
    let lower = |part: Component<'_>| part.as_os_str().to_string_lossy().to_lowercase();
    let first = path.components().next().map(lower).unwrap_or_default();
    let of_the_batch = RESERVED.contains(&first.as_str()) || is_events(&first) || first.starts_with('.');
    if of_the_batch || path.components().skip(1).any(|part| OF_A_SLIDE.contains(&lower(part).as_str())) {
        return Err(format!("out: {text:?} has the name of a file that a batch writes there"));
    }
    // Components leave out what is doubled or behind: equal paths are equal then.
    Ok(path.components().collect())
}

/// No id and no output twice, however it is spelt.
fn unique(entries: &[Entry], faults: &mut Faults) {
    let (mut ids, mut outs) = (BTreeMap::new(), BTreeMap::new());
    for entry in entries {
        if let Some(first) = ids.insert(entry.id.to_lowercase(), entry) {
            let message = format!("id: {:?} is that of line {}, too", entry.id, first.line);
            let case = if first.id == entry.id { "" } else { ": on many disks they are one folder" };
            faults.add(entry.line, format!("{message}{case}"));
            continue;
        }
        let out = entry.out.to_string_lossy().to_lowercase();
        if let Some(first) = outs.insert(PathBuf::from(out), entry.line) {
            faults.add(entry.line, format!("out: {} is that of line {first}, too", entry.out.display()));
        }
    }
    for entry in ids.values() {
        if let Some(line) = outs.get(Path::new(&entry.id.to_lowercase())) {
            faults.add(entry.line, format!("id: {:?} is also the output of line {line}", entry.id));
        }
    }
    for (out, line) in &outs {
        let around = out.ancestors().skip(1).find_map(|above| Some((above, outs.get(above)?)));
        if let Some((above, first)) = around {
            let message = format!("out: {} lies in {}, the output of line {first}", out.display(), above.display());
            faults.add(*line, message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Manifest> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        Manifest::read(&path)
    }

    /// The faults as `line: message`.
    fn faults(name: &str, content: impl AsRef<[u8]>) -> Vec<(u64, String)> {
        match read(name, content) {
            Err(Error::Manifest { faults, .. }) => faults.into_iter().map(|f| (f.line, f.message)).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn has(faults: &[(u64, String)], line: u64, word: &str) {
        assert!(faults.iter().any(|(l, m)| *l == line && m.contains(word)), "{word:?} in line {line}: {faults:#?}");
    }

    #[test]
    fn the_three_notations_say_the_same() {
        let rows = [["a b.svs", "one", "0.25", "liver, left"], ["/x/c.svs", "two", "", ""]];
        let csv = "\u{feff}slide,id,mpp,group\r\n\r\n\"a b.svs\",one,0.25,\"liver, left\"\r\n/x/c.svs,two,,\r\n";
        let tsv = format!("slide\tid\tmpp\tgroup\n{}\n{}\n", rows[0].join("\t"), rows[1].join("\t"));
        let json = "{\"slide\":\"a b.svs\",\"id\":\"one\",\"mpp\":0.25,\"group\":\"liver, left\"}\n\n\
                    {\"slide\":\"/x/c.svs\",\"id\":\"two\",\"mpp\":null}\n";
        for (name, text, lines) in [("m.csv", csv, [3, 4]), ("m.tsv", &tsv, [2, 3]), ("m.jsonl", json, [1, 3])] {
            let manifest = read(name, text).unwrap();
            let [one, two] = manifest.entries() else { panic!("{manifest:?}") };
            assert_eq!([one.line, two.line], lines, "{name}");
            let folder = std::path::absolute(manifest.path()).unwrap();
            assert_eq!(one.slide, Source::File(folder.parent().unwrap().join("a b.svs")), "{name}");
            assert_eq!((one.mpp, one.group.as_deref(), two.mpp), (Some(0.25), Some("liver, left"), None), "{name}");
            assert_eq!(two.slide, Source::File("/x/c.svs".into()));
            assert_eq!(two.out, Path::new("two/mask.ome.zarr"));
        }
    }

    #[test]
    fn every_fault_is_found_at_once_with_its_line() {
        let text = "slide,id,mpp,level,out,group,roi_value\n\
                    a.svs,one,0.25,1,x/one.ome.zarr,,\n\
                    ,two,,,,,\n\
                    b.svs,one,,,,,\n\
                    c.svs,../up,,,,,\n\
                    d.svs,four,nan,-1,,,\n\
                    e.svs,five,,,../out.zarr,,\n\
                    f.svs,six,,,/abs.zarr,,\n\
                    g.svs,seven,,,x/one.ome.zarr,,\n\
                    h.svs,eight,,,x/one.ome.zarr/labels/y.zarr,,\n\
                    i.svs,nine,,,mask.tif,,\n\
                    https://x/y.svs,ten,,,,,\n\
                    j.svs,ONE,,,,,\n\
                    k.svs,summary.csv,,,,=1+1,\n\
                    l.svs,twelve,,,,,3\n\
                    m.svs\n";
        let found = faults("m.csv", text);
        let expected = [
            (3, "no slide"),
            (4, "line 2"),
            (5, "cannot begin"),
            (6, "mpp: \"nan\""),
            (6, "level: \"-1\""),
            (7, "leads out"),
            (8, "leads out"),
            (9, "that of line 2"),
            (10, "the output of line"),
            (11, "ends in .zarr"),
            (12, "only s3://"),
            (13, "one folder"),
            (14, "is the name of a file"),
            (14, "formula"),
            (15, "there is no roi"),
            (16, "1 cells, and 7 columns"),
        ];
        for (line, word) in expected {
            has(&found, line, word);
        }
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        assert!(found.is_sorted_by_key(|(line, _)| *line));
    }

    #[test]
    fn outputs_leave_what_a_batch_writes_alone() {
        let text = "slide,id,out\n\
                    a.svs,one,summary.csv/m.zarr\n\
                    a.svs,two,a/done/m.zarr\n\
                    a.svs,three,Events.JSONL/m.zarr\n\
                    a.svs,four,.x/m.zarr\n\
                    a.svs,five,a/Lease/b/m.zarr\n\
                    a.svs,six,x.zarr\n\
                    a.svs,X.zarr,masks/m.zarr\n\
                    a.svs,done,done/m.zarr\n";
        let found = faults("m.csv", text);
        for line in 2..=6 {
            has(&found, line, "a file that a batch writes there");
        }
        has(&found, 8, "id: \"X.zarr\" is also the output of line 7");
        assert_eq!(found.len(), 6, "{found:#?}");
    }

    #[test]
    fn faults_that_are_too_many_are_counted() {
        let rows: String = (0..300).map(|i| format!("{i}.svs,../{i}\n")).collect();
        let found = faults("m.csv", format!("slide,id\n{rows}"));
        assert_eq!(found.len(), MOST_FAULTS + 1);
        has(&found[..MOST_FAULTS], 101, "cannot begin");
        assert_eq!(found[MOST_FAULTS], (101, "and there are 200 more faults".to_owned()));
    }

    #[test]
    fn ids_are_names_of_folders_and_nothing_else() {
        for id in ["a", "Case 17 (left)", "x.y_z-1", "é", "2024", "a.."] {
            assert_eq!(check_id(id).is_ok(), !id.ends_with('.'), "{id}");
        }
        let long = "x".repeat(MOST_ID_BYTES + 1);
        for id in ["", ".", "..", "../x", "a/b", "a\\b", "c:", ".hidden", "-rf", "a\u{7}", "Summary.CSV", "batch.json"]
        {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        assert!(check_id(&long).is_err() && check_id("events-0-of-4.jsonl").is_err());
    }

    #[test]
    fn columns_that_are_unknown_or_absent_are_named() {
        let found = faults("m.csv", "slide,name,Slide\na,b,c\n");
        has(&found, 1, "unknown column \"name\"");
        has(&found, 1, "the column slide is there twice");
        has(&found, 1, "no column id");
        has(&faults("m.csv", "slide;id\na.svs;b\n"), 1, "separated by commas");
        has(&faults("m.jsonl", "{\"slide\":\"a\",\"id\":\"b\",\"stain\":1}\n[1]\n{\"id\":\"c\"\n"), 1, "stain");
        let found =
            faults("m.jsonl", "{\"slide\":\"a\",\"id\":[1]}\n[1]\n{\"id\":\"c\"\n{\"id\":\"d\",\"id\":\"e\"}\n");
        for (line, word) in [(1, "neither text"), (2, "invalid type"), (3, "EOF"), (4, "id is there twice")] {
            has(&found, line, word);
        }
    }

    #[test]
    fn other_encodings_and_open_quotes_are_named() {
        has(&faults("m.csv", b"slide,id\na,b\nM\xfcller.svs,c\n"), 3, "not UTF-8");
        has(&faults("m.csv", b"\xff\xfes\0l\0"), 1, "UTF-16");
        has(&faults("m.csv", "slide,id\na,\"b\nc,d\n"), 2, "quote not closed");
        has(&faults("m.csv", ""), 1, "no slide");
        has(&faults("m.csv", "slide,id\n\n"), 1, "no slide");
        assert!(matches!(read("m.xlsx", ""), Err(Error::Usage(_))));
    }

    /// Whatever the bytes are, there is an answer.
    #[test]
    fn bytes_of_chance() {
        use proptest::prelude::*;
        let pieces = prop::sample::select(vec![
            "slide", "id", ",", "\n", "\r\n", "\r", "\"", "a", "\t", "{", "}", ":", "../", "0.5", "\u{feff}", "[", "\\",
        ]);
        proptest!(|(parts in prop::collection::vec(pieces, 0..60), name in prop::sample::select(vec!["m.csv", "m.tsv", "m.jsonl"]))| {
            let _ = read(name, parts.concat());
        });
    }

    #[test]
    fn what_is_not_there_is_named_and_no_fault_of_the_manifest() {
        let manifest = read("m.csv", "slide,id,roi\n/none/a.svs,a,/none/a.png\ns3://bucket/b.svs,b,\n").unwrap();
        let missing: Vec<String> = manifest.missing().iter().map(ToString::to_string).collect();
        assert_eq!(missing.len(), 2, "{missing:?}");
        assert!(missing[0].starts_with("line 2: the slide of a: ") && missing[1].contains("the region of a: "));
        assert_eq!(manifest.entries()[1].slide, Source::Url("s3://bucket/b.svs".into()));
    }
}
