#!/usr/bin/env python3
"""Makes what crates/unet/tests/monai.rs compares with: small networks of MONAI with random weights, and their logits.

usage: monai_fixtures.py FOLDER

FOLDER is crates/unet/tests/monai. Each network has a folder with weights.pt (a state dict), recipe.json (what `-m` reads) and logits.json:
for each of two sizes of tile the network's logits for the picture that picture() makes. `bundle` is a bundle whose picture, transforms and
network are made by MONAI's own parser from its inference.json; its first axis is x, as LoadImage has it.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.networks import nets
from PIL import Image

CHANNELS, HEADS = 3, 2
COMMON = {"spatial_dims": 2, "in_channels": CHANNELS, "out_channels": HEADS}
# Name, class, arguments, tiles as (rows, columns).
NETWORKS = [
    ("unet", "UNet", {"channels": [4, 6, 8], "strides": [2, 2]}, [(16, 24), (32, 8)]),
    (
        "unet-residual",
        "UNet",
        {
            "channels": [4, 5, 5, 6],
            "strides": [2, [1, 2], 2],
            "kernel_size": [3, 5],
            "up_kernel_size": [5, 3],
            "num_res_units": 2,
            "act": ["leakyrelu", {"negative_slope": 0.2, "inplace": True}],
            "norm": ["batch", {"eps": 1e-3}],
            "dropout": 0.1,
            "bias": False,
            "adn_ordering": "ADN",
        },
        [(16, 24), (8, 32)],
    ),
    ("basic-unet", "BasicUNet", {"features": [4, 4, 6, 6, 8, 5]}, [(32, 32), (32, 16)]),
    (
        "basic-unet-nontrainable",
        "BasicUNet",
        {"features": [4, 4, 6, 6, 8, 4], "act": "mish", "norm": ["group", {"num_groups": 2}], "upsample": "nontrainable"},
        [(32, 32), (32, 16)],
    ),
    (
        "dyn-unet",
        "DynUNet",
        {
            "kernel_size": [3, 3, [3, 5], 3],
            "strides": [1, 2, [2, 1], 2],
            "upsample_kernel_size": [2, [2, 1], 2],
            "filters": [4, 5, 6, 6],
            "deep_supervision": True,
            "deep_supr_num": 2,
        },
        [(16, 24), (32, 8)],
    ),
    (
        "dyn-unet-residual",
        "DynUNet",
        {
            "kernel_size": [3, 3, 3],
            "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2],
            "filters": [4, 6, 6],
            "norm_name": ["INSTANCE", {"affine": True, "track_running_stats": True}],
            "act_name": "prelu",
            "res_block": True,
            "trans_bias": True,
        },
        [(16, 24), (24, 8)],
    ),
    (
        "seg-res-net",
        "SegResNet",
        {"init_filters": 4, "norm": ["GROUP", {"num_groups": 4}], "blocks_down": [1, 2, 1], "blocks_up": [1, 1]},
        [(16, 24), (24, 8)],
    ),
    (
        "seg-res-net-deconv",
        "SegResNet",
        {
            "init_filters": 4,
            "norm": "instance",
            "act": ["swish", {}],
            "blocks_down": [1, 1, 1],
            "blocks_up": [1, 2],
            "upsample_mode": "deconv",
            "dropout_prob": 0.2,
        },
        [(16, 24), (24, 8)],
    ),
]
PIXELSHUFFLE = [
    (
        "basic-unet-pixelshuffle",
        "BasicUNet",
        {"features": [4, 4, 4, 4, 4, 4], "act": "gelu", "norm": "instance", "upsample": "pixelshuffle"},
        [(32, 32), (32, 16)],
    ),
    (
        "seg-res-net-pixelshuffle",
        "SegResNet",
        {
            "init_filters": 4,
            "norm": ["GROUP", {"num_groups": 2}],
            "act": "prelu",
            "blocks_down": [1, 1],
            "blocks_up": [1],
            "upsample_mode": "pixelshuffle",
        },
        [(16, 24), (24, 8)],
    ),
]

# As bundles of the zoo are written.
INFERENCE = {
    "imports": ["$import glob", "$import os"],
    "bundle_root": ".",
    "image_key": "image",
    "output_dir": "$@bundle_root + '/eval'",
    "datalist": "$list(sorted(glob.glob(@bundle_root + '/*.png')))",
    "device": "$torch.device('cpu')",
    "features": [4, 6, 8],
    "network_def": {
        "_target_": "monai.networks.nets.UNet",
        "_desc_": "small, with random weights",
        "spatial_dims": 2,
        "in_channels": CHANNELS,
        "out_channels": HEADS,
        "channels": "@features",
        "strides": [2, [1, 2]],
        "kernel_size": [3, 5],
        "norm": "batch",
    },
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "@image_key"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "@preprocessing::transforms::1::keys",
                "a_min": 51,
                "a_max": 204,
                "b_min": 0.0,
                "b_max": 1.0,
                "clip": True,
            },
            {
                "_target_": "NormalizeIntensityd",
                "keys": ["image"],
                "subtrahend": [0.5, 0.25, 0.75],
                "divisor": [0.5, 1.0, 0.25],
                "channel_wise": True,
            },
            {"_target_": "EnsureTyped", "keys": "image"},
        ],
    },
    "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
    "inferer": {
        "_target_": "SlidingWindowInferer",
        "roi_size": [24, 16],
        "sw_batch_size": "$4",
        "overlap": 0.625,
        "mode": "gaussian",
    },
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image", "nearest_interp": False},
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1]},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"},
        ],
    },
}
METADATA = {
    "version": "0.1.2",
    "monai_version": "1.6.1",
    "name": "Random stripes",
    "task": "none",
    "description": "A small network with random weights.",
    "authors": "nobody",
    "copyright": "none",
    "intended_use": "tests",
    "network_data_format": {
        "inputs": {"image": {"type": "image", "num_channels": 3, "channel_def": {"0": "R", "1": "G", "2": "B"}}},
        "outputs": {"pred": {"type": "image", "num_channels": 2, "channel_def": {"0": "background", "1": "stripe"}}},
    },
}


def picture(tile):
    """Samples of a linear congruential generator, pixel by pixel: rows x columns x channels."""
    state, samples = 5, []
    for _ in range(tile[0] * tile[1] * CHANNELS):
        state = (state * 1_664_525 + 1_013_904_223) % 2**32
        samples.append(state >> 24)
    return np.array(samples, dtype=np.uint8).reshape(*tile, CHANNELS)


def randomize(network):
    """Weights that keep what flows through a network neither lost nor without bounds; the same under all names of a tensor."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            is_factor = parameter.ndim == 1 and name.endswith("weight")
            width = 0.3 if parameter.ndim == 1 else (2.0 / parameter[0].numel()) ** 0.5
            parameter.copy_((0.7 if is_factor else 0.0) + width * torch.randn(parameter.shape))
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.2 * torch.randn(buffer.shape))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape))
    return network.eval()


