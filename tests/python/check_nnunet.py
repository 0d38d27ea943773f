#!/usr/bin/env python3
"""Runs the real nnU-Net and microtome on the same pixels and compares their masks.

usage: check_nnunet.py MICROTOME MODEL_FOLDER SLIDE WORK_FOLDER

MICROTOME is the binary, MODEL_FOLDER an nnU-Net v2 results folder, SLIDE a slide that OpenSlide reads; WORK_FOLDER is where
pictures and stores are left. CASES lists the pictures: crops with and without mirroring, with steps of a half and of a quarter
of a tile, crops smaller than a tile, and the whole slide. microtome sums in f32, its default, and in f16 as nnU-Net does.
Bounds: 99.99 % equal and Dice 0.9995, with f16 sums 99.998 % and 0.9999. The slide itself is decoded by microtome, whose JPEG
decoder makes the pixels that OpenSlide's makes.
"""

import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import openslide
import torch
from PIL import Image

from compare_masks import compare, read_mask

# nnU-Net warns about each of these unless it is set; none is used for prediction.
for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(name, os.devnull)

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402

# x, y, width, height: tissue, stroma and a little glass of CMU-1-Small-Region
CROP, PART, SMALL, NARROW = (400, 600, 512, 512), (450, 650, 300, 260), (500, 700, 100, 77), (500, 700, 300, 90)
# Picture, step as a fraction of the tile of 128 x 128 pixels, mirroring.
CASES = [
    ("crop", CROP, 0.5, True),
    ("crop", CROP, 0.5, False),
    ("part", PART, 0.25, True),
    ("part", PART, 0.25, False),
    ("small", SMALL, 0.5, True),
    ("small", SMALL, 0.25, False),
    ("narrow", NARROW, 0.25, True),
    ("whole", None, 0.5, False),
]
# Least share of equal pixels, least Dice.
OUR_SUMS, SAME_SUMS = (0.9999, 0.9995), (0.99998, 0.9999)


def predict(folder, rgb, mirroring, step=0.5, folds=("all",)):
    """nnU-Net's mask of an RGB picture (rows x columns x 3)."""
    predictor = nnUNetPredictor(tile_step_size=step, use_mirroring=mirroring, device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), folds, "checkpoint_final.pth")
    array = np.ascontiguousarray(rgb.transpose(2, 0, 1)[:, None]).astype(np.float32)
    return predictor.predict_single_npy_array(array, {"spacing": (999, 1, 1)}).squeeze()


def segment(microtome, folder, picture, store, step, mirroring, accumulate):
    """microtome's mask of a picture or slide, computed as nnU-Net does."""
    subprocess.run(
        [microtome, "segment", picture, "-m", folder, "-o", store, "--overwrite", "--quiet", "--exact", "--tissue", "none",
         "--model-mpp", "native", "--step-size", str(step), "--accumulate", accumulate, "--tta" if mirroring else "--no-tta"],
        check=True,
    )
    return read_mask(store)


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    microtome, folder, slide_path, work = sys.argv[1], *map(pathlib.Path, sys.argv[2:])
    work.mkdir(parents=True, exist_ok=True)
    slide = openslide.OpenSlide(slide_path)
    whole = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    missed = False
    for name, crop, step, mirroring in CASES:
        x, y, width, height = crop or (0, 0, *slide.dimensions)
        rgb = whole[y : y + height, x : x + width]
        start = time.monotonic()
        reference = predict(folder, rgb, mirroring, step)
        seconds = time.monotonic() - start
        picture = work / f"{name}.png"
        Image.fromarray(rgb).save(picture)
        sources = [("f32", picture, "f32", OUR_SUMS), ("f16-nnunet", picture, "f16-nnunet", SAME_SUMS)]
        if crop is None:
            sources.append(("f32, from the slide", slide_path, "f32", OUR_SUMS))
        print(f"{name}, {width} x {height}, step {step}, {'with' if mirroring else 'no'} mirroring: nnU-Net took {seconds:.1f} s")
        for source, path, accumulate, (min_equal, min_dice) in sources:
            mask = segment(microtome, folder, path, work / f"{name}.ome.zarr", step, mirroring, accumulate)
            equal, dice = compare(mask, reference)
            good = equal >= min_equal and dice >= min_dice
            missed |= not good
            print(f"  {source}: {equal * 100:.5f} % equal, {np.count_nonzero(mask != reference)} pixels differ, Dice {dice:.6f}"
                  f" (bounds {min_equal * 100:g} %, {min_dice:g}){'' if good else ': MISSED'}", flush=True)
    if missed:
        sys.exit("microtome and nnU-Net differ by more than the bounds")


if __name__ == "__main__":
    main()
