//! Segments a slide from a program of your own: what `microtome segment` does, in one page.
//!
//! ```sh
//! cargo run --release -p microtome --example segment_slide -- slide.svs models/nuclei mask.ome.zarr
//! ```

use std::error::Error;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use microtome::io::slide::{OpenOptions, open};
use microtome::unet::{Execution, Model, ModelOptions};
use microtome::{Existing, Observer, Outcome, Phase, Segmenter, Settings};

/// Prints each phase, and each tenth of it. The library itself prints nothing.
#[derive(Default)]
struct Printer {
    tenths: AtomicU64,
}

impl Observer for Printer {
    fn phase(&self, phase: Phase) {
        self.tenths.store(0, Ordering::Relaxed);
        eprintln!("{phase:?}");
    }

    // Called from several threads: the one that raises the count prints.
    fn progress(&self, done: u64, total: u64) {
        let tenths = done * 10 / total.max(1);
        if self.tenths.fetch_max(tenths, Ordering::Relaxed) < tenths {
            eprintln!("  {} %", tenths * 10);
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [slide, model, output] = arguments.as_slice() else {
        return Err("usage: segment_slide SLIDE MODEL OUT.ome.zarr".into());
    };

    // What is left at its default follows the model: resolution, step between tiles, name of the mask.
    let mut settings = Settings::default();
    settings.memory = 2 << 30;
    // The cache of decoded tiles belongs to the slide, and counts as a part of the memory.
    let slide = open(slide, &OpenOptions::default())?;

    // A package or an nnU-Net result folder, then put on a device: the first GPU of a build that knows one, or the CPU.
    let model = Model::open(model, &ModelOptions::default())?;
    let predictor = model.predictor(&Execution::default())?;

    let segmenter = Segmenter::new(predictor.as_ref(), settings)?;
    match segmenter.segment(slide.as_ref(), output, Existing::Keep, &Printer::default())? {
        Outcome::Done(summary) => println!("{summary}"),
        Outcome::AlreadyDone { .. } => println!("{}: done already", output.display()),
    }
    Ok(())
}
