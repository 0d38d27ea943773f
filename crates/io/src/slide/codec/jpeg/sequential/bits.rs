//! The coded bits of a scan.
//!
//! Before they are read, each interval between restart markers is copied without the zeros that are stuffed behind 0xff. Reading
//! then needs not look for markers, and an interval ends where it is known to.

use super::huffman::{END, Fault, Table};

/// Zeros behind the coded bytes. Eight bytes are read at once when fewer than 32 bits are left, so that as long as no bit is used that
/// is not there, reading begins at most 3 bytes behind the last one; and where it would go beyond the padding, too many were used.
const PADDING: usize = 16;

/// Where coefficients lie in a block, row by row, in the order in which they are coded (T.81, figure A.6). What would lie behind the
/// last one is the last one.
static PLACES: [u8; 128] = {
    let mut places = [63; 128];
    let (mut at, mut diagonal) = (0, 0_u8);
    while diagonal < 15 {
        let mut step = 0;
        while step <= diagonal {
            // Diagonals of odd numbers go down, others up.
            let (row, column) = if diagonal % 2 == 1 { (step, diagonal - step) } else { (diagonal - step, step) };
            if row < 8 && column < 8 {
                places[at] = row * 8 + column;
                at += 1;
            }
            step += 1;
        }
        diagonal += 1;
    }
    places
};

/// The place of coefficient `number`, in the order of the stream.
pub(super) fn place(number: usize) -> usize {
    PLACES[number & 127].into()
}

/// Reads the coded bits of an interval.
#[derive(Debug, Default)]
pub(super) struct Bits {
    /// The coded bytes and [`PADDING`].
    bytes: Vec<u8>,
    /// The next byte to be read.
    at: usize,
    /// The next bits, the first one the highest. What is behind `count` of them is 0 or right.
    buffer: u64,
    /// At most 63.
    count: u32,
}

impl Bits {
    /// Starts with the interval that begins at `from`; returns where its marker begins, and which one it is.
    pub(super) fn start(&mut self, stream: &[u8], from: usize) -> Result<(usize, u8), Fault> {
        self.bytes.clear();
        (self.at, self.buffer, self.count) = (0, 0, 0);
        let mut at = from;
        let marker = loop {
            let rest = stream.get(at..).ok_or(Fault::Ends)?;
            let run = first_ff(rest).ok_or(Fault::Ends)?;
            self.bytes.extend_from_slice(&rest[..run]);
            // In front of a marker 0xff may be repeated (T.81, B.1.1.2).
            let repeated = rest[run..].iter().take_while(|&&byte| byte == 0xff).count();
            match rest.get(run + repeated) {
                None => return Err(Fault::Ends),
                Some(0) => self.bytes.push(0xff),
                Some(&marker) => break (at + run, marker),
            }
            at += run + repeated + 1;
        };
        self.bytes.extend([0; PADDING]);
        Ok(marker)
    }

    /// True if no more bits were used than there are.
    pub(super) fn enough(&self) -> bool {
        self.at * 8 <= (self.bytes.len() - PADDING) * 8 + self.count as usize
    }

    /// Decodes a block: its mean after the one before it, and its other coefficients, into the places of a block that is all zeros.
    /// Returns how many coefficients may be other than 0, the mean among them, in the order of the stream.
    #[inline(always)]
    pub(super) fn block(
        &mut self,
        dc: &Table,
        ac: &Table,
        mean: &mut i32,
        block: &mut [i16; 64],
    ) -> Result<usize, Fault> {
        let mut state = State { at: self.at, buffer: self.buffer, count: self.count };
        state.refill(&self.bytes)?;
        let mut entry = dc.look(state.buffer);
        if !entry.exists() {
            entry = dc.search(state.buffer)?;
        }
        *mean += state.value(entry.bits(), entry.size());
        // No mean of 8-bit samples comes near to that, and it keeps the sum from running over.
        if !(-2047..=2047).contains(mean) {
            return Err(Fault::TooLarge);
        }
        block[0] = *mean as i16;
        state.skip(entry.bits());
        let mut done = 1;
        let last = loop {
            state.refill(&self.bytes)?;
            let mut entry = ac.look(state.buffer);
            if !entry.exists() {
                entry = ac.search(state.buffer)?;
            }
            // Zeros where there is no value.
            block[place(done + entry.run())] = state.value(entry.bits(), entry.size()) as i16;
            state.skip(entry.all_bits());
            done += entry.advance();
            if done >= 64 {
                break entry;
            }
        };
        if done >= END {
            done -= END;
            if last.size() == 0 {
                done -= 1;
            } else if done == 64 {
                // A full block has no end: these bits belong to the next one.
                state.back(ac.end());
            }
        }
        if done > 64 {
            return Err(Fault::TooMany);
        }
        (self.at, self.buffer, self.count) = (state.at, state.buffer, state.count);
        Ok(done)
    }
}

