//! Memory for vectors.

/// Values of which the first lies at the start of a cache line.
#[derive(Debug)]
pub(super) struct Buffer {
    values: Vec<f32>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// Values of a cache line.
    const LINE: usize = 16;

    /// So many zeros.
    pub(super) fn zeros(length: usize) -> Self {
        let values = vec![0.0; length + Self::LINE];
        let start = values.as_ptr().align_offset(Self::LINE * size_of::<f32>()).min(Self::LINE);
        Self { values, start, length }
    }

    /// The bytes that a buffer of so many values takes.
    pub(super) fn bytes(length: usize) -> u64 {
        ((length + Self::LINE) * size_of::<f32>()) as u64
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }
}

impl std::ops::Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.start..][..self.length]
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..][..self.length]
    }
}
