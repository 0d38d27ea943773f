#!/usr/bin/env python3
"""Segments a picture with nnU-Net's own nnUNetPredictor, to be measured from outside.

usage: bench_nnunet.py MODEL_FOLDER PICTURE.tif MASK.png --threads N

No mirroring, steps of half a tile, on the CPU. Prints JSON: `seconds` of predict_single_npy_array alone, and `before_bytes`, the
anonymous memory of this process when libraries and network were loaded and no pixel was read.
"""

import argparse
import json
import os
import time

import numpy as np
import tifffile
import torch
from PIL import Image

# nnU-Net warns about each of these unless it is set; none is used for prediction.
for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(name, os.devnull)

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402


def arguments():
    """What both programs take."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("picture")
    parser.add_argument("mask")
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args()


def load(model):
    """nnU-Net's predictor with the network of MODEL_FOLDER."""
    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=False, perform_everything_on_device=False,
        device=torch.device("cpu"), verbose=False, verbose_preprocessing=False, allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(model, ("all",), "checkpoint_final.pth")
    return predictor


def anonymous_memory():
    """Of this process, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:"))


def read(picture):
    """The samples as nnU-Net's own reader of pictures gives them: channels x 1 x rows x columns, f32."""
    return np.ascontiguousarray(tifffile.imread(picture).transpose(2, 0, 1)[:, None], dtype=np.float32)


def finish(mask, labels, seconds, before):
    """Saves the mask and prints the figures."""
    Image.fromarray(labels.astype(np.uint8)).save(mask, compress_level=1)
    print(json.dumps({"seconds": seconds, "before_bytes": before}))


def main():
    given = arguments()
    torch.set_num_threads(given.threads)
    predictor = load(given.model)
    before = anonymous_memory()
    samples = read(given.picture)
    start = time.monotonic()
    labels = predictor.predict_single_npy_array(samples, {"spacing": (999, 1, 1)})
    finish(given.mask, labels[0], time.monotonic() - start, before)


if __name__ == "__main__":
    main()
