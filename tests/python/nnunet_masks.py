#!/usr/bin/env python3
"""Makes the masks in tests/pipeline/nnunet with the real nnU-Net.

usage: nnunet_masks.py MODEL_FOLDER INPUT FOLDER

MODEL_FOLDER is the nnU-Net v2 results folder that tests/models/nnunet-nuclei was made from, INPUT the picture
tests/models/nnunet-nuclei/test/input.png, FOLDER where the masks go. Each mask is called WIDTHxHEIGHT_step_STEP_MIRRORING.png, and belongs
to INPUT repeated to the right and downwards, cut to WIDTH x HEIGHT pixels; tests/pipeline/parity.rs makes the same picture.
Those called WIDTHxHEIGHT_at_X_Y_MIRRORING.png belong to such a picture that lies on 300 x 200 black pixels, its corner at X, Y;
tests/pipeline/crop.rs makes them.
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
# Width, height, x, y, mirroring: larger than a tile along both axes, and along none.
FRAMED = [(211, 187, 37, 11, True), (100, 77, 150, 90, False)]


def save(mask, path):
    Image.fromarray(mask.astype(np.uint8)).save(path, optimize=True)
    print(f"{path.name}: {np.count_nonzero(mask)} of {mask.size} pixels are foreground")


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    model, source, folder = map(pathlib.Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    tile = np.asarray(Image.open(source).convert("RGB"))

    def picture(width, height):
        repeats = (-(-height // tile.shape[0]), -(-width // tile.shape[1]), 1)
        return np.tile(tile, repeats)[:height, :width]

    for width, height, step, mirroring in CASES:
        mask = predict(model, picture(width, height), mirroring, step)
        save(mask, folder / f"{width}x{height}_step_{step:g}_{'mirror' if mirroring else 'nomirror'}.png")
    for width, height, x, y, mirroring in FRAMED:
        framed = np.zeros((200, 300, 3), np.uint8)
        framed[y : y + height, x : x + width] = picture(width, height)
        mask = predict(model, framed, mirroring)
        save(mask, folder / f"{width}x{height}_at_{x}_{y}_{'mirror' if mirroring else 'nomirror'}.png")


if __name__ == "__main__":
    main()
