"""Writes Aperio slides of JPEG 2000 tiles, of two levels each, that OpenSlide opens as such.

    jpeg2000_slides.py FOLDER

33005 holds RGB, coded with the transform of JPEG 2000 itself; 33003 holds luma and chroma that the file is to explain,
coded without a transform. Needs numpy, imagecodecs, tifffile.
"""

import sys
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

TILE = 128


def picture(height, width):
    """Stains of all colours with edges and a little noise: what a wavelet has to work for."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    noise = np.random.default_rng(7).normal(0, 6, (height, width, 3))
    planes = [128 + 110 * np.sin(x / 17 + 2 * c) * np.cos(y / (11 + c)) for c in range(3)]
    pixels = np.stack(planes, -1) + noise
    pixels[(x // 40 + y // 30) % 7 == 0] = (240, 20, 60)
    return pixels.clip(0, 255).astype(np.uint8)


def luma_and_chroma(pixels):
    r, g, b = (pixels[..., c].astype(float) for c in range(3))
    y = 0.299 * r + 0.587 * g + 0.114 * b
    planes = [y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402]
    return np.stack(planes, -1).round().clip(0, 255).astype(np.uint8)


def tiles(pixels, **options):
    height, width = pixels.shape[:2]
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            tile = np.zeros((TILE, TILE, 3), np.uint8)
            piece = pixels[top : top + TILE, left : left + TILE]
            tile[: piece.shape[0], : piece.shape[1]] = piece
            yield imagecodecs.jpeg2k_encode(tile, codecformat="J2K", **options)


folder = Path(sys.argv[1])
full = picture(300, 500)
for name, compression, colours in [("rgb", 33005, lambda p: p), ("ycbcr", 33003, luma_and_chroma)]:
    for quality, options in [("lossless", {"reversible": True, "level": 0}), ("lossy", {"reversible": False, "level": 38})]:
        with tifffile.TiffWriter(folder / f"{name}_{quality}.svs") as out:
            for index, level in enumerate([full, full[::4, ::4]]):
                out.write(
                    tiles(colours(level), mct=compression == 33005, resolutions=5, **options),
                    shape=level.shape,
                    dtype=np.uint8,
                    tile=(TILE, TILE),
                    photometric="rgb",
                    compression=compression,
                    description=f"Aperio Image Library v11\r\n{level.shape[1]}x{level.shape[0]}|AppMag = 20|MPP = 0.5",
                    metadata=None,
                )
