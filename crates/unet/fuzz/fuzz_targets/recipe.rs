//! Arbitrary text as a recipe. Begin with fuzz/seeds/recipe.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = std::env::temp_dir().join(format!("microtome-fuzz-recipe-{}", std::process::id()));
    microtome_unet::fuzz::open_recipe(&folder, bytes);
});
