//! Which values of a mask are wanted, and which it has.

use std::ops::Range;
use std::path::Path;

use microtome_io::Class;
use microtome_tile::Roi;

use super::refuse;
use crate::Result;

/// Values named in a message at most.
const NAMED: usize = 16;

/// The values of a mask of up to 16 bits.
pub(super) struct Values<'a> {
    path: &'a Path,
    asked: &'a [String],
    classes: &'a [Class],
    wanted: Vec<bool>,
    seen: Vec<bool>,
}

impl<'a> Values<'a> {
    /// Takes numbers, or names of the classes.
    pub(super) fn new(path: &'a Path, asked: &'a [String], classes: &'a [Class]) -> Result<Self> {
        let mut values = Self { path, asked, classes, wanted: vec![false; 1 << 16], seen: vec![false; 1 << 16] };
        for text in asked {
            let class = || classes.iter().find(|class| class.name == *text).map(|class| class.value);
            let Some(value) = text.parse::<u16>().ok().or_else(class) else {
                return Err(refuse(path, values.stranger(text)));
            };
            values.wanted[usize::from(value)] = true;
        }
        Ok(values)
    }

    fn stranger(&self, text: &str) -> String {
        if self.classes.is_empty() {
            return format!("{text:?} is no value of a pixel: those are numbers from 0 to 65535");
        }
        let classes: Vec<_> = self.classes.iter().map(|class| self.name(class.value)).collect();
        format!("{text:?} is neither a number nor the name of a class; its classes are {}", list(&classes))
    }

    fn name(&self, value: u16) -> String {
        match self.classes.iter().find(|class| class.value == value) {
            Some(class) => format!("{value} ({})", class.name),
            None => value.to_string(),
        }
    }

    /// The wanted stretches of a row whose first sample lies at `from`, appended to those before them.
    pub(super) fn runs<T: Copy + PartialEq + Into<u16>>(
        &mut self,
        samples: &[T],
        from: u64,
        runs: &mut Vec<Range<u64>>,
    ) {
        let mut start = 0;
        for equal in samples.chunk_by(|a, b| a == b) {
            let value = usize::from(equal[0].into());
            self.seen[value] = true;
            let end = start + equal.len() as u64;
            if self.wanted[value] {
                match runs.last_mut() {
                    Some(last) if last.end == from + start => last.end = from + end,
                    _ => runs.push(from + start..from + end),
                }
            }
            start = end;
        }
    }

    /// Refuses a mask that was read without knowing, or in vain.
    pub(super) fn check(&self, roi: &Roi) -> Result<()> {
        let seen: Vec<_> = (0..=u16::MAX).filter(|&v| self.seen[usize::from(v)]).map(|v| self.name(v)).collect();
        if self.asked.is_empty() {
            let message = format!(
                "which of its values are wanted is not guessed: say so with --roi-value; it has {}",
                list(&seen)
            );
            return Err(refuse(self.path, message));
        }
        if roi.cells() == 0 {
            let message = format!("no pixel of it has the value {}; it has {}", self.asked.join(" or "), list(&seen));
            return Err(refuse(self.path, message));
        }
        Ok(())
    }
}

/// The first of some names.
pub(super) fn list(names: &[String]) -> String {
    let shown = names[..names.len().min(NAMED)].join(", ");
    match names.len().saturating_sub(NAMED) {
        0 if names.is_empty() => "none".into(),
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
