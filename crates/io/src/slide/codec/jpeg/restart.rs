//! Streams that are decoded piece by piece, between restart markers.
//!
//! A stream with a restart interval is cut every so many units (MCUs: 8 x 8 pixels, or more where chroma is stored
//! coarser) by a marker behind which a decoder starts from nothing. Any intervals can thus be put together to a stream
//! of their own, with a frame header that states their size, and markers that are numbered anew.

use super::{Color, DHP, DRI, EOI, Header, SOI, SOS, Segments, decode_stream, frame, is_comment, is_frame};

/// Bytes that a coefficient can take at most: 27 bits, each byte of which may be followed by a stuffed zero.
const MOST_BYTES_OF_A_BLOCK: u64 = 64 * 27 / 8 * 2;
/// Blocks that a unit may hold (T.81, B.2.3).
const MOST_BLOCKS_OF_A_UNIT: u64 = 10;

/// What a stream says before its first scan, as far as pieces of it need it.
#[derive(Debug, Clone)]
pub(crate) struct Prelude {
    /// Sides may be 0, or meaningless, where the picture is larger than the format allows.
    pub(crate) header: Header,
    /// Width and height of a unit, in pixels.
    pub(crate) unit: (u16, u16),
    /// Units between two restart markers; 0 if there are none.
    pub(crate) interval: u16,
    /// True if the picture is one scan of all channels, coded once from top to bottom: only then an interval is a piece of the picture.
    pub(crate) one_scan: bool,
    /// Where the frame header says height and width: 2 bytes each.
    pub(crate) size_at: usize,
    /// Where the coded units start.
    pub(crate) data_at: usize,
    /// What comes before the units, put together for the decoder, up to the scan header.
    tables: Vec<u8>,
    /// Where `tables` say height and width.
    size_in_tables: usize,
    /// The scan header.
    scan: Vec<u8>,
}

impl Prelude {
    /// Reads the segments before the first scan. `data` may end anywhere behind them.
    pub(crate) fn read(data: &[u8], color: Color) -> Result<Self, String> {
        let mut tables = vec![0xff, SOI];
        tables.extend(color.segment());
        let (mut interval, mut found) = (0, None);
        for segment in Segments::new(data)? {
            let segment = segment?;
            match segment.marker {
                marker if is_frame(marker) => {
                    if found.is_some() {
                        return Err("JPEG: there are two frame headers".into());
                    }
                    let header = frame(&segment)?;
                    let unit = unit(segment.bytes, header.components)?;
                    found = Some((header, unit, segment.start + 5, tables.len() + 5, matches!(marker, 0xc0 | 0xc1)));
                    tables.extend(segment.bytes);
                }
                DRI => match *segment.bytes {
                    [_, _, _, _, high, low, ..] => interval = u16::from_be_bytes([high, low]),
                    _ => return Err("JPEG: the restart interval is missing from its segment".into()),
                },
                DHP => return Err("JPEG: hierarchical coding cannot be read".into()),
                SOS => {
                    let Some((header, unit, size_at, size_in_tables, sequential)) = found else {
                        return Err("JPEG: a scan comes before its frame header".into());
                    };
                    let one_scan = sequential && segment.bytes.get(4) == Some(&header.components);
                    let data_at = segment.start + segment.bytes.len();
                    let scan = segment.bytes.to_vec();
                    return Ok(Self {
                        header,
                        unit,
                        interval,
                        one_scan,
                        size_at,
                        data_at,
                        tables,
                        size_in_tables,
                        scan,
                    });
                }
                marker if color != Color::AsMarked && is_comment(marker) => {}
                _ => tables.extend(segment.bytes),
            }
        }
        Err("JPEG: the stream ends before its first scan".into())
    }

    /// The most bytes that an interval can take, markers included.
    pub(crate) fn most_bytes_of_an_interval(&self) -> u64 {
        u64::from(self.interval) * MOST_BLOCKS_OF_A_UNIT * MOST_BYTES_OF_A_BLOCK + 64
    }

    /// Decodes the intervals that make up a picture of this size, given row by row and without their markers.
    pub(crate) fn decode<'a>(
        &self,
        width: u16,
        height: u16,
        intervals: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Vec<u8>, String> {
        let header = Header { width, height, components: self.header.components };
        let mut stream = self.tables.clone();
        stream[self.size_in_tables..self.size_in_tables + 2].copy_from_slice(&height.to_be_bytes());
        stream[self.size_in_tables + 2..self.size_in_tables + 4].copy_from_slice(&width.to_be_bytes());
        stream.extend([0xff, DRI, 0, 4]);
        stream.extend(self.interval.to_be_bytes());
        stream.extend(&self.scan);
        for (number, interval) in intervals.into_iter().enumerate() {
            if number > 0 {
                stream.extend([0xff, restart_marker(number as u64)]);
            }
            stream.extend(interval);
        }
        stream.extend([0xff, EOI]);
        decode_stream(&stream, header)
    }
}

/// The marker in front of interval `number`, which is 1 or more.
pub(crate) fn restart_marker(number: u64) -> u8 {
    0xd0 + (number.wrapping_sub(1) % 8) as u8
}

/// A marker inside coded units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) code: u8,
    /// Where the units before it end.
    pub(crate) start: usize,
    /// Where it ends itself.
    pub(crate) end: usize,
}

impl Marker {
    /// True for the marker that ends a picture.
    pub(crate) fn is_end(self) -> bool {
        self.code == EOI
    }
}

/// The first marker in coded units from `from` on. Among them 0xff is followed by 0; in front of a marker it may be repeated (T.81, B.1.1).
pub(crate) fn next_marker(units: &[u8], from: usize) -> Option<Marker> {
    let mut at = from;
    loop {
        let start = at + units.get(at..)?.iter().position(|&byte| byte == 0xff)?;
        let repeated = units[start..].iter().take_while(|&&byte| byte == 0xff).count();
        let code = *units.get(start + repeated)?;
        at = start + repeated + 1;
        if code != 0 {
            return Some(Marker { code, start, end: at });
        }
    }
}

/// Width and height of a unit by the sampling factors of a frame header.
fn unit(frame: &[u8], components: u8) -> Result<(u16, u16), String> {
    let factors = frame.get(10..10 + 3 * usize::from(components)).ok_or("JPEG: the frame header is too short")?;
    let (mut across, mut down) = (1, 1);
    for factors in factors.chunks_exact(3) {
        let (x, y) = (factors[1] >> 4, factors[1] & 15);
        if !(1..=4).contains(&x) || !(1..=4).contains(&y) {
            return Err(format!("JPEG: sampling factors of {x} and {y} do not exist"));
        }
        (across, down) = (across.max(x), down.max(y));
    }
    // The blocks of a scan of one channel are not grouped, whatever their factors are (T.81, A.2.2).
    Ok(if components == 1 { (8, 8) } else { (8 * u16::from(across), 8 * u16::from(down)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_told_from_stuffed_bytes() {
        let units = b"ab\xff\0c\xff\xff\xd3d\xff\xff\0e\xff";
        let marker = next_marker(units, 0).unwrap();
        assert_eq!(marker, Marker { code: 0xd3, start: 5, end: 8 });
        assert_eq!(next_marker(units, marker.end), None, "the last byte may belong to anything");
        assert_eq!(next_marker(units, 100), None);
        assert_eq!([1, 8, 9, 16].map(restart_marker), [0xd0, 0xd7, 0xd0, 0xd7]);
    }
}