/// What changes while a block is read, so that the compiler keeps it in registers.
struct State {
    at: usize,
    buffer: u64,
    count: u32,
}

impl State {
    /// Sees to it that there are bits enough for a code and a value: 16 and 15 at most.
    #[inline(always)]
    fn refill(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if self.count < 32 {
            let next = bytes.get(self.at..).and_then(<[u8]>::first_chunk).ok_or(Fault::Ends)?;
            self.buffer |= u64::from_be_bytes(*next) >> self.count;
            self.at += ((63 - self.count) >> 3) as usize;
            // Whole bytes were taken, of which the last ones do not fit: from 56 to 63 bits are there now.
            self.count |= 0b11_1000;
        }
        Ok(())
    }

    /// The value of `size` bits that ends after `bits` bits (T.81, figure F.12): it begins with 1 if it is positive.
    #[inline(always)]
    fn value(&self, bits: u32, size: u32) -> i32 {
        let raw = (self.buffer >> (64 - bits & 63)) as i32 & ((1 << size) - 1);
        let half = (1_i32 << size) >> 1;
        raw + ((raw - half) >> 31 & (1 - (1 << size)))
    }

    #[inline(always)]
    fn skip(&mut self, bits: u32) {
        self.buffer <<= bits & 63;
        self.count = self.count.wrapping_sub(bits);
    }

    /// Puts back what was skipped last.
    fn back(&mut self, (code, bits): (u32, u32)) {
        self.buffer = self.buffer >> bits | u64::from(code) << (64 - bits);
        self.count += bits;
    }
}

