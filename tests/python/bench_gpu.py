#!/usr/bin/env python3
"""Measures microtome on a GPU, beside PyTorch, in parts of some minutes: `cargo xtask cuda bench` makes the folder that this runs in.

usage: run.py [--minutes N] [--device cuda:0] [--only STEP,STEP,..] [--python PYTHON] [--dry]
       run.py make NETWORK FOLDER [--tile FILE]
       run.py torch FOLDER --precision f32|bf16 --batches 1,2,.. [--compiled] [--logits FILE] [--cpu]

Needs Python 3.10 with PyTorch and numpy, and nothing else: no cargo, no network. The first form runs one step after the other, the most telling
first, begins none that would end after N minutes (7), and prints tables of all that was measured so far; the same command goes on with the next
step. What was measured is in results.jsonl, what was printed in results.txt. --dry tries everything with tiny networks on the CPU.
The other forms are steps of the first. A folder of a network is an nnU-Net v2 result with random weights and a tile; see bench_network.py.

Time per tile is the device's own: of PyTorch the forward pass alone, over tiles that are there already, normalised; of microtome everything from
samples of 8 bits to logits in main memory. Nothing is mirrored. f32 is without TF32. `stream` is the whole program's speed: wall time per tile
with as many batches under way as a segmentation has.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
# As time_network has them.
MEAN, DEVIATION = 192, 32
BATCHES = [1, 2, 4, 8, 16, 32, 64]
NETWORKS = ["stock", "resenc", "plain"]


# Steps that need PyTorch, each in a process of its own.


def network_of(folder, weights=True):
    """The network of a result folder, from the code that nnU-Net builds it with."""
    import pydoc
    import torch

    sys.path.insert(0, str(HERE / "lib"))
    plans = json.loads((folder / "plans.json").read_text())
    architecture = plans["configurations"]["2d"]["architecture"]
    keywords = dict(architecture["arch_kwargs"])
    for key in architecture["_kw_requires_import"]:
        if keywords[key] is not None:
            keywords[key] = pydoc.locate(keywords[key])
    network = pydoc.locate(architecture["network_class_name"])(input_channels=3, num_classes=2, **keywords)
    if weights:
        path = next(folder.glob("fold_*/checkpoint_final.pth"))
        # Checkpoints of a training hold numbers of numpy's; those here are our own, or those that the folder was made with.
        checkpoint = torch.load(path, weights_only=False, map_location="cpu")
        network.load_state_dict(checkpoint["network_weights"])
    if hasattr(network.decoder, "deep_supervision"):
        network.decoder.deep_supervision = False
    return network.eval()


def make(name, folder, tile):
    """The folder that bench_network.py makes, without nnU-Net."""
    import numpy as np
    import torch

    from bench_network import begin, finish, spread

    begin(name, folder)
    torch.manual_seed(0)
    network = network_of(folder, weights=False)
    network.apply(network.initialize)
    spread(network)
    finish(name, folder, network, np.fromfile(tile, dtype=np.uint8).reshape(512, 512, 3))


def with_torch(folder, precision, batches, compiled, logits, cpu):
    """A line of JSON for each batch."""
    import numpy as np
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    device = torch.device("cpu" if cpu else "cuda")
    side = json.loads((folder / "network.json").read_text())["side"]
    samples = np.fromfile(folder / "tile.rgb", dtype=np.uint8).reshape(1, side, side, 3).transpose(0, 3, 1, 2)
    tile = torch.from_numpy((samples.astype(np.float32) - MEAN) / DEVIATION).to(device)
    network = network_of(folder).to(device).to(memory_format=torch.channels_last)
    if compiled:
        network = torch.compile(network, mode="default" if cpu else "max-autotune", dynamic=False)
    half = precision == "bf16"

    def forward(tiles):
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            return network(tiles)

    if logits:
        forward(tile.contiguous(memory_format=torch.channels_last))[0].float().contiguous().cpu().numpy().astype("<f4").tofile(logits)
    for batch in batches:
        tiles = tile.repeat(batch, 1, 1, 1).contiguous(memory_format=torch.channels_last)
        try:
            milliseconds = time_cpu(forward, tiles) if cpu else time_cuda(torch, forward, tiles)
        except torch.OutOfMemoryError:
            break
        memory = None if cpu else torch.cuda.max_memory_allocated()
        print(json.dumps({"batch": batch, "milliseconds": milliseconds, "memory": memory}), flush=True)


def time_cuda(torch, forward, tiles):
    """The median of passes of at least half a second in all."""
    for _ in range(3):
        forward(tiles)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    times, started = [], time.perf_counter()
    while time.perf_counter() - started < 0.5 or len(times) < 5:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        forward(tiles)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return median(times)


def time_cpu(forward, tiles):
    started = time.perf_counter()
    forward(tiles)
    return (time.perf_counter() - started) * 1e3


def median(values):
    return sorted(values)[len(values) // 2]


# The steps, and what they need.


class Server:
    """time_network, which answers questions."""

    def __init__(self, run, folder, *options):
        command = [str(HERE / "time_network"), str(folder), str(folder / "tile.rgb"), *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=run.environment
        )
        self.about = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("time_network ended")
        value = json.loads(line)
        if "unsupported" in value:
            raise RuntimeError(value["unsupported"])
        return value

    def ask(self, question):
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self.answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(60)


class Run:
    """One call of this script."""

    def __init__(self, given):
        self.given = given
        self.dry = given.dry
        # PyTorch, microtome and nvidia-smi are shown one GPU, and the same.
        number = int(given.device.partition(":")[2] or 0)
        visible = [entry for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry]
        self.gpu = visible[number] if number < len(visible) else str(number)
        self.device = "cpu" if given.dry else "cuda:0"
        self.batches = [1, 2] if given.dry else BATCHES
        self.work = HERE / ("dry" if given.dry else "work")
        self.work.mkdir(exist_ok=True)
        self.results = self.work / "results.jsonl"
        self.environment = {**os.environ, "LD_LIBRARY_PATH": libraries(), "PYTHONPATH": str(HERE),
                            "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": self.gpu}
        lines = [json.loads(line) for line in self.results.read_text().splitlines()] if self.results.exists() else []
        self.finished = {line["finished"] for line in lines if "finished" in line}
        # What an attempt that was stopped has left does not count.
        self.done = [line for line in lines if line.get("step") in self.finished]

    def network(self, name):
        """The folder of a network, made at the first call."""
        if name == "plain":
            return HERE / "nets/plain"
        folder = self.work / name
        if not (folder / "fold_0/checkpoint_final.pth").exists():
            self.python("make", "dry" if self.dry else name, folder, "--tile", HERE / "tile.rgb")
        return folder

    def python(self, *arguments):
        """The lines of JSON that a form of this script printed."""
        command = [self.given.python, str(HERE / "run.py"), *map(str, arguments)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=self.environment).stdout
        return [json.loads(line) for line in output.splitlines() if line.startswith("{")]

    def torch(self, folder, *arguments):
        return self.python("torch", folder, *arguments, *(["--cpu"] if self.dry else []))

    def note(self, step, **values):
        """Keeps a result."""
        entry = {"step": step, **values}
        self.done.append(entry)
        with self.results.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        print("  " + json.dumps(values), flush=True)

    def found(self, step):
        return [entry for entry in self.done if entry["step"] == step and "batch" in entry]


def libraries():
    """Where PyTorch's wheels keep cuDNN, cuBLAS, cuRAND and NVRTC, before whatever else is to be searched."""
    folders = [str(path) for entry in sys.path for path in sorted(pathlib.Path(entry).glob("nvidia/*/lib")) if path.is_dir()]
    return ":".join(folders + [path for path in [os.environ.get("LD_LIBRARY_PATH")] if path])


