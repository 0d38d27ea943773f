"""Stores for the tests of crates/io, written by zarr-python, and what zarr-python reads of any store.

    zarr_stores.py write FOLDER     writes stores into FOLDER and prints what a reader should make of each
    zarr_stores.py read STORE ...   prints what zarr-python reads of each

What is printed is JSON, one line for each store:
    {"name": ..., "levels": [[width, height, channels, bits, sha256 of the samples, channels last, little endian], ...], ...}
and where a store is to be refused, {"name": ..., "refused": a word of the reason}.

Needs zarr (3.1), numcodecs; imagecodecs for Blosc with Snappy.
"""

import hashlib
import json
import os
import sys
import warnings
import zipfile

import numcodecs
import numpy
import zarr

warnings.simplefilter("ignore")


def level(samples, names):
    """Describes a level, given its array and the names of its axes."""
    kept = [n for n, name in enumerate(names) if name in "cyx"]
    samples = samples[tuple(slice(None) if n in kept else 0 for n in range(samples.ndim))]
    names = [names[n] for n in kept]
    samples = samples.transpose([names.index(name) for name in "yxc" if name in names])
    if samples.dtype == bool:
        samples = samples.astype(numpy.uint8)
    samples = numpy.ascontiguousarray(samples.astype(samples.dtype.newbyteorder("<")))
    channels = samples.shape[2] if samples.ndim == 3 else 1
    digest = hashlib.sha256(samples.tobytes()).hexdigest()
    return [samples.shape[1], samples.shape[0], channels, 8 * samples.dtype.itemsize, digest]


def read(path):
    """What zarr-python reads of a store: the first image of a collection, or an array."""
    store = zarr.storage.ZipStore(path, mode="r") if path.endswith("zip") else path
    node = zarr.open(store, mode="r")
    if isinstance(node, zarr.Array):
        names = node.metadata.dimension_names if node.metadata.zarr_format == 3 else None
        return [level(node[...], names or ["y", "x"])]
    attributes = node.attrs.asdict()
    attributes = attributes.get("ome", attributes)
    if "multiscales" not in attributes and "bioformats2raw.layout" in attributes:
        node = node["0"]
        attributes = node.attrs.asdict()
        attributes = attributes.get("ome", attributes)
    image = attributes["multiscales"][0]
    axes = image.get("axes", ["t", "c", "z", "y", "x"])
    names = [axis if isinstance(axis, str) else axis["name"] for axis in axes]
    return [level(node[dataset["path"]][...], names) for dataset in image["datasets"]]


