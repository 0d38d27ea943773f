//! Arbitrary text as the plans and the data set of nnU-Net's results, with a byte 0 between. Begin with fuzz/seeds/results.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = std::env::temp_dir().join(format!("microtome-fuzz-results-{}", std::process::id()));
    microtome_unet::fuzz::open_results(&folder, bytes);
});
