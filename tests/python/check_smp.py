#!/usr/bin/env python3
"""Runs networks of segmentation-models-pytorch tile by tile in PyTorch, and by recipes in microtome, on the same pixels.

usage: check_smp.py MICROTOME SLIDE WORK_FOLDER

MICROTOME is the binary, SLIDE a slide that OpenSlide reads; WORK_FOLDER is where models, pictures and stores are left.
CASES lists networks with random weights and crops of the slide, one of them smaller than a tile. The loop over tiles is written here
after shared/spec/nnunet-and-monai-inference.md, section 4: nnU-Net's grid and window, which are microtome's defaults for a recipe.
At least 99.98 % of the pixels must be equal; measured with AVX-512: all 700 000 are.
"""

import json
import math
import pathlib
import subprocess
import sys
import time

import numpy as np
import openslide
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from segmentation_models_pytorch.encoders import preprocess_input

from compare_masks import compare, read_mask

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "input_space": "RGB", "input_range": [0, 1]}
# x, y, width, height: glass and stroma, stroma, of CMU-1-Small-Region
WIDE, SMALL = (400, 600, 640, 500), (820, 700, 200, 300)
# Crop, rows and columns of a tile, what Unet is called with.
CASES = [
    (WIDE, (256, 256), {"encoder_name": "resnet18", "activation": "sigmoid"}),
    (WIDE, (192, 256), {"encoder_name": "resnet18", "classes": 3, "encoder_depth": 4, "decoder_channels": [64, 48, 32, 16]}),
    (SMALL, (256, 256), {"encoder_name": "resnet18"}),
]
STEP, MIN_EQUAL = 0.5, 0.9998


def starts(extent, tile):
    """Where tiles begin along an axis: evenly, the first at 0, the last flush with the end."""
    count = math.ceil((extent - tile) / (tile * STEP)) + 1
    return [round((extent - tile) / (count - 1) * i) for i in range(count)] if count > 1 else [0]


def window(tile):
    """Gaussians of an eighth of the tile, their product at most 10, rounded as nnU-Net rounds it."""
    factors = []
    for extent in tile:
        sigma = extent / 8
        radius = int(4 * sigma + 0.5)
        distances = np.arange(-radius, radius + 1)
        kernel = np.exp(-0.5 / sigma**2 * distances**2)
        kernel /= kernel.sum()
        places = np.arange(extent) - extent // 2
        factors.append(np.where(np.abs(places) <= radius, kernel[np.clip(places + radius, 0, 2 * radius)], 0.0))
    weights = factors[0][:, None] * factors[1][None, :]
    weights = (weights / (weights.max() / 10)).astype(np.float32).astype(np.float16)
    weights[weights == 0] = weights[weights != 0].min()
    return weights.astype(np.float32)


def tensor(rgb):
    """A picture as the framework's own preprocessing makes it."""
    return torch.from_numpy(preprocess_input(rgb, **IMAGENET).transpose(2, 0, 1).astype(np.float32))


def predict(network, rgb, tile, classes):
    """The logits of a picture: the mean of its tiles' ones, weighted by the window."""
    x = tensor(rgb)
    # Smaller pictures are padded with zeros after normalisation, the smaller half in front.
    missing = [max(t - n, 0) for t, n in zip(tile, x.shape[1:])]
    before = [m // 2 for m in missing]
    x = torch.nn.functional.pad(x, (before[1], missing[1] - before[1], before[0], missing[0] - before[0]))
    weights = window(tile)
    logits, total = np.zeros((classes, *x.shape[1:]), np.float32), np.zeros(x.shape[1:], np.float32)
    for y in starts(x.shape[1], tile[0]):
        for left in starts(x.shape[2], tile[1]):
            place = (slice(y, y + tile[0]), slice(left, left + tile[1]))
            with torch.inference_mode():
                # Without the head's activation: logits are what is blended.
                output = network.segmentation_head[0](network.decoder(network.encoder(x[None, :, *place])))
            logits[:, *place] += output[0].numpy() * weights
            total[place] += weights
    rows, columns = rgb.shape[:2]
    return (logits / total)[:, before[0] : before[0] + rows, before[1] : before[1] + columns]


def random_network(arguments, rgb):
    """A network with random weights whose batch norms have seen the picture, and whose classes share its pixels."""
    network = smp.Unet(encoder_weights=None, **arguments)
    batch = tensor(rgb)[None, :, : rgb.shape[0] // 32 * 32, : rgb.shape[1] // 32 * 32]
    head = network.segmentation_head[0]
    with torch.no_grad():
        for _ in range(20):
            network.train()(batch)
        network.eval()
        logits = head(network.decoder(network.encoder(batch)))
        head.bias -= logits.mean((0, 2, 3))
    return network


def segment(microtome, model, picture, store):
    """microtome's mask of a picture."""
    subprocess.run(
        [microtome, "segment", picture, "-m", model, "-o", store, "--overwrite", "--quiet", "--exact", "--tissue", "none",
         "--model-mpp", "native"],
        check=True,
    )
    return read_mask(store)


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    microtome, slide_path, work = sys.argv[1], *map(pathlib.Path, sys.argv[2:])
    torch.manual_seed(1)
    torch.set_num_threads(1)
    slide = openslide.OpenSlide(slide_path)
    missed = False
    for number, ((x, y, width, height), tile, arguments) in enumerate(CASES):
        model = work / f"model-{number}"
        model.mkdir(parents=True, exist_ok=True)
        rgb = np.asarray(slide.read_region((x, y), 0, (width, height)).convert("RGB"))
        picture = work / f"picture-{number}.png"
        Image.fromarray(rgb).save(picture)
        network = random_network(arguments, rgb)
        torch.save(network.state_dict(), model / "model.pth")
        classes = arguments.get("classes", 1)
        recipe = {
            "framework": "segmentation-models-pytorch",
            "network": "Unet",
            "arguments": arguments,
            "weights": "model.pth",
            "tile": {"width": tile[1], "height": tile[0]},
            "normalization": "imagenet",
            "classes": ["background", *(f"class {c}" for c in range(1, max(classes, 2)))],
        }
        (model / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
        logits = predict(network, rgb, tile, classes)
        reference = (logits[0] > 0).astype(np.uint8) if classes == 1 else logits.argmax(0).astype(np.uint8)
        start = time.monotonic()
        mask = segment(microtome, model, picture, work / f"mask-{number}.ome.zarr")
        seconds = time.monotonic() - start
        equal, dice = compare(mask, reference)
        shares = ", ".join(f"{s * 100:.0f} %" for s in np.bincount(reference.ravel()) / reference.size)
        missed |= equal < MIN_EQUAL
        print(f"{width} x {height}, tiles of {tile[1]} x {tile[0]}, {arguments}: {equal * 100:.4f} % equal,"
              f" {np.count_nonzero(mask != reference)} pixels differ, Dice {dice:.6f}, classes {shares}; microtome took {seconds:.1f} s"
              f"{'' if equal >= MIN_EQUAL else ': MISSED'}", flush=True)
    if missed:
        sys.exit(f"microtome and PyTorch agree in less than {MIN_EQUAL * 100} % of the pixels")


if __name__ == "__main__":
    main()
