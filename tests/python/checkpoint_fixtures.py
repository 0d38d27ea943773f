#!/usr/bin/env python3
"""Makes small checkpoints of all kinds, and says what PyTorch reads in them: for the tests of crates/unet/src/state_dict.

usage: checkpoint_fixtures.py FOLDER

FOLDER is crates/unet/tests/checkpoints. expected.json holds, for each file that is a state dict, its floating-point tensors by name, as
shape and values; for each other file, null. Made with torch 2.15.0, monai 1.6.1, numpy 2.4.6 and safetensors 0.8.0.
"""

import argparse
import collections
import datetime
import json
import pathlib
import pickle
import sys
import types

import numpy as np
import safetensors.torch
import torch
from monai.data import MetaTensor

KINDS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]


def values(*shape):
    count = torch.Size(shape).numel()
    return ((torch.arange(count, dtype=torch.float32) * 7) % 11 - 4.5).reshape(shape)


def weights():
    tensors = collections.OrderedDict([("a.weight", values(2, 3, 1, 1)), ("a.bias", values(2))])
    tensors["a.num_batches_tracked"] = torch.tensor(3)
    return tensors


def settings():
    """What training programs put beside the weights."""
    return {
        "state_dict": weights(),
        "epoch": 3,
        "rate": 1e-3,
        "none": None,
        "big": 1 << 70,
        "bytes": b"abc",
        "array": bytearray(b"abc"),
        "complex": 1j,
        "slice": slice(1, 2),
        "set": {1, 2},
        "frozen": frozenset([3]),
        "scores": [np.float32(0.5), np.float64(0.25), np.int64(7)],
        "numbers": np.arange(3),
        "device": torch.device("cpu"),
        "type": torch.float16,
        "size": torch.Size([1, 2]),
        "version": torch.__version__,
        "layout": torch.strided,
        "path": pathlib.Path("results"),
        "arguments": argparse.Namespace(rate=1e-3),
        "namespace": types.SimpleNamespace(rate=1e-3),
        "lists": collections.defaultdict(list, {"a": [1]}),
        "counts": collections.Counter("abca"),
        "queue": collections.deque([1, 2]),
        "time": datetime.datetime(2026, 1, 2, 3, 4, 5),
    }


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.a(x)


def saved(folder):
    """Writes all files; yields name and tensors of those that can be read."""
    torch.manual_seed(1)
    path = lambda name: str(folder / name)

    for protocol in [2, 3, 4, 5]:
        torch.save(settings(), path(f"settings-{protocol}.pth"), pickle_protocol=protocol)
        yield f"settings-{protocol}.pth", weights()

    kinds = {str(kind).removeprefix("torch."): values(2, 2).to(kind) for kind in KINDS}
    safetensors.torch.save_file(kinds, path("kinds.safetensors"))
    yield "kinds.safetensors", kinds
    # With types that have no storage class of their own, and tensors that are no plain arrays.
    others = {
        "uint16": torch.ones(2, dtype=torch.uint16),
        "complex": torch.ones(2, dtype=torch.complex64),
        "quantized": torch.quantize_per_tensor(values(2), 0.5, 0, torch.quint8),
        "sparse": torch.eye(2).to_sparse(),
        "meta": torch.empty(2, device="meta"),
        "negative": torch.tensor([1 + 2j]).conj().imag,
    }
    torch.save(kinds | others, path("kinds.pth"))
    yield "kinds.pth", kinds

    base = values(4, 6)
    views = {
        "base": base,
        "transposed": base.t(),
        "part": base[1:3, 2:5],
        "steps": base[::2, ::3],
        "scalar": base[2, 3],
        "nothing": torch.empty(0, 3),
        "channels_last": values(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    }
    torch.save(views, path("views.pth"))
    yield "views.pth", views

    marked = torch.nn.Parameter(values(3))
    marked.origin = "a"
    wrapped = {"parameter": torch.nn.Parameter(values(2)), "marked": marked, "meta": MetaTensor(values(2, 2))}
    wrapped["buffer"] = torch.nn.Buffer(values(2))
    torch.save({"model": {"state_dict": wrapped}}, path("wrapped.pth"))
    yield "wrapped.pth", wrapped

    net = Net()
    torch.save(net, path("own-class.pth"))
    torch.save(torch.nn.Sequential(net.a), path("module.pth"))
    torch.save({"state_dict": weights(), "loss": torch.nn.CrossEntropyLoss()}, path("loss.pth"))
    torch.save(weights(), path("legacy.pth"), _use_new_zipfile_serialization=False)
    torch.save({"a": np.zeros(2)}, path("arrays.pth"))
    torch.save(values(2), path("tensor.pth"))
    torch.save({"optimizer": {"lr": 0.1}}, path("empty.pth"))
    torch.jit.script(net).save(path("script.ts"))
    np.savez(path("arrays.npz"), a=np.zeros(2))
    pathlib.Path(path("weights.pkl")).write_bytes(pickle.dumps({"a": 1}))
    for name in ["own-class.pth", "module.pth", "loss.pth", "legacy.pth", "arrays.pth", "tensor.pth", "empty.pth", "script.ts"]:
        yield name, None
    yield "arrays.npz", None
    yield "weights.pkl", None


def floats(tensors):
    """Shape and values of the tensors that hold floating-point numbers."""
    plain = {name: torch.as_tensor(t.detach()).as_subclass(torch.Tensor) for name, t in tensors.items()}
    return {n: [list(t.shape), t.float().flatten().tolist()] for n, t in plain.items() if t.is_floating_point()}


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    expected = {name: tensors and floats(tensors) for name, tensors in saved(folder)}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


main()
