//! Where the intervals of a JPEG start.
//!
//! The file has a table of it (65426, upper halves in 65432, counted from the start of the strip), which is a hint and no
//! more: a start must have the right marker before it, and a run of intervals the right markers in it. A table that is
//! caught in a lie is not asked again. Without one the JPEG is searched from its start, as far as needed, and what was
//! found is kept: 8 bytes an interval.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::super::codec::jpeg::restart::{Marker, Prelude, next_marker, restart_marker};
use super::super::tiff::ifd::Table;
use super::super::tiff::{Container, Ifd, Tag};
use crate::{Error, Result};

/// Bytes that are searched at once.
const WINDOW: u64 = 1 << 20;

/// The starts of all intervals of a strip.
#[derive(Debug)]
pub(super) struct Intervals {
    count: u64,
    /// Where the strip starts and ends.
    strip: Range<u64>,
    /// Where its first interval starts.
    data: u64,
    hints: Option<(Table, Option<Table>)>,
    lied: AtomicBool,
    search: Mutex<Search>,
}

/// How far a strip was searched.
#[derive(Debug)]
struct Search {
    /// Starts of the first intervals.
    starts: Vec<u64>,
    /// Where to go on.
    at: u64,
    /// Why there is nothing more to be found.
    over: Option<String>,
}

/// Successive intervals.
#[derive(Debug)]
pub(super) struct Run<'a> {
    bytes: Cow<'a, [u8]>,
    pieces: Vec<Range<usize>>,
}

impl Run<'_> {
    /// The bytes of some of the intervals.
    pub(super) fn pieces(&self, first: usize, count: usize) -> impl Iterator<Item = &[u8]> {
        self.pieces[first..first + count].iter().map(|piece| &self.bytes[piece.clone()])
    }
}

impl Intervals {
    /// The `count` intervals of a strip.
    pub(super) fn new(file: &Container, ifd: &Ifd, strip: Range<u64>, prelude: &Prelude, count: u64) -> Result<Self> {
        let table = |tag: Tag| match ifd.field(tag) {
            Some(field) if field.count == count => ifd.table(file, tag),
            // A table of something else is none.
            _ => Ok(None),
        };
        let hints = table(Tag::NDPI_MCU_STARTS)?;
        let upper = table(Tag::NDPI_MCU_STARTS_HIGH)?;
        let data = strip.start + prelude.data_at as u64;
        let search = Search { starts: vec![data], at: data, over: None };
        Ok(Self {
            count,
            strip,
            data,
            hints: hints.map(|hints| (hints, upper)),
            lied: AtomicBool::new(false),
            search: Mutex::new(search),
        })
    }

