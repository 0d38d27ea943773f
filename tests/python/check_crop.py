#!/usr/bin/env python3
"""Runs the real nnU-Net and microtome on pictures with black borders, which nnU-Net cuts off, and compares their masks.

usage: check_crop.py MICROTOME MODEL_FOLDER SLIDE WORK_FOLDER

MICROTOME is the binary, MODEL_FOLDER an nnU-Net v2 results folder, SLIDE a slide that OpenSlide reads; WORK_FOLDER is where
pictures and stores are left. CASES lists the pictures: parts of the slide, with black borders of other widths on each side.
Bounds: 99.98 % of the pixels equal with sums in f32, 99.998 % with sums in f16 as nnU-Net's, background wherever nnU-Net cut
off, and the statistics of the crop. What --crop-nonzero off gives is printed beside, and must be worse.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
import openslide
from PIL import Image

from check_nnunet import predict
from compare_masks import read_mask

# Part of the slide (x, y, width, height), black borders (left, top, right, bottom), mirroring.
CASES = [
    ("even", (400, 600, 512, 512), (128, 128, 128, 128), False),
    ("uneven", (400, 600, 512, 512), (61, 130, 7, 255), True),
    ("one-side", (400, 600, 512, 512), (301, 0, 0, 0), False),
    ("small", (500, 700, 100, 77), (33, 200, 151, 5), True),
    ("large", (300, 500, 1201, 903), (517, 40, 83, 301), False),
]
# Least share of equal pixels.
F32, F16 = 0.9998, 0.99998


def segment(microtome, folder, picture, store, mirroring, *flags):
    """microtome's mask of a picture, computed as nnU-Net does, and its report."""
    subprocess.run(
        [microtome, "segment", picture, "-m", folder, "-o", store, "--overwrite", "--quiet", "--exact", "--tissue", "none",
         "--model-mpp", "native", "--tta" if mirroring else "--no-tta", *flags],
        check=True,
    )
    run = store.with_name(store.name + ".run")
    return read_mask(store), json.loads((run / "report.json").read_text()), json.loads((run / "statistics.json").read_text())


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    microtome, folder, slide_path, work = sys.argv[1], *map(pathlib.Path, sys.argv[2:])
    work.mkdir(parents=True, exist_ok=True)
    slide = openslide.OpenSlide(slide_path)
    missed = False
    for name, (x, y, width, height), (left, top, right, bottom), mirroring in CASES:
        part = np.asarray(slide.read_region((x, y), 0, (width, height)).convert("RGB"))
        rgb = np.pad(part, ((top, bottom), (left, right), (0, 0)))
        reference = predict(folder, rgb, mirroring)
        picture = work / f"{name}.png"
        Image.fromarray(rgb).save(picture)
        outside = np.ones(rgb.shape[:2], bool)
        outside[top : top + height, left : left + width] = False
        print(f"{name}: {width} x {height} at ({left}, {top}) of {rgb.shape[1]} x {rgb.shape[0]}, {'with' if mirroring else 'no'} mirroring")
        equals = {}
        for source, flags, least in [
            ("f32", (), F32),
            ("f16-nnunet", ("--accumulate", "f16-nnunet"), F16),
            ("f32, --crop-nonzero off", ("--crop-nonzero", "off"), 0),
        ]:
            mask, report, statistics = segment(microtome, folder, picture, work / f"{name}.ome.zarr", mirroring, *flags)
            equal = equals[source] = np.mean(mask == reference)
            good = equal >= least
            if least:
                crop = report["geometry"]["crop"]["target"]
                good &= crop == {"x": left, "y": top, "width": width, "height": height} and not mask[outside].any()
                mean = [channel["sum"] / channel["count"] for channel in statistics["channels"]]
                good &= np.allclose(mean, part.reshape(-1, 3).mean(0, dtype=np.float64), rtol=1e-12)
            missed |= not good
            inside = np.mean((mask == reference)[~outside])
            print(f"  {source}: {equal * 100:.5f} % equal, {np.count_nonzero(mask != reference)} pixels differ ({inside * 100:.5f} % of"
                  f" the crop equal), {np.count_nonzero(mask)} of {np.count_nonzero(reference)} foreground{'' if good else ': MISSED'}", flush=True)
        missed |= equals["f32, --crop-nonzero off"] >= equals["f32"]
    if missed:
        sys.exit("microtome and nnU-Net differ by more than the bounds")


if __name__ == "__main__":
    main()
