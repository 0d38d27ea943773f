#!/usr/bin/env python3
"""Compares two masks pixel by pixel: the share of equal pixels, and Dice per class.

usage: compare_masks.py MASK REFERENCE [--min-equal SHARE] [--min-dice DICE] [--json]

A mask is a PNG or level 0 of an OME-Zarr label image. Exits with 1 where a bound is given and missed.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import zarr
from PIL import Image

Image.MAX_IMAGE_PIXELS = None


def read_mask(path):
    """The labels as an array of rows x columns."""
    path = pathlib.Path(path)
    if path.is_dir():
        return zarr.open_group(path, mode="r")["0"][:]
    return np.asarray(Image.open(path))


def compare(mask, reference):
    """The share of equal pixels, and the smallest Dice among the classes that either mask holds."""
    if mask.shape != reference.shape:
        sys.exit(f"the masks differ in size (rows x columns): {mask.shape} against {reference.shape}")
    dice = {}
    for label in np.union1d(np.unique(mask), np.unique(reference)):
        if label != 0:
            a, b = mask == label, reference == label
            dice[int(label)] = 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))
    return np.mean(mask == reference), min(dice.values(), default=1.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mask")
    parser.add_argument("reference")
    parser.add_argument("--min-equal", type=float, default=0.0)
    parser.add_argument("--min-dice", type=float, default=0.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    reference = read_mask(arguments.reference)
    equal, dice = compare(read_mask(arguments.mask), reference)
    if arguments.json:
        print(json.dumps({"equal": equal, "dice": dice}))
    else:
        print(f"{pathlib.Path(arguments.mask).name}: {equal * 100:.4f} % of {reference.size} pixels equal "
              f"({round((1 - equal) * reference.size)} differ), Dice {dice:.5f}; "
              f"bounds {arguments.min_equal * 100:g} % and {arguments.min_dice:g}")
    if equal < arguments.min_equal or dice < arguments.min_dice:
        sys.exit("the mask misses a bound")


if __name__ == "__main__":
    main()
