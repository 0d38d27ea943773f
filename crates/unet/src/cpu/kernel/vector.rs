//! What the kernels ask of an instruction set, and the answer of plain Rust.
#![allow(unsafe_code)]

/// A vector of f32 lanes. The kernels are written once over this trait; each instruction set compiles them with its own features.
///
/// # Safety
/// All methods may only be called where the CPU has the instruction set of the type.
/// Those that take a pointer read or write as many values from there on as they say; no alignment is needed.
pub(super) trait Vector: Copy {
    /// Number of lanes.
    const LANES: usize;

    unsafe fn zero() -> Self;
    /// Reads [`LANES`](Self::LANES) values.
    unsafe fn load(from: *const f32) -> Self;
    /// Reads the first `count` values, at most [`LANES`](Self::LANES); the other lanes are 0.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;
    /// Reads one value into all lanes.
    unsafe fn splat(from: *const f32) -> Self;
    /// Asks for the cache line to be fetched; the pointer need not be valid.
    #[inline(always)]
    unsafe fn prefetch(_from: *const f32) {}
    /// Likewise, to be written.
    #[inline(always)]
    unsafe fn prefetch_to_write(_to: *mut f32) {}
    /// The constant in all lanes.
    unsafe fn constant(value: f32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self + a * b`, with one rounding where the instruction set can.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
    /// `self - a * b`, likewise.
    unsafe fn minus_product(self, a: Self, b: Self) -> Self;
    /// Lanes that are positive as they are, all others times `slope`.
    unsafe fn bend(self, slope: Self) -> Self;
    /// Writes [`LANES`](Self::LANES) values.
    unsafe fn store(self, to: *mut f32);
    /// Adds the lanes to [`LANES`](Self::LANES) values: what is summed over few pixels first loses less.
    #[inline(always)]
    unsafe fn add_to(self, to: *mut f32) {
        // SAFETY: the caller's contract.
        unsafe { Self::load(to).add(self).store(to) }
    }
    /// Writes the first `count` values, at most [`LANES`](Self::LANES).
    unsafe fn store_first(self, to: *mut f32, count: usize);
}

/// A vector whose neighbouring lanes can share one output channel: lane `2o` for even input words, lane `2o + 1` for odd ones.
///
/// # Safety
/// As [`Vector`].
pub(super) trait PairedVector: Vector {
    /// Reads two values; the first goes to all even lanes, the second to all odd ones.
    unsafe fn splat_pair(from: *const f32) -> Self;
    /// The sums of neighbouring lanes: those of `low` in the lower half, those of `high` in the upper one.
    unsafe fn sum_pairs(low: Self, high: Self) -> Self;
    /// The lower half; 0 in the upper one.
    unsafe fn lower_half(self) -> Self;
    /// Writes the first `count` values of the lower half.
    unsafe fn store_lower(self, to: *mut f32, count: usize);
    /// Writes the first `count` values of the upper half.
    unsafe fn store_upper(self, to: *mut f32, count: usize);
}

/// Eight lanes in plain Rust, for any CPU.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, of: impl Fn(f32, f32) -> f32) -> Self {
        let mut lanes = self.0;
        lanes.iter_mut().zip(other.0).for_each(|(a, b)| *a = of(*a, b));
        Self(lanes)
    }
}

// SAFETY of the blocks below: the trait's contract makes the pointers valid for what is read or written through them.
impl Vector for Portable {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: eight values may be read.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        debug_assert!(count <= 8);
        let mut lanes = [0.0; 8];
        // SAFETY: `count` values may be read, and they do not overlap a local.
        unsafe { std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count) };
        Self(lanes)
    }

    #[inline(always)]
    unsafe fn bend(self, slope: Self) -> Self {
        self.zip(slope, |y, slope| if y > 0.0 { y } else { y * slope })
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: one value may be read.
        Self([unsafe { *from }; 8])
    }

    #[inline(always)]
    unsafe fn constant(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        self.zip(a.zip(b, |a, b| a * b), |s, p| s + p)
    }

    #[inline(always)]
    unsafe fn minus_product(self, a: Self, b: Self) -> Self {
        self.zip(a.zip(b, |a, b| a * b), |s, p| s - p)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: eight values may be written.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        debug_assert!(count <= 8);
        // SAFETY: `count` values may be written, and they do not overlap a local.
        unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr(), to, count) }
    }
}
