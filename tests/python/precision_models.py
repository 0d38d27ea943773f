#!/usr/bin/env python3
"""Makes the models by which docs/precision.md says what bf16 changes in each architecture, and the picture that they are run on.

usage: precision_models.py SLIDE FOLDER [ONNX]

SLIDE is CMU-1-Small-Region.svs, FOLDER is where models and picture.png are left. Weights are random, drawn with a fixed seed, but such that all
classes occur and tie where their logits are near 0. ONNX is lavlab-shell's model_v1.onnx, a SegResNet that was trained on prostate stained
with H&E: its weights become a state dict that MONAI's own class takes, each exactly once. Then, with FOLDER in MICROTOME_MODELS:
cargo test -p microtome --test pipeline -- --ignored --nocapture what_bf16_changes
Needs tests/python/requirements-full.txt.
"""

import ast
import json
import os
import pathlib
import shutil
import sys

import numpy as np

# x, y, width, height: tissue, stroma and a little glass of CMU-1-Small-Region.
CROP = (400, 600, 640, 512)
TILE, HEADS = 256, 3
CLASSES = ["background", "one", "two"]
MONAI = [
    ("UNet", {"channels": [32, 64, 128, 256], "strides": [2, 2, 2], "num_res_units": 2, "norm": "batch"}),
    ("BasicUNet", {"features": [32, 32, 64, 128, 256, 32]}),
    (
        "DynUNet",
        {"kernel_size": [3] * 5, "strides": [1, 2, 2, 2, 2], "upsample_kernel_size": [2] * 4, "filters": [32, 64, 128, 256, 512]},
    ),
    ("SegResNet", {"init_filters": 32, "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1]}),
]
# Where each has its last convolution.
LAST = {
    "UNet": lambda net: net.model[2][1].conv.unit0.conv,
    "BasicUNet": lambda net: net.final_conv,
    "DynUNet": lambda net: net.output_block.conv.conv,
    "SegResNet": lambda net: net.conv_final[2].conv,
}
# What lavlab-shell trained, without its autoencoder, which plays no part at inference.
TRAINED = {"init_filters": 16, "act": "mish", "norm": ["group", {"num_groups": 8}], "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1]}


def write(folder, framework, network, arguments, state, normalization):
    """A state dict with its recipe."""
    import torch

    folder.mkdir(parents=True)
    torch.save(state, folder / "weights.pt")
    recipe = {
        "framework": framework,
        "network": network,
        "arguments": arguments,
        "weights": "weights.pt",
        "tile": TILE,
        "normalization": normalization,
        "classes": CLASSES,
    }
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")


def tie(last, logits):
    """Brings logits to a mean of 0 and a deviation of 1, by the last convolution."""
    last.weight.div_(logits.std())
    last.bias.sub_(logits.mean((0, 2, 3))).div_(logits.std())


def monai(folder, rgb):
    import torch
    from monai.networks import nets

    from monai_fixtures import randomize

    for name, arguments in MONAI:
        arguments = {"spatial_dims": 2, "in_channels": 3, "out_channels": HEADS, **arguments}
        net = randomize(getattr(nets, name)(**arguments))
        with torch.no_grad():
            if name == "UNet":
                # The means and deviations of a network that has been trained are those of what it sees.
                for _ in range(20):
                    net.train()(tile(rgb))
                net.eval()
            tie(LAST[name](net), net(tile(rgb)))
        write(folder / f"MONAI {name}, random", "monai", name, arguments, net.state_dict(), "rgb-to01")


def tile(rgb):
    import torch

    return torch.from_numpy(rgb[:TILE, :TILE]).permute(2, 0, 1)[None].float() / 255


def smp(folder, rgb):
    import torch

    from check_smp import random_network, tensor

    for encoder in ("resnet18", "resnet50"):
        arguments = {"encoder_name": encoder, "classes": HEADS}
        net = random_network(arguments, rgb)
        with torch.no_grad():
            x = tensor(rgb)[None, :, :TILE, :TILE]
            tie(net.segmentation_head[0], net.segmentation_head[0](net.decoder(net.encoder(x))))
        write(folder / f"smp Unet, {encoder}, random", "segmentation-models-pytorch", "Unet", arguments, net.state_dict(), "imagenet")


def nnunet(folder, rgb):
    results = folder.parent / f"{folder.name}.results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    os.environ |= {"nnUNet_raw": os.devnull, "nnUNet_preprocessed": str(results), "nnUNet_results": str(results)}
    import check_nnunet_models as models

    models.TILE = (TILE, TILE)
    cases = [("plain", "PlainConvUNet", models.PLAIN), ("resenc", "ResidualEncoderUNet", models.RESIDUAL)]
    for name, network, keywords in cases:
        made = models.make(rgb, name, network, keywords, "nnUNetTrainer", models.LABELS, 1, models.Z)
        shutil.copytree(made, folder / f"nnU-Net {network}, random" / made.name)
    shutil.rmtree(results)


def fields(message):
    """The fields of a protocol buffer: numbers and their values, integers or bytes."""
    at = 0

    def integer():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        number, kind = divmod(integer(), 8)
        if kind == 0:
            yield number, integer()
        else:
            length = {1: 8, 5: 4}.get(kind) or integer()
            yield number, message[at : at + length]
            at += length


def entries(message, number):
    """The entries of a table of texts."""
    pairs = [dict(fields(value)) for n, value in fields(message) if n == number]
    return {pair[1].decode(): pair[2].decode() for pair in pairs}


def initializers(path):
    """The tensors of f32 in an ONNX file with external data, by their names, or by those of what they were made of.

    Numbers of fields: onnx.proto3 of ONNX 1.17, ModelProto.graph, GraphProto.initializer and value_info, TensorProto, ValueInfoProto.
    """
    data = path.with_name(f"{path.name}.data").read_bytes()
    graph = dict(fields(path.read_bytes()))[7]
    # The exporter says of each constant that it has computed what went into it.
    origins = {}
    for number, info in fields(graph):
        if number == 13 and (folded := entries(info, 4).get("pkg.onnxscript.optimizer.folded_from")):
            origins[dict(fields(info))[1].decode()] = next((n for n in ast.literal_eval(folded) if "." in n), None)
    for number, tensor in fields(graph):
        values = list(fields(tensor)) if number == 5 else []
        if dict(values).get(2) != 1:
            continue
        name = dict(values)[8].decode()
        shape = [extent for n, value in values if n == 1 for extent in ([value] if isinstance(value, int) else value)]
        where = entries(tensor, 13)
        raw = dict(values).get(9)
        if raw is None:
            offset, length = int(where.get("offset", 0)), int(where["length"])
            raw = data[offset : offset + length]
        name = origins.get(name) or name
        yield name, np.frombuffer(raw, np.float32).reshape(shape)


def lavlab(folder, path):
    import torch
    from monai.networks import nets

    arguments = {"spatial_dims": 2, "in_channels": 3, "out_channels": HEADS, **TRAINED}
    net = nets.SegResNet(**arguments)
    wanted = net.state_dict()
    state = {name: torch.from_numpy(values.copy()) for name, values in initializers(path) if name in wanted}
    # Normalisations have their factors and summands as columns.
    state = {name: value.reshape(wanted[name].shape) for name, value in state.items()}
    net.load_state_dict(state, strict=True)
    write(folder / "MONAI SegResNet, trained (lavlab-shell)", "monai", "SegResNet", arguments, net.state_dict(), "rgb-to01")


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    slide, folder = map(pathlib.Path, sys.argv[1:3])
    folder = folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    import openslide
    import torch
    from PIL import Image

    torch.manual_seed(1)
    torch.set_num_threads(1)
    x, y, width, height = CROP
    picture = openslide.OpenSlide(slide).read_region((x, y), 0, (width, height)).convert("RGB")
    picture.save(folder / "picture.png")
    rgb = np.array(picture)
    nnunet(folder, rgb)
    monai(folder, rgb)
    smp(folder, rgb)
    if len(sys.argv) == 4:
        lavlab(folder, pathlib.Path(sys.argv[3]))
    for model in sorted(folder.iterdir()):
        print(model)


if __name__ == "__main__":
    main()
