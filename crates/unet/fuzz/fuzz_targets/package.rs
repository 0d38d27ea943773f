//! Arbitrary text as the manifest of a package. Begin with fuzz/seeds/package.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = std::env::temp_dir().join(format!("microtome-fuzz-package-{}", std::process::id()));
    microtome_unet::fuzz::open_package(&folder, bytes);
});
