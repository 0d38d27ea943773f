"""Writes small slides in the TIFF formats of Leica, Philips, Ventana and Trestle, of which no small real ones are at hand.

    vendor_tiffs.py VENDOR FOLDER

VENDOR is leica, philips, ventana or trestle. Each file that appears in FOLDER is one that OpenSlide 4.0.1 opens as that vendor, except
for those whose name starts with "refused" (which nothing should open) or "only-ours". Pages are noise, so that a pixel from the wrong place or the wrong tile is found;
files whose name holds "jpeg" are smooth, since JPEG would not keep noise.
"""

import base64
import io
import pathlib
import sys

import numpy
import PIL.Image
import PIL.ImageCms
import tifffile


def noise(width, height, seed):
    return numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8)


def smooth(width, height, seed):
    y, x = numpy.mgrid[0:height, 0:width]
    waves = [numpy.sin(x / (11 + seed + c) + c) * numpy.cos(y / (13 + c) + seed) for c in range(3)]
    return numpy.stack([(127 + 100 * wave).astype(numpy.uint8) for wave in waves], axis=-1)


class Writer:
    """A BigTIFF, page by page."""

    def __init__(self, path, jpeg=False, bigtiff=True):
        self.file = tifffile.TiffWriter(path, bigtiff=bigtiff)
        self.jpeg = jpeg
        self.pages = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def page(self, width, height, tile=None, description=None, reduced=False, missing=(), pixels=None, **more):
        """Writes a page; returns its number. `tile` is the side of a tile; `missing` lists tiles (column, row) without bytes."""
        seed = self.pages + 1
        if pixels is None:
            pixels = smooth(width, height, seed) if self.jpeg else noise(width, height, seed)
        options = {"photometric": "rgb", "compression": "adobe_deflate"}
        if self.jpeg:
            options = {"photometric": "ycbcr", "subsampling": (1, 1), "compression": "jpeg", "compressionargs": {"level": 90}}
        options.update(description=description, metadata=None, subfiletype=1 if reduced else 0, **more)
        if tile is None:
            self.file.write(pixels, rowsperstrip=16 if not self.jpeg else None, **options)
        else:
            across, down = -(-width // tile), -(-height // tile)
            padded = numpy.pad(pixels, ((0, down * tile - height), (0, across * tile - width), (0, 0)), mode="edge")
            tiles = [
                None if (c, r) in missing else padded[r * tile : (r + 1) * tile, c * tile : (c + 1) * tile]
                for r in range(down)
                for c in range(across)
            ]
            self.file.write(iter(tiles), shape=pixels.shape, dtype=pixels.dtype, tile=(tile, tile), **options)
        self.pages += 1
        return self.pages - 1


def stream(width, height, seed):
    """A whole JPEG stream."""
    out = io.BytesIO()
    PIL.Image.fromarray(smooth(width, height, seed)).save(out, "JPEG", quality=90, subsampling=0)
    return out.getvalue()


# Leica ---------------------------------------------------------------------------------------------------------------------

def leica_image(x, y, nm, pages, light="brightfield", objective="20"):
    dimensions = "".join(
        f'<dimension sizeX="{w}" sizeY="{h}" r="{r}" ifd="{ifd}"' + (f' z="{z}"' if z is not None else "") + "/>"
        for r, (w, h, ifd, z) in enumerate(pages)
    )
    return f"""<image name="image"><creationDate>2026-11-23T00:00:00Z</creationDate>
<device model="Leica SCN400;Leica SCN" version="1.4.0.9691"/>
<pixels sizeX="{pages[0][0]}" sizeY="{pages[0][1]}">{dimensions}</pixels>
<view sizeX="{nm[0]}" sizeY="{nm[1]}" offsetX="{x}" offsetY="{y}"/>
<scanSettings><objectiveSettings><objective>{objective}</objective></objectiveSettings>
<illuminationSettings><numericalAperture>0.4</numericalAperture><illuminationSource>{light}</illuminationSource></illuminationSettings>
</scanSettings></image>"""


def leica_xml(images, nm=(350000, 450000), old=False):
    namespace = "http://www.leica-microsystems.com/scn/2010/" + ("03/10" if old else "10/01")
    attribute, element = (' barcode="plain"', "") if old else ("", "<barcode>YmFyY29kZSAx</barcode>")
    return (
        f'<?xml version="1.0"?><scn xmlns="{namespace}"><collection name="c" sizeX="{nm[0]}" sizeY="{nm[1]}"{attribute}>'
        + element + "".join(images) + "</collection></scn>"
    )


def leica(folder):
    # Glass of 700 x 900 pixels of 500 nm; two images of two levels, and an overview of the whole.
    def slide(name, images, sizes, jpeg=False, old=False, centimetres=True, icc=False, **more):
        with Writer(folder / name, jpeg) as out:
            for number, (w, h) in enumerate(sizes):
                options = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"} if centimetres else {}
                if icc:
                    options["iccprofile"] = bytes(PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes())
                out.page(
                    w, h, 64, description=leica_xml(images, old=old, **more) if number == 0 else None,
                    reduced=False, software="Leica SCN" if number == 1 else None, **options
                )

    sizes = [(70, 90), (300, 240), (75, 60), (160, 200), (40, 50)]
    macro = leica_image(0, 0, (350000, 450000), [(70, 90, 0, None)], objective="0.6")
    first = leica_image(50000, 100000, (150000, 120000), [(300, 240, 1, None), (75, 60, 2, None)])
    second = leica_image(200000, 240000, (80000, 100000), [(40, 50, 4, None), (160, 200, 3, None)])
    slide("two.scn", [macro, first, second], sizes)
    slide("two-jpeg.scn", [macro, first, second], sizes, jpeg=True)
    slide("old.scn", [first, macro], sizes[:3], old=True, centimetres=False)
    slide("profile.scn", [first, macro], sizes[:3], icc=True)
    planes = leica_image(50000, 100000, (150000, 120000), [(300, 240, 1, 0), (75, 60, 2, 0), (300, 240, 3, 1), (75, 60, 4, 1)])
    slide("planes.scn", [macro, planes], [(70, 90), (300, 240), (75, 60), (300, 240), (75, 60)])
    # Pixels of 499.67 and 500 nm, at places that are no whole pixels.
    third = leica_image(50123, 100321, (149900, 119900), [(300, 240, 1, None), (75, 60, 2, None)])
    slide("uneven.scn", [macro, third, second], sizes)
    light = leica_image(50000, 100000, (150000, 120000), [(300, 240, 1, None), (75, 60, 2, None)], light="fluorescence")
    slide("beside-fluorescence.scn", [macro, light, second], sizes)
    slide("refused-fluorescence.scn", [macro, light], sizes[:3])


# Philips -------------------------------------------------------------------------------------------------------------------

def attribute(name, value):
    return f'<Attribute Name="{name}" Group="0x301D" Element="0x1003" PMSVR="IString">{value}</Attribute>'


def array(objects):
    return "<Array>" + "".join(objects) + "</Array>"


def data_object(kind, attributes):
    return f'<DataObject ObjectType="{kind}">' + "".join(attributes) + "</DataObject>"


def philips_xml(spacings, pictures):
    representations = [
        data_object("PixelDataRepresentation", [
            attribute("DICOM_PIXEL_SPACING", f"&quot;{y}&quot; &quot;{x}&quot;"),
            attribute("PIIM_DP_PIXEL_DATA_REPRESENTATION_POSITION", "&quot;0&quot; &quot;0&quot; &quot;0&quot;"),
            attribute("PIIM_PIXEL_DATA_REPRESENTATION_NUMBER", str(number)),
        ])
        for number, (x, y) in enumerate(spacings)
    ]
    images = [data_object("DPScannedImage", [
        attribute("DICOM_DERIVATION_DESCRIPTION", "tiff-useBigTIFF=1-clip=2-levels=40,10001,10000-q75;PHILIPS UFS V1.6"),
        attribute("DICOM_PIXEL_SPACING", f"&quot;{spacings[0][1]}&quot; &quot;{spacings[0][0]}&quot;"),
        attribute("PIM_DP_IMAGE_TYPE", "WSI"),
        attribute("PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", array(representations)),
    ])]
    for kind, data in pictures:
        images.append(data_object("DPScannedImage", [
            attribute("PIM_DP_IMAGE_TYPE", kind),
            attribute("PIM_DP_IMAGE_DATA", base64.encodebytes(data).decode()),
        ]))
    return '<?xml version="1.0" encoding="UTF-8" ?>' + data_object("DPUfsImport", [
        attribute("DICOM_MANUFACTURER", "PHILIPS &amp; others"),
        attribute("PIM_DP_UFS_BARCODE", base64.b64encode(b"code 7").decode()),
        attribute("PIM_DP_SCANNED_IMAGES", array(images)),
    ])


def philips(folder):
    def slide(name, sizes, spacings, pictures=(), pages=(), missing=(), jpeg=False, tile=64, **more):
        with Writer(folder / name, jpeg) as out:
            for level, (w, h) in enumerate(sizes):
                out.page(
                    w, h, tile, description=philips_xml(spacings, pictures) if level == 0 else f"level={level}",
                    reduced=level > 0, missing=missing if level < 2 else (), software="Philips DP v1.0", **more
                )
            for words, (w, h) in pages:
                out.page(w, h, description=words)

    # 640 x 448 pixels at level 0; the coarser pages are padded to whole tiles of 64.
    sizes = [(640, 448), (320, 256), (192, 128), (128, 64)]
    spacings = [(0.00025, 0.000227273 * 1.1), (0.0005, 0.0005), (0.001, 0.001), (0.002, 0.002)]
    pictures = [("LABELIMAGE", stream(50, 40, 3)), ("MACROIMAGE", stream(90, 30, 4))]
    slide("pictures.tiff", sizes, spacings, pictures)
    slide("pages.tiff", sizes, spacings, pictures[1:], [("Label, it is", (60, 33)), ("Macro", (80, 21)), ("other", (20, 20))])
    slide("one-page.tiff", sizes, spacings, pictures, [("Macro -offset=(0,0)", (80, 21))])
    slide("pages-jpeg.tiff", sizes, spacings, pictures, [("Label", (64, 32))], jpeg=True)
    slide("sparse.tiff", sizes, spacings, missing={(1, 0), (3, 2), (4, 1), (4, 3)})
    slide("sparse-jpeg.tiff", sizes, spacings, missing={(1, 0), (3, 2), (4, 1), (4, 3)}, jpeg=True)
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    slide("profile.tiff", sizes, spacings, iccprofile=profile)
    slide("refused-levels.tiff", sizes, spacings[:3])


# Ventana -------------------------------------------------------------------------------------------------------------------

def scan_xml(metadata=False, **attributes):
    values = {"Magnification": 40, "ScanRes": 0.2325, "UnitNumber": "2000515", "Z-layers": 1, "Mode": "", "UserName": "a &amp; b"}
    values.update(attributes)
    text = "<iScan " + " ".join(f'{name}="{value}"' for name, value in values.items()) + "><AOI0/></iScan>"
    return "<Metadata>" + text + "</Metadata>" if metadata else text


def joints(columns, rows, overlap, directions=("RIGHT", "UP"), confidence=99):
    """All joints of an area: tiles are numbered from the lower left corner, to the right and back in turns."""

    def number(column, row):
        return (rows - 1 - row) * columns + (column if (rows - 1 - row) % 2 == 0 else columns - 1 - column) + 1

    def joint(one, other, direction):
        x, y = overlap(*one, direction)
        return (
            f'<TileJointInfo FlagJoined="1" Confidence="{confidence}" Direction="{direction}" Tile1="{number(*one)}" '
            f'Tile2="{number(*other)}" OverlapX="{x}" OverlapY="{y}"/>'
        )

    right = [joint((c, r), (c + 1, r), directions[0]) for r in range(rows) for c in range(columns - 1)]
    up = [joint((c, r), (c, r - 1), directions[1]) for r in range(1, rows) for c in range(columns)]
    return "".join(right + up)


def encode_xml(areas, tile, overlap, **more):
    images, origins = "", ""
    for n, (column, row, columns, rows, x, y) in enumerate(areas):
        images += (
            f'<ImageInfo AOIScanned="{0 if columns == 0 else 1}" AOIIndex="{n}" Width="{tile}" Height="{tile}" NumRows="{rows}" '
            f'NumCols="{columns}" Pos-X="{x}" Pos-Y="{y}">' + joints(columns, rows, overlap, **more) + "</ImageInfo>"
        )
        origins += f'<AOI{n} OriginX="{column * tile}" OriginY="{row * tile}"/>'
    stitch, origin = f"<SlideStitchInfo>{images}</SlideStitchInfo>", f"<AoiOrigin>{origins}</AoiOrigin>"
    return f'<EncodeInfo Ver="2"><SlideInfo/>{stitch}{origin}</EncodeInfo>'


def ventana(folder):
    tile = 64

    def xmp(text):
        return [(700, 1, None, text.encode(), True)]

    def slide(name, size, levels, encode=None, scan=None, label="Label_Image", jpeg=False, missing=(), pixels=lambda level, w, h: None):
        with Writer(folder / name, jpeg) as out:
            out.page(40, 90, description=label, extratags=xmp(scan or scan_xml()), software="ScanOutputManager 1.1.0.15854")
            out.page(30, 60, description="Thumbnail")
            for level in range(levels):
                w, h = -(-size[0] // 2**level), -(-size[1] // 2**level)
                more = {"extratags": xmp(encode)} if encode and level == 0 else {}
                out.page(
                    w, h, tile, description=f"level={level} mag={40 / 2**level:g} quality=95", reduced=level > 0,
                    missing=missing if level == 0 else (), pixels=pixels(level, w, h), **more
                )

    # Two areas on a page of 9 x 4 tiles: 5 x 4 tiles from (0, 0), 3 x 3 tiles from (6, 1).
    page = (9 * tile, 4 * tile)

    def areas(second_x, first_y, second_y):
        return [(0, 0, 5, 4, 0, first_y), (6, 1, 3, 3, second_x, second_y)]

    even = encode_xml(areas(440, 100, 132), tile, lambda c, r, d: (8, 0) if d == "RIGHT" else (0, 8))
    slide("areas.bif", page, 4, even)
    slide("areas-jpeg.bif", page, 4, even, label="Label Image", jpeg=True)
    # Advances that differ by axis; a third area that was not scanned; positions written as fractions.
    uneven = encode_xml(
        areas("440.000000", 100, "128.00") + [(5, 0, 0, 0, 0, 0)], tile, lambda c, r, d: (8.0, 3) if d == "RIGHT" else (-5, 4)
    )
    slide("axes.bif", page, 3, uneven, scan=scan_xml(metadata=True, Magnification=20))
    slide("side-by-side.bif", page, 4, encode_xml(areas(512, 64, 128), tile, lambda c, r, d: (0, 0)))
    slide("one-area.bif", (5 * tile, 4 * tile), 4, encode_xml([(0, 0, 5, 4, 0, 0)], tile, lambda c, r, d: (8, 8)))
    # Overlaps of 7 and 8 pixels in turns: a mean that is no whole number. Pixels are smooth, and where tiles overlap they agree.
    mixed = encode_xml(areas(440, 100, 132), tile, lambda c, r, d: (7 + c % 2, 7 + r % 2))

    def moved(level, w, h):
        step = 2**level
        x_overlaps = [7 + c % 2 for rows, columns in ((4, 5), (3, 3)) for _ in range(rows) for c in range(columns - 1)]
        y_overlaps = [7 + r % 2 for rows, columns in ((4, 5), (3, 3)) for r in range(1, rows) for _ in range(columns)]
        ax, ay = tile - numpy.mean(x_overlaps), tile - numpy.mean(y_overlaps)
        x, y = (numpy.arange(w) + 0.5) * step, (numpy.arange(h) + 0.5) * step
        second = numpy.floor(x / tile) >= 6
        top = max(100 + 3 * ay + tile, 132 + 2 * ay + tile) - 132 - (2 * ay + tile)
        u = x % tile + numpy.where(second, 440 + (x // tile - 6) * ax, x // tile * ax)
        v = [y % tile + y // tile * ay, y % tile + (y // tile - 1) * ay + top]
        v = numpy.where(second[None, :], v[1][:, None], v[0][:, None])
        waves = [numpy.sin(u[None, :] / 40 + c) * numpy.cos(v / 50 + c) for c in range(3)]
        return numpy.stack([(127 + 100 * wave).astype(numpy.uint8) for wave in waves], axis=-1)

    slide("mean.bif", page, 3, mixed, pixels=moved)
    slide("plain.tif", (500, 300), 3)
    # What OpenSlide refuses: overlaps measured from the right and from above, as by DP 200, and tiles without bytes.
    left = encode_xml(areas(440, 100, 132), tile, lambda c, r, d: (8, 8), directions=("LEFT", "DOWN"))
    slide("only-ours-left.bif", page, 4, left, scan=scan_xml(ScanWhitePoint=235))
    slide("only-ours-missing.bif", page, 4, even, scan=scan_xml(ScanWhitePoint=235), missing={(1, 1), (7, 2)})
    wrong = encode_xml([(0, 0, 5, 4, 0, 0), (6, 1, 4, 3, 440, 0)], tile, lambda c, r, d: (8, 8))
    slide("refused-outside.bif", page, 4, wrong)


# Trestle -------------------------------------------------------------------------------------------------------------------

def trestle(folder):
    words = "Imaging;Objective Power=20;Background Color=F0F0F0;Exposure = 1.5 ;OverlapsXY="

    def slide(name, overlaps, sizes, jpeg=False, full=True):
        with Writer(folder / name, jpeg, bigtiff=False) as out:
            for level, (w, h) in enumerate(sizes):
                description = words.replace("Imaging", "Imaging=x") + overlaps if level == 0 else None
                out.page(
                    w, h, 64, description=description, software="MedScan 1.0", resolution=(0.25, 0.275), resolutionunit="NONE"
                )
        if full:
            (folder / name).with_suffix(".Full").write_bytes(stream(80, 50, 2))

    # 272 x 224, 136 x 112 and 68 x 56 pixels when the overlaps are taken off.
    slide("overlaps.tif", " 8 4 4 2 0 0", [(304, 236), (144, 114), (68, 56)])
    slide("overlaps-jpeg.tif", " 8 4 4 2 0 0", [(304, 236), (144, 114), (68, 56)], jpeg=True, full=False)
    slide("two.tif", " 8 4", [(304, 236), (136, 112)])
    slide("none.tif", "", [(272, 224), (136, 112)], full=False)
    slide("refused-overlap.tif", " 64 0", [(304, 236)])


if __name__ == "__main__":
    vendor, folder = sys.argv[1:]
    {"leica": leica, "philips": philips, "trestle": trestle, "ventana": ventana}[vendor](pathlib.Path(folder))
