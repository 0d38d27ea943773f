"""Writes TIFFs of every kind that microtome reads, and of some that it refuses, by tifffile and libtiff's codecs.

    tiff_variants.py FOLDER

Names that end in `-refused` are to be refused. Needs numpy, imagecodecs, tifffile.
"""

import sys
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

folder = Path(sys.argv[1])


def picture(height, width, channels, dtype=np.uint8, seed=3):
    """Smooth, with a little noise of brightness: as in tissue, chroma that is interpolated otherwise stays near."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    noise = np.random.default_rng(seed).normal(0, 3, (height, width, 1))
    planes = [150 + 60 * np.sin(x / 60 + c / 2) * np.cos(y / (40 + c % 5)) for c in range(channels)]
    pixels = np.stack(planes, -1) + noise
    scale = 257 if dtype == np.uint16 else 1
    return (pixels * scale).clip(0, np.iinfo(dtype).max).astype(dtype)


def write(name, pixels, **options):
    options = {"photometric": "rgb", "metadata": None} | options
    tifffile.imwrite(folder / f"{name}.tif", pixels, **options)


rgb = picture(150, 210, 3)
rgba = picture(150, 210, 4)
wide = picture(150, 210, 3, np.uint16)
planes = lambda pixels: np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
tile = {"tile": (64, 80)}

for name, compression in [("zstd", "zstd"), ("deflate", "adobe_deflate"), ("lzw", "lzw")]:
    for predictor in [1, 2]:
        options = {"compression": compression, "predictor": predictor} | tile
        write(f"{name}-{predictor}", rgb, **options)
        write(f"{name}-{predictor}-16", wide, **options)
        write(f"{name}-{predictor}-16-big", wide, byteorder=">", **options)
        write(f"{name}-{predictor}-planar", planes(rgb), planarconfig="separate", **options)
        write(f"{name}-{predictor}-planar-16", planes(wide), planarconfig="separate", **options)
write("zstd-strips", rgb, compression="zstd", rowsperstrip=37)
write("none-planar", planes(rgb), planarconfig="separate", rowsperstrip=37)
write("packbits-planar", planes(rgba), planarconfig="separate", compression="packbits", extrasamples=["unassalpha"], **tile)

# tifffile writes no number but its own; the older ones are the same streams.
for name, code, pixels, options in [
    ("zstd-34926", 34926, rgb, {}),
    ("webp-34927", 34927, rgb, {}),
]:
    encode = imagecodecs.zstd_encode if code == 34926 else (lambda p: imagecodecs.webp_encode(p, lossless=True))
    padded = np.zeros((192, 240, 3), np.uint8)
    padded[:150, :210] = pixels
    pieces = (np.ascontiguousarray(padded[t : t + 64, l : l + 80]) for t in range(0, 192, 64) for l in range(0, 240, 80))
    path = folder / f"{name}.tif"
    published = {34926: 50000, 34927: 50001}[code]
    tifffile.imwrite(
        path, (encode(p) for p in pieces), shape=pixels.shape, dtype=np.uint8, photometric="rgb",
        compression=published, metadata=None, **tile,
    )  # fmt: skip
    raw = bytearray(path.read_bytes())
    at = raw.index((259).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little"))
    raw[at + 8 : at + 10] = code.to_bytes(2, "little")
    path.write_bytes(raw)

for name, pixels, extra in [("webp-rgb", rgb, None), ("webp-rgba", rgba, ["unassalpha"])]:
    write(f"{name}-lossless", pixels, compression="webp", compressionargs={"lossless": True}, extrasamples=extra, **tile)
    write(f"{name}-lossy", pixels, compression="webp", compressionargs={"level": 80}, extrasamples=extra, **tile)

grey = rgb[..., 0]
jpeg = {"compression": "jpeg", "tile": (64, 80)}
write("jpeg-grey", grey, photometric="minisblack", **jpeg)
write("jpeg-rgb-444", rgb, compressionargs={"outcolorspace": "rgb", "level": 85}, **jpeg)
for factors in [(1, 1), (2, 1), (2, 2)]:
    name = "jpeg-ycbcr-" + {(1, 1): "444", (2, 1): "422", (2, 2): "420"}[factors]
    write(name, rgb, photometric="ycbcr", subsampling=factors, compressionargs={"level": 85}, **jpeg)
    strips = {"compression": "jpeg", "rowsperstrip": 48}
    write(f"{name}-strips", rgb, photometric="ycbcr", subsampling=factors, compressionargs={"level": 85}, **strips)
write("jpeg-planar", planes(rgb), planarconfig="separate", compressionargs={"level": 85}, **jpeg)

jp2k = {"compression": "jpeg2000", "tile": (64, 80)}
write("jp2k-rgb", rgb, **jp2k)
write("jp2k-rgb-16", wide, **jp2k)
write("jp2k-grey", grey, photometric="minisblack", **jp2k)
write("jp2k-grey-16", wide[..., 0], photometric="minisblack", **jp2k)
write("jp2k-planar", planes(rgb), planarconfig="separate", **jp2k)
write("jp2k-lossy", rgb, compressionargs={"level": 45, "reversible": False}, **jp2k)

for channels in [2, 5, 12, 64]:
    many = picture(70, 90, channels, np.uint16)
    options = {"photometric": "minisblack", "compression": "zstd", "tile": (64, 64)}
    write(f"channels-{channels}", many, planarconfig="contig", extrasamples=[0] * (channels - 1), **options)
    write(f"channels-{channels}-planar", planes(many), planarconfig="separate", **options)

write("cmyk-refused", rgba, photometric="separated", compression="jpeg", **tile)
write("cmyk-raw-refused", rgba, photometric="separated", **tile)
write("float-predictor-refused", rgb.astype(np.float32), compression="zstd", predictor=3, **tile)
write("jpeg-12-bit-refused", (wide >> 4).clip(0, 4095), compression="jpeg", compressionargs={"bitspersample": 12}, **tile)
write("lerc-refused", rgb, compression="lerc", **tile)
write("lzma-refused", rgb, compression="lzma", **tile)
write("jpegxl-refused", rgb, compression="jpegxl", **tile)
write("channels-65-refused", picture(70, 90, 65), photometric="minisblack", planarconfig="contig", tile=(64, 64))
