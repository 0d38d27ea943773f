//! A model that behaves as if it ran on GPUs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use microtome_unet::{Card, DeviceUse, Logits, MemoryEstimate, Normalizer, Predictor, Tile};

/// A model whose tiles go through a made-up device, which takes some time for each, while further calls wait for it. Calls come back in any
/// order.
#[derive(Debug)]
pub struct DeviceModel<P> {
    inner: P,
    lanes: usize,
    each: Duration,
    calls: AtomicUsize,
    device: Mutex<DeviceUse>,
}

impl<P: Predictor> DeviceModel<P> {
    /// Behaves like `inner`, in so many calls at once, with a device that is busy for `each` tile.
    #[must_use]
    pub fn new(inner: P, lanes: usize, each: Duration) -> Self {
        let device = DeviceUse {
            name: "cuda:0, made up".into(),
            batch: 4,
            tiles: 0,
            busy: Duration::ZERO,
            notes: vec!["16 tiles at once did not fit its memory; 4 did".into()],
        };
        Self { inner, lanes, each, calls: AtomicUsize::new(0), device: Mutex::new(device) }
    }
}

impl<P: Predictor> Predictor for DeviceModel<P> {
    fn card(&self) -> &Card {
        self.inner.card()
    }

    fn predict(&self, tiles: &[Tile<'_>], normalizer: &Normalizer) -> microtome_unet::Result<Vec<Logits>> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) as u64;
        let logits = self.inner.predict(tiles, normalizer)?;
        {
            let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
            let busy = self.each * tiles.len() as u32;
            std::thread::sleep(busy);
            device.busy += busy;
            device.tiles += tiles.len() as u64;
        }
        // Who came later is sometimes done sooner.
        std::thread::sleep(Duration::from_micros(call * 7919 % 1500));
        Ok(logits)
    }

    fn identity(&self) -> String {
        self.inner.identity()
    }

    fn memory(&self, batch: usize) -> MemoryEstimate {
        self.inner.memory(batch)
    }

    fn lanes(&self) -> usize {
        self.lanes
    }

    fn batch(&self) -> Option<usize> {
        Some(4)
    }

    fn devices(&self) -> Vec<DeviceUse> {
        vec![self.device.lock().unwrap_or_else(PoisonError::into_inner).clone()]
    }
}

#[cfg(test)]
mod tests {
    use microtome_io::{Pixels, SampleType, Size};
    use microtome_unet::Normalization;

    use super::*;
    use crate::ConstantModel;

    #[test]
    fn a_device_counts_what_it_does() {
        let model = DeviceModel::new(ConstantModel::new(Size::new(2, 2), &[0.0]), 3, Duration::from_millis(1));
        let normalizer = Normalizer::new(&[Normalization::None; 3], &[]).unwrap();
        let pixels = Pixels::filled(Size::new(2, 2), SampleType::U8, &[0, 0, 0]);
        assert_eq!(model.predict(&[Tile::full(&pixels); 2], &normalizer).unwrap().len(), 2);
        let device = &model.devices()[0];
        assert_eq!((device.tiles, device.busy), (2, Duration::from_millis(2)));
    }
}
