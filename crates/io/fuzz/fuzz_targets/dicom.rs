//! Arbitrary bytes as the data set of a DICOM whole slide.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| microtome_io::fuzz::dicom(bytes));
