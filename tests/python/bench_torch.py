#!/usr/bin/env python3
"""Runs a network with PyTorch as often as somebody asks at its standard input, and says how long each pass took.

usage: bench_torch.py FOLDER [--way eager|channels-last|compiled] [--precision f32|bf16|f64]

FOLDER is one that bench_network.py made. Every answer is a line of JSON; the first, unasked, says what runs. The questions:

    run THREADS BATCH COUNT   COUNT passes over BATCH tiles at once: {"milliseconds": [of each pass]}
    logits FILE               writes the tile's logits, plane by plane, little-endian f32: {"logits": how many}

`compiled` is torch.compile with freezing, for fixed shapes; it compiles in the first pass with a number of threads and tiles.
Preparing the input is not part of a pass. Nothing is trained, so all runs in inference mode.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

# crates/testkit/examples/time_network has the same.
MEAN, DEVIATION = 192, 32
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f64": torch.float64}


def load(folder, weights=True):
    """The network of a result folder, for inference."""
    plans = json.loads((folder / "plans.json").read_text())
    architecture = plans["configurations"]["2d"]["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"],
        input_channels=3, output_channels=2, allow_init=True, deep_supervision=False,
    )
    if weights:
        checkpoint = torch.load(folder / "fold_0/checkpoint_final.pth", weights_only=True)
        network.load_state_dict(checkpoint["network_weights"])
    return network.eval()


class Network:
    """A network on its way, and the tile that it runs on."""

    def __init__(self, folder, way, precision):
        self.format = torch.channels_last if way == "channels-last" else torch.contiguous_format
        network = load(folder).to(TYPES[precision]).to(memory_format=self.format)
        if way == "compiled":
            torch._inductor.config.freezing = True
            network = torch.compile(network, dynamic=False)
        side = json.loads((folder / "network.json").read_text())["side"]
        samples = np.fromfile(folder / "tile.rgb", dtype=np.uint8).reshape(1, side, side, 3).transpose(0, 3, 1, 2)
        normalized = (samples.astype(np.float32) - MEAN) / DEVIATION
        self.network = network
        self.tile = torch.from_numpy(np.ascontiguousarray(normalized)).to(TYPES[precision])

    def run(self, threads, batch, count):
        """Milliseconds of each pass."""
        torch.set_num_threads(threads)
        tiles = self.tile.repeat(batch, 1, 1, 1).contiguous(memory_format=self.format)
        milliseconds = []
        for _ in range(count):
            started = time.perf_counter()
            self.network(tiles)
            milliseconds.append((time.perf_counter() - started) * 1e3)
        return milliseconds

    def logits(self, path):
        """How many there are."""
        torch.set_num_threads(1)
        logits = self.network(self.tile.contiguous(memory_format=self.format))[0].float().contiguous().numpy()
        logits.astype("<f4").tofile(path)
        return logits.size


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--way", choices=["eager", "channels-last", "compiled"], default="eager")
    parser.add_argument("--precision", choices=list(TYPES), default="f32")
    given = parser.parse_args()
    with torch.inference_mode():
        network = Network(given.folder, given.way, given.precision)
        print(json.dumps({"identity": f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"}), flush=True)
        for line in sys.stdin:
            match line.split():
                case ["run", *numbers]:
                    answer = {"milliseconds": network.run(*map(int, numbers))}
                case ["logits", path]:
                    answer = {"logits": network.logits(path)}
                case _:
                    sys.exit(f"not a question: {line}")
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
