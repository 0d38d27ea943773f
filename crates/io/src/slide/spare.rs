//! Buffers of decoded tiles that made room for others, to decode the next ones into: fresh memory costs a tenth of the time that
//! a JPEG tile takes, for the system hands it out page by page, and it must be cleared.
//!
//! Each thread keeps one at most, so that what is kept is no more than the tile per thread that decoding takes anyway.

use std::cell::Cell;

use crate::pixels::{Pixels, Samples};

thread_local! {
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A buffer of so many bytes with anything in it: whoever takes it writes every byte.
pub(super) fn take(len: usize) -> Vec<u8> {
    let mut spare = SPARE.take();
    // One that is far too large would be kept alive by a small tile.
    if spare.capacity() < len || spare.capacity() / 2 > len {
        return vec![0; len];
    }
    spare.resize(len, 0);
    spare
}

/// Gives the buffer of a tile that nobody wants any more to the calling thread's next one.
pub(super) fn give(pixels: Pixels) {
    if let Samples::U8(samples) = pixels.into_samples() {
        SPARE.set(samples);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Size;

    #[test]
    fn a_buffer_is_used_again_if_it_fits() {
        let pixels = Pixels::from_u8(Size::new(10, 10), 3, vec![7; 300]);
        give(pixels.clone());
        assert_eq!(take(300), [7; 300]);
        assert_eq!(take(300), [0; 300], "it is gone");
        give(pixels.clone());
        assert_eq!(take(200), [7; 200]);
        give(pixels.clone());
        assert_eq!(take(301), [0; 301]);
        give(pixels);
        assert_eq!(take(100), [0; 100], "too large to be kept for so little");
    }
}
