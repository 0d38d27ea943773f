//! A model that behaves like another one until it fails.

use std::sync::atomic::{AtomicUsize, Ordering};

use microtome_unet::{Card, Logits, MemoryEstimate, Normalizer, Predictor, Tile};

/// A model that breaks down after some tiles, as one does whose weights give NaN on odd input.
#[derive(Debug)]
pub struct FailingModel<P> {
    inner: P,
    good_tiles: usize,
    seen: AtomicUsize,
}

impl<P: Predictor> FailingModel<P> {
    /// Behaves like `inner` for the first `good_tiles` tiles, then fails with [`microtome_unet::Error::NotFinite`].
    #[must_use]
    pub fn new(inner: P, good_tiles: usize) -> Self {
        Self { inner, good_tiles, seen: AtomicUsize::new(0) }
    }
}

impl<P: Predictor> Predictor for FailingModel<P> {
    fn card(&self) -> &Card {
        self.inner.card()
    }

    fn predict(&self, tiles: &[Tile<'_>], normalizer: &Normalizer) -> microtome_unet::Result<Vec<Logits>> {
        let before = self.seen.fetch_add(tiles.len(), Ordering::Relaxed);
        let index = self.good_tiles.saturating_sub(before);
        if index < tiles.len() {
            return Err(microtome_unet::Error::NotFinite { index });
        }
        self.inner.predict(tiles, normalizer)
    }

    fn identity(&self) -> String {
        self.inner.identity()
    }

    fn memory(&self, batch: usize) -> MemoryEstimate {
        self.inner.memory(batch)
    }
}

#[cfg(test)]
mod tests {
    use microtome_io::{Pixels, Size};
    use microtome_unet::Normalization;

    use super::*;
    use crate::ConstantModel;

    #[test]
    fn a_model_fails_at_the_tile_it_was_told_to() {
        let model = FailingModel::new(ConstantModel::new(Size::new(2, 2), &[0.0]), 3);
        let normalizer = Normalizer::new(&[Normalization::None; 3], &[]).unwrap();
        let pixels = Pixels::filled(Size::new(2, 2), microtome_io::SampleType::U8, &[0, 0, 0]);
        let tiles = [Tile::full(&pixels); 2];
        assert!(model.predict(&tiles, &normalizer).is_ok());
        let error = model.predict(&tiles, &normalizer).unwrap_err();
        assert!(matches!(error, microtome_unet::Error::NotFinite { index: 1 }), "{error}");
        assert!(model.predict(&tiles, &normalizer).is_err());
    }
}
