//! Arbitrary metadata and chunks of an OME-Zarr store: JSON, OME-XML, shard indexes, codecs. ZIP archives are for the target `slide`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| microtome_io::fuzz::open_store(bytes));
