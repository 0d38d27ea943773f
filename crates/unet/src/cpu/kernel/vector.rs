//! What the kernels ask of an instruction set, and the answer of plain Rust.
#![allow(unsafe_code)]

use super::super::bf16;

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

/// A vector of which each lane can hold two bf16: see [`Words::Bf16`](super::Words::Bf16).
///
/// # Safety
/// As [`Vector`].
pub(super) trait PairsVector: Vector {
    /// The first of each lane's two, as f32.
    unsafe fn firsts(self) -> Self;
    /// The second of each lane's two, as f32.
    unsafe fn seconds(self) -> Self;
    /// Rounds all lanes as [`bf16::round`] does, and writes `LANES / 2` words.
    unsafe fn store_pairs(self, to: *mut f32);
    /// Writes only the first `count` words, at most `LANES / 2`.
    unsafe fn store_first_pairs(self, to: *mut f32, count: usize);
}

/// What words hold, and so how they are written and what the product of two of them is.
///
/// # Safety
/// As [`Vector`].
pub(super) trait Content<V: Vector> {
    /// Channels of one word.
    const CHANNELS: usize;

    /// `sum + weights * input`
    unsafe fn plus_product(sum: V, weights: V, input: V) -> V;
    /// Writes words that hold a channel of each lane.
    unsafe fn store(channels: V, to: *mut f32);
    /// Writes only the first words, as many as hold `count` channels.
    unsafe fn store_first(channels: V, to: *mut f32, count: usize);
}

/// One f32.
pub(super) struct OfF32;

/// Two bf16, for instruction sets without an instruction for them; the sums are f32.
///
/// The order and the roundings are those that Intel's Software Developer's Manual, volume 2, states for VDPBF16PS: the product of
/// the seconds is added, then that of the firsts, each with one rounding to the nearest, ties to even. (That instruction also takes
/// denormal numbers for 0, in and out.) A product of two bf16 is exact in f32, so adding it rounds once with and without FMA.
pub(super) struct OfBf16;

// SAFETY of the blocks below: the callers' contract.
impl<V: Vector> Content<V> for OfF32 {
    const CHANNELS: usize = 1;

    #[inline(always)]
    unsafe fn plus_product(sum: V, weights: V, input: V) -> V {
        // SAFETY: see above.
        unsafe { sum.plus_product(weights, input) }
    }

    #[inline(always)]
    unsafe fn store(channels: V, to: *mut f32) {
        // SAFETY: see above.
        unsafe { channels.store(to) }
    }

    #[inline(always)]
    unsafe fn store_first(channels: V, to: *mut f32, count: usize) {
        // SAFETY: see above.
        unsafe { channels.store_first(to, count) }
    }
}

impl<V: PairsVector> Content<V> for OfBf16 {
    const CHANNELS: usize = 2;

    #[inline(always)]
    unsafe fn plus_product(sum: V, weights: V, input: V) -> V {
        // SAFETY: see above.
        unsafe {
            let sum = sum.plus_product(weights.seconds(), input.seconds());
            sum.plus_product(weights.firsts(), input.firsts())
        }
    }

    #[inline(always)]
    unsafe fn store(channels: V, to: *mut f32) {
        // SAFETY: see above.
        unsafe { channels.store_pairs(to) }
    }

    #[inline(always)]
    unsafe fn store_first(channels: V, to: *mut f32, count: usize) {
        // SAFETY: see above.
        unsafe { channels.store_first_pairs(to, count / 2) }
    }
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

impl PairsVector for Portable {
    #[inline(always)]
    unsafe fn firsts(self) -> Self {
        Self(self.0.map(|word| f32::from_bits(word.to_bits() << 16)))
    }

    #[inline(always)]
    unsafe fn seconds(self) -> Self {
        Self(self.0.map(|word| f32::from_bits(word.to_bits() & 0xffff_0000)))
    }

    #[inline(always)]
    unsafe fn store_pairs(self, to: *mut f32) {
        // SAFETY: four words may be written.
        unsafe { self.store_first_pairs(to, 4) }
    }

    #[inline(always)]
    unsafe fn store_first_pairs(self, to: *mut f32, count: usize) {
        debug_assert!(count <= 4);
        let words: [f32; 4] = std::array::from_fn(|i| bf16::pair(self.0[2 * i], self.0[2 * i + 1]));
        // SAFETY: `count` words may be written, and they do not overlap a local.
        unsafe { std::ptr::copy_nonoverlapping(words.as_ptr(), to, count) }
    }
}
