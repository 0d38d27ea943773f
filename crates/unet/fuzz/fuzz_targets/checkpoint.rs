//! Arbitrary bytes as a file of weights: what torch.save writes, or safetensors. Begin with crates/unet/tests/checkpoints.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| microtome_unet::fuzz::open_checkpoint(bytes));
