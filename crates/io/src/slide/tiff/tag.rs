//! Tags and field types of TIFF 6.0, its technical notes, and BigTIFF.

/// The number of a field in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tag(pub(crate) u16);

// The names are those of the specification.
impl Tag {
    pub(crate) const NEW_SUBFILE_TYPE: Self = Self(254);
    pub(crate) const IMAGE_WIDTH: Self = Self(256);
    pub(crate) const IMAGE_LENGTH: Self = Self(257);
    pub(crate) const BITS_PER_SAMPLE: Self = Self(258);
    pub(crate) const COMPRESSION: Self = Self(259);
    pub(crate) const PHOTOMETRIC_INTERPRETATION: Self = Self(262);
    pub(crate) const FILL_ORDER: Self = Self(266);
    pub(crate) const DOCUMENT_NAME: Self = Self(269);
    pub(crate) const IMAGE_DESCRIPTION: Self = Self(270);
    pub(crate) const MAKE: Self = Self(271);
    pub(crate) const MODEL: Self = Self(272);
    pub(crate) const STRIP_OFFSETS: Self = Self(273);
    pub(crate) const ORIENTATION: Self = Self(274);
    pub(crate) const SAMPLES_PER_PIXEL: Self = Self(277);
    pub(crate) const ROWS_PER_STRIP: Self = Self(278);
    pub(crate) const STRIP_BYTE_COUNTS: Self = Self(279);
    pub(crate) const X_RESOLUTION: Self = Self(282);
    pub(crate) const Y_RESOLUTION: Self = Self(283);
    pub(crate) const PLANAR_CONFIGURATION: Self = Self(284);
    pub(crate) const RESOLUTION_UNIT: Self = Self(296);
    pub(crate) const SOFTWARE: Self = Self(305);
    pub(crate) const DATE_TIME: Self = Self(306);
    pub(crate) const ARTIST: Self = Self(315);
    pub(crate) const HOST_COMPUTER: Self = Self(316);
    pub(crate) const PREDICTOR: Self = Self(317);
    pub(crate) const TILE_WIDTH: Self = Self(322);
    pub(crate) const TILE_LENGTH: Self = Self(323);
    pub(crate) const TILE_OFFSETS: Self = Self(324);
    pub(crate) const TILE_BYTE_COUNTS: Self = Self(325);
    pub(crate) const SUB_IFDS: Self = Self(330);
    pub(crate) const EXTRA_SAMPLES: Self = Self(338);
    pub(crate) const SAMPLE_FORMAT: Self = Self(339);
    pub(crate) const JPEG_TABLES: Self = Self(347);
    pub(crate) const XMP: Self = Self(700);
    pub(crate) const COPYRIGHT: Self = Self(33432);
    pub(crate) const METAMORPH_STACK: Self = Self(33629);
    pub(crate) const ZEISS_LSM: Self = Self(34412);
    pub(crate) const ICC_PROFILE: Self = Self(34675);
    pub(crate) const DNG_VERSION: Self = Self(50706);
    // Hamamatsu's, as OpenSlide and tifffile name them.
    pub(crate) const NDPI_FORMAT: Self = Self(65420);
    pub(crate) const NDPI_SOURCE_LENS: Self = Self(65421);
    pub(crate) const NDPI_X_OFFSET: Self = Self(65422);
    pub(crate) const NDPI_Y_OFFSET: Self = Self(65423);
    pub(crate) const NDPI_FOCAL_PLANE: Self = Self(65424);
    pub(crate) const NDPI_MCU_STARTS: Self = Self(65426);
    pub(crate) const NDPI_REFERENCE: Self = Self(65427);
    pub(crate) const NDPI_MCU_STARTS_HIGH: Self = Self(65432);
    pub(crate) const NDPI_PROPERTY_MAP: Self = Self(65449);
}

/// How the values of a field are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldType {
    /// 8-bit unsigned (`BYTE`), also `UNDEFINED`.
    Byte,
    /// Text, ending in a zero byte.
    Ascii,
    /// 16-bit unsigned.
    Short,
    /// 32-bit unsigned, also `IFD`.
    Long,
    /// Two 32-bit unsigned numbers: numerator and denominator.
    Rational,
    /// 64-bit unsigned (BigTIFF), also `IFD8`.
    Long8,
    /// 32-bit signed.
    SignedLong,
    /// 32-bit IEEE.
    Float,
    /// One that no field we read may have: other signed numbers and floats; the width in bytes.
    Other(u8),
}

impl FieldType {
    /// The type with this code, or `None` for a code that no specification names; such fields are to be skipped.
    pub(crate) fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            1 | 7 => Self::Byte,
            2 => Self::Ascii,
            3 => Self::Short,
            4 | 13 => Self::Long,
            5 => Self::Rational,
            16 | 18 => Self::Long8,
            6 => Self::Other(1),
            8 => Self::Other(2),
            9 => Self::SignedLong,
            11 => Self::Float,
            10 | 12 | 17 => Self::Other(8),
            _ => return None,
        })
    }

    /// Bytes of one value.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::Byte | Self::Ascii => 1,
            Self::Short => 2,
            Self::Long | Self::SignedLong | Self::Float => 4,
            Self::Rational | Self::Long8 => 8,
            Self::Other(bytes) => u64::from(bytes),
        }
    }
}