    /// The bytes of `count` intervals from `first` on, or a clause that says why they are not there.
    pub(super) fn read<'a>(
        &self,
        file: &'a Container,
        prelude: &Prelude,
        first: u64,
        count: u64,
    ) -> Result<Result<Run<'a>, String>> {
        let most = prelude.most_bytes_of_an_interval().saturating_mul(count);
        if let Some(range) = self.hinted(file, first, count)? {
            if let Ok(run) = self.run(file, range, most, first, count)? {
                return Ok(Ok(run));
            }
            self.lied.store(true, Ordering::Relaxed);
        }
        match self.found(file, first, count)? {
            Ok(range) => self.run(file, range, most, first, count),
            Err(what) => Ok(Err(what)),
        }
    }

    /// Says that these intervals will be wanted soon, if a table says where they are.
    pub(super) fn prefetch(&self, file: &Container, first: u64, count: u64) {
        if let (Ok(Some(start)), Ok(Some(end))) = (self.hint(file, first), self.hint(file, first + count))
            && start < end
        {
            file.source().prefetch(start..end);
        }
    }

    /// Where an interval starts by the table, unless that is nowhere in the strip. Behind the last one lies what is left of the strip.
    fn hint(&self, file: &Container, number: u64) -> Result<Option<u64>> {
        let Some((hints, upper)) = self.hints.filter(|_| !self.lied.load(Ordering::Relaxed)) else { return Ok(None) };
        if number == 0 {
            return Ok(Some(self.data));
        }
        let Some(hint) = hints.get(file, number)? else { return Ok(Some(self.strip.end)) };
        let upper = upper.map(|upper| upper.get(file, number)).transpose()?.flatten().unwrap_or_default();
        let start = self.strip.start.saturating_add(hint).saturating_add(upper.saturating_mul(1 << 32));
        Ok(Some(start).filter(|start| (self.data + 2..=self.strip.end).contains(start)))
    }

    /// Where intervals start and end by the table, if the right markers are there.
    fn hinted(&self, file: &Container, first: u64, count: u64) -> Result<Option<Range<u64>>> {
        let mut ends = [0; 2];
        for (end, number) in ends.iter_mut().zip([first, first + count]) {
            let hint = match self.hint(file, number)? {
                Some(hint) if number == 0 || number == self.count => Some(hint),
                Some(hint) => {
                    let before = file.source().read_at(hint - 2..hint)?;
                    Some(hint).filter(|_| *before == [0xff, restart_marker(number)])
                }
                None => None,
            };
            let Some(hint) = hint else {
                self.lied.store(true, Ordering::Relaxed);
                return Ok(None);
            };
            *end = hint;
        }
        Ok(Some(ends[0]..ends[1]))
    }

    /// Where intervals start and end, by searching for markers.
    fn found(&self, file: &Container, first: u64, count: u64) -> Result<Result<Range<u64>, String>> {
        // A panic elsewhere leaves what was found as true as it was.
        let mut search = self.search.lock().unwrap_or_else(PoisonError::into_inner);
        let last = first + count;
        while (search.starts.len() as u64) <= last.min(self.count - 1) {
            if let Some(why) = &search.over {
                return Ok(Err(why.clone()));
            }
            self.search_on(file, &mut search)?;
        }
        let end = search.starts.get(last as usize).copied();
        Ok(Ok(search.starts[first as usize]..end.unwrap_or(self.strip.end)))
    }

    /// Searches one more window.
    fn search_on(&self, file: &Container, search: &mut Search) -> Result<()> {
        let window = search.at..self.strip.end.min(search.at.saturating_add(WINDOW));
        let units = file.source().read_at(window.clone())?;
        let mut at = 0;
        while let Some(marker) = next_marker(&units, at) {
            let number = search.starts.len() as u64;
            if number == self.count || marker.code != restart_marker(number) {
                search.over = Some(format!("JPEG: {}", self.wrong(marker, number)));
                return Ok(());
            }
            if search.starts.len() as u64 * 8 >= file.limits().table_bytes {
                return Err(Error::limits(
                    file.path(),
                    format!("there are more than {number} restart markers to be remembered, which is the limit"),
                ));
            }
            search.starts.push(window.start + marker.end as u64);
            at = marker.end;
            search.at = window.start + at as u64;
        }
        if window.end == self.strip.end {
            search.over = Some(format!("JPEG: is cut off after {} of {} intervals", search.starts.len(), self.count));
        }
        // The last byte may be the first half of a marker.
        let half = u64::from(units.last() == Some(&0xff));
        search.at = search.at.max(window.end - half);
        Ok(())
    }

    /// Takes a run of intervals apart, or says in a clause what is wrong with it.
    fn run<'a>(
        &self,
        file: &'a Container,
        range: Range<u64>,
        most: u64,
        first: u64,
        count: u64,
    ) -> Result<Result<Run<'a>, String>> {
        let last = first + count == self.count;
        // Behind the last interval there may be anything.
        let end = if last { range.end.min(range.start.saturating_add(most)) } else { range.end };
        if end <= range.start || end - range.start > most {
            return Ok(Err("JPEG: there are more bytes between restart markers than pixels can take".into()));
        }
        let bytes = file.source().read_at(range.start..end)?;
        let mut pieces = Vec::new();
        let mut at = 0;
        for number in first + 1..=first + count {
            let Some(marker) = next_marker(&bytes, at) else {
                return Ok(Err(format!("JPEG: is cut off in interval {} of {}", number, self.count)));
            };
            let right = if number == self.count { marker.is_end() } else { marker.code == restart_marker(number) };
            if !right {
                return Ok(Err(format!("JPEG: {}", self.wrong(marker, number))));
            }
            pieces.push(at..marker.start);
            at = marker.end;
        }
        if !last && at != bytes.len() {
            return Ok(Err("JPEG: there are more restart markers than intervals".into()));
        }
        Ok(Ok(Run { bytes, pieces }))
    }

    fn wrong(&self, marker: Marker, number: u64) -> String {
        format!("marker {:#04x} lies behind interval {number} of {}", marker.code, self.count)
    }
}
