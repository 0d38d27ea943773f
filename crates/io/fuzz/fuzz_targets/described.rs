//! Arbitrary text as the description of a TIFF's pages: OME-XML and the XML of a QPTIFF.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| microtome_io::fuzz::open_described(text));
