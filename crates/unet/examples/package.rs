//! Makes a package of an nnU-Net v2 result folder: `cargo run -p microtome-unet --example package -- FOLDER PACKAGE`.
//!
//! This is how `tests/models/nnunet-nuclei` was made. `microtome model import` does the same with options for what is fixed here.

use std::error::Error;
use std::path::PathBuf;

use microtome_unet::{Model, ModelOptions, PackageOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(folder), Some(package)) = (arguments.next(), arguments.next()) else {
        return Err("two arguments: the result folder and the package to make".into());
    };
    let model = Model::open(folder, &ModelOptions::default())?;
    let options = PackageOptions {
        name: Some("nuclei".into()),
        // nnU-Net does not store the resolution, so whoever imports a model has to state it.
        mpp: Some(0.5),
        licence: Some("MIT OR Apache-2.0".into()),
        provenance: Some(
            "PlainConvUNet trained for 10 epochs by nnU-Net 2.8.1 on 83 stained tissue images of the 2018 Data Science Bowl \
             (BBBC038, CC0-1.0); mean Dice 0.869 on 24 held-out images. The images state no resolution: \
             0.5 micrometres per pixel is an assumption."
                .into(),
        ),
        intended_use: Some("A demonstration of microtome. It is not a diagnostic device.".into()),
        ..PackageOptions::default()
    };
    model.save_package(&package, &options)?;
    println!("{}: {}", package.display(), model.card().architecture);
    Ok(())
}
