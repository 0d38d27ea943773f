//! A tensor that lies in a file, and its values as f32: all that is ever copied out of a checkpoint.

use std::sync::Arc;

use microtome_io::bytes::ByteSource;

use crate::Result;

/// What the values are stored as. Nothing else is ever the weight of a network here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    F16,
    Bf16,
    F32,
    F64,
}

impl Kind {
    pub(crate) fn width(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// Where the values of a tensor lie. That they lie inside of their storage has been checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    kind: Kind,
    shape: Vec<usize>,
    /// In values, one for each axis.
    strides: Vec<usize>,
    /// Product of the shape.
    elements: usize,
    /// Values from the first one to the last one that the strides reach.
    span: usize,
    /// Of the first value, in the file.
    start: u64,
}

impl Stored {
    /// A tensor whose first value is `offset` values after the start of a storage, which takes `length` bytes of the file from `start` on.
    ///
    /// # Errors
    /// A clause: the tensor reaches beyond its storage, or its values overlap.
    pub(crate) fn new(
        kind: Kind,
        shape: Vec<usize>,
        strides: Vec<usize>,
        offset: usize,
        storage: std::ops::Range<u64>,
    ) -> Result<Self, &'static str> {
        const OUTSIDE: &str = "reaches beyond its storage";
        if shape.len() != strides.len() {
            return Err("has not as many strides as axes");
        }
        let elements = shape.iter().try_fold(1_usize, |n, &extent| n.checked_mul(extent)).ok_or(OUTSIDE)?;
        let steps = shape.iter().zip(&strides).map(|(&extent, &stride)| extent.saturating_sub(1).checked_mul(stride));
        let last = steps.into_iter().try_fold(0_usize, |last, step| last.checked_add(step?)).ok_or(OUTSIDE)?;
        let span = if elements == 0 { 0 } else { last.checked_add(1).ok_or(OUTSIDE)? };
        let bytes = |values: usize| (values as u64).checked_mul(kind.width() as u64);
        let start = bytes(offset).and_then(|skip| storage.start.checked_add(skip)).ok_or(OUTSIDE)?;
        let end = bytes(span).and_then(|length| start.checked_add(length)).ok_or(OUTSIDE)?;
        if end > storage.end {
            return Err(OUTSIDE);
        }
        if elements > span {
            return Err("has values that overlap");
        }
        Ok(Self { kind, shape, strides, elements, span, start })
    }

    /// A tensor whose values lie row by row and fill this part of the file.
    ///
    /// # Errors
    /// A clause: the tensor reaches beyond its bytes.
    pub(crate) fn dense(kind: Kind, shape: Vec<usize>, bytes: std::ops::Range<u64>) -> Result<Self, &'static str> {
        let strides = row_strides(&shape);
        Self::new(kind, shape, strides, 0, bytes)
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Bytes of the file from the first value to the last.
    pub(crate) fn bytes(&self) -> u64 {
        (self.span * self.kind.width()) as u64
    }

    /// The values, row by row. Allocated is what they take as f32, and nothing else where the source lends its bytes.
    pub(crate) fn read(&self, source: &dyn ByteSource) -> Result<Arc<[f32]>> {
        let raw = source.read_at(self.start..self.start + self.bytes())?;
        let values = match self.kind {
            Kind::F16 => self.gather(&raw, |b| widened(u16::from_le_bytes(b))),
            Kind::Bf16 => self.gather(&raw, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            Kind::F32 => self.gather(&raw, f32::from_le_bytes),
            Kind::F64 => self.gather(&raw, |b| f64::from_le_bytes(b) as f32),
        };
        source.still_whole()?;
        Ok(values)
    }

    /// Brings strided values (a channels-last convolution, a slice) into row order; most lie that way already.
    fn gather<const N: usize>(&self, raw: &[u8], value: impl Fn([u8; N]) -> f32) -> Arc<[f32]> {
        let (stored, _) = raw.as_chunks::<N>();
        if self.elements == self.span && self.is_row_by_row() {
            return stored.iter().map(|b| value(*b)).collect();
        }
        let mut index = vec![0_usize; self.shape.len()];
        let mut at = 0_usize;
        let next = |_| {
            let found = value(stored[at]);
            for axis in (0..index.len()).rev().filter(|&axis| self.shape[axis] != 1) {
                index[axis] += 1;
                at += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= index[axis] * self.strides[axis];
                index[axis] = 0;
            }
            found
        };
        (0..self.elements).map(next).collect()
    }

    fn is_row_by_row(&self) -> bool {
        let rows = row_strides(&self.shape);
        self.shape
            .iter()
            .zip(self.strides.iter().zip(rows))
            .all(|(&extent, (&stride, row))| extent == 1 || stride == row)
    }
}

/// The strides of values that lie row by row; of no meaning where the product of the shape overflows.
fn row_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = shape[axis].saturating_mul(strides[axis]);
    }
    strides
}

