#!/usr/bin/env python3
"""What bf16 changes when PyTorch computes nnU-Net's network: the numbers beside ours in docs/precision.md.

usage: torch_precision.py MODEL_FOLDER IMAGES LABELS SLIDE

MODEL_FOLDER is an nnU-Net v2 results folder with `reference/forward_input.npy` and `forward_logits.npy` in a folder beside or above
it, IMAGES and LABELS are folders of pictures of the same names, SLIDE is one that OpenSlide reads and that fits into memory. Two ways are
compared with f32: the network's weights and activations in bf16, and PyTorch's automatic mixed precision.
"""

import pathlib
import sys

import numpy as np
import openslide
import torch
from PIL import Image

# Sets what nnU-Net wants to be set before it is imported.
import check_nnunet  # noqa: F401
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


class Bf16(torch.nn.Module):
    """All weights and activations in bf16; logits in f32."""

    def __init__(self, network):
        super().__init__()
        self.network = network.to(torch.bfloat16)

    def forward(self, x):
        return self.network(x.to(torch.bfloat16)).float()


class Mixed(torch.nn.Module):
    """Convolutions in bf16, the rest as PyTorch decides."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.network(x).float()


def predictor(folder, wrap):
    """nnU-Net's predictor, with its network wrapped."""
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), ("all",), "checkpoint_final.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    predictor.network = wrap(predictor.network.eval())
    # nnU-Net loads each fold's weights anew before it predicts: here they are loaded already.
    parameters = predictor.network.state_dict()
    predictor.list_of_parameters = [parameters]
    return predictor


def predict(predictors, picture):
    """The mask of a picture by each predictor."""
    array = np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)[:, None]).astype(np.float32)
    return {name: way.predict_single_npy_array(array, {"spacing": (999, 1, 1)}).squeeze() for name, way in predictors.items()}


def dice(a, b):
    """Of all that is not background; 1 where both are empty."""
    both, either = np.count_nonzero((a > 0) & (b > 0)), np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * both / either if either else 1.0


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    folder, images, labels, slide = map(pathlib.Path, sys.argv[1:])
    ways = {"f32": lambda network: network, "bf16": Bf16, "mixed": Mixed}
    predictors = {name: predictor(folder, wrap) for name, wrap in ways.items()}

    reference = next(p / "reference" for p in [folder, *folder.parents] if (p / "reference" / "forward_input.npy").is_file())
    tile = torch.from_numpy(np.load(reference / "forward_input.npy"))
    expected = np.load(reference / "forward_logits.npy")
    for name, way in predictors.items():
        with torch.inference_mode():
            logits = way.network(tile).numpy()
        flips = np.count_nonzero(logits.argmax(1) != expected.argmax(1))
        print(f"reference tile, {name}: largest difference {np.abs(logits - expected).max():.3g} of {np.abs(expected).max():.3g}, {flips} pixels change")

    changed, pixels, dices = {name: 0 for name in ways}, 0, {name: [] for name in ways}
    paths = sorted(images.iterdir())
    for path in paths:
        masks = predict(predictors, Image.open(path).convert("RGB"))
        truth = np.asarray(Image.open(labels / path.name))
        pixels += truth.size
        for name, mask in masks.items():
            changed[name] += np.count_nonzero(mask != masks["f32"])
            dices[name].append(dice(mask, truth))
    for name in ways:
        change = np.array(dices[name]) - np.array(dices["f32"])
        print(f"{len(paths)} images, {name}: {changed[name]} of {pixels} pixels change ({100 * changed[name] / pixels:.4f} %), "
              f"mean Dice {np.mean(dices[name]):.5f}, changed by {change.mean():+.5f} on average and at most by {np.abs(change).max():.5f}", flush=True)

    slide = openslide.OpenSlide(slide)
    masks = predict(predictors, slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    for name, mask in masks.items():
        differing = np.count_nonzero(mask != masks["f32"])
        print(f"slide, {name}: {differing} of {mask.size} pixels change ({100 * differing / mask.size:.4f} %), Dice {dice(mask, masks['f32']):.6f}")


if __name__ == "__main__":
    main()
