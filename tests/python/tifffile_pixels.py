"""What tifffile reads of TIFFs, and Pillow of plain pictures, as microtome means pixels.

    tifffile_pixels.py REQUEST FOLDER

REQUEST is a JSON object: {path: [[width, height], ...]}, the sizes of the levels that are wanted of each file, none of a
file that is only to be described. Level 0 is the first page; others are the pages, or sub-directories of the first page,
of that size. The pixels go to FOLDER/NUMBER-LEVEL.raw in the order of REQUEST, those of one pixel side by side, numbers
with the least significant byte first. Stdout receives JSON: {path: {"stored", "decoders_differ", "levels": [error or null]}}.

Pixels are as microtome reads them: white-is-zero turned over, an alpha channel laid over white.
Needs numpy, tifffile, imagecodecs, Pillow.
"""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

logging.getLogger("tifffile").setLevel(logging.CRITICAL)
Image.MAX_IMAGE_PIXELS = None


def over_white(pixels, premultiplied):
    white = int(np.iinfo(pixels.dtype).max)
    alpha = pixels[..., -1:].astype(np.uint64)
    colours = pixels[..., :-1].astype(np.uint64)
    if premultiplied:
        return np.minimum(colours + white - alpha, white).astype(pixels.dtype)
    return ((colours * alpha + white * (white - alpha) + white // 2) // white).astype(pixels.dtype)


def pixels_of(page):
    pixels = page.asarray()
    if page.samplesperpixel > 1 and page.planarconfig == 2:
        pixels = np.moveaxis(pixels, 0, -1)
    pixels = pixels.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
    if page.photometric == 0:
        pixels = np.iinfo(pixels.dtype).max - pixels
    extra = [int(kind) for kind in page.extrasamples]
    if extra in ([1], [2]):
        pixels = over_white(pixels, extra == [1])
    return np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<")))


def name(value):
    return getattr(value, "name", str(value))


def describe(page):
    cut = "tiles" if page.is_tiled else "strips"
    planar = ", planar" if page.planarconfig == 2 and page.samplesperpixel > 1 else ""
    bits = page.bitspersample
    bits = "/".join(map(str, bits)) if isinstance(bits, tuple) else str(bits)
    predictor = f", predictor {int(page.predictor)}" if page.predictor != 1 else ""
    kinds = {1: "", 2: " signed", 3: " float", 6: " complex"}
    kind = kinds.get(int(page.sampleformat), f" format {int(page.sampleformat)}")
    photometric = name(page.photometric) if page.photometric is not None else "no photometric"
    return f"{name(page.compression)}, {photometric}, {page.samplesperpixel} x {bits} bit{kind}, {cut}{planar}{predictor}"


def level(tif, number, size):
    first = tif.pages[0]
    if number == 0:
        return first
    pages = list(tif.pages)[1:] + (list(first.pages) if first.subifds else [])
    for page in pages:
        page = page.aspage() if hasattr(page, "aspage") else page
        if [page.imagewidth, page.imagelength] == size:
            return page
    raise ValueError(f"no page of {size}")


def read(path, sizes, prefix):
    if not path.lower().endswith((".tif", ".tiff", ".svs")):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        Path(f"{prefix}-0.raw").write_bytes(pixels.tobytes())
        return {"stored": "picture", "decoders_differ": False, "levels": [None]}
    with tifffile.TiffFile(path) as tif:
        first = tif.pages[0]
        # Decoders of JPEG do, too; but this one and ours give the samples of libjpeg-turbo.
        differ = name(first.compression) in ("WEBP", "JPEG2000", "APERIO_JP2000_RGB", "APERIO_JP2000_YCBC")
        levels = []
        for number, size in enumerate(sizes):
            try:
                Path(f"{prefix}-{number}.raw").write_bytes(pixels_of(level(tif, number, size)).data)
                levels.append(None)
            except Exception as error:
                levels.append(f"{type(error).__name__}: {error}"[:200])
        return {"stored": describe(first), "decoders_differ": differ, "levels": levels}


def main(request, folder):
    result = {}
    for number, (path, sizes) in enumerate(json.loads(Path(request).read_text()).items()):
        try:
            result[path] = read(path, sizes, Path(folder) / str(number))
        except Exception as error:
            result[path] = {"stored": "-", "decoders_differ": False, "levels": [type(error).__name__ for _ in sizes]}
    json.dump(result, sys.stdout)


main(*sys.argv[1:])
