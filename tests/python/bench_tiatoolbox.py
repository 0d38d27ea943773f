#!/usr/bin/env python3
"""Segments slides with TIAToolbox's SemanticSegmentor and nnU-Net's network, to be measured from outside.

usage: bench_tiatoolbox.py MODEL_FOLDER OUT --threads N --batch N SLIDE...

One call of SemanticSegmentor.run over all slides, as its users run an archive: patches of the network's size, half of which overlap, at level 0,
every patch, on the CPU, written to Zarr. The network is that of MODEL_FOLDER, with fixed numbers in place of the z-score over the slide, for which
TIAToolbox has no first pass. Overlapping patches are averaged without weights, as TIAToolbox does. Prints JSON: `seconds` of that call.
"""

import argparse
import json
import pathlib
import time

import numpy as np
import torch
from tiatoolbox.models.engine.io_config import IOSegmentorConfig
from tiatoolbox.models.engine.semantic_segmentor import SemanticSegmentor
from tiatoolbox.models.models_abc import ModelABC

from bench_nnunet import load

# crates/testkit/examples/time_network has the same.
MEAN, DEVIATION = 192, 32


class Network(ModelABC):
    """nnU-Net's network as a model of TIAToolbox's."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        """Probabilities of patches: batch x classes x rows x columns."""
        return torch.softmax(self.network((images - MEAN) / DEVIATION), 1)

    @staticmethod
    def infer_batch(model, batch_data, *, device):
        """Probabilities of patches that come and go with channels last."""
        images = batch_data.to(device).float().permute(0, 3, 1, 2)
        with torch.inference_mode():
            return model(images).permute(0, 2, 3, 1).numpy()

    @staticmethod
    def postproc(image):
        """Labels of probabilities."""
        return np.argmax(image, -1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("slides", nargs="+", type=pathlib.Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    predictor = load(given.model)
    network = predictor.network
    network.load_state_dict(predictor.list_of_parameters[0])
    network.eval()
    side = predictor.configuration_manager.patch_size
    # "baseline" 1 is level 0 as it is.
    level = [{"units": "baseline", "resolution": 1.0}]
    config = IOSegmentorConfig(
        input_resolutions=level, output_resolutions=level, patch_input_shape=side, patch_output_shape=side,
        stride_shape=[length // 2 for length in side], save_resolution=level[0],
    )
    segmentor = SemanticSegmentor(model=Network(network), batch_size=given.batch, device="cpu", verbose=False)
    start = time.monotonic()
    segmentor.run(
        given.slides, patch_mode=False, ioconfig=config, auto_get_mask=False, save_dir=given.out, overwrite=True,
        output_type="zarr",
    )
    print(json.dumps({"seconds": time.monotonic() - start}))


if __name__ == "__main__":
    main()
