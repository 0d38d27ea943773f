//! The network's result: a view plane by plane, where tensors lie channels last.

use super::loader::Source;

impl Source<'_> {
    /// What becomes of a value of a channel.
    fn apply(&self, channel: usize, x: f32) -> f32 {
        let y = self.affine.map_or(x, |affine| x * affine[channel] + affine[self.channels + channel]);
        if y > 0.0 { y } else { y * self.slopes.map_or(1.0, |s| s[channel]) }
    }
}

/// The view, plane by plane.
pub(super) fn planes<'a>(sources: impl Iterator<Item = Source<'a>> + Clone) -> Vec<f32> {
    let mut planes = Vec::with_capacity(sources.clone().map(|s| s.values.len()).sum());
    for source in sources {
        match source.channels {
            // Networks mostly have few classes: what is known when this is compiled becomes vectors.
            1 => few::<1>(&source, &mut planes),
            2 => few::<2>(&source, &mut planes),
            3 => few::<3>(&source, &mut planes),
            4 => few::<4>(&source, &mut planes),
            channels => {
                let pixels = source.values.chunks_exact(channels);
                (0..channels).for_each(|c| planes.extend(pixels.clone().map(|pixel| source.apply(c, pixel[c]))));
            }
        }
    }
    planes
}

fn few<const CHANNELS: usize>(source: &Source<'_>, planes: &mut Vec<f32>) {
    let (pixels, _) = source.values.as_chunks::<CHANNELS>();
    for c in 0..CHANNELS {
        if source.affine.is_none() && source.slopes.is_none() {
            planes.extend(pixels.iter().map(|pixel| pixel[c]));
        } else {
            planes.extend(pixels.iter().map(|pixel| source.apply(c, pixel[c])));
        }
    }
}
