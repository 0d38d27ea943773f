#!/usr/bin/env python3
"""Trains the network of this package and writes it: weights, model.toml and test vector.

usage: train.py --dsb FOLDER --slide CMU-1-Small-Region.svs --out FOLDER [--iterations N] [--seed N] [--threads N]

--dsb holds dsb2018-index.csv and dsb2018-stained (see images.py). Into --out go log.txt, checkpoint.pt (every --check iterations; a stop leaves a
usable one) and package/. Needs requirements.txt beside this file. The same seed, threads, versions and machine give the same weights.
"""

import argparse
import copy
import pathlib
import time

import numpy as np
import torch

import augment
import evaluate
import images
import network
import package
import slide as slides

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--dsb", type=pathlib.Path, required=True)
parser.add_argument("--slide", type=pathlib.Path, required=True)
parser.add_argument("--out", type=pathlib.Path, required=True)
parser.add_argument("--iterations", type=int, default=2600)
parser.add_argument("--batch", type=int, default=16)
parser.add_argument("--side", type=int, default=128)
parser.add_argument("--rate", type=float, default=3e-3)
parser.add_argument("--average", type=float, default=0.995, help="decay of the running mean of the weights, which is what is kept")
parser.add_argument("--check", type=int, default=650)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--threads", type=int, default=1)
arguments = parser.parse_args()

torch.set_num_threads(arguments.threads)
torch.manual_seed(arguments.seed)
torch.use_deterministic_algorithms(True)
rng = np.random.default_rng(arguments.seed)
arguments.out.mkdir(parents=True, exist_ok=True)
log = open(arguments.out / "log.txt", "w", buffering=1)


def say(text):
    print(text, flush=True)
    log.write(text + "\n")


numbers = {name: value for name, value in vars(arguments).items() if not isinstance(value, pathlib.Path)}
say(f"{numbers}; PyTorch {torch.__version__}, numpy {np.__version__}")
pictures = images.dsb(arguments.dsb)
slide = slides.read(arguments.slide)
for part, wanted in (("trained on", False), ("held out", True)):
    chosen = [p for p in pictures if p.held_out == wanted]
    say(f"{part}: {len(chosen)} images\n" + "\n".join(f"  {p.name} {p.group} {p.mpp} um" for p in chosen))
sources = [augment.Source(p) for p in pictures if not p.held_out]
slide_source = augment.Source(slide)

model = network.Network().to(memory_format=torch.channels_last).train()
mean = copy.deepcopy(model).eval()
say(f"{sum(p.numel() for p in model.parameters())} parameters")
optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate, weight_decay=1e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.rate, total_steps=arguments.iterations, pct_start=0.1)
start, losses = time.monotonic(), []
for iteration in range(1, arguments.iterations + 1):
    rgb, nucleus, weight = augment.batch(rng, sources, slide_source, arguments.side, arguments.batch)
    x = network.normalized(rgb).contiguous(memory_format=torch.channels_last)
    # Convolutions in bf16, which processors with instructions for it do in half the time; normalisation, loss and weights stay f32.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x).float()
    # Cross entropy of two classes, and Dice over the batch; a pixel of unknown label takes part in neither.
    margin, truth = logits[:, 1] - logits[:, 0], nucleus.float()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(margin, truth, weight)
    probability = torch.sigmoid(margin)
    dice = 2 * (weight * probability * truth).sum() / ((weight * (probability + truth)).sum() + 1)
    loss = entropy + 0.5 * (1 - dice)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
    decay = min(arguments.average, iteration / (iteration + 10))
    with torch.no_grad():
        for kept, new in zip(mean.state_dict().values(), model.state_dict().values()):
            kept.lerp_(new, 1 - decay) if kept.is_floating_point() else kept.copy_(new)
    if iteration in (10, 50) or iteration % arguments.check == 0 or iteration == arguments.iterations:
        seconds = time.monotonic() - start
        say(f"{iteration}: loss {np.mean(losses[-arguments.check :]):.4f}, {seconds:.0f} s, {seconds / iteration:.3f} s each")
    if iteration % arguments.check == 0 or iteration == arguments.iterations:
        weights = network.folded(mean)
        torch.save({"iteration": iteration, "mean": mean.state_dict(), "model": model.state_dict()}, arguments.out / "checkpoint.pt")
        provenance = (
            f"PlainConvUNet trained by models/nuclei/train/train.py, {iteration} iterations, on {len(sources)} stained tissue images of the 2018 "
            "Data Science Bowl (BBBC038, CC0-1.0) and on weak labels of the upper three quarters of OpenSlide's CMU-1-Small-Region.svs (CC0-1.0). "
            "The images state no resolution: 0.25, 0.35 or 0.5 micrometres per pixel is assumed of each group."
        )
        package.save(arguments.out / "package", weights, provenance)
        say(f"  {evaluate.short(weights, [p for p in pictures if p.held_out], slide)}")
