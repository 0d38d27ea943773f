//! Arbitrary bytes as the pickle of a checkpoint that is otherwise in order. Begin with fuzz/seeds/pickle.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| microtome_unet::fuzz::open_pickle(bytes));
