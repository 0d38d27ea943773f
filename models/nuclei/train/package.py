"""The package: weights.safetensors and model.toml, and test/ with what PyTorch computes for a picture that is drawn here."""

import hashlib
import json
import pathlib

import numpy as np
import torch
from PIL import Image

import network

# Side of the test picture, smaller than a tile, so that what lies around an image is part of the test.
TEST_SIDE = 128


def load(package):
    """The weights of a package, widened to f32."""
    from safetensors.torch import load_file

    stored = load_file(pathlib.Path(package) / "weights.safetensors")
    return {name.removeprefix("fold_0/"): weight.float() for name, weight in stored.items()}


def save(package, weights, provenance):
    """Writes weights.safetensors and model.toml."""
    from safetensors.torch import save_file

    package = pathlib.Path(package)
    package.mkdir(parents=True, exist_ok=True)
    stored = {f"fold_0/{name}": w.bfloat16() if w.dim() > 1 else w for name, w in sorted(weights.items())}
    save_file({name: w.contiguous() for name, w in stored.items()}, package / "weights.safetensors")
    digest = hashlib.sha256((package / "weights.safetensors").read_bytes()).hexdigest()
    stages = len(network.FEATURES)
    classes = "\n".join(
        f'[[classes]]\nvalue = {value}\nname = "{name}"\ncolor = {list(color)}\n' for value, (name, color) in enumerate(network.CLASSES)
    )
    normalization = '[[normalization]]\nscheme = "linear"\nshift = 255.0\ndivisor = 255.0\n\n' * 3
    (package / "model.toml").write_text(f"""\
format_version = 1
name = "nuclei"
licence = "MIT OR Apache-2.0"
provenance = {json.dumps(provenance)}
intended_use = "Nuclei on slides stained with haematoxylin and eosin at 0.5 micrometres per pixel: a demonstration of microtome. It is not a diagnostic device."
mpp = {network.MPP}
step = {network.STEP}
window = "gaussian"
channels = ["R", "G", "B"]
folds = ["fold_0"]

[tile]
width = {network.TILE}
height = {network.TILE}

[mirror_axes]
vertical = false
horizontal = false

[output]
kind = "labels"

[weights]
sha256 = "{digest}"
kernels = "bf16"

[architecture]
kind = "plain-conv-unet"
channels = 3
heads = {len(network.CLASSES)}
features = {network.FEATURES}
kernels = {[[3, 3]] * stages}
strides = {[[1, 1]] + [[2, 2]] * (stages - 1)}
convolutions = {network.CONVOLUTIONS}
decoder_convolutions = {network.DECODER_CONVOLUTIONS}
bias = true

[architecture.norm]
kind = "none"

[architecture.activation]
kind = "leaky-relu"
slope = {network.SLOPE}

{normalization}{classes}
[test]
computed_by = "PyTorch {torch.__version__.split("+")[0]}"
method = "linear normalisation, no mirroring, f32 on the CPU (train/package.py)"
""")
    (package / "weights.safetensors").chmod(0o644)
    test_vector(package / "test", weights)


def test_picture(seed=1):
    """Dark ellipses on a pale ground with noise, half of it empty: a picture that is nobody's, in which the network still sees nuclei."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[:TEST_SIDE, :TEST_SIDE].astype(np.float64)
    rgb = np.where((u < 80)[..., None], (232.0, 178.0, 208.0), (243.0, 242.0, 240.0))
    for _ in range(14):
        x, y = rng.uniform(5, 85), rng.uniform(0, TEST_SIDE)
        a, b, angle = rng.uniform(7, 12), rng.uniform(4, 8), rng.uniform(0, np.pi)
        du, dv = u - x, v - y
        away = np.hypot((np.cos(angle) * du + np.sin(angle) * dv) / a, (np.cos(angle) * dv - np.sin(angle) * du) / b)
        cover = np.clip((1.15 - away) * 4, 0, 1)[..., None] * rng.uniform(0.6, 1.0)
        rgb = rgb * (1 - cover) + cover * (82.0, 52.0, 120.0)
    return np.clip(np.rint(rgb + rng.normal(0, 4, rgb.shape)), 0, 255).astype(np.uint8)


def test_vector(folder, weights):
    """Writes input.png, logits.safetensors and mask.png: the picture in the middle of a tile of zeros, which is where the program lays it."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    rgb = test_picture()
    before = (network.TILE - TEST_SIDE) // 2
    after = network.TILE - TEST_SIDE - before
    x = network.normalized(torch.from_numpy(rgb).permute(2, 0, 1)[None])
    with torch.inference_mode():
        tile = network.forward(weights, torch.nn.functional.pad(x, [before, after, before, after]))
    logits = tile[0, :, before : before + TEST_SIDE, before : before + TEST_SIDE].contiguous()
    Image.fromarray(rgb).save(folder / "input.png", optimize=True)
    save_file({"logits": logits.clone()}, folder / "logits.safetensors")
    (folder / "logits.safetensors").chmod(0o644)
    Image.fromarray(logits.argmax(0).numpy().astype(np.uint8)).save(folder / "mask.png", optimize=True)
