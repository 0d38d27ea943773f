#!/usr/bin/env python3
"""Saves the pixels of a slide, as OpenSlide decodes them, in a tiled deflate TIFF with the slide's resolution.

usage: lossless_copy.py SLIDE OUT.tif

Whoever reads OUT.tif sees the pixels that OpenSlide sees, whatever its own JPEG decoder would have made of SLIDE.
"""

import sys

import numpy as np
import openslide
import tifffile

TILE = 256


def tiles(slide):
    """The tiles of level 0, row by row; what lies beyond the edge is padding that no reader shows."""
    width, height = slide.dimensions
    for y in range(0, height, TILE):
        for x in range(0, width, TILE):
            rgba = np.asarray(slide.read_region((x, y), 0, (TILE, TILE)))
            inside = rgba[: height - y, : width - x]
            if (inside[..., 3] != 255).any():
                sys.exit("the slide has transparent pixels: their colour is a matter of convention, so no copy is lossless")
            yield np.ascontiguousarray(rgba[..., :3])


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    slide = openslide.OpenSlide(sys.argv[1])
    width, height = slide.dimensions
    mpp = [float(slide.properties[name]) for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)]
    tifffile.imwrite(
        sys.argv[2],
        tiles(slide),
        shape=(height, width, 3),
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="rgb",
        compression="deflate",
        resolution=tuple(10_000 / m for m in mpp),
        resolutionunit="CENTIMETER",
        metadata=None,
    )


if __name__ == "__main__":
    main()
