#!/usr/bin/env python3
"""Computes a test vector of a model with nnU-Net itself, for `microtome model import --test-vector FOLDER`.

usage: test_vector.py MODEL_FOLDER FOLDS PICTURE.png FOLDER

MODEL_FOLDER is a trainer's folder of nnU-Net v2 (plans.json, dataset.json, fold_*); FOLDS are those that the package will hold, such
as 0,1,2 or all. PICTURE has 8 bits, the model's channels, and is no larger than its patch. Writes input.png, logits.safetensors, mask.png and test.toml.
Normalisation, network and mask are nnU-Net's own; nothing here comes from microtome. Needs tests/python/requirements-full.txt.
"""

import importlib.metadata
import json
import pathlib
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from nnunetv2.inference.data_iterators import PreprocessAdapterFromNpy
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

folder, folds, picture, out = pathlib.Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3], pathlib.Path(sys.argv[4])
out.mkdir(parents=True)
torch.set_num_threads(1)

predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
folds = tuple("all" if fold == "all" else int(fold) for fold in folds)
predictor.initialize_from_trained_model_folder(str(folder), folds, "checkpoint_final.pth")
patch = predictor.configuration_manager.patch_size

image = Image.open(picture)
image = image.convert("L" if len(predictor.dataset_json.get("channel_names", predictor.dataset_json.get("modality"))) == 1 else "RGB")
image.save(out / "input.png", optimize=True)
samples = np.asarray(image).reshape(image.height, image.width, -1)
height, width = samples.shape[:2]
assert height <= patch[0] and width <= patch[1], f"{width} x {height} pixels; the patch is {patch[1]} x {patch[0]}"

# What nnU-Net's reader for natural pictures returns: channels, 1, rows, columns, in f32 and unscaled, spacing (999, 1, 1).
array = np.ascontiguousarray(samples.transpose(2, 0, 1)[:, None]).astype(np.float32)
adapter = PreprocessAdapterFromNpy(
    [array], [None], [{"spacing": (999, 1, 1)}], [None],
    predictor.plans_manager, predictor.dataset_json, predictor.configuration_manager, num_threads_in_multithreaded=1,
)
normalized = next(adapter)["data"][:, 0].float()
assert normalized.shape[1:] == (height, width), f"nnU-Net cropped the picture to {tuple(normalized.shape[1:])}"
# As nnU-Net pads images smaller than the patch: half of what is missing, rounded down, above and on the left.
top, left = (patch[0] - height) // 2, (patch[1] - width) // 2
padded = torch.nn.functional.pad(normalized, (left, patch[1] - width - left, top, patch[0] - height - top))
network = predictor.network.eval()
logits = 0
with torch.inference_mode():
    for parameters in predictor.list_of_parameters:
        network.load_state_dict(parameters)
        logits = logits + network(padded[None])[0] / len(predictor.list_of_parameters)
logits = logits[:, top : top + height, left : left + width].contiguous().clone()
mask = np.asarray(predictor.label_manager.convert_logits_to_segmentation(logits[:, None]))[0]

save_file({"logits": logits}, out / "logits.safetensors")
Image.fromarray(mask.astype(np.uint8)).save(out / "mask.png", optimize=True)
version = importlib.metadata.version("nnunetv2")
torch_version = importlib.metadata.version("torch")
method = f"statistics of the input picture itself, no mirroring, f32 on the CPU by PyTorch {torch_version} (tests/python/test_vector.py)"
(out / "test.toml").write_text(f"computed_by = {json.dumps(f'nnU-Net {version}')}\nmethod = {json.dumps(method)}\n")
print(f"{out}: logits {tuple(logits.shape)} from {logits.min().item():.3f} to {logits.max().item():.3f}, mask of {np.unique(mask).tolist()}")
