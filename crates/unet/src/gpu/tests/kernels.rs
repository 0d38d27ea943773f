//! The kernels of `kernels.cu`, on a CPU.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use candle_core::{DType, Device, Tensor};

use super::super::blocks::Blocks;
use super::super::norm::{CHUNK, NormActivation};
use crate::network::Extent;

/// Values around a mean that is large against them, as they are behind some convolutions.
fn noise(seed: u32, mean: f32) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from((state >> 16) as u16) / 32768.0 - 1.0 + mean
    }
}

/// One call of a kernel.
struct Case {
    dtype: DType,
    together: usize,
    tiles: usize,
    pixels: usize,
    channels: usize,
    slope: f32,
    residual: bool,
}

/// `emulate.cpp` runs each kernel with a thread for each thread of a block; a compiler of C++20 makes it.
#[test]
fn kernels_compute_what_the_cpu_does() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("emulate");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gpu/driver/emulate.cpp");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let compiled = Command::new(&compiler)
        .args(["-std=c++20", "-O1", "-ffp-contract=off", "-pthread", "-o"])
        .arg(&program)
        .arg(source)
        .output();
    match compiled {
        Err(error) => return microtome_testkit::skip(&format!("no compiler of C++ ({compiler}: {error})")),
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
    }
    let (single, half) = (DType::F32, DType::BF16);
    let cases = [
        // Fewer channels than threads; more than a chunk of pixels, and the last chunk short.
        Case { dtype: single, together: 4, tiles: 2, pixels: CHUNK + 300, channels: 32, slope: 0.01, residual: false },
        Case { dtype: half, together: 4, tiles: 2, pixels: CHUNK + 300, channels: 32, slope: 0.01, residual: true },
        // A number of channels that does not divide the threads, one by one.
        Case { dtype: single, together: 1, tiles: 1, pixels: 70, channels: 6, slope: 1.0, residual: true },
        Case { dtype: half, together: 1, tiles: 1, pixels: 70, channels: 7, slope: 0.0, residual: false },
        // More channels than threads.
        Case { dtype: single, together: 1, tiles: 1, pixels: 9, channels: 320, slope: 0.01, residual: false },
        Case { dtype: single, together: 4, tiles: 3, pixels: 4, channels: 1200, slope: 0.01, residual: true },
        Case { dtype: half, together: 4, tiles: 1, pixels: 1, channels: 12, slope: 0.01, residual: false },
    ];
    for case in cases {
        let difference = difference(&program, &case);
        // Both compute in f32, in the same order but for sums within a chunk; bf16 rounds the result, by one step at most.
        // Measured: 1.8e-6 in f32; in bf16 2e-5, but where a sum ends near the middle of two numbers it may become either, 2^-7 apart below 2.
        let tolerance = if case.dtype == single { 5e-6 } else { 8e-3 };
        let Case { dtype, tiles, pixels, channels, .. } = case;
        println!("{dtype:?} {tiles} x {pixels} x {channels}: {difference:e}");
        assert!(difference <= tolerance, "{dtype:?} {tiles} x {pixels} x {channels}: {difference:e}");
    }
    for (dtype, together) in [(single, 4), (single, 1), (half, 4), (half, 1)] {
        for (height, width) in [(2, 2), (1, 3), (4, 1)] {
            check_blocks(&program, dtype, together, Extent { height, width });
        }
    }
}

