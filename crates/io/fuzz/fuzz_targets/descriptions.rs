//! Arbitrary bytes opened as a slide: the TIFF container, its codecs, and plain pictures.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| microtome_io::fuzz::read_descriptions(bytes));
