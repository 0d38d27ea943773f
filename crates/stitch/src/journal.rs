//! What is finished and safe on the disk, so that a run that was stopped goes on where it was.
//!
//! A journal is a text file of JSON lines beside the store. The first line says which run it belongs to; every further one names a
//! shard that is durable, its digest, and how often each label occurs in it, or a tile of the slide that could not be read. Lines are only
//! ever appended, after the shards that they name have been synced. A last line that a crash cut off is not believed, nor is anything from
//! the first line on that a crash of the machine has made unreadable: what it named is computed again.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use microtome_io::store::Stored;
use microtome_io::{Level, TileCoord};
use serde::{Deserialize, Serialize};

use crate::product::Product;
use crate::{Error, Result};

/// The longest line that is believed: the header holds the settings of a run, which are a few kilobytes.
const LINE_LIMIT: u64 = 1 << 20;

/// A finished shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The image that it belongs to.
    #[serde(default, skip_serializing_if = "Product::is_labels")]
    pub product: Product,
    /// Its level.
    pub level: Level,
    /// Its column and row.
    #[serde(flatten)]
    pub shard: TileCoord,
    /// SHA-256 of the shard's file, or in version 0.4 of OME-Zarr the digest over the files of its chunks, as the store told it, in hexadecimal; `None` for a
    /// shard of nothing but background, which has no file.
    pub sha256: Option<String>,
    /// Pixels by label, beginning with label 0 (not counted, always 0). Only for shards of level 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub counts: Vec<u64>,
}

impl Entry {
    /// An entry for a shard of labels that was stored.
    #[must_use]
    pub fn new(level: Level, shard: TileCoord, stored: Stored, counts: Vec<u64>) -> Self {
        let hex = |digest: [u8; 32]| digest.iter().map(|b| format!("{b:02x}")).collect();
        let sha256 = match stored {
            Stored::Background => None,
            Stored::Sha256(digest) => Some(hex(digest)),
        };
        Self { product: Product::Labels, level, shard, sha256, counts }
    }
}

/// A stored tile of the slide that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableTile {
    /// The level of the slide.
    pub level: Level,
    /// Its column and row.
    #[serde(flatten)]
    pub tile: TileCoord,
    /// Why.
    pub cause: String,
}

/// A line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// A tile that could not be read.
    Unreadable {
        /// Which.
        unreadable: UnreadableTile,
    },
    /// A finished shard.
    Shard(Entry),
}

/// A journal that is being written.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

/// A journal as a run left it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// What the first line says of the run.
    pub header: serde_json::Value,
    /// Finished shards, in the order of products, levels, rows and columns.
    pub entries: BTreeMap<(Product, Level, TileCoord), Entry>,
    /// Tiles of the slide that could not be read.
    pub unreadable: Vec<UnreadableTile>,
    /// Bytes that are whole lines.
    length: u64,
}

impl Record {
    /// What the journals of several processes that worked on one run say together, under the header of that run. A tile that several could not
    /// read is named once.
    #[must_use]
    pub fn together(header: serde_json::Value, records: impl IntoIterator<Item = Self>) -> Self {
        let mut together = Self { header, entries: BTreeMap::new(), unreadable: Vec::new(), length: 0 };
        for record in records {
            together.entries.extend(record.entries);
            for tile in record.unreadable {
                if !together.unreadable.iter().any(|known| known.is(&tile)) {
                    together.unreadable.push(tile);
                }
            }
        }
        together
    }

    /// The lines of a journal that says the same.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let unreadable = self.unreadable.iter().cloned().map(|unreadable| Line::Unreadable { unreadable });
        unreadable.chain(self.entries.values().cloned().map(Line::Shard)).collect()
    }
}

impl UnreadableTile {
    /// True if both are the same tile, whatever the cause.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        (self.level, self.tile) == (other.level, other.tile)
    }
}