/// An IEEE 754 half as the f32 of the same value.
fn widened(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let (exponent, fraction) = (u32::from(half >> 10 & 31), u32::from(half & 0x3ff));
    let magnitude = match exponent {
        // Subnormal: a multiple of 2^-24.
        0 => (fraction as f32 / 16_777_216.0).to_bits(),
        31 => 0x7f80_0000 | fraction << 13,
        _ => exponent + 112 << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests {
    use microtome_io::bytes::Memory;

    use super::*;

    fn source(values: &[f32]) -> Memory {
        Memory::new("tensor", values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
    }

    #[test]
    fn strided_values_come_out_row_by_row() {
        let source = source(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let read = |shape: &[usize], strides: &[usize], offset| {
            let stored = Stored::new(Kind::F32, shape.to_vec(), strides.to_vec(), offset, 0..24).unwrap();
            stored.read(&source).unwrap().to_vec()
        };
        assert_eq!(read(&[2, 3], &[3, 1], 0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(read(&[2, 3], &[1, 2], 0), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        assert_eq!(read(&[2, 2], &[3, 2], 0), [0.0, 2.0, 3.0, 5.0]);
        assert_eq!(read(&[2, 1, 2], &[2, usize::MAX, 1], 2), [2.0, 3.0, 4.0, 5.0]);
        assert_eq!(read(&[], &[], 5), [5.0]);
        assert_eq!(read(&[3, 0], &[1, 1], 6), [0.0; 0]);
    }

    #[test]
    fn what_does_not_lie_in_its_storage_is_refused() {
        let new = |shape: &[usize], strides: &[usize], offset| {
            Stored::new(Kind::F32, shape.to_vec(), strides.to_vec(), offset, 8..32).map(|_| ()).unwrap_err()
        };
        let outside = "reaches beyond its storage";
        for (shape, strides, offset) in [
            (&[7][..], &[1][..], 0),
            (&[6], &[1], 1),
            (&[2], &[6], 0),
            (&[1], &[1], 6),
            (&[1], &[1], usize::MAX),
            (&[usize::MAX, 2], &[1, 1], 0),
            (&[3, 2], &[usize::MAX, 1], 0),
            (&[usize::MAX], &[usize::MAX], 0),
            (&[0], &[1], 7),
        ] {
            assert_eq!(new(shape, strides, offset), outside, "{shape:?} {strides:?} {offset}");
        }
        assert_eq!(new(&[2, 2], &[1, 1], 0), "has values that overlap");
        assert_eq!(new(&[1 << 40], &[0], 0), "has values that overlap");
        assert_eq!(new(&[2], &[], 0), "has not as many strides as axes");
    }

    #[test]
    fn halves_are_widened_exactly() {
        // python3 -c "import struct; print([struct.unpack('<e', struct.pack('<H', b))[0] for b in (...)])"
        for (bits, value) in [
            (0x0000, 0.0_f32),
            (0x8000, -0.0),
            (0x0001, 5.960_464_5e-8),
            (0x83ff, -6.097_555e-5),
            (0x0400, 6.103_515_6e-5),
            (0x3c00, 1.0),
            (0xc580, -5.5),
            (0x3555, 0.333_251_95),
            (0x7bff, 65504.0),
            (0x7c00, f32::INFINITY),
            (0xfc00, f32::NEG_INFINITY),
        ] {
            assert_eq!(widened(bits).to_bits(), value.to_bits(), "{bits:#06x}");
        }
        assert!(widened(0x7e01).is_nan());
    }

    #[test]
    fn every_kind_is_read_as_f32() {
        let read = |kind, bytes: &[u8]| {
            let stored = Stored::dense(kind, vec![bytes.len() / Kind::width(kind)], 0..bytes.len() as u64).unwrap();
            stored.read(&Memory::new("tensor", bytes.to_vec())).unwrap().to_vec()
        };
        assert_eq!(read(Kind::F16, &[0x00, 0x3c, 0x80, 0xc5]), [1.0, -5.5]);
        assert_eq!(read(Kind::Bf16, &[0x80, 0x3f, 0xb0, 0xc0]), [1.0, -5.5]);
        assert_eq!(read(Kind::F32, &(-5.5_f32).to_le_bytes()), [-5.5]);
        assert_eq!(read(Kind::F64, &(-5.5_f64).to_le_bytes()), [-5.5]);
    }
}
