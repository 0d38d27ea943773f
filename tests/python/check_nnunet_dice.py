#!/usr/bin/env python3
"""Compares how well nnU-Net and microtome segment pictures whose truth is known, with the same trained model.

usage: check_nnunet_dice.py MICROTOME MODEL_FOLDER PICTURES WORK_FOLDER [--limit N]

MICROTOME is the binary, MODEL_FOLDER an nnU-Net v2 results folder with fold_all, PICTURES a folder with images/*.png and, under the same
names, labels/*.png, in which everything but 0 is foreground. Both mirror, as nnU-Net does by default; microtome runs as a user would
(its fast arithmetic) and with --exact. Bounds: the mean of the pictures' Dice, and the Dice of all their pixels together, differ by at
most 0.001 from nnU-Net's own.
"""

import argparse
import os
import pathlib
import subprocess
import sys

import numpy as np
import torch
from PIL import Image

from check_nnunet import predict
from compare_masks import read_mask

BOUND = 0.001
RUNS = {"default": [], "--exact": ["--exact"]}


class Dice:
    """Sums over pictures, of which either may be empty."""

    def __init__(self):
        self.of_pictures, self.both, self.either = [], 0, 0

    def add(self, mask, truth):
        both, either = np.count_nonzero(mask & truth), np.count_nonzero(mask) + np.count_nonzero(truth)
        self.of_pictures.append(2 * both / either if either else 1.0)
        self.both, self.either = self.both + both, self.either + either

    def figures(self):
        return np.mean(self.of_pictures), 2 * self.both / self.either


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("microtome", "model", "pictures", "work"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    arguments.work.mkdir(parents=True, exist_ok=True)
    pictures = sorted((arguments.pictures / "images").glob("*.png"))[: arguments.limit]
    if not pictures:
        sys.exit(f"{arguments.pictures}/images holds no pictures")
    sums = {name: Dice() for name in ["nnU-Net", *RUNS]}
    differing = dict.fromkeys(RUNS, 0)
    pixels = 0
    for picture in pictures:
        rgb = np.asarray(Image.open(picture).convert("RGB"))
        truth = np.asarray(Image.open(arguments.pictures / "labels" / picture.name)) != 0
        reference = predict(arguments.model, rgb, True) != 0
        sums["nnU-Net"].add(reference, truth)
        pixels += truth.size
        for name, flags in RUNS.items():
            # Without an alpha channel, which nnU-Net's reader would take for a fourth one.
            copy, store = arguments.work / "picture.png", arguments.work / "mask.ome.zarr"
            Image.fromarray(rgb).save(copy)
            subprocess.run(
                [arguments.microtome, "segment", copy, "-m", arguments.model, "-o", store, "--overwrite", "--quiet", "--tta",
                 "--tissue", "none", "--model-mpp", "native", *flags],
                check=True,
            )
            mask = read_mask(store) != 0
            sums[name].add(mask, truth)
            differing[name] += np.count_nonzero(mask != reference)
    mean, pooled = sums["nnU-Net"].figures()
    print(f"{len(pictures)} pictures, {pixels} pixels")
    print(f"  nnU-Net: mean Dice {mean:.6f}, Dice of all pixels {pooled:.6f}")
    missed = False
    for name in RUNS:
        ours = sums[name].figures()
        worst = max(abs(ours[0] - mean), abs(ours[1] - pooled))
        missed |= worst > BOUND
        print(f"  microtome, {name}: mean Dice {ours[0]:.6f}, Dice of all pixels {ours[1]:.6f}, {differing[name]} pixels differ from"
              f" nnU-Net's; differs by {worst:.6f} (bound {BOUND}){': MISSED' if worst > BOUND else ''}")
    if missed:
        sys.exit("microtome and nnU-Net segment differently well")


if __name__ == "__main__":
    main()
