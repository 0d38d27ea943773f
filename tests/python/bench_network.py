#!/usr/bin/env python3
"""Makes an nnU-Net v2 result folder with a network of a known shape and random weights, and a tile to run it on.

usage: bench_network.py NETWORK FOLDER SLIDE

NETWORK is a key of NETWORKS. FOLDER gets plans.json, dataset.json and fold_0/checkpoint_final.pth as nnU-Net 2.8.1 writes them, tile.rgb
(pixels of SLIDE, 8 bits, row by row) and network.json (what the network is). Weights are those that nnU-Net starts a training with, by a fixed seed,
but for biases and the factors of norms, which it starts with 0 and 1. Instance norm keeps logits near 1 however deep the network.
"""

import json
import pathlib
import sys

import numpy as np
import torch

# In the middle of tissue of CMU-1-Small-Region.
CORNER = (400, 600)


def plain(features, side):
    """nnU-Net's default network: two convolutions a stage on either side."""
    blocks = {"n_conv_per_stage": [2] * len(features), "n_conv_per_stage_decoder": [2] * (len(features) - 1)}
    return "PlainConvUNet", features, side, blocks


def residual(features, side):
    """As nnUNetPlannerResEncM plans them."""
    blocks = {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6, 6, 6][: len(features)], "n_conv_per_stage_decoder": [1] * (len(features) - 1)}
    return "ResidualEncoderUNet", features, side, blocks


NETWORKS = {
    "stock": plain([32, 64, 128, 256, 512, 512, 512, 512], 512),
    "resenc": residual([32, 64, 128, 256, 512, 512, 512, 512], 512),
    "small": plain([16, 32, 64, 128, 256], 256),
    "nuclei": plain([8, 16, 32, 64, 64], 128),
    # To try programs with.
    "dry": plain([8, 16, 32], 64),
}
DATASET = {
    "channel_names": {"0": "R", "1": "G", "2": "B"},
    "labels": {"background": 0, "foreground": 1},
    "numTraining": 1,
    "file_ending": ".png",
    "overwrite_image_reader_writer": "NaturalImage2DIO",
}


def plans(name):
    """The part of nnU-Net's plans that inference reads."""
    network, features, side, blocks = NETWORKS[name]
    stages = len(features)
    keywords = {
        "n_stages": stages,
        "features_per_stage": features,
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * stages,
        "strides": [[1, 1]] + [[2, 2]] * (stages - 1),
        **blocks,
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [side, side],
        "spacing": [1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * 3,
        "use_mask_for_norm": [False] * 3,
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
            "arch_kwargs": keywords,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": f"Dataset000_{name}",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NaturalImage2DIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d": configuration},
        "label_manager": "LabelManager",
    }


def spread(network):
    """Gives biases and norms values that would be missed."""
    for module in network.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)) and module.bias is not None:
            torch.nn.init.normal_(module.bias, 0, 0.1)
        if isinstance(module, torch.nn.InstanceNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.normal_(module.bias, 0, 0.1)


def multiplications(network, side):
    """Multiplications, each with its addition, of all convolutions for one tile."""
    count = 0

    def add(module, inputs, output):
        nonlocal count
        # Each sample of the larger side of a convolution of either kind meets the kernel of each channel of the other side.
        if isinstance(module, torch.nn.ConvTranspose2d):
            count += inputs[0].numel() * module.out_channels * module.weight[0, 0].numel()
        else:
            count += output.numel() * module.in_channels * module.weight[0, 0].numel()

    for module in network.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            module.register_forward_hook(add)
    with torch.inference_mode():
        network(torch.zeros(1, 3, side, side))
    return count


def is_used(name, stages):
    """False for the heads of deep supervision, which only training uses."""
    return not name.startswith("decoder.seg_layers.") or name.startswith(f"decoder.seg_layers.{stages - 2}.")


def begin(name, folder):
    """Writes what a network is built of."""
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans(name), indent=4))
    (folder / "dataset.json").write_text(json.dumps(DATASET, indent=4))


def finish(name, folder, network, pixels):
    """Writes everything else, the checkpoint last: a folder that has one is finished."""
    kind, features, side, _ = NETWORKS[name]
    (folder / "tile.rgb").write_bytes(np.ascontiguousarray(pixels[:side, :side]).tobytes())
    about = {
        "description": f"{kind} 2D, {len(features)} stages of {', '.join(map(str, features))} features",
        "side": side,
        "parameters": sum(weight.numel() for key, weight in network.named_parameters() if is_used(key, len(features))),
        "multiplications": multiplications(network, side),
    }
    (folder / "network.json").write_text(json.dumps(about))
    checkpoint = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": "2d", "fold": 0},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(checkpoint, folder / "fold_0/checkpoint_final.pth")


def main():
    import openslide

    from bench_torch import load

    if len(sys.argv) != 4:
        sys.exit(__doc__)
    name, folder, slide = sys.argv[1], pathlib.Path(sys.argv[2]), openslide.OpenSlide(sys.argv[3])
    side = NETWORKS[name][2]
    begin(name, folder)
    torch.manual_seed(0)
    network = load(folder, weights=False)
    spread(network)
    finish(name, folder, network, np.asarray(slide.read_region(CORNER, 0, (side, side)).convert("RGB")))


if __name__ == "__main__":
    main()
