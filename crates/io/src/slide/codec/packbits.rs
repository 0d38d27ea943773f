//! PackBits, Apple's run lengths (TIFF 6.0, section 9).

/// Expands until the buffer is full.
pub(crate) fn decode(mut data: &[u8], out: &mut [u8]) -> Result<(), String> {
    let want = out.len();
    let mut written = 0;
    while written < want {
        let short = || format!("PackBits: the stream ends after {written} of {want} bytes");
        let (&header, rest) = data.split_first().ok_or_else(short)?;
        let header = header as i8;
        // Runs are not to cross the buffer's end; libtiff cuts those that do, and so do we.
        let room = want - written;
        if header >= 0 {
            let run = header as usize + 1;
            let literal = rest.get(..run.min(room)).ok_or_else(short)?;
            out[written..written + literal.len()].copy_from_slice(literal);
            written += literal.len();
            data = rest.get(run..).unwrap_or_default();
        } else if header == i8::MIN {
            data = rest; // -128 says nothing.
        } else {
            let (&value, rest) = rest.split_first().ok_or_else(short)?;
            let run = (1 - isize::from(header)) as usize;
            let run = run.min(room);
            out[written..written + run].fill(value);
            written += run;
            data = rest;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apples_own_example() {
        // From Apple's Technical Note TN1023, quoted in many places.
        let packed = [0xfe, 0xaa, 0x02, 0x80, 0x00, 0x2a, 0xfd, 0xaa, 0x03, 0x80, 0x00, 0x2a, 0x22, 0xf7, 0xaa];
        let unpacked = [
            0xaa, 0xaa, 0xaa, 0x80, 0x00, 0x2a, 0xaa, 0xaa, 0xaa, 0xaa, 0x80, 0x00, 0x2a, 0x22, 0xaa, 0xaa, 0xaa, 0xaa,
            0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa,
        ];
        let mut out = [0; 24];
        decode(&packed, &mut out).unwrap();
        assert_eq!(out, unpacked);
        assert!(decode(&packed, &mut [0; 25]).unwrap_err().contains("24 of 25"));
        decode(&packed, &mut [0; 20]).unwrap();
    }
}