/// Values are moved and added once: to the last bit.
fn check_blocks(program: &Path, dtype: DType, together: usize, extent: Extent) {
    let (tiles, height, width, channels) = (2, 5, 3, if together == 4 { 12 } else { 5 });
    let shape = (tiles, height, width, extent.area() * channels);
    let count = tiles * height * width * extent.area() * channels;
    let rounded = |seed, n: usize| {
        let values: Vec<f32> = std::iter::repeat_with(noise(seed, 0.0)).take(n).collect();
        Tensor::from_vec(values, n, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    };
    let (x, bias) = (rounded(1, count), rounded(2, channels));
    let wide = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let expected = Blocks { extent }.run(&x.reshape(shape).unwrap(), &bias).unwrap();
    assert_eq!(expected.dims(), [tiles, height * extent.height, width * extent.width, channels]);
    let numbers = [together, tiles, height, channels, width, extent.height, extent.width].map(|n| n.to_string());
    let found =
        emulate(program, dtype, &[&numbers[..], &["blocks".into()]].concat(), &[wide(&x), wide(&bias)].concat());
    assert_eq!(found, wide(&expected), "{dtype:?}, {together} at once, {extent}");
}

/// What the emulation makes of some input.
fn emulate(program: &Path, dtype: DType, arguments: &[String], input: &[f32]) -> Vec<f32> {
    let bytes: Vec<u8> = input.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut child = Command::new(program)
        .arg(if dtype == DType::F32 { "f32" } else { "bf16" })
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout.chunks_exact(4).map(|v| f32::from_le_bytes([v[0], v[1], v[2], v[3]])).collect()
}

/// The largest, relative to the largest value.
fn difference(program: &Path, case: &Case) -> f32 {
    let &Case { dtype, together, tiles, pixels, channels, slope, residual } = case;
    let shape = (tiles, pixels, 1, channels);
    let count = tiles * pixels * channels;
    let values = |seed, mean, n: usize| std::iter::repeat_with(noise(seed, mean)).take(n).collect::<Vec<f32>>();
    let rounded = |values: Vec<f32>| {
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (tensor, values)
    };
    let (x, x_values) = rounded(values(1, 30.0, count));
    let (rest, rest_values) = rounded(values(2, 0.0, count));
    let scale = values(3, 1.0, 2 * channels);
    let scale_tensor = Tensor::from_slice(&scale, (2, channels), &Device::Cpu).unwrap();
    let norm = NormActivation { epsilon: 1e-5, slope };
    let expected = norm.run(&x, &scale_tensor, residual.then_some(&rest)).unwrap();
    let expected = expected.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();

    let mut input = [x_values, scale].concat();
    if residual {
        input.extend(rest_values);
    }
    let mut arguments = [together, tiles, pixels, channels, CHUNK].map(|n| n.to_string()).to_vec();
    arguments.extend([norm.epsilon.to_string(), slope.to_string()]);
    arguments.push(if residual { "residual" } else { "none" }.into());
    let found = emulate(program, dtype, &arguments, &input);
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let difference = |(a, b): (&f32, &f32)| if a.is_finite() { (a - b).abs() } else { f32::INFINITY };
    found.iter().zip(&expected).map(difference).fold(0.0, f32::max) / largest
}

/// `(x - mean) / sqrt(variance + epsilon) * weight + bias`, in f64.
#[test]
fn the_cpu_computes_the_formula() {
    let (pixels, channels) = (3 * CHUNK + 17, 5);
    let mut next = noise(5, 1000.0);
    let x: Vec<f32> = (0..pixels * channels).map(|_| next()).collect();
    let scale: Vec<f32> = (0..2 * channels).map(|i| 0.5 + i as f32 * 0.1).collect();
    let tensor = Tensor::from_slice(&x, (1, pixels, 1, channels), &Device::Cpu).unwrap();
    let scale_tensor = Tensor::from_slice(&scale, (2, channels), &Device::Cpu).unwrap();
    let norm = NormActivation { epsilon: 1e-5, slope: 0.01 };
    let found = norm.run(&tensor, &scale_tensor, None).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for c in 0..channels {
        let values: Vec<f64> = x.iter().skip(c).step_by(channels).map(|v| f64::from(*v)).collect();
        let mean = values.iter().sum::<f64>() / pixels as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / pixels as f64;
        for (p, value) in values.iter().enumerate() {
            let y = (value - mean) / (variance + 1e-5).sqrt() * f64::from(scale[c]) + f64::from(scale[channels + c]);
            let y = if y < 0.0 { y * 0.01 } else { y };
            let difference = (f64::from(found[p * channels + c]) - y).abs();
            // The mean alone has 6e-5 of rounding in f32, and is a thousand deviations.
            assert!(difference < 5e-4, "{difference:e} at {p}, channel {c}");
        }
    }
}
