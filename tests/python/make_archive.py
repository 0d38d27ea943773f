#!/usr/bin/env python3
"""Makes a small archive of slides with a manifest, two of whose slides are no slides.

usage: make_archive.py FOLDER SOURCE COUNT LONGEST

Cuts COUNT pictures of different sizes, the longest LONGEST pixels wide, out of SOURCE, a slide that OpenSlide reads, and saves each as a
tiled TIFF of 0.5 micrometres per pixel: FOLDER/slides/slide-NN.tif. Of the fifth the second half is cut off, and the tenth is not there.
FOLDER/manifest.csv lists all of them. The same arguments give the same bytes.
"""

import csv
import os
import pathlib
import sys

import numpy as np
import openslide
import tifffile

CORRUPT, MISSING = 4, 9


def main():
    folder, source, count, longest = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    slides = folder / "slides"
    slides.mkdir(parents=True, exist_ok=True)
    slide = openslide.OpenSlide(source)
    pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    with open(folder / "manifest.csv", "w", newline="") as file:
        manifest = csv.writer(file)
        manifest.writerow(["slide", "id", "group"])
        for i in range(count):
            # From half of the longest to all of it, in an order that no list of sizes has.
            width = longest // 2 + longest // 2 * (i * 5 % count + 1) // count
            shift = i * 97
            picture = np.roll(pixels, (-shift, -2 * shift), (0, 1))
            repeats = -(-width // picture.shape[0]), -(-width // picture.shape[1]), 1
            picture = np.tile(picture, repeats)[: width * 3 // 4, :width]
            path = slides / f"slide-{i:02}.tif"
            if i != MISSING:
                tifffile.imwrite(
                    path, np.ascontiguousarray(picture), tile=(256, 256), compression="zlib", photometric="rgb",
                    resolution=(20000, 20000), resolutionunit="CENTIMETER", metadata=None,
                )
            if i == CORRUPT:
                os.truncate(path, path.stat().st_size // 2)
            manifest.writerow([f"slides/{path.name}", f"case-{i:02}", "odd" if i % 2 else "even"])


if __name__ == "__main__":
    main()
