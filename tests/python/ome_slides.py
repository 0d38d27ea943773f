"""Writes OME-TIFF and QPTIFF slides with tifffile and libvips, and what tifffile reads of them.

    ome_slides.py FOLDER

FOLDER receives the slides and `cases.json`: for each slide its path, channels, names of channels, resolution, levels and associated
pictures, the pixels of the latter in files of their own: rows of interleaved samples, little endian.
"""

import json
import os
import sys
import uuid

import numpy
import tifffile

RNG = numpy.random.default_rng(7)
WIDTH, HEIGHT = 333, 251
CASES = []


def pixels(dtype, *shape):
    """Noise on a gradient, so that every sample counts and compression has something to do."""
    noise = RNG.integers(0, 9, shape)
    slope = numpy.arange(shape[-2])[:, None] * 3 + numpy.arange(shape[-1])[None, :] * 5
    return ((noise + slope) * (131 if dtype == "uint16" else 1)).astype(dtype)


def colours(height=HEIGHT, width=WIDTH, dtype="uint8"):
    return numpy.ascontiguousarray(numpy.moveaxis(pixels(dtype, 3, height, width), 0, -1))


def interleaved(array, axes):
    """An array of any axes as rows of pixels."""
    channel = "S" if "S" in axes and array.shape[axes.index("S")] > 1 else "C"
    for axis in reversed(range(len(axes))):
        if axes[axis] not in ("Y", "X", channel):
            assert array.shape[axis] == 1, (axes, array.shape)
            array = array.take(0, axis)
            axes = axes[:axis] + axes[axis + 1 :]
    if channel not in axes:
        array, axes = array[None], channel + axes
    return array.transpose([axes.index(axis) for axis in "YX" + channel])


def picture(folder, name, array):
    file = f"{name}.raw"
    array.astype(array.dtype.newbyteorder("<")).tofile(os.path.join(folder, file))
    height, width, channels = array.shape
    return {"width": width, "height": height, "channels": channels, "file": file}


def case(folder, path, levels, associated=None, **expected):
    """Notes a slide and its pixels: tifffile's series, or arrays."""
    series = lambda s: interleaved(s.asarray(), s.axes) if isinstance(s, tifffile.TiffPageSeries) else s
    levels = [series(level) for level in levels]
    pictures = {name: picture(folder, f"{path}-{name}", series(s)) for name, s in (associated or {}).items()}
    CASES.append(
        {
            "path": path,
            "sample": levels[0].dtype.name,
            "levels": [picture(folder, f"{path}-{n}", level) for n, level in enumerate(levels)],
            "associated": pictures,
            "names": [],
            "mpp": None,
            "power": None,
            **expected,
        }
    )


def ome(folder, path, array, axes, levels=0, metadata=None, expected=None, bigtiff=False, byteorder="<", **options):
    """One image by tifffile, its levels as SubIFDs."""
    full = os.path.join(folder, path)
    with tifffile.TiffWriter(full, ome=True, bigtiff=bigtiff, byteorder=byteorder) as out:
        out.write(array, subifds=levels, metadata={"axes": axes, **(metadata or {})}, **options)
        y, x = axes.index("Y"), axes.index("X")
        for _ in range(levels):
            halves = [slice(None)] * array.ndim
            halves[y] = halves[x] = slice(None, None, 2)
            array = numpy.ascontiguousarray(array[tuple(halves)])
            out.write(array, subfiletype=1, metadata=None, **options)
    with tifffile.TiffFile(full) as tif:
        assert tif.is_ome and len(tif.series[0].levels) == levels + 1
        case(folder, path, tif.series[0].levels, **(expected or {}))


