"""How fast tifffile decodes all tiles of level 0 of a slide: a program that `cargo xtask bench read` keeps and asks.

    bench_tifffile.py SLIDE

It answers each line with a line of JSON; the first, unasked, is {"tifffile": version}, or {"unsupported": "why"}. A question is
`all THREADS`, 0 for as many as it likes: {"seconds": ...}. Tiles are decoded and dropped: no regions are put together.
"""

import json
import sys
import time

import tifffile


def main(path):
    try:
        page = tifffile.TiffFile(path).pages[0]
        next(page.segments())
    except Exception as error:
        print(json.dumps({"unsupported": str(error)}), flush=True)
        return
    print(json.dumps({"tifffile": tifffile.__version__}), flush=True)
    for line in sys.stdin:
        _, threads = line.split()
        started = time.perf_counter()
        for _ in page.segments(maxworkers=int(threads) or None):
            pass
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
