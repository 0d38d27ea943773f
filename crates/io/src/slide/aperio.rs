//! Aperio SVS: a TIFF whose first page calls itself `Aperio` in its description.
//!
//! Pages of tiles are levels. The second page, of strips, is the thumbnail, unless its description calls it a label or a macro; other pages of
//! strips are named by the first word on the second line of their description: `label`, `macro`. A description is a header and then
//! `key = value` pairs, parted by `|`; they become properties `aperio.key`, as in OpenSlide. `MPP` is micrometres per
//! pixel along both axes, `AppMag` the magnification of the objective.
//!
//! Tiles may be left out by a byte count of 0 (the scanner saw nothing there): they are background.
//!
//! Sources: OpenSlide's format page "Aperio", and files of the OpenSlide test data.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::pyramid::{Layer, Parts, Pyramid};
use super::raster::Raster;
use super::tiff::{Page, Tag, Tiff};
use super::{OpenOptions, Resolution, ResolutionSource, SlideReader};
use crate::{Error, Microns, Result};

/// True if the first page is Aperio's.
pub(super) fn detect(tiff: &Tiff) -> Result<bool> {
    let first = &tiff.directories()[0];
    let description = first.text(tiff.file(), Tag::IMAGE_DESCRIPTION)?;
    Ok(description.is_some_and(|text| text.starts_with("Aperio")))
}

/// Opens an SVS.
pub(super) fn open(tiff: Tiff, options: &OpenOptions) -> Result<Box<dyn SlideReader>> {
    let file = tiff.file();
    let (mut levels, mut associated) = (Vec::new(), Vec::<(String, Box<dyn Raster>)>::new());
    for (index, ifd) in tiff.directories().iter().enumerate() {
        if ifd.is_tiled() {
            levels.push(Page::read(file, ifd)?);
            continue;
        }
        if index == 0 {
            return Err(Error::unsupported(file.path(), "the first page of an SVS must be of tiles; this one is not"));
        }
        let description = ifd.text(file, Tag::IMAGE_DESCRIPTION)?.unwrap_or_default();
        // A picture without a name is none that can be asked for.
        let Some(name) = picture_name(index, &description).map(str::to_owned) else { continue };
        // A picture that travels along and cannot be read is no reason to refuse the slide.
        match Page::read(file, ifd) {
            Ok(page) if associated.iter().all(|(known, _)| *known != name) => associated.push((name, Box::new(page))),
            Ok(_) | Err(Error::Unsupported { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    levels.sort_by_key(|page| std::cmp::Reverse(page.layout.size.width));

    let description = tiff.directories()[0].text(file, Tag::IMAGE_DESCRIPTION)?.unwrap_or_default();
    let mut properties = properties(&description);
    let number = |key: &str| properties.get(key).and_then(|text| parse_positive(text));
    let resolution = number("aperio.MPP")
        .map(|mpp| Resolution { mpp: Microns::square(mpp), source: ResolutionSource::Vendor("aperio.MPP".into()) });
    let objective_power = number("aperio.AppMag");
    properties.extend(tiff.text_properties()?);
    let parts = Parts {
        associated,
        resolution,
        objective_power,
        icc_profile: tiff.directories()[0].bytes(file, Tag::ICC_PROFILE)?,
        properties,
        ..Parts::new("aperio", Arc::clone(file.source()), levels.into_iter().map(Layer::of).collect())
    };
    Ok(Box::new(Pyramid::new(parts, options)?))
}

/// The name that a description gives to a picture that travels along: `label` of `...\nlabel 387x463`. The second page mostly has none, and is the
/// thumbnail; but a slide without one may have its label there, which must not pass for it.
fn picture_name(index: usize, description: &str) -> Option<&str> {
    let second_line = description.split('\n').nth(1).and_then(|line| line.split(' ').next());
    let name = second_line.map(str::trim).filter(|name| !name.is_empty());
    if index != 1 {
        return name;
    }
    name.filter(|name| ["label", "macro"].iter().any(|known| name.eq_ignore_ascii_case(known))).or(Some("thumbnail"))
}

/// The `key = value` pairs of a description.
fn properties(description: &str) -> BTreeMap<String, String> {
    description
        .split('|')
        .skip(1)
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (format!("aperio.{}", key.trim()), value.trim().to_owned()))
        .collect()
}

/// A number above zero, with a decimal point or, as some scanners write it, a decimal comma.
fn parse_positive(text: &str) -> Option<f64> {
    text.replace(',', ".").parse().ok().filter(|value: &f64| value.is_finite() && *value > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_taken_apart() {
        let found =
            properties("Aperio Image Library v11.2.1 \r\n46000x32914|AppMag = 20|MPP = 0.4990|Filename = a=b|odd");
        assert_eq!(found["aperio.AppMag"], "20");
        assert_eq!(found["aperio.MPP"], "0.4990");
        assert_eq!(found["aperio.Filename"], "a=b");
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn a_label_is_called_so_wherever_it_lies() {
        let (label, overview) = ("Aperio v11\r\nlabel 387x463", "Aperio v11 \r\nmacro 1280x431");
        for index in 1..4 {
            assert_eq!((picture_name(index, label), picture_name(index, overview)), (Some("label"), Some("macro")));
        }
        for thumbnail in ["", "Aperio", "Aperio v11\r\n46000x32914 -> 1024x732 - |AppMag = 20"] {
            assert_eq!(picture_name(1, thumbnail), Some("thumbnail"));
        }
        assert_eq!(picture_name(2, "Aperio"), None);
    }

    #[test]
    fn numbers_are_positive_or_unknown() {
        assert_eq!(parse_positive("0,2525"), Some(0.2525));
        for text in ["", "0", "-1", "nan", "inf", "0.25 um"] {
            assert_eq!(parse_positive(text), None, "{text}");
        }
    }
}