def memory_used(run):
    """Of the device, in bytes, by all processes."""
    try:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--id={run.gpu}"]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]) << 20
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return None


def machine(run):
    """What runs here."""
    try:
        command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
        gpu = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        gpu = "no nvidia-smi"
    version = subprocess.run([HERE / "microtome", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    torch = subprocess.run([run.given.python, "-c", "import torch; print(torch.__version__, torch.backends.cudnn.version())"],
                           capture_output=True, text=True, check=True).stdout.strip()
    run.note("machine", gpu=gpu, cores=os.cpu_count(), microtome=version, torch=torch)


def check(run, name):
    """How far the logits of one tile are from PyTorch's in f32, whether a second run gives the same bytes, and how many pixels change in bf16."""
    from array import array

    folder = run.network(name)

    def read(path):
        values = array("f")
        values.frombytes(path.read_bytes())
        return values

    def ours(precision, file, *options):
        with Server(run, folder, "--device", run.device, "--precision", precision, *options) as server:
            server.ask(f"logits {run.work / file}")
            return read(run.work / file), server.about["identity"]

    run.torch(folder, "--precision", "f32", "--batches", 1, "--logits", run.work / "torch-f32")
    run.torch(folder, "--precision", "bf16", "--batches", 1, "--logits", run.work / "torch-bf16")
    theirs, theirs_half = read(run.work / "torch-f32"), read(run.work / "torch-bf16")
    single, identity = ours("f32", "ours-f32", *(["--arithmetic", "exact"] if run.dry else []))
    half, _ = ours("bf16", "ours-bf16")
    again, _ = ours("bf16", "ours-bf16-again")
    largest = max(map(abs, theirs))
    area = len(theirs) // 2
    second = [theirs[area + i] > theirs[i] for i in range(area)]
    changed = lambda logits: sum((logits[area + i] > logits[i]) != second[i] for i in range(area)) / area
    run.note(f"{name}-check", identity=identity,
             f32_relative=max(abs(a - b) for a, b in zip(single, theirs)) / largest,
             bf16_relative=max(abs(a - b) for a, b in zip(half, theirs)) / largest,
             changed_bf16=changed(half), changed_torch_bf16=changed(theirs_half),
             same_bytes_again=half == again)


def ours(run, name, precision, *options, step=None, batches=None):
    """Time of each batch on the device, and of a stream."""
    folder = run.network(name)
    about = json.loads((folder / "network.json").read_text())
    for batch in batches or run.batches:
        with Server(run, folder, "--device", run.device, "--precision", precision, "--batch", str(batch), *options) as server:
            if server.about["batch"] not in (batch, None):
                break
            count = 2 if run.dry else 3
            server.ask(f"run 2 {batch} {count}")
            took = server.ask(f"run 2 {batch} {count if run.dry else 10}")
            milliseconds = median(took["device_milliseconds"] or took["milliseconds"])
            if not run.dry:
                count = max(6, int(2000 / max(milliseconds, 0.1)))
            stream = server.ask(f"stream {batch} {count}")
            run.note(step or f"{name}-{precision}", batch=batch, milliseconds=milliseconds / batch,
                     tflops=2e-9 * about["multiplications"] * batch / milliseconds,
                     stream_milliseconds=stream["seconds"] * 1e3 / (batch * count),
                     memory=memory_used(run), identity=server.about["identity"])


def theirs(run, name, precision):
    """PyTorch, eager, channels last; bf16 by AMP."""
    folder = run.network(name)
    about = json.loads((folder / "network.json").read_text())
    for line in run.torch(folder, "--precision", precision, "--batches", ",".join(map(str, run.batches))):
        batch, milliseconds = line["batch"], line["milliseconds"]
        run.note(f"{name}-{precision}-torch", batch=batch, milliseconds=milliseconds / batch,
                 tflops=2e-9 * about["multiplications"] * batch / milliseconds, memory=line["memory"])


def compiled(run):
    """torch.compile, at the batch that was best without."""
    folder = run.network("stock")
    about = json.loads((folder / "network.json").read_text())
    best = min(run.found("stock-bf16-torch"), key=lambda entry: entry["milliseconds"])["batch"]
    for line in run.torch(folder, "--precision", "bf16", "--batches", best, "--compiled"):
        milliseconds = line["milliseconds"]
        run.note("stock-bf16-torch-compiled", batch=best, milliseconds=milliseconds / best,
                 tflops=2e-9 * about["multiplications"] * best / milliseconds, memory=line["memory"])


def slide(run, name, step):
    """A slide of 15 x 15 mm at 0.5 um per pixel, all of it, end to end; a small one to try it with."""
    model = HERE / "nets/nuclei" if name == "nuclei" else run.network(name)
    command = [HERE / "microtome", "segment", HERE / ("small.svs" if run.dry else "slide.svs"), "-m", model, "-o", run.work / "mask.ome.zarr", "--overwrite", "--quiet",
               "--json", "--no-tta", "--tissue", "none", "--device", run.device]
    command += [] if name == "nuclei" else ["--model-mpp", "0.5"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=run.environment).stdout
    summary = json.loads(output)["outcome"]["done"]
    size = summary["geometry"]["target"]["size"]
    pixels = size["width"] * size["height"]
    busy = sum(device["busy"] for device in summary["devices"])
    run.note(step, seconds=summary["seconds"], megapixels_per_second=pixels / 1e6 / summary["seconds"],
             slides_per_hour=3600 / summary["seconds"], gpu_share=busy / summary["segmentation"] if summary["devices"] else None,
             tiles=summary["tiles"]["run"], devices=summary["devices"],
             stages={key: value for key, value in summary["stages"].items() if value["busy"] > 0})


def steps(run):
    """Name, expected minutes, and what is done; the most telling first."""
    all_steps = [
        ("machine", 0.2, lambda: machine(run)),
        ("stock-check", 1.5, lambda: check(run, "stock")),
        ("stock-bf16", 1.5, lambda: ours(run, "stock", "bf16")),
        ("stock-bf16-torch", 1, lambda: theirs(run, "stock", "bf16")),
        ("stock-slide", 1.5, lambda: slide(run, "stock", "stock-slide")),
        ("stock-bf16-torch-compiled", 5, lambda: compiled(run)),
        ("stock-f32", 2, lambda: ours(run, "stock", "f32")),
        ("stock-f32-torch", 1.5, lambda: theirs(run, "stock", "f32")),
        ("resenc-check", 2, lambda: check(run, "resenc")),
        ("resenc-bf16", 2, lambda: ours(run, "resenc", "bf16")),
        ("resenc-bf16-torch", 1.5, lambda: theirs(run, "resenc", "bf16")),
        ("nuclei-slide", 1.5, lambda: slide(run, "nuclei", "nuclei-slide")),
        ("plain-check", 1, lambda: check(run, "plain")),
        ("plain-bf16", 1.5, lambda: ours(run, "plain", "bf16")),
        ("plain-bf16-torch", 1, lambda: theirs(run, "plain", "bf16")),
        ("resenc-f32", 3, lambda: ours(run, "resenc", "f32")),
        ("resenc-f32-torch", 2, lambda: theirs(run, "resenc", "f32")),
        # candle's operations one after the other, a tile at a time; in main memory's time. Its CPU device does not multiply bf16.
        ("stock-bf16-candle", 0.5, lambda: ours(run, "stock", "f32" if run.dry else "bf16", "--arithmetic", "reference",
                                                step="stock-bf16-candle", batches=[1])),
    ]
    here = [step for step in all_steps if not step[0].startswith("plain") or (HERE / "nets/plain").exists()]
    return [step for step in here if run.given.only is None or step[0] in run.given.only.split(",")]


def tables(run):
    """All that was measured."""
    lines = []
    for name in dict.fromkeys(entry["step"] for entry in run.done):
        entries = [entry for entry in run.done if entry["step"] == name]
        if "batch" not in entries[0]:
            lines.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in entries[-1].items() if key != "step"))
            continue
        lines.append(f"{name}: batch, ms per tile, TFLOP/s, ms per tile of a stream, GB of device memory")
        for entry in entries:
            stream, memory = entry.get("stream_milliseconds"), entry.get("memory")
            lines.append(f"  {entry['batch']:4} {entry['milliseconds']:10.3f} {entry['tflops']:8.1f}"
                         f" {'' if stream is None else format(stream, '10.3f'):>10} {'' if memory is None else format(memory / 1e9, '8.2f'):>8}")
    best = lambda step: min((entry["milliseconds"] for entry in run.found(step)), default=None)
    rivals = [time for time in [best("stock-bf16-torch"), best("stock-bf16-torch-compiled")] if time]
    if best("stock-bf16") and rivals:
        lines.append(f"stock net in bf16: PyTorch's best / ours = {min(rivals) / best('stock-bf16'):.3f}")
    return "\n".join(lines) + "\n"


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "make":
        parser = argparse.ArgumentParser()
        parser.add_argument("form")
        parser.add_argument("network")
        parser.add_argument("folder", type=pathlib.Path)
        parser.add_argument("--tile", type=pathlib.Path, required=True)
        given = parser.parse_args()
        return make(given.network, given.folder, given.tile)
    if len(sys.argv) > 1 and sys.argv[1] == "torch":
        parser = argparse.ArgumentParser()
        parser.add_argument("form")
        parser.add_argument("folder", type=pathlib.Path)
        parser.add_argument("--precision", choices=["f32", "bf16"], required=True)
        parser.add_argument("--batches", required=True)
        parser.add_argument("--compiled", action="store_true")
        parser.add_argument("--logits", type=pathlib.Path)
        parser.add_argument("--cpu", action="store_true")
        given = parser.parse_args()
        return with_torch(given.folder, given.precision, list(map(int, given.batches.split(","))), given.compiled, given.logits, given.cpu)
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--minutes", type=float, default=7)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--only")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--dry", action="store_true")
    run = Run(parser.parse_args())
    started, failed, left = time.monotonic(), [], []
    for name, minutes, step in steps(run):
        if name in run.finished:
            continue
        if left or (time.monotonic() - started) / 60 + minutes > run.given.minutes:
            left.append(name)
            continue
        print(f"== {name}", flush=True)
        try:
            step()
        except Exception as error:  # The other steps are worth their time all the same.
            print(f"  failed: {error}", flush=True)
            failed.append(name)
            continue
        with run.results.open("a") as file:
            file.write(json.dumps({"finished": name}) + "\n")
    text = tables(run)
    (run.work / "results.txt").write_text(text)
    print(text)
    if left:
        print(f"not yet run, so run the same command again: {', '.join(left)}")
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
