//! Arbitrary text as the header of safetensors. Begin with fuzz/seeds/safetensors.
#![no_main]

libfuzzer_sys::fuzz_target!(|header: &[u8]| microtome_unet::fuzz::open_safetensors(header));
