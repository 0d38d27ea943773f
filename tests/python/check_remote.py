"""Runs the program against an S3 service on loopback, over a connection that fails, and compares what it writes with what it writes into folders.

    check_remote.py BINARY SLIDE MODEL PICTURE WORK

SLIDE is converted, and PICTURE, a small one, is segmented by MODEL; then an archive of three slides is. The service is moto's; between it and the program
stands a proxy that answers 500 and 503, answers too late, and cuts connections before, within and after an answer, at places that a seed decides.
"""

import argparse
import collections
import hashlib
import http.client
import http.server
import json
import logging
import os
import pathlib
import random
import shutil
import signal
import subprocess
import threading
import time

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "slides"
# Seconds after which the program gives up an answer, and for which a slow one is held back.
TIMEOUT, SLOW = 2, 3
# Shards so small that there are many requests.
SMALL = ["--chunk", "256", "--shard", "512", "--threads", "2", "--sync-every", "0.2"]
SETTINGS = ["--model-mpp", "native", "--no-tta", "--step-size", "1", "--memory", "1GiB", "--threads", "2"]
SEGMENT = [*SETTINGS, "--tissue", "none"]


class Faults:
    """What the proxy does to requests, and what it has done."""

    def __init__(self):
        self.lock = threading.Lock()
        self.behave()

    def behave(self, seed=0, rate=0.0, end=None, status=None, at=None):
        """Faults at this rate; from the request with the number `end` on, always `status` (503 unless given).

        `at` tells of single ones: {(method, part of the key): (kind, how often)}, of any method where that is empty."""
        with self.lock:
            self.at = {place: list(fault) for place, fault in (at or {}).items()}
            self.random, self.rate, self.end, self.status = random.Random(seed), rate, end, status or 503
            self.requests, self.bytes, self.done, self.puts = 0, 0, collections.Counter(), 0

    def choose(self, method, path):
        with self.lock:
            self.requests += 1
            self.puts += method != "GET" and method != "HEAD"
            single = next((fault for (verb, part), fault in self.at.items() if verb in ("", method) and part in path and fault[1]), None)
            if single:
                kind, single[1] = single[0], single[1] - 1
            elif self.end is not None and self.requests > self.end:
                kind = "status"
            elif self.random.random() >= self.rate:
                return None
            else:
                # Slow answers take the time of the whole check.
                kinds, weights = ["500", "503", "cut", "silent", "half", "slow"], [4, 4, 4, 4, 4, 1]
                kind = self.random.choices(kinds, weights)[0]
            self.done[kind] += 1
            return kind


FAULTS = Faults()


class Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream = None

    def log_message(self, *_):
        pass

    def forward(self, body):
        connection = http.client.HTTPConnection(*self.upstream)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "transfer-encoding")}
        connection.request(self.command, self.path, body=body, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer, content

    def answer(self, status, headers, content, sent=None):
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(name, value)
        # What HEAD says of a length is that of the object.
        length = dict((n.lower(), v) for n, v in headers).get("content-length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if sent is None else content[:sent])
            FAULTS.bytes += len(content)

    def handle_request(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        kind = FAULTS.choose(self.command, self.path)
        if kind in ("500", "503", "status"):
            status = FAULTS.status if kind == "status" else int(kind)
            code = {403: "AccessDenied", 500: "InternalError"}.get(status, "SlowDown")
            text = f"<Error><Code>{code}</Code><Message>a proxy says so</Message></Error>".encode()
            # Half of those that are said to have failed have been done.
            if kind == "500":
                self.forward(body)
            return self.answer(status, [("Content-Type", "application/xml")], text)
        if kind == "cut":
            self.close_connection = True
            return self.connection.close()
        if kind in ("slow", "never"):
            time.sleep(SLOW if kind == "slow" else 60)
        answer, content = self.forward(body)
        if kind == "silent":
            self.close_connection = True
            return self.connection.close()
        half = len(content) // 2 if kind == "half" else None
        self.answer(answer.status, answer.getheaders(), content, half)
        if kind == "half":
            self.close_connection = True
            self.wfile.flush()
            self.connection.close()

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except (OSError, ValueError):
            # The program has given up waiting, or we have hung up.
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request


class Program:
    def __init__(self, binary, work, port):
        self.binary, self.state = binary, work / "state"
        # Nothing of whoever runs this: neither credentials nor a proxy of their network.
        self.environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("AWS_")}
        self.environment |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1",
            "AWS_TIMEOUT": f"{TIMEOUT}s",
            "MICROTOME_STATE": str(self.state),
            "NO_PROXY": "127.0.0.1",
        }

    def command(self, *arguments):
        return [str(self.binary), *map(str, arguments)]

    def run(self, code, *arguments, words=(), environment=None, without=()):
        environment = {n: v for n, v in (self.environment | (environment or {})).items() if n not in without}
        start = time.monotonic()
        ran = subprocess.run(self.command(*arguments), env=environment, capture_output=True, text=True)
        shown = " ".join(self.command(*arguments)[1:])
        said = ran.stdout + ran.stderr
        assert ran.returncode == code, f"{shown}: exit code {ran.returncode} in place of {code}: {said}"
        assert "panicked" not in said, f"{shown}: {said}"
        if code:
            assert len(ran.stderr.strip().splitlines()) == 1, f"{shown}: {ran.stderr}"
        for word in words:
            assert word in said, f"{shown}: {word!r} is missing: {said}"
        print(f"  {time.monotonic() - start:5.1f} s  exit {code}  microtome {shown[:150]}")
        if code:
            print(f"           {ran.stderr.strip()[:300]}")
        return said


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def archives(program, args, place, bucket, same):
    """`batch` over slides in the bucket, and masks that are written there: with one fault for each slide, none fails."""
    print("an archive, with one fault for each slide")
    run = program.run
    slides = place / "slides"
    slides.mkdir(parents=True)
    # A scanner's file, of which a corner is wanted; a picture; a store.
    names = {"one": "one.svs", "two": "two.png", "three": "three.ome.zarr"}
    region = place / "corner.geojson"
    corner = [[700, 900], [950, 900], [950, 1100], [700, 1100], [700, 900]]
    region.write_text(json.dumps({"type": "Polygon", "coordinates": [corner]}))
    shutil.copy(args.slide, slides / names["one"])
    run(0, "read", args.slide, slides / names["two"], "--rect", "700,900,250,200")
    run(0, "convert", args.slide, slides / names["three"], "--rect", "700,900,300,200", "--quiet", *SMALL)
    for path in slides.rglob("*"):
        if path.is_file():
            bucket.upload_file(str(path), BUCKET, f"archive/{path.relative_to(slides).as_posix()}")

    def manifest(name, where, ids=names):
        """A manifest of slides that lie there."""
        rows = [f"{where}/{names.get(slide, slide)},{slide},{region if slide == 'one' else ''}" for slide in ids]
        (place / f"{name}.csv").write_text("\n".join(["slide,id,roi", *rows]))
        return ["batch", place / f"{name}.csv", "-m", args.model, "-o", place / name, *SETTINGS]

    def faults(method, part, kinds):
        """One for each slide, and no others."""
        FAULTS.behave(at={(method, part.format(slide)): (kind, 1) for slide, kind in zip(names, kinds)})

    def occurred(kinds):
        assert FAULTS.done == collections.Counter(kinds), f"{FAULTS.done} in place of {kinds}"

    there = f"s3://{BUCKET}/archive"
    run(0, *manifest("local", slides), words=["3 done, 0 failed"])
    expected = {slide: files(place / "local" / slide / "mask.ome.zarr") for slide in names}
    stage = ["--stage", place / "stage", "--stage-limit", "4MiB"]
    for name, more, kinds in (("read", [], ("half", "500", "slow")), ("staged", stage, ("slow", "half", "500"))):
        faults("GET", "/{}.", kinds)
        run(0, *manifest(name, there), *more, words=["3 done, 0 failed"])
        occurred(kinds)
        for slide in names:
            assert files(place / name / slide / "mask.ome.zarr") == expected[slide], f"{name}: {slide}"

    assert not list((place / "stage").iterdir()), "copies are left"

    kinds = ("500", "slow", "silent")
    faults("PUT", "/{}-mask.ome.zarr/0/", kinds)
    for slide, name in names.items():
        output = f"archive/{slide}-mask.ome.zarr"
        only = ["--roi", region] if slide == "one" else []
        run(0, "segment", f"{there}/{name}", "-m", args.model, "-o", f"s3://{BUCKET}/{output}", *only, "--quiet", *SETTINGS)
        same(output, place / "local" / slide / "mask.ome.zarr")
    occurred(kinds)

    print("an archive of which a slide is missing, or out of reach")
    run(3, *manifest("missing", there, ["two", "four.svs", "three"]), "--quiet", words=["line 3: four.svs"])
    busy = [*manifest("busy", there, ["two", "three"]), "--quiet"]
    FAULTS.behave(at={("", "/two."): ("503", -1)})
    run(75, *busy, words=["line 2: two"], environment={"AWS_MAX_ATTEMPTS": "3"})
    done = lambda name: {path.parent.name for path in (place / name).glob("*/done")}
    assert done("missing") == {"two", "three"} and done("busy") == {"three"}
    FAULTS.behave()
    run(0, *busy)
    assert done("busy") == {"two", "three"}

    print("stopped while nothing is answered: the size of a slide, its copy, its pixels")
    places = [("HEAD", "/one."), ("GET", "/two."), ("GET", "/three.ome.zarr/0/c/")]
    FAULTS.behave(at={place: ("never", -1) for place in places})
    # An answer is waited for as long as it is by default.
    patient = {name: value for name, value in program.environment.items() if name != "AWS_TIMEOUT"}
    begun = {}
    for slide, more in (("one", []), ("two", stage), ("three", [])):
        command = program.command(*manifest(f"stopped-{slide}", there, [slide]), "--quiet", *more)
        begun[slide] = subprocess.Popen(command, env=patient, stderr=subprocess.PIPE, text=True)
    while any(fault == ["never", -1] for fault in FAULTS.at.values()):
        assert all(process.poll() is None for process in begun.values()), "one ended too soon"
        time.sleep(0.1)
    time.sleep(2)
    for process in begun.values():
        process.terminate()
    start = time.monotonic()
    while begun and time.monotonic() < start + 20:
        time.sleep(0.1)
        for slide in [slide for slide, process in begun.items() if process.poll() is not None]:
            process = begun.pop(slide)
            said = process.stderr.read().strip()
            assert process.returncode == 128 + signal.SIGTERM, f"{slide}: exit code {process.returncode}: {said}"
            print(f"  {time.monotonic() - start:5.1f} s  exit {process.returncode}  {slide}: {said}")
    assert not begun, f"not ended after 20 s: {list(begun)}"
    assert not list((place / "stage").iterdir()), "a copy is left"
    FAULTS.behave()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only-archives", action="store_true", help="leave out all that comes before")
    for name in ("binary", "slide", "model", "picture", "work"):
        parser.add_argument(name, type=pathlib.Path)
    args = parser.parse_args()
    work = args.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    Proxy.upstream = server.get_host_and_port()
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    endpoint = f"http://{Proxy.upstream[0]}:{Proxy.upstream[1]}"
    s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="y")
    s3.create_bucket(Bucket=BUCKET)

    def objects(prefix):
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix + "/")
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        # But for what stands for a folder.
        return {key[len(prefix) + 1:]: s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys if not key.endswith("/")}

    def same(name, local):
        found, expected = objects(name), files(local)
        assert found.keys() == expected.keys(), f"{name}: {sorted(found.keys() ^ expected.keys())}"
        differing = [key for key in found if found[key] != expected[key]]
        assert not differing, f"{name}: {differing}"
        digest = hashlib.sha256()
        for key in sorted(found):
            digest.update(key.encode() + b"\0" + found[key])
        print(f"           {name}: {len(found)} objects, {sum(map(len, found.values()))} bytes, the same as in a folder ({digest.hexdigest()[:12]})")

    url = lambda name: f"s3://{BUCKET}/{name}"
    program = Program(args.binary.resolve(), work, proxy.server_address[1])
    run = program.run
    if args.only_archives:
        return archives(program, args, work / "archive", s3, same)

    print("what a folder gets")
    for form in ("0.5", "0.4"):
        run(0, "convert", args.slide, work / f"image-{form}.ome.zarr", "--format", form, "--quiet", *SMALL)
        run(0, "segment", args.picture, "-m", args.model, "-o", work / f"mask-{form}.ome.zarr", "--format", form, "--quiet", *SEGMENT)
    run(0, "segment", work / "image-0.5.ome.zarr", "-m", args.model, "-o", work / "of-store.ome.zarr", "--quiet", *SEGMENT)

    print("written into a bucket")
    for form in ("0.5", "0.4"):
        said = run(0, "convert", args.slide, url(f"a/image-{form}.ome.zarr"), "--format", form, *SMALL)
        assert "report in" in said, said
        same(f"a/image-{form}.ome.zarr", work / f"image-{form}.ome.zarr")
        run(0, "segment", args.picture, "-m", args.model, "-o", url(f"a/mask-{form}.ome.zarr"), "--format", form, "--quiet", *SEGMENT)
        same(f"a/mask-{form}.ome.zarr", work / f"mask-{form}.ome.zarr")
    # Consoles put an object in the place of an empty folder.
    s3.put_object(Bucket=BUCKET, Key="console.ome.zarr/", Body=b"")
    for existing in ([], ["--overwrite"]):
        run(0, "segment", args.picture, "-m", args.model, "-o", url("console.ome.zarr"), "--quiet", *SEGMENT, *existing)
        same("console.ome.zarr", work / "mask-0.5.ome.zarr")
    FAULTS.behave()
    run(0, "convert", args.slide, url("a/image-0.5.ome.zarr"), *SMALL, words=["done already"])
    assert FAULTS.puts == 0, "what is done is not written again"
    assert not list((program.state / "claims").iterdir()), "nothing is claimed any more"

    print("read from a bucket")
    for form in ("0.5", "0.4"):
        image, stored = url(f"a/image-{form}.ome.zarr"), work / f"image-{form}.ome.zarr"
        assert run(0, "info", image).replace(image, "*") == run(0, "info", stored).replace(str(stored), "*")
        for source, picture in ((image, "remote.png"), (stored, "local.png")):
            run(0, "preview", source, work / picture, "--size", "500")
        assert (work / "remote.png").read_bytes() == (work / "local.png").read_bytes()
        run(0, "validate", image, words=["0 faults"])
        run(0, "verify", image, words=["0 faulty"])
    run(0, "segment", url("a/image-0.5.ome.zarr"), "-m", args.model, "-o", url("b/of-store.ome.zarr"), "--quiet", *SEGMENT)
    same("b/of-store.ome.zarr", work / "of-store.ome.zarr")
    run(0, "preview", url("a/image-0.5.ome.zarr"), work / "overlay.png", "--overlay", url("b/of-store.ome.zarr"))
    run(0, "postprocess", url("b/of-store.ome.zarr"), "-o", url("b/largest.ome.zarr"), "--keep-largest", "1", "--quiet")
    run(0, "postprocess", work / "of-store.ome.zarr", "-o", work / "largest.ome.zarr", "--keep-largest", "1", "--quiet")
    same("b/largest.ome.zarr", work / "largest.ome.zarr")
    run(0, "convert", args.slide, url("b/whole.ome.zarr"), "--compression", "none", "--shard", "4096", "--no-associated", "--quiet")
    size = sum(map(len, objects("b/whole.ome.zarr").values()))
    FAULTS.behave()
    run(0, "read", url("b/whole.ome.zarr"), work / "part.png", "--rect", "700,900,64,64", "--overwrite")
    assert FAULTS.bytes < 2 << 20 < size // 8, f"{FAULTS.bytes} of {size} bytes were fetched for a few chunks"
    print(f"           {FAULTS.bytes} of {size} bytes in {FAULTS.requests} requests for 64 x 64 pixels")
    # Slides of other formats are read where they lie, too.
    s3.upload_file(str(args.slide), BUCKET, "plain/slide.svs")
    FAULTS.behave()
    assert run(0, "info", url("plain/slide.svs")).replace(url("plain/slide.svs"), "*") == run(0, "info", args.slide).replace(str(args.slide), "*")
    print(f"           {FAULTS.bytes} bytes in {FAULTS.requests} requests for `info`")
    for source, picture in ((url("plain/slide.svs"), "remote.png"), (args.slide, "local.png")):
        run(0, "preview", source, work / picture, "--size", "300")
    assert (work / "remote.png").read_bytes() == (work / "local.png").read_bytes()

    print("refused")
    run(5, "convert", args.slide, url("a/image-0.5.ome.zarr"), *SMALL, "--reduction", "max", words=["different run", "reduction"])
    run(0, "convert", args.slide, url("a/image-0.4.ome.zarr"), *SMALL, "--overwrite", "--quiet")
    same("a/image-0.4.ome.zarr", work / "image-0.5.ome.zarr")
    s3.put_object(Bucket=BUCKET, Key="theirs/notes.txt", Body=b"mine")
    run(2, "convert", args.slide, url("theirs"), words=["not microtome's"])
    run(2, "convert", args.slide, url("theirs/notes.txt"), "--overwrite", words=["not microtome's"])
    assert objects("theirs") == {"notes.txt": b"mine"}
    run(2, "convert", args.slide, url("c.ome.zarr.zip"), words=["in one file"])
    run(2, "convert", args.slide, "s3://slides", words=["s3://BUCKET/NAME"])
    run(2, "preview", args.slide, url("c.png"), words=["written to files"])
    run(2, "segment", args.picture, "-m", args.model, "--into", url("a/image-0.5.ome.zarr"), *SEGMENT, words=["in a folder only"])
    run(4, "info", url("nothing.ome.zarr"), words=["there is nothing"])
    run(4, "info", "s3://no-such-bucket/a.ome.zarr", words=["no bucket", "no-such-bucket"])
    run(4, "convert", args.slide, "s3://no-such-bucket/a.ome.zarr", words=["no bucket", "no-such-bucket"])
    run(4, "info", url("a/image-0.5.ome.zarr"), words=["no credentials"],
        environment={"AWS_EC2_METADATA_DISABLED": "true"}, without=("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    FAULTS.behave(end=0, status=403)
    run(4, "convert", args.slide, url("denied.ome.zarr"), words=["refuses it to these credentials"])
    FAULTS.behave()
    # On another machine nobody knows whether the first one still writes.
    begun = subprocess.Popen(program.command("convert", args.slide, url("begun.ome.zarr"), "--quiet", *SMALL), env=program.environment)
    noted = lambda: sum(len(f.read_text().splitlines()) for f in (work / "state/runs").glob("begun.ome.zarr.*.run/journal.jsonl"))
    while noted() < 5:
        assert begun.poll() is None, "it ended too soon"
    run(2, "convert", args.slide, url("begun.ome.zarr"), *SMALL, words=["another process"])
    begun.kill()
    begun.wait()
    elsewhere = {"MICROTOME_STATE": str(work / "elsewhere")}
    run(2, "convert", args.slide, url("begun.ome.zarr"), *SMALL, words=["not begun on this machine"], environment=elsewhere)
    run(0, "convert", args.slide, url("begun.ome.zarr"), *SMALL, words=["were finished before"])
    same("begun.ome.zarr", work / "image-0.5.ome.zarr")

    print("over a connection that fails")
    total = collections.Counter()
    for seed in range(3):
        form = ("0.5", "0.4", "0.5")[seed]
        FAULTS.behave(seed, 0.12)
        run(0, "convert", args.slide, url(f"d/{seed}.ome.zarr"), "--format", form, "--quiet", *SMALL)
        run(0, "segment", args.picture, "-m", args.model, "-o", url(f"d/mask-{seed}.ome.zarr"), "--format", form, "--quiet", *SEGMENT)
        run(0, "validate", url(f"d/{seed}.ome.zarr"), "--quiet", words=["0 faults"])
        run(0, "preview", url(f"d/{seed}.ome.zarr"), work / "faulty.png", "--size", "500")
        print(f"           {FAULTS.requests} requests, faults: {dict(sorted(FAULTS.done.items()))}")
        total += FAULTS.done
        FAULTS.behave()
        same(f"d/{seed}.ome.zarr", work / f"image-{form}.ome.zarr")
        same(f"d/mask-{seed}.ome.zarr", work / f"mask-{form}.ome.zarr")
    assert len(total) == 6, f"some faults did not occur: {total}"

    print("over one that fails for good")
    few = {"AWS_MAX_ATTEMPTS": "3"}
    for end in (0, 5, 40, 70):
        name = f"e/{end}.ome.zarr"
        FAULTS.behave(end=end)
        run(75, "convert", args.slide, url(name), "--quiet", *SMALL, words=["the object store failed", "again"], environment=few)
        FAULTS.behave()
        run(0, "convert", args.slide, url(name), "--quiet", *SMALL)
        same(name, work / "image-0.5.ome.zarr")
    for end in (4, 20):
        name = f"e/mask-{end}.ome.zarr"
        arguments = ["segment", url("a/image-0.5.ome.zarr"), "-m", args.model, "-o", url(name), "--quiet", *SEGMENT]
        FAULTS.behave(end=end)
        run(75, *arguments, environment=few)
        # A network that fails is no tile that cannot be read.
        run(75, *arguments[:5], url(f"e/filled-{end}.ome.zarr"), *arguments[6:], "--on-bad-tile", "fill", environment=few)
        FAULTS.behave()
        run(0, *arguments)
        same(name, work / "of-store.ome.zarr")

    print("killed")
    chance = random.Random(4)
    kills = 0
    for round in range(4):
        FAULTS.behave(round, 0.03)
        command = program.command("convert", args.slide, url("f.ome.zarr"), "--quiet", "--overwrite", *SMALL)
        lives = 0
        while True:
            begun = subprocess.Popen(command, env=program.environment)
            try:
                assert begun.wait(chance.uniform(0.1, 1.2)) == 0
                break
            except subprocess.TimeoutExpired:
                begun.kill()
                begun.wait()
                kills, lives = kills + 1, lives + 1
            # Only the first call replaces what the round before has left.
            command = [word for word in command if word != "--overwrite"]
            if lives == 6:
                run(0, *command[1:])
                break
        FAULTS.behave()
        same("f.ome.zarr", work / "image-0.5.ome.zarr")
    assert kills > 3, f"only {kills} kills"
    print(f"           {kills} kills")
    archives(program, args, work / "archive", s3, same)
    proxy.shutdown()
    server.stop()


if __name__ == "__main__":
    main()