impl Journal {
    /// Begins a journal, in place of any that is there.
    ///
    /// # Errors
    /// [`Error::Journal`] if it cannot be written.
    pub fn create(path: &Path, header: &serde_json::Value) -> Result<Self> {
        // Under another name until the first line is durable: a journal without a whole one is nobody's.
        let partial = path.with_extension(format!("jsonl.{}.part", std::process::id()));
        let file = File::create(&partial).map_err(|e| Error::journal(path, e))?;
        let mut journal = Self { path: path.into(), file };
        journal
            .write(&format!("{header}\n"))
            .and_then(|()| std::fs::rename(&partial, path).map_err(|e| Error::journal(path, e)))
            .inspect_err(|_| {
                // The error that counts is the one at hand.
                let _ = std::fs::remove_file(&partial);
            })?;
        if let Some(folder) = path.parent() {
            // The name must survive, too; systems that cannot open folders have no such need.
            let _ = File::open(folder).and_then(|f| f.sync_all());
        }
        Ok(journal)
    }

    /// Reads a journal; `None` if there is none, or not even its first line is whole.
    ///
    /// # Errors
    /// [`Error::Journal`] if it cannot be read or holds something else.
    pub fn read(path: &Path) -> Result<Option<Record>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::journal(path, e)),
        };
        let mut reader = BufReader::new(file);
        let mut lines = std::iter::from_fn(|| next_line(&mut reader).transpose());
        let Some(first) = lines.next() else { return Ok(None) };
        let first = first.map_err(|e| Error::journal(path, e))?;
        let mut length = first.len() as u64;
        let header = serde_json::from_str(&first).map_err(|_| {
            let message = "line 1 is not a journal's";
            Error::journal(path, std::io::Error::new(std::io::ErrorKind::InvalidData, message))
        })?;
        let (mut entries, mut unreadable) = (BTreeMap::new(), Vec::new());
        for line in lines {
            let line = match line {
                Err(e) if e.kind() == std::io::ErrorKind::InvalidData => break,
                line => line.map_err(|e| Error::journal(path, e))?,
            };
            match serde_json::from_str(&line) {
                Ok(Line::Unreadable { unreadable: tile }) => unreadable.push(tile),
                Ok(Line::Shard(entry)) => {
                    entries.insert((entry.product, entry.level, entry.shard), entry);
                }
                Err(_) => break,
            }
            length += line.len() as u64;
        }
        Ok(Some(Record { header, entries, unreadable, length }))
    }

    /// Goes on with a journal that was read; what a crash cut off is dropped.
    ///
    /// # Errors
    /// [`Error::Journal`] if it cannot be written.
    pub fn resume(path: &Path, record: &Record) -> Result<Self> {
        let open = || {
            let mut file = OpenOptions::new().write(true).open(path)?;
            file.set_len(record.length)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        Ok(Self { path: path.into(), file: open().map_err(|e| Error::journal(path, e))? })
    }

    /// Notes shards that are durable, and returns when that is durable as well.
    ///
    /// # Errors
    /// [`Error::Journal`] if it cannot be written.
    pub fn append(&mut self, lines: &[Line]) -> Result<()> {
        let mut text = String::new();
        for line in lines {
            let line = serde_json::to_string(line).map_err(|e| Error::journal(&self.path, e.into()))?;
            text.push_str(&line);
            text.push('\n');
        }
        self.write(&text)
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(|e| Error::journal(&self.path, e))
    }
}

