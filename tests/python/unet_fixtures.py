#!/usr/bin/env python3
"""Makes what the tests of crates/unet compare with: outputs of PyTorch's operations, and a small nnU-Net result folder.

usage: unet_fixtures.py FOLDER

FOLDER is crates/unet/tests. operations.json holds an input of 2 x 5 x 7 values and what PyTorch makes of it;
receptive_fields.json the pixels that logits of small networks have a gradient in.
residual-encoder-unet is a result folder of nnU-Net v2 with the network of its ResEnc presets, small, with random weights;
logits.json in it holds the network's logits for the picture that picture() makes, as residual_encoder.rs does, without mirroring.
"""

import json
import math
import pathlib
import sys

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch.nn import functional as F

# Rows, columns; heads; channels.
TILE, HEADS, CHANNELS = (16, 24), 2, 3
KEYWORDS = {
    "n_stages": 3,
    "stem_channels": 3,
    "features_per_stage": [4, 5, 5],
    "conv_op": "torch.nn.modules.conv.Conv2d",
    "kernel_sizes": [[3, 3], [3, 3], [3, 3]],
    "strides": [[1, 1], [2, 2], [2, 1]],
    "n_blocks_per_stage": [1, 1, 2],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
NETWORK = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
IMPORTED = ["conv_op", "norm_op", "dropout_op", "nonlin"]
PLANS = {
    "dataset_name": "Dataset999_Random",
    "plans_name": "nnUNetResEncUNetMPlans",
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
            "architecture": {"network_class_name": NETWORK, "arch_kwargs": KEYWORDS, "_kw_requires_import": IMPORTED},
        }
    },
}
DATASET = {
    "channel_names": {"0": "R", "1": "G", "2": "B"},
    "labels": {"background": 0, "foreground": 1},
    "numTraining": 0,
    "file_ending": ".png",
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


def residual_encoder(folder):
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    for name, content in [("plans", PLANS), ("dataset", DATASET)]:
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    network = get_network_from_plans(NETWORK, KEYWORDS, IMPORTED, CHANNELS, HEADS, deep_supervision=True)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # Factors of normalisation around 1, so that what comes later is neither lost nor without bounds.
            shift = 1.0 if name.endswith(("norm.weight", "all_modules.1.weight")) else 0.0
            width = 0.3 if parameter.ndim == 1 else (2.0 / parameter[0].numel()) ** 0.5
            parameter.copy_(shift + width * torch.randn(parameter.shape))
    checkpoint = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": "2d", "fold": 0},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    network.decoder.deep_supervision = False
    with torch.no_grad():
        logits = network.eval()(picture() / 255)
    (folder / "logits.json").write_text(json.dumps(values(logits)) + "\n")
    print(f"{logits.shape} logits between {logits.min():.3f} and {logits.max():.3f}")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    torch.manual_seed(1)
    torch.set_num_threads(1)
    (folder / "operations.json").write_text(json.dumps(operations()) + "\n")
    (folder / "receptive_fields.json").write_text(json.dumps(receptive_fields()) + "\n")
    residual_encoder(folder / "residual-encoder-unet")


if __name__ == "__main__":
    main()
