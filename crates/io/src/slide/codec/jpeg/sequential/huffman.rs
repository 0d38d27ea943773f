//! Huffman codes: what the next bits stand for, by one look into a table.

use std::cell::RefCell;
use std::rc::Rc;

/// Bits that a look into a table sees. Codes that are longer are rare, and found by their length.
const WINDOW: u32 = 10;

/// What the symbols of a table mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// The size of a difference between means of blocks.
    Dc,
    /// A run of zeros, and the size of the coefficient behind it.
    Ac,
}

impl Class {
    /// The largest size, in bits, that a value of 8-bit samples takes (T.81, F.1.2).
    fn largest(self) -> u8 {
        match self {
            Self::Dc => 11,
            Self::Ac => 10,
        }
    }
}

/// Why bits stand for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// There are too few of them.
    Ends,
    /// No code of the table begins like that.
    NoCode,
    /// A block goes on after its last coefficient.
    TooMany,
    /// A value is larger than 8-bit samples can make it.
    TooLarge,
}

impl Fault {
    /// What is wrong, in words.
    pub(super) fn says(self) -> &'static str {
        match self {
            Self::Ends => "its coded data end early",
            Self::NoCode => "bits that are no Huffman code of its table",
            Self::TooMany => "a block of more than 64 coefficients",
            Self::TooLarge => "a coefficient that samples of 8 bits cannot have",
        }
    }
}

/// What a code stands for: a run of zeros, then a value of so many bits, which follow the code. Packed, so that a table is small:
///
/// - bits 0 to 5: of code and value together;
/// - bits 6 to 9: of the value;
/// - bits 10 to 13: the run;
/// - bits 14 to 19: of code, value, and the code for the end of a block, if it follows within the window;
/// - bits 20 to 27: how many coefficients are done with, and 128 more if the block ends.
///
/// 0 is no code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Entry(u32);

/// What [`Entry::advance`] is larger by where the block ends.
pub(super) const END: usize = 128;

impl Entry {
    fn new(length: u32, size: u32, run: u32) -> Self {
        let bits = length + size;
        Self(bits | size << 6 | run << 10 | bits << 14 | (run + 1) << 20)
    }

    /// The end of a block by itself.
    fn end(length: u32) -> Self {
        Self(length | length << 14 | (END as u32 + 1) << 20)
    }

    /// The same, with the end of a block behind it, of so many bits.
    fn with_end(self, length: u32) -> Self {
        Self(self.0 + (length << 14) + ((END as u32) << 20))
    }

    pub(super) fn exists(self) -> bool {
        self.0 != 0
    }

    pub(super) fn bits(self) -> u32 {
        self.0 & 63
    }

    pub(super) fn size(self) -> u32 {
        self.0 >> 6 & 15
    }

    pub(super) fn run(self) -> usize {
        (self.0 >> 10 & 15) as usize
    }

    /// Bits of all that the entry stands for.
    pub(super) fn all_bits(self) -> u32 {
        self.0 >> 14 & 63
    }

    /// How far it leads: one more than the run, and [`END`] more at the end of a block.
    pub(super) fn advance(self) -> usize {
        (self.0 >> 20) as usize
    }
}

/// A Huffman table, ready to decode with.
#[derive(Debug)]
pub(super) struct Table {
    fast: [Entry; 1 << WINDOW],
    /// For each length the first code, of 16 bits, that is longer.
    limits: [u32; 17],
    /// What to add to a code of this length to get the place of its symbol.
    offsets: [i32; 17],
    symbols: Vec<u8>,
    class: Class,
    /// The code for the end of a block: itself, and how many bits it has.
    end: Option<(u32, u32)>,
}

