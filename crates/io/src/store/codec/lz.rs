//! The small compressors that Blosc puts into its blocks: LZ4, BloscLZ and Snappy.
//!
//! Each turns literals and copies of what came before into bytes. They are written out here because a stranger's stream must
//! neither write past the block nor read before it, and the C libraries would bring a C++ runtime (Snappy) for what are a few loops.
//! Formats: <https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md>,
//! <https://github.com/google/snappy/blob/main/format_description.txt>; BloscLZ is FastLZ level 2 (<https://ariya.github.io/FastLZ>) with
//! far distances in big endian.

/// What a stream that does not make sense says.
const DAMAGED: &str = "the compressed stream is damaged";

/// A stream that is read from its start.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    /// An unsigned number of `n` bytes, at most 4, in little endian.
    fn number(&mut self, n: usize) -> Option<usize> {
        Some(self.bytes(n)?.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte)))
    }

    /// `start` and, if that is `more`, all bytes up to the first that is not 255.
    fn length(&mut self, start: usize, more: usize) -> Option<usize> {
        let mut length = start;
        if start == more {
            loop {
                let byte = self.byte()?;
                length = length.checked_add(usize::from(byte))?;
                if byte != 255 {
                    break;
                }
            }
        }
        Some(length)
    }
}

/// Bytes on their way, never more than the block has.
struct Output<'a> {
    block: &'a mut [u8],
    filled: usize,
}

impl Output<'_> {
    fn literals(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.filled.checked_add(bytes.len())?;
        self.block.get_mut(self.filled..end)?.copy_from_slice(bytes);
        self.filled = end;
        Some(())
    }

    /// Repeats `length` bytes from `distance` before the end; the two may overlap, which repeats a pattern.
    fn copy(&mut self, distance: usize, length: usize) -> Option<()> {
        let from = self.filled.checked_sub(distance).filter(|_| distance > 0)?;
        let end = self.filled.checked_add(length).filter(|&end| end <= self.block.len())?;
        let mut done = 0;
        while done < length {
            // What is there already is copied at once, twice as much each time.
            let n = (self.filled - from).min(length - done);
            self.block.copy_within(from..from + n, self.filled);
            self.filled += n;
            done += n;
        }
        debug_assert_eq!(self.filled, end);
        Some(())
    }
}

/// Fills `block` with what `run` makes of the stream.
fn fill(stream: &[u8], block: &mut [u8], run: fn(&mut Input, &mut Output) -> Option<()>) -> Result<(), String> {
    let mut output = Output { block, filled: 0 };
    run(&mut Input(stream), &mut output).ok_or(DAMAGED)?;
    if output.filled != output.block.len() {
        return Err(format!("the compressed stream holds {} bytes instead of {}", output.filled, output.block.len()));
    }
    Ok(())
}

/// An LZ4 block that decodes to exactly `block`.
pub(super) fn lz4(stream: &[u8], block: &mut [u8]) -> Result<(), String> {
    fill(stream, block, |input, output| {
        loop {
            let token = usize::from(input.byte()?);
            let literals = input.length(token >> 4, 15)?;
            output.literals(input.bytes(literals)?)?;
            if input.0.is_empty() {
                return Some(());
            }
            let distance = input.number(2)?;
            let length = input.length(token & 15, 15)?.checked_add(4)?;
            output.copy(distance, length)?;
        }
    })
}

/// A BloscLZ stream that decodes to exactly `block`.
pub(super) fn blosclz(stream: &[u8], block: &mut [u8]) -> Result<(), String> {
    /// What a distance of 13 bits reaches.
    const NEAR: usize = 8191;
    fill(stream, block, |input, output| {
        // The first one is always of literals.
        let mut control = usize::from(input.byte()? & 31);
        loop {
            if control < 32 {
                output.literals(input.bytes(control + 1)?)?;
            } else {
                let length = input.length((control >> 5) - 1, 6)?.checked_add(3)?;
                let (high, low) = (control & 31, usize::from(input.byte()?));
                let distance = if (high, low) == (31, 255) {
                    let far = usize::from(input.byte()?) << 8 | usize::from(input.byte()?);
                    far + NEAR + 1
                } else {
                    (high << 8) + low + 1
                };
                output.copy(distance, length)?;
            }
            match input.byte() {
                Some(next) => control = usize::from(next),
                None => return Some(()),
            }
        }
    })
}

/// A Snappy stream (without frames) that decodes to exactly `block`.
pub(super) fn snappy(stream: &[u8], block: &mut [u8]) -> Result<(), String> {
    fill(stream, block, |input, output| {
        let (mut stated, mut shift) = (0usize, 0);
        loop {
            let byte = usize::from(input.byte()?);
            stated |= (byte & 127) << shift;
            shift += 7;
            if byte < 128 {
                break;
            }
            if shift > 28 {
                return None;
            }
        }
        if stated != output.block.len() {
            return None;
        }
        while let Some(tag) = input.byte() {
            let high = usize::from(tag >> 2);
            match tag & 3 {
                0 => {
                    let length = if high < 60 { high } else { input.number(high - 59)? };
                    output.literals(input.bytes(length.checked_add(1)?)?)?;
                }
                1 => {
                    let distance = (high >> 3) << 8 | input.number(1)?;
                    output.copy(distance, 4 + (high & 7))?;
                }
                2 => {
                    let distance = input.number(2)?;
                    output.copy(distance, high + 1)?;
                }
                _ => {
                    let distance = input.number(4)?;
                    output.copy(distance, high + 1)?;
                }
            }
        }
        Some(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_that_overlap_repeat_a_pattern() {
        let mut block = [0; 11];
        // Two literals, then nine bytes from two before the end.
        lz4(&[0x25, b'a', b'b', 2, 0, 0], &mut block).unwrap();
        assert_eq!(&block, b"abababababa");
        let mut block = [0; 11];
        snappy(&[11, 4, b'a', b'b', 0x15, 2], &mut block).unwrap();
        assert_eq!(&block, b"abababababa");
        let mut block = [0; 11];
        blosclz(&[1, b'a', b'b', 0xE0, 0, 1], &mut block).unwrap();
        assert_eq!(&block, b"abababababa");
    }

    #[test]
    fn nothing_before_the_start_and_nothing_after_the_end() {
        for (stream, decode) in [
            (&[0x15, b'a', 2, 0, 0][..], lz4 as fn(&[u8], &mut [u8]) -> Result<(), String>),
            (&[0x15, b'a', 0, 0, 0], lz4),
            (&[0xF0, 255, 255, 255], lz4),
            (&[], lz4),
            (&[11, 0, b'a', 0x15, 2], snappy),
            (&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF], snappy),
            (&[0, b'a', 0xE0, 0, 1], blosclz),
            (&[0, b'a', 0xFF, 255, 255, 255, 9], blosclz),
            (&[], blosclz),
        ] {
            assert!(decode(stream, &mut [0; 11]).is_err(), "{stream:?}");
        }
        assert!(lz4(&[0x25, b'a', b'b', 2, 0, 0], &mut [0; 10]).is_err());
        assert!(lz4(&[0x25, b'a', b'b', 2, 0, 0], &mut [0; 12]).is_err());
    }
}
