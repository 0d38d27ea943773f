#!/usr/bin/env python3
"""Checks the tiles that were skipped as empty glass: they hold no tissue by a mask that shares nothing with microtome's.

usage: tissue_check.py SLIDE REPORT.json

REPORT.json tells of a run over SLIDE: its `tiles` count the grid and the tiles that ran and were skipped, its `skipped_tiles`
are rectangles (`x`, `y`, `width`, `height`) in level-0 pixels. tests/pipeline/tissue.rs writes it.

Tissue, here: green light is absorbed (optical density at least 0.05, about 11 %) relative to the slide's own glass, in most
cells of a 3 x 3 neighbourhood of cells of about 8 um. Haematoxylin and eosin both absorb green.
"""

import json
import math
import sys

import numpy as np
import openslide

CELL_UM = 8.0
DENSITY = 0.05


def green_cells(slide, cell):
    """The mean of the green channel over cells of `cell` x `cell` level-0 pixels; cells at the edge average what there is."""
    width, height = slide.dimensions
    rows = []
    for y in range(0, height, cell):
        band = np.asarray(slide.read_region((0, y), 0, (width, min(cell, height - y))))[..., 1].astype(np.float64).mean(0)
        edges = np.arange(0, width, cell)
        rows.append(np.add.reduceat(band, edges) / np.diff(np.append(edges, width)))
    return np.stack(rows)


def tissue(green):
    """The mask of tissue cells."""
    # Glass is the brightest there is on a bright-field slide; the median of the cells near the maximum is free of outliers.
    glass = np.median(green[green >= green.max() - 8])
    dense = np.log10(glass / np.maximum(green, 1.0)) >= DENSITY
    padded = np.pad(dense, 1).astype(int)
    rows, columns = dense.shape
    neighbours = sum(padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3))
    return dense & (neighbours >= 5)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    slide = openslide.OpenSlide(sys.argv[1])
    with open(sys.argv[2]) as file:
        report = json.load(file)
    cell = max(1, round(CELL_UM / float(slide.properties[openslide.PROPERTY_NAME_MPP_X])))
    mask = tissue(green_cells(slide, cell))

    counts, skipped = report["tiles"], report["skipped_tiles"]
    print(f"{counts['grid']} tiles: {counts['run']} run, {counts['skipped']} skipped; {mask.mean() * 100:.1f} % of the slide is tissue")
    faults = []
    if counts["run"] + counts["skipped"] != counts["grid"] or counts["skipped"] != len(skipped):
        faults.append(f"the counts do not add up: {counts}, {len(skipped)} listed as skipped")
    for tile in skipped:
        rows = slice(max(0, math.floor(tile["y"] / cell)), math.ceil((tile["y"] + tile["height"]) / cell))
        columns = slice(max(0, math.floor(tile["x"] / cell)), math.ceil((tile["x"] + tile["width"]) / cell))
        if mask[rows, columns].any():
            faults.append(f"a skipped tile holds {np.count_nonzero(mask[rows, columns])} cells of tissue: {tile}")
    if faults:
        sys.exit("\n".join(faults[:20] + [f"{len(faults)} faults"]))


if __name__ == "__main__":
    main()
