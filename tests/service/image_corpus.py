"""Pictures that are odd but sound, and files that are made to harm: bytes, by name.

Sound is what a viewer shows and the service answers; the rest is refused. The large ones are as
large as the limits allow: they are for `benchmarks/hostile_images.py`.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageCms

from bundle.containers import MAX_DATA_CHUNKS, MAX_PARTS, MAX_SCANS, MAX_VALUES
from tests.fakes import RED, draw_image
from tests.image_parts import (
    LONG,
    RATIONAL,
    SHORT,
    chunk,
    deflated,
    jpeg_scans,
    jpeg_with,
    png_header,
    png_with,
    saved,
    segment,
    tags,
    tiled,
    webp_with,
)

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
LARGE = (8_000, 5_000)
FILE_BYTES = 19_000_000


@dataclass(frozen=True)
class Entry:
    """One file; `sound` says whether it is answered."""

    name: str
    data: bytes
    sound: bool


def picture(size: int = 64) -> Image.Image:
    with Image.open(io.BytesIO(draw_image(RED, size=size))) as image:
        return image.convert("RGB")


def corpus() -> Iterator[Entry]:
    """Yield every small entry."""
    for name, data in sound_files():
        yield Entry(name, data, sound=True)
    for source in (truncated_files, broken_files, other_files, bombs):
        for name, data in source():
            yield Entry(name, data, sound=False)


def large_corpus() -> Iterator[Entry]:
    """Yield what fills the limits: 40 million pixels, or 19 MB of parts."""
    for name, data in large_pictures():
        yield Entry(name, data, sound=True)
    for name, data in large_bombs():
        yield Entry(name, data, sound=False)


# ------------------------------------------------------------------ sound


def sound_files() -> Iterator[tuple[str, bytes]]:
    image = picture()
    for kind in FORMATS:
        yield kind, saved(image, kind)
        for width, height in ((1, 1), (1, 3000), (3000, 1), (2, 3)):
            yield f"{kind} {width}x{height}", saved(image.resize((width, height)), kind)
    yield from sound_modes(image)
    yield "progressive JPEG", saved(image, "JPEG", progressive=True)
    yield "JPEG of as many scans as allowed", jpeg_scans(image, MAX_SCANS - 10)[0]
    yield (
        "JPEG with a second picture (MPO)",
        saved(image, "MPO", save_all=True, append_images=[image]),
    )
    jpeg, png = saved(image, "JPEG"), saved(image, "PNG")
    yield "JPEG and zip", jpeg + zipped()
    yield "PNG and HTML", png + b"<html><script>alert(1)</script></html>"
    yield (
        "JPEG with HTML as its comment",
        jpeg_with(segment(0xFE, b"<script>alert(1)</script>"), jpeg),
    )
    yield "interlaced PNG", interlaced_png()
    yield "PNG of many small chunks", rechunked_png()
    yield (
        "EXIF that points at itself",
        jpeg_with(
            segment(0xE1, b"Exif\0\0" + tags((34665, LONG, 1, 8), tail=struct.pack("<I", 8))), jpeg
        ),
    )
    for orientation in (1, 6, 8):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        yield f"orientation {orientation}", saved(image, "JPEG", exif=exif)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "sRGB profile", saved(image, "PNG", icc_profile=profile)


def sound_modes(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    cmyk = saved(image.convert("CMYK"), "JPEG")
    yield "CMYK JPEG", cmyk
    yield "YCCK JPEG", jpeg_with(segment(0xEE, b"Adobe\0\x64\0\0\0\0\x02"), without_adobe(cmyk))
    yield "CMYK TIFF", saved(image.convert("CMYK"), "TIFF")
    yield "grey JPEG", saved(image.convert("L"), "JPEG")
    for mode in ("1", "L", "LA", "P", "RGBA"):
        yield f"{mode} PNG", saved(image.convert(mode), "PNG")
    yield "palette with transparency", saved(image.convert("P"), "PNG", transparency=3)
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    for kind in ("PNG", "TIFF"):
        yield f"16-bit grey {kind}", saved(deep, kind)
    yield "16-bit colour PNG", deep_png(image)
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield f"TIFF {compression}", saved(image, "TIFF", compression=compression)
    yield "TIFF group4", saved(image.convert("1"), "TIFF", compression="group4")


def without_adobe(jpeg: bytes) -> bytes:
    place = jpeg.index(b"\xff\xee")
    return jpeg[:place] + jpeg[place + 16 :]


def rows_of(image: Image.Image, depth: int) -> bytes:
    """Return the picture as a PNG's unfiltered rows of depth bytes a value."""
    values = np.repeat(np.asarray(image), depth, axis=2)
    return b"".join(b"\0" + row.tobytes() for row in values)