def result(tile, logits):
    values = [float(f"{v:.7g}") for v in logits.flatten().tolist()]
    return {"height": tile[0], "width": tile[1], "logits": values}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def network(folder, name, arguments, tiles):
    arguments = {**COMMON, **arguments}
    net = randomize(getattr(nets, name)(**arguments))
    recipe = {
        "framework": "monai",
        "network": name,
        "arguments": arguments,
        "weights": ["weights.pt"],
        "tile": {"width": tiles[0][1], "height": tiles[0][0]},
        "normalization": [{"scheme": "rgb-to01"}] * CHANNELS,
        "classes": ["background", "foreground"],
        "step": 0.75,
        "placement": "monai",
        "window": "gaussian-monai",
    }
    write(folder / "recipe.json", recipe)
    torch.save(net.state_dict(), folder / "weights.pt")
    results = []
    for tile in tiles:
        image = torch.from_numpy(picture(tile)).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            results.append(result(tile, net(image)))
    (folder / "logits.json").write_text(json.dumps(results) + "\n")
    print(f"{folder.name}: {sum(p.numel() for p in net.parameters())} parameters")


def bundle(folder):
    write(folder / "configs" / "inference.json", INFERENCE)
    write(folder / "configs" / "metadata.json", METADATA)
    (folder / "models").mkdir(exist_ok=True)
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    net = randomize(parser.get_parsed_content("network_def"))
    torch.save(net.state_dict(), folder / "models" / "model.pt")
    tile = (16, 24)
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary) / "picture.png"
        Image.fromarray(picture(tile)).save(path)
        image = parser.get_parsed_content("preprocessing")({"image": str(path)})["image"]
    assert tuple(image.shape) == (CHANNELS, tile[1], tile[0]), image.shape
    with torch.no_grad():
        logits = parser.get_parsed_content("inferer")(image[None].as_tensor(), net)
    # Back to rows and columns.
    (folder / "logits.json").write_text(json.dumps([result(tile, logits.transpose(2, 3))]) + "\n")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    torch.manual_seed(1)
    torch.set_num_threads(1)
    for name, kind, arguments, tiles in NETWORKS + PIXELSHUFFLE:
        network(folder / name, kind, arguments, tiles)
    bundle(folder / "bundle")


if __name__ == "__main__":
    main()