impl Table {
    /// Makes a table of the number of codes of 1 to 16 bits, and their symbols (T.81, C.2).
    fn new(class: Class, counts: &[u8; 16], symbols: &[u8]) -> Result<Self, String> {
        let mut table = Self {
            fast: [Entry::default(); 1 << WINDOW],
            limits: [0; 17],
            offsets: [0; 17],
            symbols: symbols.to_vec(),
            class,
            end: None,
        };
        let (mut code, mut place) = (0_u32, 0_usize);
        for (length, &count) in (1..=16_u32).zip(counts) {
            table.offsets[length as usize] = place as i32 - code as i32;
            for &symbol in &symbols[place..place + usize::from(count)] {
                // No code is all ones, so that the next one still fits.
                if code + 1 >= 1 << length {
                    return Err(format!("JPEG: a Huffman table has too many codes of {length} bits"));
                }
                let entry = entry(class, symbol, length).unwrap_or_default();
                if length <= WINDOW {
                    let (first, step) = ((code << (WINDOW - length)) as usize, 1 << (WINDOW - length));
                    table.fast[first..first + step].fill(entry);
                }
                if class == Class::Ac && symbol == 0 {
                    table.end = Some((code, length));
                }
                code += 1;
            }
            place += usize::from(count);
            table.limits[length as usize] = code << (16 - length);
            code <<= 1;
        }
        if let Some((end, length)) = table.end {
            for (bits, entry) in table.fast.iter_mut().enumerate() {
                let all = entry.all_bits() + length;
                if entry.size() > 0 && all <= WINDOW && bits as u32 >> (WINDOW - all) & ((1 << length) - 1) == end {
                    *entry = entry.with_end(length);
                }
            }
        }
        Ok(table)
    }

    /// What a buffer begins with, its first bit the highest; an entry that does not exist for codes that are long, or bad.
    pub(super) fn look(&self, buffer: u64) -> Entry {
        self.fast[(buffer >> (64 - WINDOW)) as usize]
    }

    /// As [`look`](Self::look), for any code.
    #[cold]
    pub(super) fn search(&self, buffer: u64) -> Result<Entry, Fault> {
        let next = (buffer >> 48) as u32;
        let length = (1..=16).find(|&length| next < self.limits[length]).ok_or(Fault::NoCode)?;
        let place = (next >> (16 - length)) as i32 + self.offsets[length];
        let symbol = usize::try_from(place).ok().and_then(|place| self.symbols.get(place)).ok_or(Fault::NoCode)?;
        entry(self.class, *symbol, length as u32).ok_or(Fault::TooLarge)
    }

    /// The code for the end of a block, and how many bits it has.
    pub(super) fn end(&self) -> (u32, u32) {
        self.end.unwrap_or_default()
    }
}

/// What a code of so many bits stands for by its symbol; `None` where that is more than samples of 8 bits need.
fn entry(class: Class, symbol: u8, length: u32) -> Option<Entry> {
    let (run, size) = match class {
        Class::Dc => (0, symbol),
        Class::Ac => (symbol >> 4, symbol & 15),
    };
    if size > class.largest() {
        return None;
    }
    // A run without a value is 16 zeros if it is 15, and else the end: other runs have no meaning here, and libjpeg takes them for that.
    Some(if class == Class::Ac && size == 0 && run != 15 {
        Entry::end(length)
    } else {
        Entry::new(length, size.into(), run.into())
    })
}

/// A table, and what it was made of.
struct Kept {
    class: Class,
    definition: Vec<u8>,
    table: Rc<Table>,
}

thread_local! {
    /// The last tables of this thread: all tiles of a slide have the same ones, and making one takes as long as some blocks.
    static KEPT: RefCell<Vec<Kept>> = const { RefCell::new(Vec::new()) };
}

/// Tables that a thread keeps: four of each class, as a stream has them.
const KEPT_TABLES: usize = 8;

