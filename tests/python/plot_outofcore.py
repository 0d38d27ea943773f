#!/usr/bin/env python3
"""Draws what `cargo xtask bench outofcore` measured: memory and time against the side of the picture.

usage: plot_outofcore.py outofcore.jsonl OUT.svg
"""

import json
import sys
from collections import defaultdict
from statistics import median

import matplotlib

matplotlib.use("svg")
# The same figures make the same file.
matplotlib.rcParams["svg.hashsalt"] = "microtome"
matplotlib.rcParams["svg.fonttype"] = "none"
import matplotlib.pyplot as plt  # noqa: E402

# Okabe and Ito's colours, which colour-blind people tell apart.
STYLES = {
    "nnU-Net": ("#d55e00", "s"), "MONAI": ("#0072b2", "^"), "microtome --exact": ("#009e73", "o"), "microtome": ("#000000", "D"),
}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1]) as file:
        records = [json.loads(line) for line in file]
    machine = next(r["machine"] for r in records if r["kind"] == "machine")
    threads = next(r["command"] for r in records if r["kind"] == "run").split("--threads ")[1].split()[0]
    memory, seconds = defaultdict(lambda: defaultdict(list)), defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["kind"] == "run":
            memory[record["program"]][record["side"]].append(record["run"]["peak_anonymous_and_dirty_bytes"] / 2**20)
            seconds[record["program"]][record["side"]].append(record["seconds"])
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for panel, values, label, reduce in zip(panels, (memory, seconds), ("peak anonymous + dirty memory, MiB", "segmentation, s"), (max, median)):
        sides = sorted({side for of_program in values.values() for side in of_program})
        for program, (color, marker) in STYLES.items():
            points = sorted((side, reduce(of_side)) for side, of_side in values[program].items())
            if points:
                panel.plot(*zip(*points), color=color, marker=marker, label=program)
        panel.set(xscale="log", yscale="log", xlabel="side of the picture, pixels", ylabel=label)
        panel.set_xticks(sides, [str(side) for side in sides])
        panel.minorticks_off()
        panel.yaxis.set_major_formatter("{x:g}")
        panel.grid(True, which="both", alpha=0.3)
    # Ten-fold ticks alone say too little on an axis of one or two decades.
    for panel in panels:
        panel.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    panels[0].legend()
    figure.suptitle(f"{machine['processor']}, {threads} threads; the same nnU-Net checkpoint, the same pixels", fontsize=10)
    figure.savefig(sys.argv[2], metadata={"Date": None})


if __name__ == "__main__":
    main()
