//! What happened, line by line: `events.jsonl`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::clock;
use super::folder::Process;
use super::shard::Shard;
use crate::{Error, Result};

/// What a line says. All lines have all names; what does not apply is null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum What {
    BatchStarted,
    SlideStarted,
    SlideDone,
    SlideFailed,
    SlideStopped,
    BatchEnded,
}

/// What is known of an event.
#[derive(Debug, Clone, Default)]
pub(super) struct About<'a> {
    pub(super) id: Option<&'a str>,
    pub(super) group: Option<&'a str>,
    pub(super) attempt: Option<u32>,
    pub(super) code: Option<u8>,
    pub(super) error: Option<&'a str>,
    pub(super) seconds: Option<f64>,
}

#[derive(Serialize)]
struct Line<'a> {
    time: &'a str,
    event: What,
    id: Option<&'a str>,
    group: Option<&'a str>,
    attempt: Option<u32>,
    code: Option<u8>,
    error: Option<&'a str>,
    seconds: Option<f64>,
    shard: Option<String>,
    host: &'a str,
    pid: u32,
}

/// The file of a process, or of several: lines are only ever appended, and each is whole.
#[derive(Debug)]
pub(super) struct Events {
    path: PathBuf,
    file: Mutex<File>,
    process: Process,
    shard: Option<Shard>,
}

impl Events {
    /// Opens the file. What a crash has left of a last line is no line, and goes.
    pub(super) fn open(path: &Path, shard: Option<Shard>) -> Result<Self> {
        let io = |source| Error::Io { path: path.into(), source };
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(io)?;
        locked(&mut file, cut_torn).map_err(io)?;
        Ok(Self { path: path.into(), file: Mutex::new(file), process: Process::this(), shard })
    }

    /// Appends a line. It is on the disk when this returns.
    pub(super) fn add(&self, event: What, about: &About<'_>) -> Result<()> {
        let io = |source| Error::Io { path: self.path.clone(), source };
        let line = Line {
            time: &clock::now(),
            event,
            id: about.id,
            group: about.group,
            attempt: about.attempt,
            code: about.code,
            error: about.error,
            seconds: about.seconds,
            shard: self.shard.map(|shard| shard.to_string()),
            host: &self.process.host,
            pid: self.process.pid,
        };
        let text = serde_json::to_string(&line).map_err(|error| io(error.into()))? + "\n";
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        locked(&mut file, |file| {
            cut_torn(file)?;
            let before = file.seek(SeekFrom::End(0))?;
            let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
            if written.is_err() {
                // Half a line, on a disk that is full, is none. The error that counts is the one at hand.
                let _ = file.set_len(before);
            }
            written
        })
        .map_err(io)
    }
}

/// Does something while no other process writes. Appending is atomic on local disks; over NFS it is so under a lock only. Where there are
/// no locks, each line is still one call.
fn locked<T>(file: &mut File, work: impl FnOnce(&mut File) -> std::io::Result<T>) -> std::io::Result<T> {
    let is_locked = file.lock().is_ok();
    let result = work(file);
    if is_locked {
        // It goes with the file otherwise.
        let _ = file.unlock();
    }
    result
}

/// Cuts off what follows the last end of a line.
fn cut_torn(file: &mut File) -> std::io::Result<()> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let length = end;
    let mut buffer = [0; 4096];
    while end > 0 {
        let begin = end.saturating_sub(buffer.len() as u64);
        let part = &mut buffer[..(end - begin) as usize];
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|&b| b == b'\n') {
            end = begin + at as u64 + 1;
            break;
        }
        end = begin;
    }
    if end < length { file.set_len(end) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn lines_are_whole_and_have_the_same_names() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("events.jsonl");
        let events = Events::open(&path, "1/4".parse().ok()).unwrap();
        events.add(What::BatchStarted, &About::default()).unwrap();
        let about = About { id: Some("a"), code: Some(4), error: Some("no \"slide\"\n"), ..About::default() };
        events.add(What::SlideFailed, &about).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let names = |line: &Value| line.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&lines[0]), names(&lines[1]));
        assert_eq!((&lines[1]["event"], &lines[1]["shard"]), (&"slide-failed".into(), &"1/4".into()));
        assert_eq!(lines[0]["id"], Value::Null);
        assert!(lines[0]["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn what_a_crash_left_of_a_line_goes() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("events.jsonl");
        let long = format!("{{\"x\":\"{}\"}}", "y".repeat(10_000));
        for (torn, kept) in [("{}\n{\"a", "{}\n"), ("{\"a", ""), ("", ""), ("{}\n", "{}\n")] {
            let whole = format!("{long}\n{torn}");
            std::fs::write(&path, &whole).unwrap();
            drop(Events::open(&path, None).unwrap());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{long}\n{kept}"), "{torn:?}");
            std::fs::write(&path, torn).unwrap();
            drop(Events::open(&path, None).unwrap());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), kept, "{torn:?}");
        }
        std::fs::write(&path, &long).unwrap();
        drop(Events::open(&path, None).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    }

    #[test]
    fn many_writers_do_not_mix_their_lines() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("events.jsonl");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    let events = Events::open(path, None).unwrap();
                    let id = format!("{writer}").repeat(500);
                    for attempt in 0..50 {
                        let about = About { id: Some(&id), attempt: Some(attempt), ..About::default() };
                        events.add(What::SlideStarted, &about).unwrap();
                    }
                });
            }
        });
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 200);
        assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    }
}
