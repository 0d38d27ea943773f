//! How far the logits of two programs are from each other.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Logits of one tile, plane by plane.
#[derive(Debug)]
pub(super) struct Logits(Vec<f32>);

/// Of two tiles of logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Difference {
    /// Between two logits of the same place.
    pub(super) largest: f64,
    /// Share of the pixels in which another plane is the largest.
    pub(super) flips: f64,
}

impl Logits {
    /// What a contender wrote: little-endian f32.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        ensure!(bytes.len().is_multiple_of(4), "{}: not whole numbers of four bytes", path.display());
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")));
        Ok(Self(values.collect()))
    }

    /// The difference from others with as many pixels to a plane.
    pub(super) fn difference(&self, other: &Self, pixels: usize) -> Result<Difference> {
        let count = self.0.len();
        ensure!(
            count == other.0.len() && count > 0 && count.is_multiple_of(pixels),
            "logits of unlike tiles: {count} and {} for {pixels} pixels",
            other.0.len()
        );
        let apart = self.0.iter().zip(&other.0).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
        // A logit that is no number is as far away as can be.
        let largest = apart.fold(0.0, |m, d| if d.is_nan() { f64::INFINITY } else { f64::max(m, d) });
        let flips = (0..pixels).filter(|&p| self.class(p, pixels) != other.class(p, pixels)).count();
        Ok(Difference { largest, flips: flips as f64 / pixels as f64 })
    }

    /// The first plane with the largest logit at a pixel.
    fn class(&self, pixel: usize, pixels: usize) -> usize {
        let planes = self.0[pixel..].iter().step_by(pixels).enumerate();
        planes.fold((0, f32::NEG_INFINITY), |best, (plane, &v)| if v > best.1 { (plane, v) } else { best }).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_and_flips_are_counted() {
        let (a, b) = (Logits(vec![1.0, 2.0, 3.0, 4.0]), Logits(vec![1.0, 2.0, 3.5, 1.0]));
        assert_eq!(a.difference(&a, 2).unwrap(), Difference { largest: 0.0, flips: 0.0 });
        assert_eq!(a.difference(&b, 2).unwrap(), Difference { largest: 3.0, flips: 0.5 });
        assert!(a.difference(&b, 3).is_err());
        assert!(a.difference(&Logits(vec![1.0]), 1).is_err());
        let nan = Logits(vec![f32::NAN, 2.0, 3.0, 4.0]);
        assert_eq!(a.difference(&nan, 2).unwrap().largest, f64::INFINITY);
    }

    #[test]
    fn logits_are_read_as_they_are_written() {
        let path = std::env::temp_dir().join(format!("microtome-logits-{}", std::process::id()));
        std::fs::write(&path, [1.5_f32.to_le_bytes(), (-2.0_f32).to_le_bytes()].concat()).unwrap();
        assert_eq!(Logits::read(&path).unwrap().0, [1.5, -2.0]);
        std::fs::write(&path, [0; 5]).unwrap();
        assert!(Logits::read(&path).is_err());
        std::fs::remove_file(path).unwrap();
    }
}
