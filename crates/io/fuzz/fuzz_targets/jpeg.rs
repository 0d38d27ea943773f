//! Arbitrary bytes decoded as a JPEG stream.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| microtome_io::fuzz::decode_jpeg(bytes));