def picture(shape, dtype, seed=0):
    """Something like a picture: smooth, so that compressors find matches, with noise in one half, so that they do not find all."""
    random = numpy.random.default_rng(seed)
    index = numpy.indices(shape).astype(numpy.int64)
    samples = sum(index[n] * (7 + 2 * n) // (n + 2) for n in range(len(shape)))
    noise = random.integers(0, 300, shape)
    samples = samples + numpy.where(index[-1] > shape[-1] // 2, noise, 0)
    if dtype == "bool":
        return samples % 3 == 0
    return (samples % (256 if numpy.dtype(dtype).itemsize == 1 else 60000)).astype(dtype)


def axes_of(names, unit=None):
    kinds = {"t": "time", "c": "channel"}
    axes = [{"name": name, "type": kinds.get(name, "space")} for name in names]
    for axis in axes:
        if unit and axis["type"] == "space":
            axis["unit"] = unit
    return axes


def multiscales(names, count, version, unit=None):
    datasets = []
    for n in range(count):
        dataset = {"path": str(n)}
        if version in ("0.4", "0.5"):
            scale = [0.25 * 2**n if name in "yx" else 1.0 for name in names]
            dataset["coordinateTransformations"] = [{"type": "scale", "scale": scale}]
        datasets.append(dataset)
    image = {"datasets": datasets, "name": "written"}
    if version in ("0.4", "0.5"):
        image["axes"] = axes_of(names, unit)
        image["coordinateTransformations"] = [{"type": "scale", "scale": [2.0 if n in "yx" else 1.0 for n in names]}]
    elif version == "0.3":
        image["axes"] = list(names)
    if version != "0.5":
        image["version"] = version
    return [image]


class Writer:
    def __init__(self, folder):
        self.folder = folder

    def say(self, name, **more):
        print(json.dumps({"name": name, **more}))

    def image(self, name, version="0.4", names="yx", shape=(70, 90), dtype="uint8", chunks=None, refused=None,
              store=None, unit=None, omero=None, levels=2, skip=False, extra=None, **how):
        """Writes an image of `levels` levels. `how` is what zarr.create_array takes."""
        path = os.path.join(self.folder, name)
        store = store or path
        zarr_format = 3 if version == "0.5" else 2
        group = zarr.open_group(store, mode="w", zarr_format=zarr_format)
        for n in range(levels):
            side = [max(1, -(-s // 2**n)) if axis in "yx" else s for s, axis in zip(shape, names)]
            array = group.create_array(str(n), shape=side, dtype=dtype, chunks=chunks or "auto", **how)
            whole = picture(side, array.dtype.name if not array.dtype.name.startswith("bool") else "bool", n)
            if skip:
                half = tuple(slice(0, s // 2) for s in side)
                array[half] = whole[half]
            else:
                array[...] = whole
        attributes = {"multiscales": multiscales(names, levels, version, unit), **(extra or {})}
        if omero:
            attributes["omero"] = {"channels": [{"label": label, "color": "FFFFFF"} for label in omero]}
        if version == "0.5":
            attributes = {"ome": {"version": "0.5", **attributes}}
        group.attrs.update(attributes)
        if hasattr(store, "close"):
            store.close()
        if refused:
            return self.say(name, refused=refused)
        expected = {"levels": read(path)}
        if unit:
            factor = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3}[unit]
            expected["mpp"] = 0.5 * factor
        if omero:
            expected["channel_names"] = list(omero)
        self.say(name, **expected)

    def codecs(self):
        from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

        big = {"shape": (700, 900), "chunks": (512, 512), "levels": 1}
        for cname in numcodecs.blosc.list_compressors():
            for shuffle in ("noshuffle", "shuffle", "bitshuffle"):
                for dtype in ("uint8", "uint16"):
                    blosc = BloscCodec(cname=cname, shuffle=shuffle, clevel=5)
                    self.image(f"v3-blosc-{cname}-{shuffle}-{dtype}.zarr", "0.5", dtype=dtype, compressors=[blosc], **big)
        for cname in numcodecs.blosc.list_compressors():
            for clevel in (0, 1, 9):
                blosc = numcodecs.Blosc(cname=cname, clevel=clevel, shuffle=numcodecs.Blosc.AUTOSHUFFLE)
                self.image(f"v2-blosc-{cname}-{clevel}.zarr", dtype="uint16", compressors=blosc, chunks=(33, 41))
        self.image("v3-default.zarr", "0.5")
        self.image("v3-gzip-crc32c.zarr", "0.5", compressors=[GzipCodec(), Crc32cCodec()], chunks=(32, 32))
        self.image("v3-big-endian.zarr", "0.5", dtype="uint16", serializer=BytesCodec(endian="big"))
        self.image("v3-transpose.zarr", "0.5", names="cyx", shape=(3, 70, 90), chunks=(2, 32, 40),
                   filters=[TransposeCodec(order=(2, 0, 1))])
        self.image("v3-transpose-twice.zarr", "0.5", names="cyx", shape=(3, 70, 90), chunks=(2, 32, 40),
                   filters=[TransposeCodec(order=(2, 0, 1)), TransposeCodec(order=(1, 0, 2))])
        self.image("v3-sharded.zarr", "0.5", names="cyx", shape=(3, 70, 90), chunks=(1, 16, 16), shards=(3, 32, 48),
                   dtype="uint16", compressors=[ZstdCodec()])
        inner = ShardingCodec(chunk_shape=(8, 8), codecs=[BytesCodec(), BloscCodec(cname="lz4", typesize=1)])
        self.image("v3-sharded-nested.zarr", "0.5", chunks=(48, 64),
                   serializer=ShardingCodec(chunk_shape=(16, 32), codecs=[inner]), compressors=None)
        inner = ShardingCodec(chunk_shape=(4, 8), codecs=[BytesCodec()], index_location="start")
        inner = ShardingCodec(chunk_shape=(8, 16), codecs=[inner], index_location="start")
        self.image("v3-sharded-thrice.zarr", "0.5", chunks=(48, 64), skip=True, fill_value=9,
                   serializer=ShardingCodec(chunk_shape=(24, 32), codecs=[inner]), compressors=None)
        self.image("v3-sharded-compressed.zarr", "0.5", chunks=(48, 64), refused="beside other codecs",
                   serializer=ShardingCodec(chunk_shape=(16, 32)), compressors=[ZstdCodec()])
        for name, codec in {
            "zlib": numcodecs.Zlib(), "gzip": numcodecs.GZip(), "zstd": numcodecs.Zstd(), "lz4": numcodecs.LZ4(),
            "adler32": numcodecs.Adler32(), "crc32": numcodecs.CRC32(), "fletcher32": numcodecs.Fletcher32(), "none": None,
        }.items():
            self.image(f"v2-{name}.zarr", dtype="uint16", compressors=codec, chunks=(33, 41))
        for name, codec in {"bz2": numcodecs.BZ2(), "lzma": numcodecs.LZMA()}.items():
            self.image(f"v2-{name}.zarr", compressors=codec, refused=f'compressed with "{name}"')
        self.image("v2-fortran-big-endian.zarr", dtype=">u2", order="F", chunks=(33, 41))
        self.image("v2-delta.zarr", filters=numcodecs.Delta(dtype="u1"), refused="filters, which are not supported: delta")
        self.image("v2-slashes.zarr", chunks=(33, 41), chunk_key_encoding={"name": "v2", "separator": "/"})
        try:
            import numcodecs.zarr3 as zarr3
        except ImportError:
            return
        for name, codec in {"lz4": zarr3.LZ4(), "zlib": zarr3.Zlib(level=3), "adler32": zarr3.Adler32(),
                            "crc32": zarr3.CRC32(), "fletcher32": zarr3.Fletcher32()}.items():
            self.image(f"v3-numcodecs-{name}.zarr", "0.5", compressors=[codec], chunks=(33, 41))

    def snappy(self):
        """Blosc with Snappy, which numcodecs cannot write."""
        try:
            import imagecodecs
        except ImportError:
            return
        samples = picture((300, 300), "uint16")
        for shuffle in (0, 1, 2):
            name = f"v2-blosc-snappy-{shuffle}.zarr"
            path = os.path.join(self.folder, name)
            os.makedirs(path)
            encoded = imagecodecs.blosc_encode(samples.tobytes(), level=5, compressor="snappy", shuffle=shuffle, typesize=2)
            with open(os.path.join(path, "0.0"), "wb") as file:
                file.write(encoded)
            metadata = {"zarr_format": 2, "shape": [300, 300], "chunks": [300, 300], "dtype": "<u2", "fill_value": 0,
                        "order": "C", "filters": None, "compressor": {"id": "blosc", "cname": "snappy", "clevel": 5, "shuffle": shuffle}}
            with open(os.path.join(path, ".zarray"), "w") as file:
                json.dump(metadata, file)
            self.say(name, levels=[level(samples, "yx")])

    def shapes(self):
        for version in ("0.4", "0.5"):
            for names, shape in {"tczyx": (1, 3, 1, 70, 90), "yxc": (70, 90, 3), "xy": (90, 70), "cxy": (2, 90, 70),
                                 "xyc": (90, 70, 2), "zyx": (1, 70, 90), "yxtc": (70, 90, 1, 4), "cyx": (1, 70, 90)}.items():
                chunks = tuple(min(n, 32) for n in shape)
                self.image(f"axes-{names}-{version}.zarr", version, names, shape, "uint16", chunks)
        self.image("planes.zarr", names="zyx", shape=(4, 70, 90), refused='the axis "z" has 4 planes')
        self.image("times.zarr", "0.5", names="tyx", shape=(2, 70, 90), refused='the axis "t" has 2 planes')
        for version in ("0.1", "0.2", "0.3"):
            separator = "." if version == "0.1" else "/"
            self.image(f"version-{version}.zarr", version, "tczyx", (1, 2, 1, 70, 90), chunks=(1, 1, 1, 32, 32),
                       chunk_key_encoding={"name": "v2", "separator": separator})
        self.image("version-0.3-yx.zarr", "0.3")
        for unit in ("micrometer", "nanometer", "millimeter"):
            self.image(f"unit-{unit}.zarr", "0.5", names="cyx", shape=(2, 70, 90), unit=unit, omero=["DAPI", "Cy5"])
        self.image("bool-v2.zarr", dtype="bool", skip=True, fill_value=True, chunks=(33, 41))
        self.image("bool-v3.zarr", "0.5", dtype="bool", chunks=(33, 41))
        for dtype in ("int8", "int16", "uint32", "float32"):
            refused = numpy.dtype(dtype).str
            self.image(f"type-{dtype}.zarr", dtype=dtype, refused=f'the samples are of type "{refused}"')
        self.image("missing-v2.zarr", skip=True, fill_value=200, chunks=(33, 41))
        self.image("missing-v3.zarr", "0.5", names="cyx", shape=(2, 70, 90), skip=True, fill_value=7, chunks=(1, 16, 16), shards=(2, 32, 32))
        self.image("two-multiscales.zarr", extra={})
        path = os.path.join(self.folder, "two-multiscales.zarr", ".zattrs")
        with open(path) as file:
            attributes = json.load(file)
        attributes["multiscales"].append({**attributes["multiscales"][0], "name": "second"})
        with open(path, "w") as file:
            json.dump(attributes, file)
        for zarr_format, name in ((2, "bare-v2.zarr"), (3, "bare-v3.zarr")):
            path = os.path.join(self.folder, name)
            zarr.create_array(path, data=picture((70, 90), "uint16"), chunks=(32, 32), zarr_format=zarr_format)
            self.say(name, levels=read(path))
        path = os.path.join(self.folder, "bare-named.zarr")
        zarr.create_array(path, data=picture((2, 70, 90), "uint8"), chunks=(1, 32, 32), dimension_names=["c", "y", "x"])
        self.say("bare-named.zarr", levels=read(path))
        path = os.path.join(self.folder, "bare-3d.zarr")
        zarr.create_array(path, data=picture((2, 70, 90), "uint8"), chunks=(1, 32, 32))
        self.say("bare-3d.zarr", refused="the array has 3 dimensions")

    def collection(self):
        xml = ('<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
               '<Image ID="Image:0" Name="slide.svs"/><Image ID="Image:1" Name="label image"/>'
               '<Image ID="Image:2" Name="macro image"/><Image ID="Image:3" Name="another"/></OME>')
        for version, zarr_format in (("0.4", 2), ("0.5", 3)):
            name = f"bioformats2raw-{version}.zarr"
            path = os.path.join(self.folder, name)
            root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
            put = lambda group, values: group.attrs.update(values if version == "0.4" else {"ome": {"version": "0.5", **values}})
            put(root, {"bioformats2raw.layout": 3})
            put(root.create_group("OME"), {"series": ["0", "1", "2", "3"]})
            with open(os.path.join(path, "OME", "METADATA.ome.xml"), "w") as file:
                file.write(xml)
            associated = []
            for n, (height, width) in enumerate([(70, 90), (20, 30), (25, 35), (7, 9)]):
                group = root.create_group(str(n))
                samples = picture((1, 3, 1, height, width), "uint8", n)
                group.create_array("0", data=samples, chunks=(1, 1, 1, 32, 32))
                put(group, {"multiscales": multiscales("tczyx", 1, version)})
                associated.append(level(samples, "tczyx"))
            self.say(name, levels=read(path), associated={"label": associated[1], "macro": associated[2]})

    def zips(self):
        for version in ("0.4", "0.5"):
            for method, compression in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
                name = f"zip-{version}-{method}.zip"
                store = zarr.storage.ZipStore(os.path.join(self.folder, name), mode="w", compression=compression)
                how = {"shards": (32, 48)} if version == "0.5" else {}
                self.image(name, version, store=store, chunks=(16, 16), dtype="uint16", **how)
        whole = os.path.join(self.folder, "v3-sharded.zarr")
        levels = read(whole)

        def pack(name, prefix="", methods=(zipfile.ZIP_STORED,), comment=b""):
            with zipfile.ZipFile(os.path.join(self.folder, name), "w") as archive:
                archive.comment = comment
                files = sorted(os.path.join(folder, file) for folder, _, files in os.walk(whole) for file in files)
                for n, file in enumerate(files):
                    archive.write(file, prefix + os.path.relpath(file, whole), compress_type=methods[n % len(methods)])
            self.say(name, levels=levels)

        pack("zip-mixed.ozx", methods=(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), comment=b'{"ome":{"version":"0.5"}}')
        pack("zip-folder.ome.zarr.zip", prefix="slide.ome.zarr/")
        limit, zipfile.ZIP64_LIMIT = zipfile.ZIP64_LIMIT, 100
        many, zipfile.ZIP_FILECOUNT_LIMIT = zipfile.ZIP_FILECOUNT_LIMIT, 2
        pack("zip64.zip", methods=(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        zipfile.ZIP64_LIMIT, zipfile.ZIP_FILECOUNT_LIMIT = limit, many


def main():
    if sys.argv[1] == "write":
        writer = Writer(sys.argv[2])
        writer.codecs()
        writer.snappy()
        writer.shapes()
        writer.collection()
        writer.zips()
        return
    for path in sys.argv[2:]:
        try:
            print(json.dumps({"name": path, "levels": read(path)}))
        except Exception as error:  # Whatever zarr-python says of it.
            print(json.dumps({"name": path, "refused": f"{type(error).__name__}: {error}"}))


main()
