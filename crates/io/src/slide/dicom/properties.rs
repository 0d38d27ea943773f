//! The header of a file as properties, under the names that OpenSlide gives them: `dicom.` and the keywords of the
//! standard, `[n]` behind a sequence for its items and behind a value of several parts for these. Private elements have
//! no keyword and are left out; so are bytes, and values that are too long to be a word on the slide.

use std::collections::BTreeMap;

use dicom_core::VR;

use super::element::{DataSet, Element, Value, Values, known, trim};
use crate::Result;

/// The properties of a file.
pub(super) fn of(values: &Values, sets: [&DataSet; 2]) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for set in sets {
        add(values, set, "dicom", &mut found)?;
    }
    Ok(found)
}

fn add(values: &Values, data: &DataSet, prefix: &str, found: &mut BTreeMap<String, String>) -> Result<()> {
    for element in &data.0 {
        // The length of a group says nothing of the slide; OpenSlide leaves it out, too.
        let Some((keyword, _)) = known(element.tag).filter(|_| element.tag.element() != 0) else { continue };
        let name = format!("{prefix}.{keyword}");
        if let Value::Items(items) = &element.value {
            for (index, item) in items.iter().enumerate() {
                add(values, item, &format!("{name}[{index}]"), found)?;
            }
            continue;
        }
        let parts = parts(values, element)?;
        if let [part] = &parts[..] {
            found.insert(name, part.clone());
        } else {
            found.extend(parts.into_iter().enumerate().map(|(index, part)| (format!("{name}[{index}]"), part)));
        }
    }
    Ok(())
}

/// The parts of a value as texts; none of bytes.
fn parts(values: &Values, element: &Element) -> Result<Vec<String>> {
    let Some(bytes) = values.small(element)? else { return Ok(Vec::new()) };
    Ok(match element.vr {
        VR::SS => all(&bytes, i16::from_le_bytes),
        VR::UL => all(&bytes, u32::from_le_bytes),
        VR::SL => all(&bytes, i32::from_le_bytes),
        VR::UV => all(&bytes, u64::from_le_bytes),
        VR::SV => all(&bytes, i64::from_le_bytes),
        // As OpenSlide has them: group and element are numbers of their own.
        VR::US | VR::AT => all(&bytes, u16::from_le_bytes),
        VR::FL => all(&bytes, |raw| f64::from(f32::from_le_bytes(raw))),
        VR::FD => all(&bytes, f64::from_le_bytes),
        // Texts that may hold a backslash, and those that OpenSlide takes for such.
        VR::LO | VR::LT | VR::PN | VR::SH | VR::ST | VR::UC | VR::UR | VR::UT => {
            vec![trim(&values.decode(&bytes)).to_owned()]
        }
        VR::AE | VR::AS | VR::CS | VR::DA | VR::DS | VR::DT | VR::IS | VR::TM | VR::UI => {
            values.decode(&bytes).split('\\').map(|part| trim(part).to_owned()).collect()
        }
        _ => Vec::new(),
    })
}

fn all<const N: usize, T: ToString>(bytes: &[u8], number: fn([u8; N]) -> T) -> Vec<String> {
    bytes.as_chunks::<N>().0.iter().map(|&raw| number(raw).to_string()).collect()
}
