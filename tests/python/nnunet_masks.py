#!/usr/bin/env python3
"""Makes the masks in tests/pipeline/nnunet with the real nnU-Net.

usage: nnunet_masks.py MODEL_FOLDER INPUT FOLDER

MODEL_FOLDER is the nnU-Net v2 results folder that models/nuclei was made from, INPUT the picture
models/nuclei/test/input.png, FOLDER where the masks go. Each mask is called WIDTHxHEIGHT_step_STEP_MIRRORING.png, and belongs
to INPUT repeated to the right and downwards, cut to WIDTH x HEIGHT pixels; tests/pipeline/parity.rs makes the same picture.
"""

import pathlib
import sys

import numpy as np
from PIL import Image

from check_nnunet import predict

# Several tiles of 128 x 128 pixels; smaller than a tile; smaller along one axis.
CASES = [
    (300, 200, 0.5, False),
    (300, 200, 0.5, True),
    (300, 200, 0.25, False),
    (300, 200, 0.25, True),
    (100, 77, 0.5, False),
    (100, 77, 0.5, True),
    (300, 90, 0.25, False),
]


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    model, source, folder = map(pathlib.Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    tile = np.asarray(Image.open(source).convert("RGB"))
    for width, height, step, mirroring in CASES:
        repeats = (-(-height // tile.shape[0]), -(-width // tile.shape[1]), 1)
        mask = predict(model, np.tile(tile, repeats)[:height, :width], mirroring, step)
        name = f"{width}x{height}_step_{step:g}_{'mirror' if mirroring else 'nomirror'}.png"
        Image.fromarray(mask.astype(np.uint8)).save(folder / name, optimize=True)
        print(f"{name}: {np.count_nonzero(mask)} of {mask.size} pixels are foreground")


if __name__ == "__main__":
    main()
