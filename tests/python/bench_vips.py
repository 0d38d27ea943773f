#!/usr/bin/env python3
"""Makes a pyramid of a slide with libvips: what `cargo xtask bench pyramid` compares with.

    bench_vips.py dz SLIDE OUT QUALITY TILE OVERLAP     a DeepZoom: OUT.dzi and OUT_files, tiles in JPEG with chroma at half the resolution
    bench_vips.py tiff SLIDE OUT.tif QUALITY TILE       a TIFF of JPEG tiles with its levels
    bench_vips.py open SLIDE                            nothing: what Python and the package cost

Level 0 is decoded anew and sequentially, as libvips' documentation advises. Prints a line of JSON: versions, the loader that read
the slide, the number of levels. With a quality below 90 libvips stores chroma at half the resolution in a TIFF, too; it
has no switch for that there.
"""

import json
import pathlib
import sys

import pyvips


def main(what, path, *rest):
    image = pyvips.Image.new_from_file(path, access="sequential")
    levels = 1
    if what == "dz":
        out, quality, tile, overlap = rest[0], *map(int, rest[1:])
        suffix = f".jpg[Q={quality},subsample_mode=on]"
        image.dzsave(out, suffix=suffix, tile_size=tile, overlap=overlap, depth="onepixel")
        levels = sum(entry.is_dir() for entry in pathlib.Path(out + "_files").iterdir())
    elif what == "tiff":
        out, quality, tile = rest[0], *map(int, rest[1:])
        if quality >= 90:
            sys.exit("libvips stores chroma at full resolution in a TIFF of this quality")
        image.tiffsave(out, tile=True, pyramid=True, compression="jpeg", Q=quality, tile_width=tile, tile_height=tile, bigtiff=True)
        levels = pyvips.Image.new_from_file(out).get("n-pages")
    elif what != "open":
        sys.exit(__doc__)
    version = ".".join(str(pyvips.version(part)) for part in range(3))
    loader = image.get("vips-loader")
    print(json.dumps({"libvips": version, "pyvips": pyvips.__version__, "loader": loader, "levels": levels}))


main(*sys.argv[1:])
