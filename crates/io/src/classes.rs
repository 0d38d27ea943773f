//! The table of classes that a mask's values stand for.

use serde::{Deserialize, Serialize};

/// One value of a mask: what it means and how it is shown.
///
/// One table of these serves OME-Zarr (`image-label`), palettes, legends and reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// The value in the mask; 0 is background.
    pub value: u16,
    /// The name, as the model's author gave it.
    pub name: String,
    /// Red, green, blue.
    pub color: [u8; 3],
    /// A code from a terminology, such as SNOMED CT, if the author gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

impl Class {
    /// A class with a colour of its own, chosen by its value from a palette that stays distinguishable for
    /// colour-blind readers (Okabe and Ito, 2008), repeated after seven.
    #[must_use]
    pub fn with_default_color(value: u16, name: impl Into<String>) -> Self {
        const PALETTE: [[u8; 3]; 7] = [
            [230, 159, 0],
            [86, 180, 233],
            [0, 158, 115],
            [240, 228, 66],
            [0, 114, 178],
            [213, 94, 0],
            [204, 121, 167],
        ];
        let color = match value {
            0 => [0, 0, 0],
            v => PALETTE[(usize::from(v) - 1) % PALETTE.len()],
        };
        Self { value, name: name.into(), color, code: None }
    }
}
