#!/usr/bin/env python3
"""Makes what the tests of crates/unet compare with: outputs of PyTorch's operations, and small nnU-Net result folders.

usage: unet_fixtures.py FOLDER [NAME...]

FOLDER is crates/unet/tests. operations.json holds an input of 2 x 5 x 7 values and what PyTorch makes of it;
receptive_fields.json the pixels that logits of small networks have a gradient in.
nnunet holds result folders of nnU-Net v2, one for each entry of NETWORKS, small, with random weights, the network made by nnU-Net's
own trainer class from the plans; logits.json in each holds the network's logits for the picture that picture() makes, as nnunet.rs
does, without mirroring. With NAMEs only these are made.
"""

import json
import math
import pathlib
import sys

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch.nn import functional as F

# Rows, columns; heads; channels.
TILE, HEADS, CHANNELS = (16, 24), 2, 3
# What all networks have that do not say otherwise.
KEYWORDS = {
    "n_stages": 3,
    "features_per_stage": [4, 5, 5],
    "conv_op": "torch.nn.modules.conv.Conv2d",
    "kernel_sizes": [[3, 3], [3, 3], [3, 3]],
    "strides": [[1, 1], [2, 2], [2, 1]],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
IMPORTED = ["conv_op", "norm_op", "dropout_op", "nonlin"]
BOTTLENECK = "dynamic_network_architectures.building_blocks.residual.BottleneckD"
# Class of the network, what its arguments have beside or in place of KEYWORDS, trainer.
NETWORKS = {
    # nnU-Net's presets ResEnc M, L and XL.
    "residual-encoder": ("ResidualEncoderUNet", {"stem_channels": 3, "n_blocks_per_stage": [1, 1, 2]}, nnUNetTrainer),
    # Numbers in place of lists, bottlenecks of one width per block.
    "bottleneck": (
        "ResidualEncoderUNet",
        {
            "n_stages": 2, "features_per_stage": 6, "kernel_sizes": 3, "strides": [1, [1, 2]], "n_blocks_per_stage": 2,
            "n_conv_per_stage_decoder": 1, "block": BOTTLENECK, "bottleneck_channels": [2, [3, 2]],
            "nonlin": "torch.nn.GELU", "nonlin_kwargs": None,
        },
        nnUNetTrainer,
    ),
    # Residual blocks in the decoder, bottlenecks in the encoder alone.
    "residual": (
        "ResidualUNet",
        {
            "n_stages": 2, "features_per_stage": [4, 5], "kernel_sizes": [3, 3], "strides": [1, 2], "n_blocks_per_stage": [1, 2],
            "n_conv_per_stage_decoder": 2, "block": BOTTLENECK, "bottleneck_channels": 3, "conv_bias": False, "nonlin": "torch.nn.Mish",
        },
        nnUNetTrainer,
    ),
    "nonlin-first": (
        "PlainConvUNet",
        {
            "n_conv_per_stage": 2, "nonlin_first": True, "nonlin": "torch.nn.SiLU", "kernel_sizes": [[1, 3], 5, [3, 1]],
            "norm_op_kwargs": {"eps": 1e-3, "momentum": 0.2}, "dropout_op": "torch.nn.modules.dropout.Dropout2d",
            "dropout_op_kwargs": {"p": 0.5},
        },
        nnUNetTrainer,
    ),
    # The trainer replaces the normalisation of the plans; one slope for all channels of a layer.
    "batch-norm": (
        "PlainConvUNet",
        {"n_conv_per_stage": [1, 2, 1], "nonlin": "torch.nn.PReLU", "nonlin_kwargs": None},
        nnUNetTrainerBN,
    ),
    # A slope per channel, after sums too; statistics of training in an instance norm.
    "prelu": (
        "ResidualUNet",
        {
            "n_stages": 2, "features_per_stage": 4, "kernel_sizes": 3, "strides": [1, 2], "n_blocks_per_stage": 1,
            "n_conv_per_stage_decoder": 1, "nonlin": "torch.nn.PReLU", "nonlin_kwargs": {"num_parameters": 4},
            "norm_op_kwargs": {"affine": True, "track_running_stats": True},
        },
        nnUNetTrainer,
    ),
}
DATASET = {
    "channel_names": {"0": "R", "1": "G", "2": "B"},
    "labels": {"background": 0, "foreground": 1},
    "numTraining": 0,
    "file_ending": ".png",
}


def plans(network, keywords):
    imported = IMPORTED + (["block"] if "block" in keywords else [])
    architecture = {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
        "arch_kwargs": {**KEYWORDS, **keywords},
        "_kw_requires_import": imported,
    }
    return {
        "dataset_name": "Dataset999_Random",
        "plans_name": "randomPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "NaturalImage2DIO",
        "label_manager": "LabelManager",
        "configurations": {
            "2d": {
                "preprocessor_name": "DefaultPreprocessor",
                "patch_size": list(TILE),
                "normalization_schemes": ["RGBTo01Normalization"] * CHANNELS,
                "use_mask_for_norm": [False] * CHANNELS,
                "architecture": architecture,
            }
        },
    }


def picture():
    """Samples of a linear congruential generator, pixel by pixel."""
    state, samples = 5, []
    for _ in range(TILE[0] * TILE[1] * CHANNELS):
        state = (state * 1_664_525 + 1_013_904_223) % 2**32
        samples.append(state >> 24)
    return torch.tensor(samples, dtype=torch.float32).reshape(1, *TILE, CHANNELS).permute(0, 3, 1, 2)


def values(tensor):
    """Values of f32 as JSON can hold them without loss."""
    return [float(f"{v:.9g}") for v in tensor.flatten().tolist()]


def weight(*shape):
    """Values that tests compute likewise."""
    return ((torch.arange(math.prod(shape)) * 37 % 19 - 9) / 8).reshape(shape)


def transposed(x, kernel, stride, padding):
    """From two to three channels; the output is the input times the stride."""
    output_padding = [2 * p + s - k for k, s, p in zip(kernel, stride, padding)]
    y = F.conv_transpose2d(x, weight(2, 3, *kernel), weight(3), stride, padding, output_padding)
    assert y.shape[2:] == (x.shape[2] * stride[0], x.shape[3] * stride[1])
    return y


def operations():
    x = torch.randn(1, 2, 5, 7)
    resize = lambda factor, **mode: F.interpolate(x, scale_factor=factor, **mode)  # noqa: E731
    bilinear = {"mode": "bilinear", "align_corners": False}
    corners = {"mode": "bilinear", "align_corners": True}
    outputs = {
        "average pool": F.avg_pool2d(x, (3, 2), (2, 2)),
        "average pool, padded": F.avg_pool2d(F.pad(x, (1, 0, 1, 0)), 2, 1),
        "max pool": F.max_pool2d(x, (3, 2), (2, 1), (1, 1)),
        "nearest": resize((2.0, 1.7), mode="nearest"),
        "nearest, smaller": resize((0.7, 0.5), mode="nearest"),
        "bilinear": resize((2.0, 1.7), **bilinear),
        "bilinear, smaller": resize((0.7, 0.5), **bilinear),
        "bilinear, corners": resize((2.0, 1.7), **corners),
        "bilinear, one row": resize((0.2, 2.0), **corners),
        "group norm": F.group_norm(x, 1, torch.tensor([1.5, -0.5]), torch.tensor([0.25, 2.0]), 1e-5),
        "silu": F.silu(x),
        "mish": F.mish(x),
        "gelu": F.gelu(x),
        "gelu, tanh": F.gelu(x, approximate="tanh"),
        "prelu": F.prelu(x, torch.tensor([0.25, -0.75])),
        "pixel shuffle": F.pixel_shuffle(torch.cat([x] * 4, 1), 2),
        "transposed": transposed(x, (3, 4), (2, 3), (1, 1)),
        "transposed, five": transposed(x, (5, 2), (2, 2), (2, 0)),
        "transposed, one": transposed(x, (3, 5), (1, 1), (1, 2)),
        "transposed, shifted": transposed(x, (3, 2), (3, 2), (1, 0)),
        "transposed, gaps": transposed(x, (1, 3), (2, 4), (0, 0)),
    }
    return {"input": values(x), "outputs": {name: values(output) for name, output in outputs.items()}}


def conv(x, kernel, stride=(1, 1)):
    """One channel, weights of 1: no part of a gradient is lost."""
    return F.conv2d(x, torch.ones(1, 1, *kernel), None, stride, [(k - 1) // 2 for k in kernel])


def up(x, kernel, stride, padding):
    output_padding = [2 * p + s - k for k, s, p in zip(kernel, stride, padding)]
    return F.conv_transpose2d(x, torch.ones(1, 1, *kernel), None, stride, padding, output_padding)


def reaching():
    """Networks without normalisation, of one channel, by name."""

    def overlapping(x):
        fine = conv(x, (3, 3))
        coarse = conv(conv(fine, (3, 5), (2, 2)), (3, 3), (2, 1))
        return conv(up(up(coarse, (3, 3), (2, 1), (1, 1)), (3, 4), (2, 2), (1, 1)) + fine, (1, 3))

    def pooled(x):
        y = F.avg_pool2d(conv(x, (3, 3)), (3, 2), (2, 2), (1, 0), count_include_pad=True)
        return up(conv(y, (3, 7)), (2, 3), (2, 2), (0, 1))

    def resized(x):
        y = conv(conv(x, (3, 3), (2, 2)), (3, 3), (1, 2))
        return F.interpolate(F.interpolate(y, scale_factor=(2, 2), mode="bilinear"), scale_factor=(1, 2), mode="nearest")

    def corners(x):
        return F.interpolate(conv(x, (5, 3), (2, 2)), scale_factor=2, mode="bilinear", align_corners=True)

    def shuffled(x):
        y = conv(conv(x, (3, 3), (2, 2)), (3, 3))
        return F.pixel_shuffle(y.expand(1, 4, *y.shape[2:]), 2)

    return {f.__name__: f for f in (overlapping, pooled, resized, corners, shuffled)}


def receptive_fields():
    """For each network and axis the first and last pixel with a gradient, of logits in the middle of a tile of 48 rows and 64 columns."""
    fields = {}
    for name, network in reaching().items():
        x = torch.ones(1, 1, 48, 64, requires_grad=True)
        y = network(x)
        assert y.shape == x.shape
        extents = {"y": {}, "x": {}}
        for offset in range(8):
            row, column = 20 + offset, 28 + offset
            (gradient,) = torch.autograd.grad(y[0, 0, row, column], x, retain_graph=True)
            for axis, at, other in [("y", row, 1), ("x", column, 0)]:
                reached = gradient[0, 0].sum(other).nonzero().flatten()
                extents[axis][at] = [int(reached.min()), int(reached.max())]
        fields[name] = extents
    return fields


def randomize(network):
    """Random values for all weights, such that what comes later is neither lost nor without bounds."""
    for name, parameter in network.named_parameters():
        if "nonlin" in name:
            parameter.copy_(0.25 + 0.2 * torch.randn(parameter.shape))
            continue
        # Factors of normalisation around 1.
        shift = 1.0 if name.endswith(("norm.weight", "all_modules.1.weight")) else 0.0
        width = 0.3 if parameter.ndim == 1 else (2.0 / parameter[0].numel()) ** 0.5
        parameter.copy_(shift + width * torch.randn(parameter.shape))
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.3 * torch.randn(buffer.shape))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape))


def result_folder(folder, network, keywords, trainer):
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    content = plans(network, keywords)
    for name, value in [("plans", content), ("dataset", DATASET)]:
        (folder / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")
    manager = PlansManager(content)
    network = trainer.build_network_architecture(manager, manager.get_configuration("2d"), CHANNELS, HEADS, True)
    with torch.no_grad():
        randomize(network)
    checkpoint = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": "2d", "fold": 0},
        "trainer_name": trainer.__name__,
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    network.decoder.deep_supervision = False
    with torch.no_grad():
        logits = network.eval()(picture() / 255)
    (folder / "logits.json").write_text(json.dumps(values(logits)) + "\n")
    print(f"{folder.name}: {tuple(logits.shape)} logits between {logits.min():.3f} and {logits.max():.3f}")


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder, names = pathlib.Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    if not names:
        torch.manual_seed(1)
        (folder / "operations.json").write_text(json.dumps(operations()) + "\n")
        (folder / "receptive_fields.json").write_text(json.dumps(receptive_fields()) + "\n")
    for name, network in NETWORKS.items():
        if not names or name in names:
            # So that each can be made by itself.
            torch.manual_seed(1)
            result_folder(folder / "nnunet" / name, *network)


if __name__ == "__main__":
    main()
