"""Writes DICOM whole slides of a known content: dicom_slides.py OUT [WSIDICOM_DATA]

The content is a formula, so that whoever reads a slide can tell what it must hold:
colours at (x, y) are (3x + 5y, x + 2y, 7x + y) mod 256; the brightness of optical path p is (301x + 257y + 1000p) mod 4096
in 12 bits and (3x + 5y + 50p) mod 256 in 8.

With the folder of wsidicom-data (one tile in many codecs) each of its streams becomes a slide of one tile, tile/NAME.dcm.
"""

import re
import sys
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels import convert_color_space
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.sequence import Sequence

SM = "1.2.840.10008.5.1.4.1.1.77.1.6"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
IMPLICIT, EXPLICIT, IN_ITEMS, RLE = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.98",
    "1.2.840.10008.1.2.5",
)
ROOT = "1.2.826.0.1.3680043.8.498."
serial = 0


def number():
    global serial
    serial += 1
    return f"{ROOT}{serial}"


def colors(width, height, step=1):
    y, x = np.mgrid[0 : height * step : step, 0 : width * step : step]
    return np.stack([3 * x + 5 * y, x + 2 * y, 7 * x + y], -1).astype(np.uint8)


def grey(width, height, path, bits):
    y, x = np.mgrid[0:height, 0:width]
    if bits == 8:
        return ((3 * x + 5 * y + 50 * path) % 256).astype(np.uint8)
    return ((301 * x + 257 * y + 1000 * path) % 4096).astype(np.uint16)


def tiles(picture, tile):
    """Tiles row by row; what sticks out is 77."""
    height, width = picture.shape[:2]
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            piece = picture[top : top + tile, left : left + tile]
            padding = [(0, tile - piece.shape[0]), (0, tile - piece.shape[1])] + [(0, 0)] * (picture.ndim - 2)
            yield (left, top), np.pad(piece, padding, constant_values=77)


def items(*sets):
    return Sequence(sets)


def group(**elements):
    ds = Dataset()
    for name, value in elements.items():
        setattr(ds, name, value)
    return ds


def header(series, syntax, picture, tile, bits, paths=("1",), kind="VOLUME", photometric=None, sop=SM):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = sop
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", kind, "NONE"]
    ds.SOPClassUID = sop
    ds.SOPInstanceUID = number()
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.Modality = "SM"
    ds.PatientName = "Grün^Änne"
    ds.SeriesInstanceUID = series
    ds.DimensionOrganizationType = "TILED_FULL"
    samples = 3 if picture.ndim == 3 else 1
    ds.SamplesPerPixel = samples
    ds.PhotometricInterpretation = photometric or ("RGB" if samples == 3 else "MONOCHROME2")
    if samples == 3:
        ds.PlanarConfiguration = 0
    ds.Rows = ds.Columns = tile
    ds.BitsAllocated = 8 if bits == 8 else 16
    ds.BitsStored = bits
    ds.HighBit = bits - 1
    ds.PixelRepresentation = 0
    ds.TotalPixelMatrixColumns = picture.shape[1]
    ds.TotalPixelMatrixRows = picture.shape[0]
    ds.TotalPixelMatrixFocalPlanes = 1
    ds.NumberOfOpticalPaths = len(paths)
    ds.OpticalPathSequence = items(
        *(group(OpticalPathIdentifier=p, OpticalPathDescription=f"path {p}", ObjectiveLensPower="40") for p in paths)
    )
    spacing = group(PixelSpacing=["0.0005", "0.00025"])
    ds.SharedFunctionalGroupsSequence = items(group(PixelMeasuresSequence=items(spacing)))
    return ds


def rle(tile, bits):
    channels = 3 if tile.ndim == 3 else 1
    return RLELosslessEncoder.encode(
        tile.tobytes(),
        rows=tile.shape[0],
        columns=tile.shape[1],
        samples_per_pixel=channels,
        bits_allocated=8 if bits == 8 else 16,
        bits_stored=bits,
        photometric_interpretation="RGB" if channels == 3 else "MONOCHROME2",
        pixel_representation=0,
        planar_configuration=0,
        number_of_frames=1,
    )


def save(ds, path, frames, in_items=False, **how):
    """`frames` are bytes; `how` is for the items."""
    ds.NumberOfFrames = len(frames)
    if in_items:
        if how.pop("extended", False):
            ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(frames)
        else:
            ds.PixelData = encapsulate(frames, **how)
        ds["PixelData"].is_undefined_length = True
        ds["PixelData"].VR = "OB"
    else:
        ds.PixelData = b"".join(frames)
        ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 and ds.file_meta.TransferSyntaxUID != IMPLICIT else "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def place(x, y, path=None):
    at = group(ColumnPositionInTotalImagePixelMatrix=x + 1, RowPositionInTotalImagePixelMatrix=y + 1)
    at.XOffsetInSlideCoordinateSystem = at.YOffsetInSlideCoordinateSystem = at.ZOffsetInSlideCoordinateSystem = "0"
    ds = group(PlanePositionSlideSequence=items(at))
    if path:
        ds.OpticalPathIdentificationSequence = items(group(OpticalPathIdentifier=path))
    return ds


