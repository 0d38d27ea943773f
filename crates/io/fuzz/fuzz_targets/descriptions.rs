//! Arbitrary text as the descriptions of Leica, Philips and Ventana.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| microtome_io::fuzz::read_descriptions(bytes));
