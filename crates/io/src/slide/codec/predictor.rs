//! Horizontal differencing (TIFF 6.0, section 14, predictor 2): each sample is stored as the difference to the one of
//! the same channel to its left.

/// Arithmetic that wraps round, as the differences do.
pub(crate) trait Wrapping: Copy {
    /// The sum without its carry.
    fn add(self, other: Self) -> Self;
}

impl Wrapping for u8 {
    fn add(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

impl Wrapping for u16 {
    fn add(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

/// Sums the differences up, row by row.
pub(crate) fn undo<T: Wrapping>(samples: &mut [T], width: usize, channels: usize) {
    for row in samples.chunks_exact_mut(width * channels) {
        for i in channels..row.len() {
            row[i] = row[i].add(row[i - channels]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_starts_anew_and_channels_stay_apart() {
        let mut samples: [u8; 8] = [1, 10, 255, 20, 5, 6, 1, 255];
        undo(&mut samples, 2, 2);
        assert_eq!(samples, [1, 10, 0, 30, 5, 6, 6, 5]);
    }
}
