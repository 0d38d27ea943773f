#!/usr/bin/env python3
"""Makes checkpoints of 500 MB and more, and measures the memory that loading them takes.

usage: bench_load.py MICROTOME LOAD_MODEL FOLDER

MICROTOME is the binary, LOAD_MODEL the example of crates/unet of that name; FOLDER is where the checkpoints are left, 1.1 GB.
One is a checkpoint of nnU-Net, written by its trainer with what the optimizer keeps of each weight; one a state dict of MONAI's BasicUNet in
safetensors, of which every weight is used. Memory is anonymous memory (RssAnon of /proc/PID/status), looked at every two milliseconds from
outside, and by LOAD_MODEL within itself: files are mapped, and clean pages of files are the system's to take back; their largest number is
beside it (RssFile). Fails where loading takes more than 1.05 times the used weights. Prints what docs/benchmarks/load.txt holds.
Needs tests/python/requirements-full.txt.
"""

import contextlib
import io
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time

import numpy as np

PLAIN = {"n_stages": 5, "features_per_stage": [96, 192, 384, 768, 1536], "n_conv_per_stage": [2] * 5, "n_conv_per_stage_decoder": [2] * 4}
BASIC = {"spatial_dims": 2, "in_channels": 3, "out_channels": 3, "features": [128, 256, 512, 1024, 2048, 256]}
MOST = 1.05


def nnunet(folder):
    """A result of nnU-Net with random weights. Returns the checkpoint."""
    os.environ |= {"nnUNet_raw": os.devnull, "nnUNet_preprocessed": str(folder), "nnUNet_results": str(folder)}
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from check_nnunet_models import LABELS, Z, plans

    content = plans("Dataset999_large", "PlainConvUNet", PLAIN, Z)
    data_set = {"channel_names": {"0": "R", "1": "G", "2": "B"}, **LABELS, "numTraining": 1, "file_ending": ".png"}
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = nnUNetTrainer({**content, "continue_training": False}, "2d", 0, data_set, torch.device("cpu"))
        heads = trainer.label_manager.num_segmentation_heads
        trainer.network = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 3, heads, True)
        trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
        # As after the first step.
        for parameter in trainer.network.parameters():
            trainer.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        trainer.save_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
    base = pathlib.Path(trainer.output_folder_base)
    for file, value in [("plans", content), ("dataset", data_set)]:
        (base / f"{file}.json").write_text(json.dumps(value, indent=1))
    return base, pathlib.Path(trainer.output_folder, "checkpoint_final.pth")


def safetensors(folder):
    """A state dict with its recipe. Returns the state dict."""
    import torch
    from monai.networks import nets
    from safetensors.torch import save_file

    folder.mkdir()
    torch.manual_seed(1)
    save_file(nets.BasicUNet(**BASIC).state_dict(), folder / "weights.safetensors")
    recipe = {
        "framework": "monai", "network": "BasicUNet", "arguments": BASIC, "weights": "weights.safetensors", "tile": 64,
        "normalization": "rgb-to01", "classes": ["background", "one", "two"],
    }
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=1))
    return folder, folder / "weights.safetensors"


def status(process):
    """RssAnon and RssFile in bytes."""
    try:
        lines = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return tuple(int(values.get(key, 0)) << 10 for key in ("RssAnon", "RssFile"))


def measured(command):
    """Peaks of anonymous and of file memory of a command, and what it prints."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    anonymous = file = 0
    while process.poll() is None:
        now = status(process)
        anonymous, file = max(anonymous, now[0]), max(file, now[1])
        time.sleep(0.002)
    output = process.stdout.read()
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {output}")
    return anonymous, file, output


def processor():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    microtome, load_model, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    from PIL import Image

    picture = folder / "picture.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)).save(picture)
    print("$ python tests/python/bench_load.py MICROTOME LOAD_MODEL FOLDER")
    print(f"{processor()}, {os.cpu_count()} processors, {platform.system()} {platform.release()}; MB are millions of bytes\n")
    missed = False
    for what, (model, checkpoint) in [("nnU-Net's checkpoint", nnunet(folder)), ("safetensors", safetensors(folder / "basic-unet"))]:
        card = json.loads(measured([microtome, "model", "info", model, "--json"])[2])["card"]
        used = 4 * card["parameters"]
        size = checkpoint.stat().st_size
        print(f"{what}, {card['architecture']}")
        print(f"  {checkpoint.name} has {size / 1e6:.1f} MB; the weights that are used take {used / 1e6:.1f} MB")
        line = measured([load_model, model])[2].splitlines()[-1]
        print(f"  load_model: {line}")
        peak = float(line.split("at most ")[1].split(" MB")[0]) * 1e6
        missed |= size < 500e6 or peak > MOST * used
        print(f"  at most {peak / used:.3f} times the used weights{'' if peak <= MOST * used else ': MISSED'}")
        store = folder / "mask.ome.zarr"
        segment = [microtome, "segment", picture, "-m", model, "-o", store, "--overwrite", "--quiet", "--model-mpp", "native", "--no-tta"]
        for name, command in [
            ("model info", [microtome, "model", "info", model]),
            ("segment, 64 x 96 pixels", segment),
            ("segment --exact, the same", [*segment, "--exact"]),
        ]:
            anonymous, file, _ = measured(command)
            print(f"  {name}: {anonymous / 1e6:.1f} MB of anonymous memory at most, {anonymous / used:.2f} times the used weights;"
                  f" {file / 1e6:.1f} MB of mapped files", flush=True)
        print(flush=True)
    if missed:
        sys.exit("a checkpoint is too small, or loading takes more than the used weights")


if __name__ == "__main__":
    main()