/// Where the first 0xff is.
fn first_ff(bytes: &[u8]) -> Option<usize> {
    const LOW: u64 = 0x0101_0101_0101_0101;
    let mut chunks = bytes.chunks_exact(8);
    for (number, chunk) in chunks.by_ref().enumerate() {
        let word = chunk.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        // The lowest bit that is set is the highest bit of the first 0xff.
        let hits = (!word).wrapping_sub(LOW) & word & (LOW << 7);
        if hits != 0 {
            return Some(number * 8 + hits.trailing_zeros() as usize / 8);
        }
    }
    let rest = chunks.remainder();
    rest.iter().position(|&byte| byte == 0xff).map(|at| bytes.len() - rest.len() + at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slide::codec::jpeg::sequential::huffman::{Class, table};

    #[test]
    fn places_are_those_of_the_standard() {
        assert_eq!(PLACES[..16], [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5]);
        assert_eq!(PLACES[48..66], [58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63, 63, 63]);
        let mut all = PLACES[..64].to_vec();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..64));
    }

    #[test]
    fn the_first_ff_is_found_wherever_it_is() {
        for length in 0..40 {
            // Bytes next to it in value, which carries might run into.
            for others in [0x00, 0x01, 0x7f, 0x80, 0xfe] {
                let mut bytes = vec![others; length];
                assert_eq!(first_ff(&bytes), None);
                for at in (0..length).rev() {
                    bytes[at] = 0xff;
                    assert_eq!(first_ff(&bytes), Some(at));
                }
            }
        }
    }

    #[test]
    fn stuffed_zeros_go_and_markers_end() {
        let mut bits = Bits::default();
        let stream = b"??ab\xff\0c\xff\xff\0d\xff\xff\xd3rest";
        assert_eq!(bits.start(stream, 2), Ok((11, 0xd3)));
        assert_eq!(&bits.bytes[..bits.bytes.len() - PADDING], b"ab\xffc\xffd");
        for cut in [stream.len() - 6, stream.len() - 5, 3] {
            assert_eq!(bits.start(&stream[..cut], 2), Err(Fault::Ends), "{cut}");
        }
        assert_eq!(bits.start(stream, 100), Err(Fault::Ends));
    }

    /// A DC table of values of 0 (code 0), 2 (10) and 11 bits (110); an AC table of the end (0), 1 bit (10), 16 zeros (110), and 15 zeros
    /// with 1 bit (1110).
    fn decode(text: &str, blocks: usize) -> Vec<Result<(usize, Vec<i16>), Fault>> {
        let mut counts = vec![1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let dc = [&counts[..], &[0, 2, 11]].concat();
        counts[3] = 1;
        let ac = [&counts[..], &[0, 0x01, 0xf0, 0xf1]].concat();
        let (dc, ac) = (table(Class::Dc, &dc).unwrap().0, table(Class::Ac, &ac).unwrap().0);
        let mut text = text.replace(' ', "");
        while !text.len().is_multiple_of(8) {
            text.push('1');
        }
        let mut stream = Vec::new();
        for byte in text.as_bytes().chunks(8) {
            let byte = u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap();
            stream.push(byte);
            if byte == 0xff {
                stream.push(0);
            }
        }
        stream.extend([0xff, 0xd9]);
        let mut bits = Bits::default();
        bits.start(&stream, 0).unwrap();
        let mut mean = 0;
        (0..blocks)
            .map(|_| {
                let mut block = [0; 64];
                let done = bits.block(&dc, &ac, &mut mean, &mut block)?;
                if !bits.enough() {
                    return Err(Fault::Ends);
                }
                Ok((done, (0..64).map(|number| block[place(number)]).collect()))
            })
            .collect()
    }

    #[test]
    fn blocks_are_what_is_coded() {
        // A mean of 3, then 1 and -1, the end; a mean that stays, and the end; a mean 2 less, 16 zeros, 1, the end.
        let found = decode("10 11 101 100 0  0 0  10 01 110 101 0", 3);
        let block = |done: usize, values: &[(usize, i16)]| {
            let mut block = vec![0; 64];
            values.iter().for_each(|&(at, value)| block[at] = value);
            Ok((done, block))
        };
        assert_eq!(found[0], block(3, &[(0, 3), (1, 1), (2, -1)]));
        assert_eq!(found[1], block(1, &[(0, 3)]));
        assert_eq!(found[2], block(18, &[(0, 1), (17, 1)]));
    }

    #[test]
    fn a_full_block_has_no_end() {
        // 63 coefficients of 1; the zero after the last one is the mean of the next block, whose end follows.
        let full = format!("0 {}", "101".repeat(63));
        let found = decode(&format!("{full} 0 0 {full}"), 3);
        assert_eq!(found[0].as_ref().unwrap().0, 64);
        assert_eq!(found[0].as_ref().unwrap().1[1..], [1; 63]);
        assert_eq!(found[1].as_ref().unwrap(), &(1, vec![0; 64]));
        assert_eq!(found[2].as_ref().unwrap().0, 64);
    }

    #[test]
    fn what_no_block_is_made_of_is_said() {
        // Four times 15 zeros and a value are all, or one too many.
        assert_eq!(decode("0 11101 11101 11101 101 101 101 0", 1)[0].as_ref().unwrap().0, 52);
        assert_eq!(decode("0 11101 11101 11101 11101 0", 1)[0], Err(Fault::TooMany));
        assert_eq!(decode("0 110 110 110 110 0", 1)[0], Err(Fault::TooMany));
        assert_eq!(decode("0 101 1111 0000", 1)[0], Err(Fault::NoCode));
        assert_eq!(decode("110 11111111111 0 110 11111111111 0", 2)[1], Err(Fault::TooLarge));
        // Two bytes, in which the fifth block has no end; one byte of four blocks.
        assert_eq!(decode("00 00 00 00 0 101 101 1", 5)[4], Err(Fault::Ends));
        let found = decode("00 00 00 00", 70);
        assert!(found[3].is_ok() && found[4..].iter().all(|found| *found == Err(Fault::Ends)));
    }
}
