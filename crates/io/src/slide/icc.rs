//! Colours by the slide's ICC profile.
//!
//! A scanner's RGB values mean what its profile says. Networks are mostly trained on the values as they are stored, which
//! is why nothing is converted unless the user asks for it. The conversion is that of `moxcms`: relative to
//! the profile's rendering intent, to sRGB (IEC 61966-2-1), sample by sample in the slide's own depth. With a matrix profile (Adobe RGB)
//! it is within 2 levels of littleCMS, 0.042 in the mean (`colors::a_profile_is_applied_as_little_cms_does`).

use std::fmt;
use std::sync::Arc;

use moxcms::{ColorProfile, DataColorSpace, Layout, Transform8BitExecutor, Transform16BitExecutor, TransformOptions};

use super::{Colors, ICC_FAULT, SlideInfo, SlideReader};
use crate::{Error, Level, Pixels, Rect, Result, SampleType, Samples, Size};

/// The most bytes that a profile may have: those of scanners have up to a few hundred thousand.
const MOST_BYTES: usize = 16 << 20;

/// A slide whose pixels are converted to sRGB.
pub(super) struct ToSrgb {
    inner: Box<dyn SlideReader>,
    info: SlideInfo,
    transform: Transform,
}

enum Transform {
    U8(Arc<Transform8BitExecutor>),
    U16(Arc<Transform16BitExecutor>),
}

/// The same slide with its pixels in sRGB. One without a profile, or whose pixels are no colours, stays as it is; its
/// [`SlideInfo::colors`] says so.
///
/// # Errors
/// [`Error::Unsupported`] for a profile that cannot be applied.
pub(super) fn to_srgb(inner: Box<dyn SlideReader>) -> Result<Box<dyn SlideReader>> {
    let info = inner.info();
    let refused = |why: String| Error::unsupported(&info.path, format!("the ICC profile cannot be applied: {why}"));
    if let (Some(fault), 3) = (info.properties.get(ICC_FAULT), info.channels) {
        return Err(refused(format!("it cannot be read: {fault}")));
    }
    let (Some(bytes), 3) = (inner.icc_profile(), info.channels) else { return Ok(inner) };
    if bytes.len() > MOST_BYTES {
        return Err(refused(format!("it has {} bytes, more than {MOST_BYTES}", bytes.len())));
    }
    let profile = ColorProfile::new_from_slice(bytes).map_err(|error| refused(error.to_string()))?;
    if profile.color_space != DataColorSpace::Rgb {
        return Err(refused(format!("it is one of {:?}, and the pixels are red, green, blue", profile.color_space)));
    }
    let srgb = ColorProfile::new_srgb();
    let options = TransformOptions { rendering_intent: profile.rendering_intent, ..TransformOptions::default() };
    let transform = match info.sample {
        SampleType::U8 => profile.create_transform_8bit(Layout::Rgb, &srgb, Layout::Rgb, options).map(Transform::U8),
        SampleType::U16 => profile.create_transform_16bit(Layout::Rgb, &srgb, Layout::Rgb, options).map(Transform::U16),
    };
    let transform = transform.map_err(|error| refused(error.to_string()))?;
    let mut converted = ToSrgb { info: SlideInfo { colors: Colors::Srgb, ..info.clone() }, inner, transform };
    let background = Pixels::filled(Size::new(1, 1), converted.info.sample, &converted.info.background);
    converted.info.background = match converted.apply(background)?.samples() {
        Samples::U8(samples) => samples.iter().map(|&sample| sample.into()).collect(),
        Samples::U16(samples) => samples.clone(),
    };
    Ok(Box::new(converted))
}

impl ToSrgb {
    fn apply(&self, mut pixels: Pixels) -> Result<Pixels> {
        let failed = |error: moxcms::CmsError| Error::unsupported(&self.info.path, format!("ICC profile: {error}"));
        match (&self.transform, pixels.samples_mut()) {
            (Transform::U8(transform), Samples::U8(samples)) => {
                let stored = samples.clone();
                transform.transform(&stored, samples).map_err(failed)?;
            }
            (Transform::U16(transform), Samples::U16(samples)) => {
                let stored = samples.clone();
                transform.transform(&stored, samples).map_err(failed)?;
            }
            _ => unreachable!("all pixels of a slide have one sample type"),
        }
        Ok(pixels)
    }
}

impl fmt::Debug for ToSrgb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToSrgb").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl SlideReader for ToSrgb {
    fn info(&self) -> &SlideInfo {
        &self.info
    }

    fn read_region(&self, level: Level, rect: Rect) -> Result<Pixels> {
        self.apply(self.inner.read_region(level, rect)?)
    }

    /// As it is stored: the profile is that of the slide's levels.
    fn read_associated(&self, name: &str) -> Result<Pixels> {
        self.inner.read_associated(name)
    }

    fn tiles(&self, level: Level) -> Result<Box<dyn Iterator<Item = Rect> + '_>> {
        self.inner.tiles(level)
    }

    fn prefetch(&self, level: Level, rect: Rect) {
        self.inner.prefetch(level, rect);
    }

    fn resident_bytes(&self) -> u64 {
        self.inner.resident_bytes()
    }

    fn keep_decoded(&self, bytes: u64) {
        self.inner.keep_decoded(bytes);
    }

    fn content_id(&self) -> Result<String> {
        self.inner.content_id()
    }
}
