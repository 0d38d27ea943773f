#!/usr/bin/env python3
"""Segments a picture with MONAI's sliding_window_inference and nnU-Net's network, to be measured from outside.

usage: bench_monai.py MODEL_FOLDER PICTURE.tif MASK.png --threads N

Half of a window overlaps, windows are weighted by a Gaussian of an eighth of their size, as nnU-Net's are, and run 4 at a time, on the
CPU. Prints JSON as bench_nnunet.py does; `seconds` include the z-score normalisation and the choice of labels, as nnU-Net's do.
"""

import sys
import time

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from bench_nnunet import anonymous_memory, arguments, finish, load, read


@torch.inference_mode()
def segment(network, samples, tile):
    """Labels of an image of channels x rows x columns, which is normalised in place."""
    for channel in samples:
        # nnunetv2/preprocessing/normalization/default_normalization_schemes.py, ZScoreNormalization
        channel -= channel.mean()
        channel /= max(channel.std(), 1e-8)
    logits = sliding_window_inference(
        torch.from_numpy(samples)[None], tile, 4, network, overlap=0.5, mode="gaussian", sigma_scale=0.125,
    )
    return logits[0].argmax(0).numpy()


def main():
    given = arguments()
    torch.set_num_threads(given.threads)
    predictor = load(given.model)
    configuration = predictor.configuration_manager
    if set(configuration.normalization_schemes) != {"ZScoreNormalization"} or any(configuration.use_mask_for_norm):
        sys.exit("the model asks for a normalisation that this program does not have")
    network = predictor.network
    network.load_state_dict(predictor.list_of_parameters[0])
    network.eval()
    before = anonymous_memory()
    samples = read(given.picture)[:, 0]
    start = time.monotonic()
    labels = segment(network, samples, tuple(configuration.patch_size))
    finish(given.mask, labels.astype(np.uint8), time.monotonic() - start, before)


if __name__ == "__main__":
    main()