def undefined(ds):
    """Writes all sequences without lengths."""
    for element in ds:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                undefined(item)


def main(out, data=None):
    picture = colors(100, 70)

    # Two tiles are missing, the others in any order.
    ds = header(number(), EXPLICIT, picture, 32, 8)
    ds.DimensionOrganizationType = "TILED_SPARSE"
    some = [found for found in tiles(picture, 32) if found[0] not in ((32, 0), (96, 64))][::-1]
    ds.PerFrameFunctionalGroupsSequence = items(*(place(*at) for at, _ in some))
    save(ds, out / "sparse/slide.dcm", [tile.tobytes() for _, tile in some])

    # A missing frame in either channel; sequences without lengths.
    two = [grey(100, 70, path, 8) for path in (0, 1)]
    ds = header(number(), IMPLICIT, two[0], 32, 8, paths=("a", "b"))
    ds.DimensionOrganizationType = "TILED_SPARSE"
    some = [
        (at, "ab"[path], tile)
        for path in (0, 1)
        for at, tile in tiles(two[path], 32)
        if (at, path) not in (((32, 0), 0), ((64, 32), 1), ((0, 64), 0), ((0, 64), 1))
    ]
    ds.PerFrameFunctionalGroupsSequence = items(*(place(*at, path) for at, path, _ in some))
    undefined(ds)
    save(ds, out / "sparse-paths/slide.dcm", [tile.tobytes() for _, _, tile in some])

    # One level in three files, run lengths, an offset table in each.
    whole, series, source = number(), number(), number()
    frames = [rle(tile, 8) for _, tile in tiles(picture, 32)]
    for index, (first, last) in enumerate(((0, 5), (5, 6), (6, 12))):
        ds = header(series, RLE, picture, 32, 8)
        ds.ConcatenationUID = whole
        ds.SOPInstanceUIDOfConcatenationSource = source
        ds.InConcatenationNumber = index + 1
        ds.InConcatenationTotalNumber = 3
        ds.ConcatenationFrameOffsetNumber = first
        save(ds, out / f"concatenation/part-{3 - index}.dcm", frames[first:last], in_items=True)

    # Two optical paths of 12 bits in one file, without types.
    two = [grey(100, 70, path, 12) for path in (0, 1)]
    frames = [tile.tobytes() for picture12 in two for _, tile in tiles(picture12, 32)]
    save(header(number(), IMPLICIT, two[0], 32, 12, paths=("a", "b")), out / "paths/slide.dcm", frames)
    # The same by run lengths, with an extended offset table.
    frames = [rle(tile, 12) for picture12 in two for _, tile in tiles(picture12, 32)]
    ds = header(number(), RLE, two[0], 32, 12, paths=("a", "b"))
    save(ds, out / "paths-rle/slide.dcm", frames, in_items=True, extended=True)

    # Two optical paths in two files, run lengths without an offset table.
    series = number()
    for path in (1, 0):
        one = grey(100, 70, path, 8)
        ds = header(series, RLE, one, 32, 8, paths=("ab"[path],))
        frames = [rle(tile, 8) for _, tile in tiles(one, 32)]
        save(ds, out / f"paths-apart/{'za'[path]}.dcm", frames, in_items=True, has_bot=False)

    # Channels in planes.
    ds = header(number(), EXPLICIT, picture, 32, 8)
    ds.PlanarConfiguration = 1
    save(ds, out / "planar/slide.dcm", [tile.transpose(2, 0, 1).tobytes() for _, tile in tiles(picture, 32)])

    # Upside down.
    one = grey(100, 70, 0, 12)
    ds = header(number(), EXPLICIT, one, 32, 12, photometric="MONOCHROME1")
    save(ds, out / "inverted/slide.dcm", [(4095 - tile).astype("<u2").tobytes() for _, tile in tiles(one, 32)])

    # Luma and chroma; what pydicom makes of them.
    ds = header(number(), EXPLICIT, picture, 32, 8, photometric="YBR_FULL")
    save(ds, out / "ybr/slide.dcm", [tile.tobytes() for _, tile in tiles(picture, 32)])
    (out / "ybr/expected").write_bytes(convert_color_space(picture, "YBR_FULL", "RGB").tobytes())

    # Not compressed, and yet in items, three to a frame.
    ds = header(number(), IN_ITEMS, picture, 32, 8)
    frames = [tile.tobytes() for _, tile in tiles(picture, 32)]
    save(ds, out / "items/slide.dcm", frames, in_items=True, fragments_per_frame=3)

    # Three levels, a label, an overview, and a segmentation beside them; no spacing, but a volume.
    series = number()
    for level in (2, 0, 1):
        step = 1 << level
        one = colors(100 // step, 70 // step, step)
        ds = header(series, EXPLICIT, one, 32, 8)
        del ds.SharedFunctionalGroupsSequence
        ds.ImagedVolumeWidth, ds.ImagedVolumeHeight = 0.05, 0.07
        save(ds, out / f"pyramid/{level}.dcm", [tile.tobytes() for _, tile in tiles(one, 32)])
    for kind, size in (("LABEL", 20), ("OVERVIEW", 30)):
        ds = header(series, EXPLICIT, colors(size, size), size, 8, kind=kind)
        save(ds, out / f"pyramid/{kind}.dcm", [colors(size, size).tobytes()])
    one = grey(20, 20, 0, 8)
    save(header(series, EXPLICIT, one, 20, 8, sop=SEG), out / "pyramid/segmentation.dcm", [one.tobytes()])
    (out / "pyramid/readme.txt").write_text("this is no DICOM file\n" * 20)

    # Refused.
    for name in ("one", "another"):
        save(header(number(), EXPLICIT, picture[:32, :32], 32, 8), out / f"two-series/{name}.dcm", [bytes(32 * 32 * 3)])
    ds = header(number(), EXPLICIT, picture[:32, :32], 32, 8)
    ds.TotalPixelMatrixFocalPlanes = 2
    save(ds, out / "planes/slide.dcm", [bytes(32 * 32 * 3)] * 2)
    save(header(number(), EXPLICIT, one, 20, 8, sop=SEG), out / "foreign/segmentation.dcm", [one.tobytes()])
    save(header(number(), EXPLICIT, picture, 32, 8), out / "short/slide.dcm", [bytes(32 * 32 * 3)] * 11)
    ds = header(number(), EXPLICIT, picture, 32, 8)
    ds.DimensionOrganizationType = "TILED_SPARSE"
    ds.PerFrameFunctionalGroupsSequence = items(place(0, 0), place(31, 0))
    save(ds, out / "off-grid/slide.dcm", [bytes(32 * 32 * 3)] * 2)

    if data:
        wrap(out, data)


def wrap(out, data):
    syntaxes = {
        "Explicit_VR_Little_Endian": EXPLICIT,
        "Implicit_VR_Little_Endian": IMPLICIT,
        "JPEG-LS_Lossless_Image_Compression": "1.2.840.10008.1.2.4.80",
        "JPEG-LS_Lossy_(Near-Lossless)_Image_Compression": "1.2.840.10008.1.2.4.81",
        "JPEG_2000_Image_Compression": "1.2.840.10008.1.2.4.91",
        "JPEG_2000_Image_Compression_(Lossless_Only)": "1.2.840.10008.1.2.4.90",
        "JPEG_Baseline_(Process_1)": "1.2.840.10008.1.2.4.50",
        "JPEG_Extended_(Process_2_and_4)": "1.2.840.10008.1.2.4.51",
        "JPEG_Lossless,_Non-Hierarchical_(Process_14)": "1.2.840.10008.1.2.4.57",
        "RLE_Lossless": RLE,
    }
    for path in sorted(data.iterdir()):
        match = re.fullmatch(r"(.*)-(GRAYSCALE|RGB|YBR)-(\d+)", path.stem)
        if not match or match[1] not in syntaxes:
            continue
        name, colors_of, bits = match[1], match[2], int(match[3])
        photometric, shape = ("MONOCHROME2", (240, 240)) if colors_of == "GRAYSCALE" else ("RGB", (240, 240, 3))
        if colors_of == "YBR":
            photometric = {
                "JPEG_2000_Image_Compression": "YBR_ICT",
                "JPEG_2000_Image_Compression_(Lossless_Only)": "YBR_RCT",
            }.get(name, "YBR_FULL_422")
        ds = header(number(), syntaxes[name], np.empty(shape), 240, bits, photometric=photometric)
        ds.NumberOfFrames = 1
        frame = path.read_bytes()
        native = syntaxes[name] in (EXPLICIT, IMPLICIT)
        save(ds, out / "tile" / f"{path.stem}.dcm", [frame], in_items=not native)
        if "JPEG_Baseline" in name:
            space = {"GRAYSCALE": "L", "RGB": "RGB", "YBR": "YCbCr"}[colors_of]
            wanted = imagecodecs.jpeg8_decode(frame, colorspace=space, outcolorspace="L" if space == "L" else "RGB")
        elif "JPEG_2000" in name:
            wanted = imagecodecs.jpeg2k_decode(frame)
        elif "JPEG-LS" in name:
            wanted = imagecodecs.jpegls_decode(frame)
        else:
            stem = f"Explicit_VR_Little_Endian-{'RGB' if colors_of == 'YBR' else colors_of}-{16 if bits > 8 else 8}"
            (out / "tile" / f"{path.stem}.expected").write_bytes((data / f"{stem}.raw").read_bytes())
            continue
        (out / "tile" / f"{path.stem}.expected").write_bytes(np.ascontiguousarray(wanted).tobytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(Path(arg) for arg in sys.argv[2:]))
