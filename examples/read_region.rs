//! Opens a slide, prints what it is, and saves a region from its middle.
//!
//! ```sh
//! cargo run -p microtome --example read_region -- slide.svs region.png
//! ```

use microtome_io::slide::{OpenOptions, open};
use microtome_io::{Level, Rect};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(slide), Some(png)) = (arguments.next(), arguments.next()) else {
        return Err("usage: read_region SLIDE REGION.png".into());
    };

    // The file is mapped into memory; nothing is decoded yet.
    let slide = open(&slide, &OpenOptions::default())?;
    let info = slide.info();
    println!("{}: {}, {} pixels", info.path.display(), info.format, info.size());
    for (level, stored) in info.levels.iter().enumerate() {
        println!("  level {level}: {} pixels in tiles of {}", stored.size, stored.tile);
    }
    match &info.resolution {
        Some(resolution) => println!("  {} um per pixel ({})", resolution.mpp.x, resolution.source),
        None => println!("  the file does not say how large a pixel is"),
    }

    // Only the tiles that the rectangle touches are decoded, in parallel.
    // Rectangles are in pixels of their level, and may stick out of the slide.
    let size = info.size();
    let rect = Rect::new(size.width as i64 / 2 - 256, size.height as i64 / 2 - 256, 512, 512);
    let pixels = slide.read_region(Level::FINEST, rect)?;

    // Samples lie row by row, the channels of a pixel side by side.
    let color = match pixels.channels() {
        1 => image::ExtendedColorType::L8,
        3 => image::ExtendedColorType::Rgb8,
        n => return Err(format!("{n} channels are no picture").into()),
    };
    let samples = pixels.as_u8().ok_or("a PNG of 8 bits is written here, the slide has 16")?;
    image::save_buffer(&png, samples, rect.width as u32, rect.height as u32, color)?;
    println!("saved {rect} as {png}");
    Ok(())
}
