//! How far a model's precisions are from each other on a picture.

use microtome_io::slide::SlideReader;
use microtome_io::store::MemoryImage;
use microtome_io::{Level, Pixels, Samples};
use microtome_tile::TargetResolution;
use microtome_unet::{
    Arithmetic, Device, Disagreement, Execution, Measurement, Mirroring, Model, Precision, Predictor,
};

use crate::plan::resolution;
use crate::progress::Observer;
use crate::segment::Segmenter;
use crate::settings::{Settings, TissueMode};
use crate::{Error, Result};

/// Masks are compared in memory, two at a time.
const MAX_PIXELS: u64 = 1 << 27;

/// Segments a picture with each precision that the device has, and compares the masks with that of sums of products in f32 on the CPU.
///
/// Every tile runs, once, without mirroring; all else is as the settings say. A picture without a resolution is taken as it is. `name` is
/// what the picture is called.
///
/// # Errors
/// If the picture is too large to keep its masks in memory, or as [`Segmenter::segment`].
pub fn measure_precision(
    model: &Model,
    slide: &dyn SlideReader,
    name: &str,
    device: Device,
    settings: &Settings,
    observer: &dyn Observer,
) -> Result<Measurement> {
    let mut settings = settings.clone();
    settings.tissue = TissueMode::None;
    let scale = resolution(slide, &settings)?;
    if scale.is_none() {
        settings.model_mpp = Some(TargetResolution::Native);
    }
    let execution =
        |device, precision, arithmetic| Execution { device, mirroring: Mirroring::Off, precision, arithmetic };
    let mask = |predictor: &dyn Predictor| -> Result<Pixels> {
        let segmenter = Segmenter::new(predictor, settings.clone())?;
        let target = segmenter.plan(slide)?.geometry.target.size;
        if target.area() > MAX_PIXELS {
            let message =
                format!("{name}: {target} pixels; precisions are compared on up to {MAX_PIXELS}: a part of it will do");
            return Err(Error::Usage(message));
        }
        let (image, _) = segmenter.segment_into(slide, MemoryImage::new, observer)?;
        image.level(Level::FINEST).map_err(Error::Write)
    };

    let exact = model.predictor(&execution(Device::Cpu, Precision::F32, Arithmetic::Exact))?;
    let program = format!("microtome {}: {}", env!("CARGO_PKG_VERSION"), exact.identity());
    let reference = mask(exact.as_ref())?;
    drop(exact);

    let mut disagreement = Disagreement::default();
    let mut others = Vec::new();
    for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
        let predictor = match model.predictor(&execution(device, precision, Arithmetic::Fast)) {
            Ok(predictor) => predictor,
            // What the device has not is not measured.
            Err(microtome_unet::Error::Device { .. }) if precision != Precision::F32 => continue,
            Err(error) => return Err(error.into()),
        };
        others.push(predictor.identity());
        let found = mask(predictor.as_ref())?;
        *disagreement.of_mut(precision) = Some(share(&reference, &found));
    }
    let size = reference.size();
    let at = match (scale, model.card().mpp, settings.model_mpp) {
        (Some(_), _, Some(TargetResolution::Mpp(mpp))) | (Some(_), Some(mpp), None) => format!("of {mpp} um"),
        _ => "as they are".into(),
    };
    Ok(Measurement {
        picture: format!("{name}: {size} pixels {at}, every tile, without mirroring"),
        computed_by: format!("{program} against {}", others.join("; ")),
        pixels: size.area(),
        disagreement,
    })
}

/// Of pixels that differ, 0 to 1.
fn share(a: &Pixels, b: &Pixels) -> f64 {
    let differing = match (a.samples(), b.samples()) {
        (Samples::U8(a), Samples::U8(b)) => a.iter().zip(b).filter(|(a, b)| a != b).count(),
        (Samples::U16(a), Samples::U16(b)) => a.iter().zip(b).filter(|(a, b)| a != b).count(),
        // The same model writes the same kind of mask.
        _ => a.size().area() as usize,
    };
    differing as f64 / a.size().area().max(1) as f64
}
