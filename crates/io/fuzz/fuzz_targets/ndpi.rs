//! Arbitrary bytes as the intervals of a Hamamatsu NDPI, and where its table says that they are.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| microtome_io::fuzz::open_ndpi(bytes));
