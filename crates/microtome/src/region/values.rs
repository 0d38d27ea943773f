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
        let mut start = from;
        for equal in samples.chunk_by(|a, b| a == b) {
            let end = start + equal.len() as u64;
            self.stretch(equal[0].into(), start..end, runs);
            start = end;
        }
    }

    /// The wanted stretches of a row of `width` bits, eight to a byte, the leftmost in the highest; 1 is white, which is 255.
    pub(super) fn runs_of_bits(&mut self, packed: &[u8], width: u64, runs: &mut Vec<Range<u64>>) {
        let mut start = 0;
        while start < width {
            let byte = packed[(start / 8) as usize] << (start % 8);
            let (value, uniform) = if byte & 0x80 == 0 { (0, 0x00) } else { (255, 0xff) };
            // Bits that equal the first: in its byte, in bytes of nothing else, and in the byte behind those.
            let same = |byte: u8| u64::from((byte ^ uniform).leading_zeros());
            let mut end = start + same(byte).min(8 - start % 8);
            if end.is_multiple_of(8) {
                let rest = &packed[(end / 8) as usize..];
                let whole = rest.iter().position(|&b| b != uniform).unwrap_or(rest.len());
                end += 8 * whole as u64 + rest.get(whole).map_or(0, |&b| same(b));
            }
            self.stretch(value, start..end.min(width), runs);
            start = end;
        }
    }

    /// A stretch of one value, behind those before it.
    fn stretch(&mut self, value: u16, stretch: Range<u64>, runs: &mut Vec<Range<u64>>) {
        self.seen[usize::from(value)] = true;
        if self.wanted[usize::from(value)] {
            match runs.last_mut() {
                Some(last) if last.end == stretch.start => last.end = stretch.end,
                _ => runs.push(stretch),
            }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bits_are_what_their_samples_are(stretches in prop::collection::vec(1usize..40, 0..20), width in 0u64..300) {
            let colors = [0_u8, 255].into_iter().cycle();
            let mut samples: Vec<u8> = colors.zip(&stretches).flat_map(|(v, &n)| vec![v; n]).collect();
            samples.resize(width as usize, 0);
            let packed: Vec<u8> = (samples.chunks(8))
                .map(|bits| bits.iter().enumerate().fold(0, |byte, (i, &v)| byte | (v & 0x80) >> i))
                .collect();
            let asked = ["255".to_owned()];
            let mut values = Values::new(Path::new("mask"), &asked, &[]).unwrap();
            let (mut of_samples, mut of_bits) = (Vec::new(), Vec::new());
            values.runs(&samples, 0, &mut of_samples);
            values.runs_of_bits(&packed, width, &mut of_bits);
            prop_assert_eq!(of_samples, of_bits);
        }
    }
}
