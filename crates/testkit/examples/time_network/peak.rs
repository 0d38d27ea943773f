//! What one core can do: multiply-adds of vectors that stay in registers.
#![allow(unsafe_code)]

/// GFLOP/s of each instruction set that this processor has, a multiply-add being two; the best of several tries.
pub(crate) fn measure() -> Vec<(&'static str, f64)> {
    #[cfg(target_arch = "x86_64")]
    return x86::measure();
    #[cfg(not(target_arch = "x86_64"))]
    return Vec::new();
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512, __m512bh, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps,
        _mm512_reduce_add_ps, _mm512_set1_ps,
    };
    use std::hint::black_box;
    use std::time::Instant;

    /// Sums that do not wait for each other: more than two units with a latency of four or five cycles need, and few enough for
    /// the sixteen registers of AVX2.
    const SUMS: usize = 12;
    /// Rounds over all sums in one try: some 20 ms.
    const ROUNDS: u32 = 5_000_000;
    const TRIES: usize = 5;

    pub(super) fn measure() -> Vec<(&'static str, f64)> {
        let mut found = Vec::new();
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has what the function is compiled for, which is all that it asks.
            found.push(("avx2", best(8, || unsafe { avx2() })));
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: as above.
            found.push(("avx512", best(16, || unsafe { avx512() })));
        }
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
            // SAFETY: as above.
            found.push(("avx512_bf16", best(32, || unsafe { avx512_bf16() })));
        }
        found
    }

    /// The rate of the fastest try, where an instruction does so many multiply-adds.
    fn best(width: u32, work: impl Fn() -> f32) -> f64 {
        let seconds = |_| {
            let started = Instant::now();
            black_box(work());
            started.elapsed().as_secs_f64()
        };
        let least = (0..TRIES).map(seconds).fold(f64::INFINITY, f64::min);
        2.0 * f64::from(width) * SUMS as f64 * f64::from(ROUNDS) / least / 1e9
    }

    #[target_feature(enable = "avx2,fma")]
    fn avx2() -> f32 {
        let (factor, summand) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
        let mut sums = [summand; SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, summand);
            }
        }
        let mut lanes = [[0.0; 8]; SUMS];
        for (sum, lanes) in sums.into_iter().zip(&mut lanes) {
            // SAFETY: the array has room for the eight lanes that are stored; no alignment is asked for.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
        }
        lanes.as_flattened().iter().sum()
    }

    #[target_feature(enable = "avx512f")]
    fn avx512() -> f32 {
        let (factor, summand) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
        let mut sums = [summand; SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, summand);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn avx512_bf16() -> f32 {
        // SAFETY: both types are 512 bits of plain data. The numbers do not matter.
        let factor = unsafe { std::mem::transmute::<__m512, __m512bh>(_mm512_set1_ps(black_box(0.0))) };
        let mut sums = [_mm512_set1_ps(black_box(0.25)); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, factor, factor);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }
}