def ome_cases(folder):
    tiles = {"tile": (64, 48)}
    um = {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}
    rgb = {"photometric": "rgb"}
    ome(folder, "rgb-strips.ome.tif", colours(), "YXS", **rgb)
    ome(folder, "rgb-pyramid.ome.tif", colours(), "YXS", 3, um, {"mpp": [0.25, 0.25]}, bigtiff=True, compression="zlib", **tiles, **rgb)
    ome(folder, "rgb-16-be.ome.tif", colours(dtype="uint16"), "YXS", 1, byteorder=">", compression="lzw", predictor=2, **tiles, **rgb)
    ome(folder, "grey.ome.tif", pixels("uint16", HEIGHT, WIDTH), "YX", 2, compression="zlib", predictor=2, **tiles)
    nm = {"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.0005, "PhysicalSizeYUnit": "mm"}
    names = ["DAPI", "CD3", "CD8", "FoxP3", "CK"]
    named = {**nm, "Channel": {"Name": names}}
    ome(folder, "channels.ome.tif", pixels("uint16", 5, HEIGHT, WIDTH), "CYX", 3, named, {"mpp": [0.25, 0.5], "names": names},
        compression="zlib", predictor=2, photometric="minisblack", **tiles)
    ome(folder, "sixty.ome.tif", pixels("uint8", 60, HEIGHT, WIDTH), "CYX", 1, compression="lzw", photometric="minisblack", **tiles)
    ome(folder, "orders-tczyx.ome.tif", pixels("uint8", 1, 3, 1, HEIGHT, WIDTH), "TCZYX", photometric="minisblack", rowsperstrip=7)
    ome(folder, "orders-zctyx.ome.tif", pixels("uint8", 1, 2, 1, HEIGHT, WIDTH), "ZCTYX", photometric="minisblack", byteorder=">")
    inch = {"PhysicalSizeX": 0.00002, "PhysicalSizeXUnit": "in", "PhysicalSizeY": 0.00002, "PhysicalSizeYUnit": "in"}
    ome(folder, "inch.ome.tif", pixels("uint8", HEIGHT, WIDTH), "YX", 0, inch, {"mpp": [0.508, 0.508]})
    tags = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    ome(folder, "tags.ome.tif", pixels("uint8", HEIGHT, WIDTH), "YX", 0, None, {"mpp": [0.5, 0.5]}, **tags)
    several(folder)
    older(folder)
    sets(folder)
    vips(folder)


def several(folder):
    """A slide, its pictures and another scene."""
    path = "several.ome.tif"
    slide, label, macro, scene = colours(), colours(60, 70), colours(80, 200), colours(100, 100)
    with tifffile.TiffWriter(os.path.join(folder, path), ome=True) as out:
        out.write(slide, subifds=1, tile=(64, 64), photometric="rgb", metadata={"axes": "YXS", "Name": "slide 7.svs"})
        out.write(slide[::2, ::2].copy(), subfiletype=1, tile=(64, 64), photometric="rgb", metadata=None)
        out.write(label, photometric="rgb", metadata={"axes": "YXS", "Name": "label image"})
        out.write(macro, photometric="rgb", metadata={"axes": "YXS", "Name": "Macro"})
        out.write(scene, photometric="rgb", metadata={"axes": "YXS", "Name": "Scene 2"})
    with tifffile.TiffFile(os.path.join(folder, path)) as tif:
        levels, label, macro, _ = tif.series
        case(folder, path, levels.levels, {"label": label, "macro": macro}, not_read="image 3 \"Scene 2\" (100 x 100")


def older(folder):
    """Levels as images of their own."""
    path = "older.ome.tif"
    level = pixels("uint8", 2, 240, 320)
    with tifffile.TiffWriter(os.path.join(folder, path), ome=True) as out:
        for n in range(3):
            um = {"PhysicalSizeX": 0.25 * 2**n, "PhysicalSizeY": 0.25 * 2**n}
            out.write(level, photometric="minisblack", tile=(64, 64), metadata={"axes": "CYX", "Name": f"Series {n}", **um})
            level = level[:, ::2, ::2].copy()
        # Of the right shape, but not of the right scale.
        um = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
        out.write(pixels("uint8", 2, 24, 32), photometric="minisblack", metadata={"axes": "CYX", "Name": "crop", **um})
    with tifffile.TiffFile(os.path.join(folder, path)) as tif:
        case(folder, path, tif.series[:3], mpp=[0.25, 0.25], not_read='image 3 "crop" (32 x 24')


SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


def document(own, body):
    return f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{SCHEMA}" UUID="urn:uuid:{own}">{body}</OME>'


def image(data, dtype="uint16", channels=3, more="", sizes='SizeZ="1" SizeT="1"'):
    return (
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="{dtype}" SizeX="{WIDTH}" SizeY="{HEIGHT}" '
        f'SizeC="{channels}" {sizes} {more}>{data}</Pixels></Image>'
    )


def sets(folder):
    """One channel per file, after Bio-Formats: with the whole XML in each of them, and with a companion."""
    array = pixels("uint16", 3, HEIGHT, WIDTH)
    ids = [str(uuid.UUID(int=n + 1)) for n in range(3)]
    write = lambda name, plane, text: tifffile.imwrite(
        os.path.join(folder, name), plane, description=text.encode(), metadata=None, tile=(64, 64), compression="zlib"
    )
    for kind in ("whole", "companion"):
        names = [f"set-{kind}-{n}.ome.tif" for n in range(3)]
        data = "".join(
            f'<TiffData FirstC="{n}" IFD="0" PlaneCount="1"><UUID FileName="{names[n]}">urn:uuid:{ids[n]}</UUID></TiffData>'
            for n in range(3)
        )
        reference = '<BinaryOnly MetadataFile="set.companion.ome" UUID="urn:uuid:99"/>'
        for n in range(3):
            write(names[n], array[n], document(ids[n], image(data) if kind == "whole" else reference))
            if kind == "companion":
                with open(os.path.join(folder, "set.companion.ome"), "w") as file:
                    file.write(document("99", image(data)))
            case(folder, names[n], [numpy.moveaxis(array, 0, -1)])
    with tifffile.TiffFile(os.path.join(folder, "set-whole-1.ome.tif")) as tif:
        assert numpy.array_equal(tif.series[0].asarray(), array)
    # A file that was renamed; one without TiffData; one whose planes are in another order than its pages.
    alone = lambda name, data, text_id=ids[0]: tifffile.imwrite(
        os.path.join(folder, name), array, description=document(text_id, image(data)).encode(), metadata=None, photometric="minisblack"
    )
    old_name = "".join(
        f'<TiffData FirstC="{n}" IFD="{n}" PlaneCount="1"><UUID FileName="old.ome.tif">urn:uuid:77</UUID></TiffData>' for n in range(3)
    )
    alone("renamed.ome.tif", old_name)
    case(folder, "renamed.ome.tif", [numpy.moveaxis(array, 0, -1)])
    alone("no-data.ome.tif", "")
    case(folder, "no-data.ome.tif", [numpy.moveaxis(array, 0, -1)])
    alone("permuted.ome.tif", '<TiffData FirstC="2" IFD="0"/><TiffData IFD="1" PlaneCount="2"/>')
    with tifffile.TiffFile(os.path.join(folder, "permuted.ome.tif")) as tif:
        case(folder, "permuted.ome.tif", [tif.series[0]])
    refused(folder, array, write)


REFUSED = {}


def refused(folder, array, write):
    """Slides that are not to be read, and words of the reason."""

    def one(name, words, text, planes=array, **options):
        options = {"photometric": "minisblack", **options}
        tifffile.imwrite(os.path.join(folder, name), planes, description=text.encode(), metadata=None, **options)
        REFUSED[name] = words

    plain = '<TiffData/>'
    one("stack-z.ome.tif", "a stack of 3 focal planes", document("1", image(plain, channels=1, sizes='SizeZ="3" SizeT="1"')))
    one("stack-t.ome.tif", "a stack of 3 times", document("1", image(plain, channels=1, sizes='SizeZ="1" SizeT="3"')))
    one("int8.ome.tif", "samples of the type int8 cannot be read", document("1", image(plain, "int8")), array.astype("int8"))
    one("float.ome.tif", "samples of the type float cannot be read", document("1", image(plain, "float")), array.astype("float32"))
    one("type.ome.tif", "says uint16, but page 0, channel 0, is of uint8", document("1", image(plain)), array.astype("uint8"))
    one("size.ome.tif", "says 333 x 251 pixels, but page 0", document("1", image(plain)), array[:, 1:])
    one("missing-page.ome.tif", "channel 3 is to be page 3 of a file that has 3", document("1", image('<TiffData PlaneCount="4"/>', channels=4)))
    one("missing-plane.ome.tif", "does not say which page channel 3 is", document("1", image(plain, channels=4)))
    twice = "".join(f'<TiffData FirstC="{n}" IFD="0"/>' for n in range(3))
    one("twice.ome.tif", "page 0 is more than one plane", document("1", image(twice)))
    for number, (name, words) in enumerate(
        [("not-there.ome.tif", "which is not in the same folder"), ("../x.tif", "no name of a file in the same folder"),
         ("/etc/passwd", "no name of a file in the same folder"), ("..", "no name of a file in the same folder")]
    ):
        data = f'<TiffData IFD="0"/><TiffData FirstC="1" IFD="0"><UUID FileName="{name}">urn:uuid:5</UUID></TiffData>'
        data += '<TiffData FirstC="2" IFD="1"><UUID FileName="permuted.ome.tif">urn:uuid:6</UUID></TiffData>'
        one(f"elsewhere-{number}.ome.tif", words, document("1", image(data)))
    one("no-xml.ome.tif", "the OME-XML of its description", "<OME xmlns='openmicroscopy.org/Schemas/OME'><Image></OME>")
    one("no-image.ome.tif", "has no Image", document("1", ""))
    one("no-companion.ome.tif", 'whose OME-XML is in "a.ome"', document("1", '<BinaryOnly MetadataFile="a.ome"/>'))
    write("tiles-64.tif", array[1], "")
    data = '<TiffData IFD="0"/><TiffData FirstC="1" IFD="0"><UUID FileName="tiles-64.tif">urn:uuid:5</UUID></TiffData>'
    one("tiles.ome.tif", "channels that differ in their tiles", document("1", image(data, channels=2)), array[0])
    one("mixed.ome.tif", "6 channels in pages of 3 samples", document("1", image(plain, channels=6)), colours(dtype="uint16"), photometric="rgb")


def vips(folder):
    """By libvips' recipe for OME-TIFF: XML in `image-description`, channels as pages, levels as SubIFDs."""
    import pyvips

    def save(name, array, pages, compression, **expected):
        height, width = array.shape[-2:] if pages else array.shape[:2]
        bands = len(array) if pages else array.shape[2]
        slide = pyvips.Image.new_from_array(array.reshape(-1, width) if pages else array)
        slide = slide.copy()
        if pages:
            slide.set_type(pyvips.GValue.gint_type, "page-height", height)
        text = (
            f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{SCHEMA}"><Image ID="Image:0"><Pixels DimensionOrder="XYCZT" '
            f'ID="Pixels:0" SizeC="{bands}" SizeT="1" SizeX="{width}" SizeY="{height}" SizeZ="1" Type="{array.dtype.name}" '
            'PhysicalSizeX="0.4" PhysicalSizeY="0.4"></Pixels></Image></OME>'
        )
        slide.set_type(pyvips.GValue.gstr_type, "image-description", text)
        full = os.path.join(folder, name)
        slide.tiffsave(full, compression=compression, tile=True, tile_width=64, tile_height=64, pyramid=True, subifd=True, bigtiff=True)
        with tifffile.TiffFile(full) as tif:
            subs = [list(page.pages) for page in tif.pages]
            levels = [[page.asarray() for page in tif.pages]]
            levels += [[sub[n].asarray() for sub in subs] for n in range(len(subs[0]))]
        levels = [numpy.stack(level, -1) if pages else level[0] for level in levels]
        assert len(levels) > 2
        case(folder, name, levels, mpp=[0.4, 0.4], **expected)

    save("vips-rgb.ome.tif", colours(), False, "deflate")
    save("vips-channels.ome.tif", pixels("uint16", 4, HEIGHT, WIDTH), True, "lzw")
    save("vips-channels-8.ome.tif", pixels("uint8", 2, HEIGHT, WIDTH), True, "deflate")


def qpi(kind, name=None, biomarker=None, more="", encoding="utf-16"):
    parts = [f'<?xml version="1.0" encoding="{encoding}"?>\r\n<PerkinElmer-QPI-ImageDescription>\r\n<DescriptionVersion>2</DescriptionVersion>']
    parts.append("<AcquisitionSoftware>VectraPolaris 1.0.10</AcquisitionSoftware>")
    parts.append(f"<ImageType>{kind}</ImageType><Objective>20x</Objective>")
    parts.append(f"<Name>{name}</Name><Color>255,60,157</Color>" if name else "")
    parts.append(f"<Biomarker>{biomarker}</Biomarker>" if biomarker else "")
    parts.append(f"{more}</PerkinElmer-QPI-ImageDescription>")
    return "".join(parts).encode()


PROFILE = (
    '<ScanProfile><root s_v="1"><Mode>im_Fluorescence</Mode><ScanResolution ref="r"><PixelSizeMicrons>0.496</PixelSizeMicrons>'
    "<Magnification>20</Magnification><ObjectiveName>20x</ObjectiveName></ScanResolution></root></ScanProfile>"
)


def qptiff(folder, path, full, names, levels, described=True, biomarkers=None, bigtiff=False, resolution=True, **options):
    """Full resolution, thumbnail, reduced resolutions, overview, label: the order in which the scanners write."""
    target = os.path.join(folder, path)
    scale = {"resolution": ((2**32 - 1, 213909), (2**32 - 1, 213909)), "resolutionunit": "CENTIMETER"} if resolution else {}
    options = {"software": "PerkinElmer-QPI", "metadata": None, **options}
    biomarkers = biomarkers or [None] * len(names)
    layout = {"tile": (64, 64)} if levels else {}
    with tifffile.TiffWriter(target, bigtiff=bigtiff) as out:

        def level(planes, kind):
            first = True
            for name, biomarker, plane in zip(names, biomarkers, planes):
                text = qpi(kind, name, biomarker, PROFILE if first and kind == "FullResolution" else "")
                more = {} if kind == "FullResolution" else {"subfiletype": 1}
                description = text if described or kind == "FullResolution" else None
                out.write(plane, description=description, **layout, **options, **(scale if kind == "FullResolution" else {}), **more)
                first = False

        level(full, "FullResolution")
        plain = {"software": "PerkinElmer-QPI", "metadata": None, "photometric": "rgb"}
        out.write(colours(31, 41), description=qpi("Thumbnail"), **plain)
        for _ in range(levels):
            half = [plane[: plane.shape[0] // 2 * 2 : 2, : plane.shape[1] // 2 * 2 : 2] for plane in full]
            full = [numpy.ascontiguousarray(plane) for plane in half]
            level(full, "ReducedResolution")
        if levels:
            out.write(colours(50, 120), description=qpi("Overview"), **plain)
            out.write(colours(50, 40), description=qpi("Label"), **plain)
    with tifffile.TiffFile(target) as tif:
        assert tif.is_qpi, path
        slide = tif.series[0]
        assert len(slide.levels) == levels + 1, (path, slide.levels)
        associated = {{"Thumbnail": "thumbnail", "Macro": "macro", "Label": "label"}[s.name]: s for s in tif.series[1:]}
        shown = [biomarker or name or "" for name, biomarker in zip(names, biomarkers)]
        mpp = [1e4 * 213909 / (2**32 - 1)] * 2 if resolution else [0.496, 0.496]
        case(folder, path, slide.levels, associated, names=shown if any(shown) else [], mpp=mpp, power=20.0)


def qptiff_cases(folder):
    grey = {"photometric": "minisblack"}
    names = ["PDL1 (Opal 520)", "CD8 (Opal 540)", "FoxP3 (Opal 570)", "CD68 (Opal 620)", "PD1 (Opal 650)", "DAPI", "Autofluorescence"]
    qptiff(folder, "fluorescence.qptiff", pixels("uint8", 7, HEIGHT, WIDTH), names, 3, compression="lzw", **grey)
    stains = ["DAPI", "CD38", "CD4", "CD107a", "Cl.PARP", "Ki67"]
    filters = ["DAPI", "ATTO 550", "Cy5", "ATTO 550", "AF 750", "Cy5"]
    qptiff(folder, "fusion.qptiff", pixels("uint16", 6, HEIGHT, WIDTH), filters, 2, biomarkers=stains, bigtiff=True, compression="zlib",
           resolution=False, **grey)
    qptiff(folder, "bare.qptiff", pixels("uint8", 3, HEIGHT, WIDTH), ["a", "b", "c"], 2, described=False, **grey)
    qptiff(folder, "field.qptiff", pixels("uint16", 4, HEIGHT, WIDTH), ["a", "b", "c", "d"], 0, rowsperstrip=20, **grey)
    brightfield(folder)
    refused_qptiff(folder)


def brightfield(folder):
    """One page of colours per level."""
    path = "brightfield.qptiff"
    level, arrays = colours(), []
    options = {"software": "PerkinElmer-QPI", "metadata": None, "photometric": "rgb"}
    with tifffile.TiffWriter(os.path.join(folder, path)) as out:
        for n in range(3):
            arrays.append(level)
            kind = "ReducedResolution" if n else "FullResolution"
            out.write(level, description=qpi(kind), tile=(64, 64), compression="zlib", subfiletype=int(n > 0), **options)
            if n == 0:
                out.write(colours(31, 41), description=qpi("Thumbnail"), **options)
            level = numpy.ascontiguousarray(level[: level.shape[0] // 2 * 2 : 2, : level.shape[1] // 2 * 2 : 2])
    with tifffile.TiffFile(os.path.join(folder, path)) as tif:
        levels = tif.series[0].levels
        assert len(levels) == 3 and all(numpy.array_equal(l.asarray().squeeze(), a) for l, a in zip(levels, arrays))
        case(folder, path, levels, {"thumbnail": tif.series[1]}, power=20.0)


def refused_qptiff(folder):
    array = pixels("uint8", 2, HEIGHT, WIDTH)
    options = {"software": "PerkinElmer-QPI", "metadata": None, "photometric": "minisblack"}

    def one(name, words, pages):
        with tifffile.TiffWriter(os.path.join(folder, name)) as out:
            for plane, text in pages:
                out.write(plane, description=text, **options)
        REFUSED[name] = words

    full, half = [(plane, qpi("FullResolution", f"c{n}")) for n, plane in enumerate(array)], array[0, ::2, ::2].copy()
    one("component.qptiff", "component file of floating-point samples", [(array[0].astype("float32"), qpi("FullResolution", "DAPI"))])
    one("no-full.qptiff", "without a page of the ImageType FullResolution", [(array[0], qpi("ReducedResolution"))])
    one("too-few.qptiff", "has 1 pages where level 0 has 2", [*full, (half, qpi("ReducedResolution", "c0"))])
    one("swapped.qptiff", 'page 2 is channel "c1" where level 0 has "c0"',
        [*full, (half, qpi("ReducedResolution", "c1")), (half, qpi("ReducedResolution", "c0"))])
    one("broken.qptiff", "the XML of page 0", [(array[0], b"<PerkinElmer-QPI-ImageDescription><a>")])


def main(folder):
    ome_cases(folder)
    qptiff_cases(folder)
    with open(os.path.join(folder, "cases.json"), "w") as file:
        json.dump({"slides": CASES, "refused": REFUSED}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
