//! Opacity: pixels with an alpha channel are laid over white, as a slide lies over the light of the microscope.
//!
//! A network sees colours, not opacity; leaving the alpha channel out would show whatever colour a program happened to
//! leave under transparent pixels. So every reader does the same: `c × a + white × (1 - a)`, rounded to nearest, where
//! `white` is the largest value of the sample type and `a` is alpha as a fraction of it.

/// How the colour samples relate to the alpha sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alpha {
    /// The colour is that of the opaque pixel (PNG; TIFF `ExtraSamples` 2).
    Straight,
    /// The colour is multiplied by alpha already (TIFF `ExtraSamples` 1).
    Premultiplied,
}

/// A sample type to composite in.
pub(super) trait Channel: Copy + Into<u64> {
    /// The largest value.
    const WHITE: u64;
    /// The sample of a value of at most [`Channel::WHITE`].
    fn of(value: u64) -> Self;
}

impl Channel for u8 {
    const WHITE: u64 = 0xff;
    fn of(value: u64) -> Self {
        value as Self
    }
}

impl Channel for u16 {
    const WHITE: u64 = 0xffff;
    fn of(value: u64) -> Self {
        value as Self
    }
}

/// Lays pixels of `channels` samples, the last of them alpha, over white; the result has one channel less.
pub(super) fn over_white<T: Channel>(samples: &[T], channels: usize, alpha: Alpha) -> Vec<T> {
    let white = T::WHITE;
    let mut out = Vec::with_capacity(samples.len() / channels * (channels - 1));
    for pixel in samples.chunks_exact(channels) {
        let (&a, colors) = pixel.split_last().expect("a pixel with alpha has a sample");
        let a: u64 = a.into();
        out.extend(colors.iter().map(|&color| {
            let color: u64 = color.into();
            T::of(match alpha {
                Alpha::Straight => (color * a + white * (white - a) + white / 2) / white,
                // Colours brighter than their alpha cannot come about; they are cut off at white.
                Alpha::Premultiplied => (color + white - a).min(white),
            })
        }));
    }
    out
}

/// Lays pixels that are 32-bit words of the machine (from the top: alpha, red, green, blue; colours multiplied by alpha) over a colour, which
/// takes the place of white in the rule.
#[cfg(feature = "openslide")]
pub(super) fn words_over(words: &[u8], background: [u8; 3]) -> Vec<u8> {
    let mut out = Vec::with_capacity(words.len() / 4 * 3);
    for word in words.chunks_exact(4) {
        let [alpha, colors @ ..] = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]).to_be_bytes();
        if alpha == u8::MAX {
            out.extend(colors);
            continue;
        }
        let rest = u32::from(u8::MAX - alpha);
        out.extend(colors.into_iter().zip(background).map(|(color, background)| {
            let behind = (u32::from(background) * rest + 127) / 255;
            (u32::from(color) + behind).min(255) as u8
        }));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opaque_stays_and_transparent_turns_white() {
        let pixels: [u8; 12] = [10, 20, 30, 255, 10, 20, 30, 0, 10, 20, 30, 128];
        let straight = over_white(&pixels, 4, Alpha::Straight);
        // 10 x 128/255 + 255 x 127/255 = 132.02, and so on.
        assert_eq!(straight, [10, 20, 30, 255, 255, 255, 132, 137, 142]);
        let premultiplied = over_white(&pixels, 4, Alpha::Premultiplied);
        assert_eq!(premultiplied, [10, 20, 30, 255, 255, 255, 137, 147, 157]);
        assert_eq!(over_white(&[1000_u16, 65535, 1000, 0], 2, Alpha::Straight), [1000, 65535]);
    }

    #[cfg(feature = "openslide")]
    #[test]
    fn words_are_laid_over_any_colour() {
        let words: Vec<u8> = [0xff0a_141e_u32, 0, 0x800a_141e].iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(words_over(&words, [255; 3]), [10, 20, 30, 255, 255, 255, 137, 147, 157]);
        // 100 x 127/255 = 49.8.
        assert_eq!(words_over(&words, [100, 0, 255]), [10, 20, 30, 100, 0, 255, 60, 20, 157]);
    }
}
