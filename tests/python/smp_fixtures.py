#!/usr/bin/env python3
"""Makes what crates/unet/tests/smp.rs compares with: logits of segmentation-models-pytorch's Unet.

usage: smp_fixtures.py FOLDER

FOLDER is crates/unet/tests; the file is smp.json in it. A ResNet has tens of millions of weights, far too many to commit: the test
makes them by the formula of weight() from their names, as this script does, and the picture by that of picture().
The file holds the first values of a few weights, by which the two formulas can be compared, and for each case the arguments of the
constructor, the tile, names and shapes of the state dict, every STEP-th logit and the largest.
"""

import json
import math
import pathlib
import sys

import numpy as np
import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders import preprocess_input

# Rows, columns; what Unet is called with. At the coarsest, tiles are 2 x 3, 5 x 7, 3 x 5, 3 x 2, 2 x 3 and 1 x 2 pixels.
CASES = [
    ((64, 96), {"encoder_name": "resnet18"}),
    (
        (40, 56),
        {"encoder_name": "resnet18", "encoder_depth": 3, "decoder_channels": [24, 12, 7], "decoder_use_norm": False, "in_channels": 1, "classes": 3},
    ),
    (
        (48, 80),
        {
            "encoder_name": "resnet34", "encoder_depth": 4, "decoder_channels": [48, 32, 16, 8], "decoder_interpolation": "bilinear", "classes": 3,
            "activation": "softmax2d", "aux_params": {"classes": 2},
        },
    ),
    (
        (96, 64),
        {"encoder_name": "resnet34", "decoder_use_norm": {"type": "instancenorm", "affine": True}, "in_channels": 1, "activation": "sigmoid"},
    ),
    ((64, 96), {"encoder_name": "resnet50", "decoder_use_batchnorm": True, "classes": 3}),
    ((32, 64), {"encoder_name": "resnet50", "decoder_channels": [32, 24, 16, 12, 8], "in_channels": 1}),
]
# Odd, so that samples lie in all columns of all tiles.
STEP = 11
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "input_space": "RGB", "input_range": [0, 1]}
# Name and shape of weights whose first values are written down.
CHECKED = [("encoder.conv1.weight", (64, 3, 7, 7)), ("encoder.bn1.running_var", (64,)), ("segmentation_head.0.bias", (1,))]


def weight(name, shape):
    """Values that look random and depend on name, shape and place only; exactly the same wherever f64 is IEEE's."""
    seed = 0x811C9DC5
    for byte in name.encode():  # FNV-1a
        seed = (seed ^ byte) * 0x01000193 % 2**32
    x = np.uint32(seed) + np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(0x9E3779B9)
    # The finalizer of MurmurHash3.
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    x = x ^ (x >> np.uint32(16))
    uniform = (x >> np.uint32(8)) / 2.0**24 - 0.5
    if len(shape) > 1:
        # The variance that keeps what a ReLU follows as large as it was.
        uniform = math.sqrt(24.0 / math.prod(shape[1:])) * uniform
    elif name.endswith(("weight", "running_var")):
        uniform = 1.0 + uniform
    if name.endswith(("bn2.weight", "bn3.weight")):
        # Last in a residual block: sums of many blocks do not drown what skips carry past them.
        uniform = 0.25 * uniform
    return uniform.astype(np.float32).reshape(shape)


def fill(network):
    """Gives a network the weights of the formula."""
    state = {name: value if value.ndim == 0 else torch.from_numpy(weight(name, tuple(value.shape))) for name, value in network.state_dict().items()}
    network.load_state_dict(state)
    return network.eval()


def picture(tile, channels):
    """Samples of a linear congruential generator, pixel by pixel, and row by row."""
    state, samples = 5, []
    for _ in range(tile[0] * tile[1] * channels):
        state = (state * 1_664_525 + 1_013_904_223) % 2**32
        samples.append(state >> 24)
    return np.array(samples, dtype=np.uint8).reshape(*tile, channels)


def logits(network, rgb):
    """Of a picture; whatever activation the network's head ends with is left out."""
    x = preprocess_input(rgb, **IMAGENET) if rgb.shape[2] == 3 else rgb / 255.0
    x = torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32))
    with torch.inference_mode():
        return network.segmentation_head[0](network.decoder(network.encoder(x)))[0]


def values(tensor):
    """Values of f32 as JSON can hold them without loss."""
    return [float(f"{v:.9g}") for v in tensor.flatten().tolist()]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    checked = [{"name": name, "shape": shape, "values": values(weight(name, shape))[:4]} for name, shape in CHECKED]
    cases = []
    for tile, arguments in CASES:
        network = fill(smp.Unet(encoder_weights=None, **arguments))
        result = logits(network, picture(tile, arguments.get("in_channels", 3)))
        largest = result.abs().max().item()
        cases.append({
            "arguments": arguments,
            "tile": {"width": tile[1], "height": tile[0]},
            "weights": {name: list(value.shape) for name, value in network.state_dict().items() if value.ndim > 0},
            "largest": largest,
            "logits": values(result.flatten()[::STEP]),
        })
        print(f"{tuple(result.shape)} logits between {result.min():.3f} and {result.max():.3f}, deviation {result.std():.3f}: {arguments}")
    dense = lambda value: json.dumps(value, separators=(",", ":"))  # noqa: E731
    lines = ",\n".join(map(dense, cases))
    text = f'{{"checked":{dense(checked)},\n"step":{STEP},\n"cases":[\n{lines}\n]}}\n'
    (pathlib.Path(sys.argv[1]) / "smp.json").write_text(text)


if __name__ == "__main__":
    main()
