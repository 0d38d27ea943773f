#!/usr/bin/env python3
"""Makes the test vector of this package with nnU-Net itself: test/{input.png, logits.safetensors, mask.png, README.md}.

usage: make_test_vector.py MODEL_FOLDER IMAGE.png X Y

MODEL_FOLDER is the nnU-Net v2 results folder that the package was imported from (it holds plans.json, dataset.json and
fold_all/checkpoint_final.pth). The input is the 128 x 128 crop of IMAGE at column X, row Y. Normalisation, network and mask
are nnU-Net's own; nothing here comes from microtome. Needs tests/python/requirements-full.txt.
"""

import hashlib
import importlib.metadata
import pathlib
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from nnunetv2.inference.data_iterators import PreprocessAdapterFromNpy
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

SIDE = 128

folder, picture, x, y = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
out = pathlib.Path(__file__).parent / "test"
out.mkdir(exist_ok=True)
torch.set_num_threads(1)

rgb = np.asarray(Image.open(picture).convert("RGB"))[y : y + SIDE, x : x + SIDE]
assert rgb.shape == (SIDE, SIDE, 3), f"the crop leaves the picture: {rgb.shape}"
Image.fromarray(rgb).save(out / "input.png", optimize=True)

predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
predictor.initialize_from_trained_model_folder(str(folder), ("all",), "checkpoint_final.pth")

# What nnU-Net's reader for natural pictures returns: channels, 1, rows, columns, in f32 and unscaled, spacing (999, 1, 1).
array = np.ascontiguousarray(rgb.transpose(2, 0, 1)[:, None]).astype(np.float32)
properties = {"spacing": (999, 1, 1)}
adapter = PreprocessAdapterFromNpy(
    [array.copy()], [None], [dict(properties)], [None],
    predictor.plans_manager, predictor.dataset_json, predictor.configuration_manager, num_threads_in_multithreaded=1,
)
normalized = next(adapter)["data"]
network = predictor.network.eval()
network.load_state_dict(predictor.list_of_parameters[0])
with torch.inference_mode():
    logits = network(normalized[None, :, 0].float())[0].contiguous()
mask = logits.argmax(0).numpy().astype(np.uint8)

# The same picture through nnU-Net's whole sliding window, which sums in f16: the masks must agree.
whole = predictor.predict_single_npy_array(array.copy(), dict(properties))
assert np.array_equal(whole.squeeze(), mask), "the sliding window gives another mask"

save_file({"logits": logits.clone()}, out / "logits.safetensors")
Image.fromarray(mask).save(out / "mask.png", optimize=True)

flat = array.reshape(3, -1).astype(np.float64)
margin = (logits[1] - logits[0]).abs().min().item()
versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in
                     ("nnunetv2", "torch", "dynamic_network_architectures", "numpy", "safetensors"))
sha256 = hashlib.sha256((folder / "fold_all/checkpoint_final.pth").read_bytes()).hexdigest()
(out / "README.md").write_text(f"""\
# Test vector

Written by `../make_test_vector.py`; nothing here was computed by microtome.

- made with: {versions}; Python {sys.version.split()[0]}, on the CPU with one thread
- checkpoint: fold_all/checkpoint_final.pth, sha256 {sha256}
- `input.png`: {SIDE} x {SIDE} pixels of image `{picture.stem}` of the Data Science Bowl 2018 (BBBC038, CC0), from column {x}, row {y}
- normalisation: z-score over `input.png` itself; mean {", ".join(f"{v:.6f}" for v in flat.mean(1))}, standard deviation {", ".join(f"{v:.6f}" for v in flat.std(1))} (R, G, B)
- `logits.safetensors`: key `logits`, f32, {" x ".join(str(n) for n in logits.shape)} (heads x rows x columns), from {logits.min().item():.3f} to {logits.max().item():.3f}; no mirroring
- `mask.png`: argmax of the logits; {mask.mean() * 100:.1f} % foreground; the logits of the two classes differ by at least {margin:.2g}
- nnU-Net's own sliding window over `input.png` gives the same mask, pixel for pixel
""")
print((out / "README.md").read_text())