/// The next line with its end; `None` at the end of the file, or where what follows has no end.
fn next_line(reader: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    std::io::Read::take(&mut *reader, LINE_LIMIT).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        let whole = line.len() as u64 >= LINE_LIMIT;
        let error = || std::io::Error::new(std::io::ErrorKind::InvalidData, "a line of more than a mebibyte");
        return if whole { Err(error()) } else { Ok(None) };
    }
    String::from_utf8(line).map(Some).map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(column: u64) -> Line {
        let stored = if column == 0 { Stored::Background } else { Stored::Sha256([column as u8; 32]) };
        Line::Shard(Entry::new(Level(0), TileCoord { row: 3, column }, stored, vec![0, column]))
    }

    #[test]
    fn every_product_and_every_tile_that_could_not_be_read_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        let mut journal = Journal::create(&path, &json!({})).unwrap();
        let tile = UnreadableTile { level: Level(1), tile: TileCoord { row: 2, column: 7 }, cause: "torn".into() };
        let shard = Entry::new(Level(0), TileCoord { row: 0, column: 0 }, Stored::Background, Vec::new());
        let probabilities = Entry { product: Product::Probabilities, ..shard.clone() };
        let lines =
            [Line::Unreadable { unreadable: tile.clone() }, Line::Shard(probabilities), Line::Shard(shard.clone())];
        journal.append(&lines).unwrap();
        let record = Journal::read(&path).unwrap().unwrap();
        assert_eq!((record.unreadable, record.entries.len()), (vec![tile], 2));
        assert_eq!(record.entries[&(Product::Labels, shard.level, shard.shard)], shard);
        // The lines of a run that writes nothing but labels do not speak of products.
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|line| line.contains("product")).count(), 1);
    }

    #[test]
    fn several_journals_together_are_one() {
        let folder = tempfile::tempdir().unwrap();
        let tile = |cause: &str| {
            let tile = TileCoord { row: 2, column: 7 };
            Line::Unreadable { unreadable: UnreadableTile { level: Level(1), tile, cause: cause.into() } }
        };
        let journals = [vec![entry(0), tile("torn")], vec![entry(1), tile("short"), entry(2)]].map(|lines| {
            let path = folder.path().join(format!("{}.jsonl", lines.len()));
            Journal::create(&path, &json!({})).unwrap().append(&lines).unwrap();
            Journal::read(&path).unwrap().unwrap()
        });
        let together = Record::together(json!({ "run": 1 }), journals);
        let path = folder.path().join("journal.jsonl");
        Journal::create(&path, &together.header).unwrap().append(&together.lines()).unwrap();
        let read = Journal::read(&path).unwrap().unwrap();
        assert_eq!(read.header, json!({ "run": 1 }));
        assert_eq!((read.entries.len(), read.unreadable.len()), (3, 1));
        assert_eq!((&read.entries, &read.unreadable), (&together.entries, &together.unreadable));
    }

    #[test]
    fn what_was_appended_is_read_and_a_torn_line_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        assert_eq!(Journal::read(&path).unwrap(), None);
        let mut journal = Journal::create(&path, &json!({ "fingerprint": "f" })).unwrap();
        journal.append(&[entry(0), entry(1)]).unwrap();
        journal.append(&[entry(2)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        // Cut off anywhere, it holds the entries whose lines are whole, and can be gone on with.
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let lines = whole[..length].iter().filter(|&&b| b == b'\n').count();
            let Some(record) = Journal::read(&path).unwrap() else {
                assert_eq!(lines, 0);
                continue;
            };
            assert_eq!(record.entries.len(), lines - 1);
            Journal::resume(&path, &record).unwrap().append(&[entry(9)]).unwrap();
            assert_eq!(Journal::read(&path).unwrap().unwrap().entries.len(), lines);
        }
    }

    #[test]
    fn a_file_that_is_no_journal_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        let long = vec![b' '; (LINE_LIMIT + 1) as usize];
        for text in [b"hello\n".as_slice(), b"\0\0\n", b"\xff\n", &long] {
            std::fs::write(&path, text).unwrap();
            assert!(Journal::read(&path).is_err(), "{:?}", &text[..text.len().min(9)]);
        }
    }

    #[test]
    fn nothing_behind_a_damaged_line_is_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        let mut journal = Journal::create(&path, &json!({})).unwrap();
        journal.append(&[entry(0), entry(1)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let long = vec![b' '; (LINE_LIMIT + 1) as usize];
        for damage in [b"[1]\n".as_slice(), b"{\"level\":0}\n", b"\0\0\0\n", b"\xff\n", &long] {
            std::fs::write(&path, [&whole, damage, &whole].concat()).unwrap();
            let record = Journal::read(&path).unwrap().unwrap();
            assert_eq!(record.entries.len(), 2);
            Journal::resume(&path, &record).unwrap().append(&[entry(2)]).unwrap();
            assert_eq!(Journal::read(&path).unwrap().unwrap().entries.len(), 3);
        }
    }
}