/// The table of a definition: the number of codes of 1 to 16 bits, and their symbols. Also says how long the definition is.
pub(super) fn table(class: Class, definition: &[u8]) -> Result<(Rc<Table>, usize), String> {
    let short = "JPEG: a segment of Huffman tables is too short";
    let (counts, symbols) = definition.split_first_chunk::<16>().ok_or(short)?;
    let codes: usize = counts.iter().map(|&count| usize::from(count)).sum();
    if codes > 256 {
        return Err(format!("JPEG: a Huffman table has {codes} codes"));
    }
    let symbols = symbols.get(..codes).ok_or(short)?;
    let definition = &definition[..16 + codes];
    KEPT.with_borrow_mut(|kept| {
        if let Some(found) = kept.iter().find(|kept| kept.class == class && kept.definition == definition) {
            return Ok((Rc::clone(&found.table), definition.len()));
        }
        let table = Rc::new(Table::new(class, counts, symbols)?);
        if kept.len() == KEPT_TABLES {
            kept.remove(0);
        }
        kept.push(Kept { class, definition: definition.to_vec(), table: Rc::clone(&table) });
        Ok((table, definition.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two codes of 2 bits, one of 3, one of 12.
    fn definition() -> Vec<u8> {
        let mut definition = vec![0; 16];
        definition[1] = 2;
        definition[2] = 1;
        definition[11] = 1;
        // End of block; one value of 1 bit; a run of 15 and 2 bits; a run of 16 zeros.
        definition.extend([0x00, 0x01, 0xf2, 0xf0]);
        definition
    }

    fn bits(text: &str) -> u64 {
        u64::from_str_radix(text, 2).unwrap() << (64 - text.len())
    }

    #[test]
    fn codes_say_runs_sizes_and_ends() {
        let (table, length) = table(Class::Ac, &definition()).unwrap();
        assert_eq!(length, 20);
        assert_eq!(table.look(bits("00")), Entry::end(2));
        assert_eq!(table.end(), (0, 2));
        // A value and then the end, or not.
        let entry = table.look(bits("01100"));
        assert_eq!((entry.bits(), entry.size(), entry.run(), entry.all_bits(), entry.advance()), (3, 1, 0, 5, END + 1));
        let entry = table.look(bits("01101"));
        assert_eq!((entry.bits(), entry.all_bits(), entry.advance()), (3, 3, 1));
        let entry = table.look(bits("1001101"));
        assert_eq!((entry.bits(), entry.size(), entry.run(), entry.advance()), (5, 2, 15, 16));
        // Codes longer than the window, and none.
        assert!(!table.look(bits("101000000000")).exists());
        assert_eq!(table.search(bits("101000000000")), Ok(Entry::new(12, 0, 15)));
        assert_eq!(table.search(bits("101000000001")), Err(Fault::NoCode));
        assert_eq!(table.search(u64::MAX), Err(Fault::NoCode));
    }

    #[test]
    fn tables_of_nonsense_are_refused() {
        let error = |definition: &[u8]| table(Class::Ac, definition).unwrap_err();
        assert!(error(&[0; 15]).contains("too short"));
        assert!(error(&definition()[..19]).contains("too short"));
        assert!(error(&[255; 600]).contains("4080 codes"));
        // Two codes of one bit leave nothing for others: one of them is all ones.
        let mut full = vec![0; 16];
        full[0] = 2;
        full.extend([0, 1]);
        assert!(error(&full).contains("too many codes of 1 bits"));
    }

    #[test]
    fn values_of_too_many_bits_are_no_values() {
        for (class, symbol, fine) in
            [(Class::Dc, 11, true), (Class::Dc, 12, false), (Class::Ac, 0x2a, true), (Class::Ac, 0x2b, false)]
        {
            let mut definition = vec![0; 16];
            definition[3] = 1;
            definition.push(symbol);
            let (table, _) = table(class, &definition).unwrap();
            assert_eq!(table.look(0).exists(), fine);
            assert_eq!(table.search(0).is_err(), !fine);
        }
    }

    #[test]
    fn a_table_is_made_once() {
        let (one, _) = table(Class::Ac, &definition()).unwrap();
        let (other, _) = table(Class::Ac, &definition()).unwrap();
        assert!(Rc::ptr_eq(&one, &other));
        for symbol in 0..KEPT_TABLES as u8 {
            let mut definition = vec![0; 16];
            definition[3] = 1;
            definition.push(symbol);
            table(Class::Dc, &definition).unwrap();
        }
        assert!(!Rc::ptr_eq(&one, &table(Class::Ac, &definition()).unwrap().0), "few are kept");
    }
}
