#!/usr/bin/env python3
"""Saves a square picture of any size, the pixels of a slide over and over, as a tiled deflate TIFF.

usage: bench_picture.py SLIDE SIDE OUT.tif
"""

import pathlib
import sys

import numpy as np
import openslide
import tifffile

TILE = 256


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    slide, side, out = openslide.OpenSlide(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
    pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    repeats = -(-side // pixels.shape[0]), -(-side // pixels.shape[1]), 1
    picture = np.ascontiguousarray(np.tile(pixels, repeats)[:side, :side])
    partial = out.with_name(out.name + ".part")
    tifffile.imwrite(partial, picture, tile=(TILE, TILE), photometric="rgb", compression="deflate", metadata=None)
    partial.rename(out)


if __name__ == "__main__":
    main()