def deep_png(image: Image.Image) -> bytes:
    body = chunk(b"IDAT", zlib.compress(rows_of(image, 2))) + chunk(b"IEND")
    return png_header(*image.size, bits=16) + body


def rechunked_png() -> bytes:
    image = picture()
    packed = zlib.compress(rows_of(image, 1))
    chunks = b"".join(chunk(b"IDAT", packed[n : n + 4]) for n in range(0, len(packed), 4))
    return png_header(*image.size) + chunks + chunk(b"IEND")


def interlaced_png() -> bytes:
    """Return 1 x 1 pixels, interlaced: the first of the seven passes holds it."""
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 1)
    body = chunk(b"IDAT", zlib.compress(b"\0\xc8\x3c\x3c")) + chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("run.sh", "echo harm")
    return buffer.getvalue()


# ------------------------------------------------------------------ refused


def truncated_files() -> Iterator[tuple[str, bytes]]:
    for kind in FORMATS:
        data = saved(picture(), kind)
        for percent in range(100):
            yield f"{kind} cut at {percent} %", data[: len(data) * percent // 100]


def broken_files() -> Iterator[tuple[str, bytes]]:
    image = picture()
    png, jpeg = saved(image, "PNG"), saved(image, "JPEG")
    yield "float TIFF", saved(image.convert("F"), "TIFF")
    yield "32-bit TIFF", saved(image.convert("I"), "TIFF")
    for kind in ("TIFF", "PNG", "WEBP", "GIF"):
        frames = [image.rotate(90 * turn) for turn in (1, 2)]
        yield f"{kind} of three frames", saved(image, kind, save_all=True, append_images=frames)
    yield "garbage as profile", saved(image, "PNG", icc_profile=b"no profile at all")
    yield "profile that points at itself", saved(image, "JPEG", icc_profile=looping_profile())
    yield (
        "EXIF pointer of another type",
        jpeg_with(segment(0xE1, b"Exif\0\0" + tags((34665, SHORT, 1, 8), order=">")), jpeg),
    )
    yield "PNG after a GIF header", b"GIF89a" + png
    yield "JPEG after HTML", b"<html></html>" + jpeg
    yield "JPEG without tables", jpeg.replace(b"\xff\xdb", b"\xff\xec")
    yield "TIFF without strips", tags((256, SHORT, 1, 5), (257, SHORT, 1, 5), tail=bytes(4))


def looping_profile() -> bytes:
    """Return an sRGB profile all of whose tags are its own tag table."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", profile, 128)
    for number in range(count):
        struct.pack_into(">II", profile, 132 + 12 * number + 4, 128, 4 + 12 * count)
    return bytes(profile)


def other_files() -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "NULs", bytes(5000)
    yield "zip", zipped()
    yield "PDF", b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n"
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "HTML", b"<!doctype html><script>alert(1)</script>"
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    yield "MP4", b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(200)
    yield "HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
    for kind in ("BMP", "GIF", "PPM", "ICO", "JPEG2000"):
        yield kind, saved(picture(), kind)
    for magic in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x10\0\0\0WEBP", b"II*\0", b"MM\0*"):
        yield f"{magic!r} alone", magic
        yield f"{magic!r} and NULs", magic + bytes(3000)


def bombs() -> Iterator[tuple[str, bytes]]:
    image = picture()
    png, jpeg = saved(image, "PNG"), saved(image, "JPEG")
    yield "PNG of a terapixel", png_header(1_000_000, 1_000_000) + chunk(b"IDAT")
    yield "PNG of 121 megapixels", saved(Image.new("1", (11_000, 11_000)), "PNG")
    yield "PNG of a long side", png_header(12_001, 1) + chunk(b"IDAT")
    yield "JPEG of 65535 px", restated_jpeg(jpeg, 65_535)
    yield (
        "WebP of 16383 px",
        saved(Image.new("L", (16_383, 3_000)), "WEBP", lossless=True, method=0),
    )
    yield "animated WebP of a large canvas", large_canvas()
    yield "TIFF of 2**31 px", tags((256, LONG, 1, 2**31), (257, LONG, 1, 2**31), tail=bytes(4))
    yield "TIFF of a large tile", tiled(12_000)
    yield "TIFF of a huge tile", tiled(2**16, body=deflated(2**20))
    yield "TIFF of many tags", tags(*[(40_000, LONG, 1, 0)] * 65_000, tail=bytes(4))
    yield "TIFF of a long tag", tags((282, RATIONAL, 500_000, 26), tail=bytes(4_000_000))
    yield "JPEG of many scans", jpeg_scans(image, 5_000)[0]
    yield "JPEG of many segments", jpeg_with(segment(0xEC) * 100_000, jpeg)
    yield "JPEG of much EXIF", jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(300)) * 9_000, jpeg)
    yield "JPEG of much filling", jpeg_with(b"\xff" * 1_000_000, jpeg)
    yield "PNG of many chunks", png_with(chunk(b"prVt") * 100_000, png)
    yield "PNG of many empty pixel chunks", png_with(chunk(b"IDAT") * 2 * MAX_DATA_CHUNKS, png)
    profile = chunk(b"iCCP", b"name\0\0" + deflated(1_000_000))
    yield "PNG of many profiles", png_with(profile * (MAX_PARTS - 5), png)
    text = chunk(b"zTXt", b"name\0\0" + deflated(100_000_000))
    yield "PNG of a text that unpacks to 100 MB", png_with(text, png)
    exif = tags((274, RATIONAL, 2 * MAX_VALUES, 26), tail=bytes(16 * MAX_VALUES))
    yield "PNG of a long EXIF tag", png_with(chunk(b"eXIf", exif), png)
    yield "WebP of a long EXIF tag", saved(image, "WEBP", exif=exif)


def restated_jpeg(jpeg: bytes, side: int) -> bytes:
    place = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:place] + struct.pack(">HH", side, side) + jpeg[place + 4 :]


def large_canvas() -> bytes:
    frames = [Image.new("RGBA", (20, 20), (level, 0, 0, 9)) for level in (50, 99)]
    data = bytearray(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    place = data.index(b"VP8X") + 12
    data[place : place + 6] = (16_382).to_bytes(3, "little") * 2
    return bytes(data)


# ------------------------------------------------------------------ at the limits


def large_pictures() -> Iterator[tuple[str, bytes]]:
    flat = Image.new("RGB", LARGE, RED)
    noise = Image.effect_noise(LARGE, 50).convert("RGB")
    yield "40 Mpx JPEG", saved(noise, "JPEG", quality=60)
    yield "40 Mpx progressive JPEG", saved(noise, "JPEG", quality=50, progressive=True)
    yield "40 Mpx JPEG of 32 scans", jpeg_scans(flat, MAX_SCANS - 10)[0]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "40 Mpx JPEG, turned", saved(flat, "JPEG", exif=exif)
    yield "40 Mpx JPEG, profile", saved(flat, "JPEG", icc_profile=profile)
    yield "40 Mpx PNG", saved(flat, "PNG")
    yield "40 Mpx PNG, transparent", saved(flat.convert("RGBA"), "PNG")
    yield "40 Mpx PNG, 16-bit grey", saved(Image.new("I;16", LARGE, 100), "PNG")
    yield "40 Mpx WebP", saved(flat, "WEBP", lossless=True, method=0)
    for compression in ("tiff_lzw", "tiff_adobe_deflate"):
        yield f"40 Mpx TIFF {compression}", saved(flat, "TIFF", compression=compression)
    webp = saved(picture(), "WEBP")
    yield "19 MB of WebP chunks", webp_with(b"prVt\0\0\0\0" * (FILE_BYTES // 8), webp)
    yield "600x450 JPEG", saved(noise.crop((0, 0, 600, 450)), "JPEG", quality=90)


def large_bombs() -> Iterator[tuple[str, bytes]]:
    image = picture()
    png, jpeg = saved(image, "PNG"), saved(image, "JPEG")
    flat = Image.new("L", LARGE, 100)
    yield "40 Mpx JPEG of 1000 scans", jpeg_scans(flat, 1_000)[0]
    yield "19 MB of segments", jpeg_with(segment(0xEC) * (FILE_BYTES // 4), jpeg)
    yield "19 MB of filling", jpeg_with(b"\xff" * FILE_BYTES, jpeg)
    exif = segment(0xE1, b"Exif\0\0" + bytes(300))
    yield "19 MB of EXIF segments", jpeg_with(exif * (FILE_BYTES // len(exif)), jpeg)
    yield "19 MB of chunks", png_with(chunk(b"prVt") * (FILE_BYTES // 12), png)
    yield "19 MB of empty pixel chunks", png_with(chunk(b"IDAT") * (FILE_BYTES // 12), png)
    count = FILE_BYTES // 8
    yield "19 MB TIFF tag", tags((282, RATIONAL, count, 26), tail=bytes(8 * count + 4))
    long = tags((274, RATIONAL, count, 26), tail=bytes(8 * count + 4))
    yield "19 MB EXIF in WebP", saved(image, "WEBP", exif=long)
    yield "TIFF of a 2-gigapixel tile", tiled(44_992)
