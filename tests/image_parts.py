"""Image files taken apart and put together again by hand: segments, chunks, tags."""

import io
import struct
import zlib
from typing import Any

from PIL import Image

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def segment(kind: int, body: bytes = b"") -> bytes:
    """Return one segment of a JPEG."""
    return bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body


def jpeg_with(segments: bytes, jpeg: bytes) -> bytes:
    """Return the JPEG with segments before its own."""
    return jpeg[:2] + segments + jpeg[2:]


def jpeg_scans(image: Image.Image, extra: int) -> tuple[bytes, int]:
    """Return a progressive JPEG whose last scan comes so often again, and its number of scans."""
    data = saved(image, "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * extra + data[-2:], data.count(b"\xff\xda") + extra


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(chunks: bytes, png: bytes, *, before: bytes = b"IDAT") -> bytes:
    """Return the PNG with chunks before the first (IDAT) or the last (IEND) of that kind."""
    place = png.index(before) - 4
    return png[:place] + chunks + png[place:]


def png_header(width: int, height: int, *, bits: int = 8, colour: int = 2) -> bytes:
    """Return how a PNG of this size begins."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)


def webp_with(chunks: bytes, webp: bytes) -> bytes:
    """Return the WebP with chunks behind its own."""
    whole = webp[8:] + chunks
    return b"RIFF" + struct.pack("<I", len(whole)) + whole


def tags(
    *entries: tuple[int, int, int, int], order: str = "<", big: bool = False, tail: bytes = b""
) -> bytes:
    """Return a TIFF of one directory: tag, type, count and value of each entry, then the tail."""
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "H", 43 if big else 42)
    start = struct.pack(order + "HHQ", 8, 0, 16) if big else struct.pack(order + "I", 8)
    number = struct.pack(order + ("Q" if big else "H"), len(entries))
    form = order + ("HHQQ" if big else "HHII")
    return head + start + number + b"".join(struct.pack(form, *e) for e in entries) + tail


def deflated(length: int) -> bytes:
    """Return so many zeros as a zlib stream, made without holding them."""
    packer, block = zlib.compressobj(9), bytes(1 << 20)
    parts = [
        packer.compress(block[: min(len(block), length - n)]) for n in range(0, length, 1 << 20)
    ]
    return b"".join([*parts, packer.flush()])


def tiled(side: int, *, body: bytes | None = None) -> bytes:
    """Return a TIFF of 16 x 16 pixels in one deflated tile of side x side."""
    body = deflated(side * side) if body is None else body
    place = 8 + 2 + 10 * 12 + 4
    entries = (
        *((256, SHORT, 1, 16), (257, SHORT, 1, 16), (258, SHORT, 1, 8), (259, SHORT, 1, 8)),
        *((262, SHORT, 1, 1), (277, SHORT, 1, 1), (322, LONG, 1, side), (323, LONG, 1, side)),
        *((324, LONG, 1, place), (325, LONG, 1, len(body))),
    )
    return tags(*entries, tail=bytes(4) + body)
