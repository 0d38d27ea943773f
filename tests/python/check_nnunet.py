#!/usr/bin/env python3
"""Runs the real nnU-Net and microtome on the same pixels and compares their masks.

usage: check_nnunet.py MICROTOME MODEL_FOLDER SLIDE WORK_FOLDER

MICROTOME is the binary, MODEL_FOLDER an nnU-Net v2 results folder, SLIDE a slide that OpenSlide reads; WORK_FOLDER is where
pictures and stores are left. Three pictures: a crop of 512 x 512 pixels with and without mirroring, and the whole slide
without. Bounds: on the same pixels 99.99 % equal and Dice 0.9995; from the slide itself, where the JPEG decoders differ by a
level here and there, 99.5 % and 0.99.
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

CROP = (400, 600, 512, 512)  # x, y, width, height: tissue, stroma and a little glass of CMU-1-Small-Region
SAME_PIXELS, FROM_SLIDE = (0.9999, 0.9995), (0.995, 0.99)


def predict(folder, rgb, mirroring, step=0.5):
    """nnU-Net's mask of an RGB picture (rows x columns x 3)."""
    predictor = nnUNetPredictor(tile_step_size=step, use_mirroring=mirroring, device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), ("all",), "checkpoint_final.pth")
    array = np.ascontiguousarray(rgb.transpose(2, 0, 1)[:, None]).astype(np.float32)
    return predictor.predict_single_npy_array(array, {"spacing": (999, 1, 1)}).squeeze()


def segment(microtome, folder, picture, store, mirroring):
    """microtome's mask of a picture or slide, computed as nnU-Net does."""
    subprocess.run(
        [microtome, "segment", picture, "-m", folder, "-o", store, "--overwrite", "--quiet", "--exact", "--tissue", "none",
         "--model-mpp", "native", "--tta" if mirroring else "--no-tta"],
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
    x, y, width, height = CROP
    pictures = [
        ("crop", whole[y : y + height, x : x + width], True),
        ("crop", whole[y : y + height, x : x + width], False),
        ("whole", whole, False),
    ]
    missed = False
    for name, rgb, mirroring in pictures:
        start = time.monotonic()
        reference = predict(folder, rgb, mirroring)
        seconds = time.monotonic() - start
        picture = work / f"{name}.png"
        Image.fromarray(rgb).save(picture)
        sources = [("same pixels", picture, SAME_PIXELS)] + ([("from the slide", slide_path, FROM_SLIDE)] if name == "whole" else [])
        for source, path, (min_equal, min_dice) in sources:
            equal, dice = compare(segment(microtome, folder, path, work / f"{name}.ome.zarr", mirroring), reference)
            good = equal >= min_equal and dice >= min_dice
            missed |= not good
            print(f"{name}, {'with' if mirroring else 'no'} mirroring, {source}: {equal * 100:.4f} % equal, Dice {dice:.5f}"
                  f" (bounds {min_equal * 100:g} %, {min_dice:g}; nnU-Net took {seconds:.1f} s){'' if good else ': MISSED'}")
    if missed:
        sys.exit("microtome and nnU-Net differ by more than the bounds")


if __name__ == "__main__":
    main()
