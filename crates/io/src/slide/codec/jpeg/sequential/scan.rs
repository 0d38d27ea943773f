//! The units of a scan: which blocks they hold, and where these go.

use std::ops::Range;

use super::bits::Bits;
use super::dct;
use super::huffman::{Fault, Table};

/// What a component has to do with a row of units.
#[derive(Debug)]
pub(super) struct Part<'a> {
    /// The samples of the row: 8 rows for each row of blocks.
    pub(super) samples: &'a mut [u8],
    /// Samples from one row to the next.
    pub(super) stride: usize,
    /// Blocks of a unit, from left to right and from top to bottom.
    pub(super) across: usize,
    pub(super) down: usize,
    pub(super) quantisation: &'a [i16; 64],
    pub(super) dc: &'a Table,
    pub(super) ac: &'a Table,
    /// The mean of the last block.
    pub(super) mean: &'a mut i32,
}

/// Which units of a row.
pub(super) type Units = Range<usize>;

/// Decodes units of a row without a restart marker among them. `inverse` is [`dct::inverse`] or the same in other instructions.
///
/// # Errors
/// What is wrong, and in which unit.
#[inline(always)]
pub(super) fn decode_units(
    bits: &mut Bits,
    parts: &mut [Part<'_>],
    units: Units,
    inverse: impl Fn(&[i16; 64], &[i16; 64], &mut [u8], usize),
) -> Result<(), (Fault, usize)> {
    for unit in units {
        for part in parts.iter_mut() {
            for row in 0..part.down {
                for column in 0..part.across {
                    let mut coefficients = [0; 64];
                    let done =
                        bits.block(part.dc, part.ac, part.mean, &mut coefficients).map_err(|fault| (fault, unit))?;
                    let at = row * 8 * part.stride + (unit * part.across + column) * 8;
                    let samples = &mut part.samples[at..];
                    if done > 1 {
                        inverse(&coefficients, part.quantisation, samples, part.stride);
                    } else {
                        let sample = dct::flat(coefficients[0], part.quantisation[0]);
                        for row in 0..8 {
                            samples[row * part.stride..row * part.stride + 8].copy_from_slice(&[sample; 8]);
                        }
                    }
                }
            }
        }
    }
    Ok(())
}
