#!/usr/bin/env python3
"""Says how many pixels of a model's test vector PyTorch changes in bf16: what `crates/unet/tests/devices.rs` allows a GPU.

usage: torch_bf16.py MODEL_FOLDER PACKAGE

MODEL_FOLDER is the nnU-Net v2 results folder that PACKAGE, such as models/nuclei, was imported from. Needs requirements-full.txt.
With nnU-Net 2.8.1 and torch 2.15 on the CPU, for models/nuclei: `mixed: 2 of 16384`, `all bf16: 11 of 16384`.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from PIL import Image
from safetensors.torch import load_file

folder, package = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
architecture = json.loads((folder / "plans.json").read_text())["configurations"]["2d"]["architecture"]
network = get_network_from_plans(
    architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"], 3, 2,
    allow_init=True, deep_supervision=False,
)
checkpoint = torch.load(next(folder.glob("fold_*/checkpoint_final.pth")), weights_only=False)
network.load_state_dict(checkpoint["network_weights"])
network.eval()
pixels = np.asarray(Image.open(package / "test/input.png").convert("RGB")).astype(np.float64)
normalized = ((pixels - pixels.mean((0, 1))) / pixels.std((0, 1))).astype(np.float32)
tile = torch.from_numpy(np.ascontiguousarray(normalized.transpose(2, 0, 1)[None]))
classes = load_file(package / "test/logits.safetensors")["logits"].argmax(0)


def report(name, logits):
    print(f"{name}: {int((logits[0].argmax(0) != classes).sum())} of {classes.numel()}")


with torch.inference_mode():
    report("f32", network(tile))
    with torch.autocast("cpu", torch.bfloat16):
        report("mixed", network(tile))
    report("all bf16", network.to(torch.bfloat16)(tile.to(torch.bfloat16)))
