//! Memory for vectors.
#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
use std::ops::Range;

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
        ask_for_large_pages(&values);
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

/// Lets the system back large buffers with large pages: kernels walk through hundreds of places at once, and each page takes a look-up.
fn ask_for_large_pages(values: &[f32]) {
    /// Smaller buffers have little to gain.
    const LARGE: usize = 4 << 20;
    if size_of_val(values) < LARGE {
        return;
    }
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 1 << 21;
        let Range { start, end } = values.as_ptr_range();
        let skipped = start.addr().next_multiple_of(PAGE) - start.addr();
        let whole = (end.addr() - start.addr() - skipped) / PAGE * PAGE;
        // SAFETY: whole large pages inside a buffer of our own; the advice changes no byte, and a refusal leaves all as it was.
        unsafe { libc::madvise(start.cast_mut().byte_add(skipped).cast(), whole, libc::MADV_HUGEPAGE) };
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
