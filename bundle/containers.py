"""What surrounds an image's pixels, counted before a decoder sees it.

Pixels are bounded by the size in the header, but a few hundred kilobytes can hold thousands of
passes over them (a progressive JPEG's scans), millions of empty segments or chunks, or one tag with
millions of values; decoders work minutes on each. This file walks a container's parts and reads
nothing in them. Where it is not sure that the decoder would walk alike it refuses.

WebP needs no walk: its parts are read in compiled code, the only costly one is EXIF, and that is
a TIFF's tags like the others.
"""

import re
import struct

from bundle.errors import InvalidImage

# JPEG segments, or PNG chunks that hold no pixels. A photograph has 10 to 150.
MAX_PARTS = 500
MAX_METADATA_BYTES = 8_000_000
# PNG chunks with pixels: 2 kB each in a file of 20 MB, where libpng's own are 8 kB.
MAX_DATA_CHUNKS = 10_000
# Passes over a JPEG's pixels: 10 is common, optimisers write up to 20.
MAX_SCANS = 32
# A JPEG segment's length counts itself; filling may stand before it.
MIN_SEGMENT_BYTES = 2
MAX_GAP_BYTES = 1_000
# Of a TIFF, or of EXIF: tags of all directories; numbers they hold; strips or tiles.
MAX_TAGS = 1_000
MAX_VALUES = 10_000
MAX_PIECES = 200_000

JPEG_MAGIC = b"\xff\xd8"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
EXIF_MAGIC = b"Exif\0\0"

# A JPEG marker; compressed data holds escaped 0xFF and restarts, which are none.
MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
SCAN, END = 0xDA, 0xD9
# Frames, tables, application data, comments: what has a length that all readers skip alike.
SEGMENTS = frozenset({*range(0xC0, 0xE0), 0xFE, *range(0xE0, 0xF0)} - {0xC8, *range(0xD0, 0xDA)})

# Byte order, and whether it is BigTIFF.
TIFF_KINDS = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True)}
TIFF_BEGINS = (b"II", b"MM")
# Types that are read as one string of bytes; of the others every value is an object.
TEXT_TYPES = frozenset({1, 2, 7})
# Offsets and lengths of strips and tiles: the only long tables that are needed.
PIECE_TAGS = frozenset({273, 279, 324, 325})
# EXIF, GPS and interoperability tags are in directories of their own.
DIRECTORY_TAGS = frozenset({34665, 34853, 40965})
POINTER_TYPES = frozenset({4, 13})


def check_container(data: bytes) -> None:
    """Refuse a JPEG, PNG or TIFF whose parts cost more than its pixels; others pass.

    Raises:
        InvalidImage: there are too many parts, scans, tags or values, or a JPEG's segments do not
            follow each other.
    """
    if data.startswith(JPEG_MAGIC):
        _check_jpeg(data)
    elif data.startswith(PNG_MAGIC):
        _check_png(data)
    elif data.startswith(TIFF_BEGINS):
        check_tags(data)


def _check_jpeg(data: bytes) -> None:
    position, parts, scans, metadata = len(JPEG_MAGIC), 0, 0, 0
    while found := MARKER.search(data, position, _reach(data, position, scans)):
        kind = found[1][0]
        if kind == END and scans:
            return
        length = int.from_bytes(data[found.end() : found.end() + 2])
        if kind == SCAN:
            scans += 1
        elif kind not in SEGMENTS or length < MIN_SEGMENT_BYTES:
            raise broken("segments")
        parts, metadata = parts + 1, metadata + length
        _at_most(MAX_SCANS, scans, "scans")
        _at_most(MAX_PARTS, parts, "segments")
        _at_most(MAX_METADATA_BYTES, metadata, "bytes of metadata")
        position = found.end() + length
    if _reach(data, position, scans) < len(data):
        raise broken("segments")


def _reach(data: bytes, position: int, scans: int) -> int:
    """Return how far the next segment may begin: anywhere behind pixels, else soon."""
    return len(data) if scans else position + MAX_GAP_BYTES


def _check_png(data: bytes) -> None:
    position, parts, profiles, pieces, metadata = len(PNG_MAGIC), 0, 0, 0, 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IDAT":
            pieces += 1
        else:
            parts, metadata, profiles = parts + 1, metadata + length, profiles + (kind == b"iCCP")
        _at_most(MAX_DATA_CHUNKS, pieces, "chunks of pixels")
        _at_most(MAX_PARTS, parts, "other chunks")
        _at_most(MAX_METADATA_BYTES, metadata, "bytes of metadata")
        # Each is decompressed, the last one counts.
        _at_most(1, profiles, "colour profile")
        if kind == b"IEND":
            return
        position += 12 + length


def check_tags(data: bytes) -> None:
    """Refuse a TIFF, or EXIF, whose directories hold more tags or numbers than a picture needs.

    Raises:
        InvalidImage: they do.
    """
    data = data.removeprefix(EXIF_MAGIC)
    if data[:4] not in TIFF_KINDS:
        raise broken("tags")
    order, big = TIFF_KINDS[data[:4]]
    start, number, entry = ("8xQ", "Q", "HHQQ") if big else ("4xI", "H", "HHII")
    tags = values = 0
    try:
        pending = [*struct.unpack_from(order + start, data)]
        seen: set[int] = set()
        while pending:
            place = pending.pop()
            if place in seen:
                continue
            seen.add(place)
            (count,) = struct.unpack_from(order + number, data, place)
            tags += count
            _at_most(MAX_TAGS, tags, "tags")
            place += struct.calcsize(order + number)
            size = struct.calcsize(order + entry)
            for tag, kind, length, value in struct.iter_unpack(
                order + entry, data[place : place + count * size]
            ):
                if tag in PIECE_TAGS:
                    _at_most(MAX_PIECES, length, "strips or tiles")
                elif kind not in TEXT_TYPES:
                    values += length
                if tag in DIRECTORY_TAGS:
                    if kind not in POINTER_TYPES or length != 1:
                        raise broken("tags")
                    pending.append(value & 0xFFFFFFFF)
            _at_most(MAX_VALUES, values, "values in tags")
    except struct.error:
        # Cut off: what there is was counted, and the decoder will miss the rest.
        return


def _at_most(limit: int, got: int, what: str) -> None:
    if got > limit:
        raise InvalidImage(
            f"expected a picture with at most {limit} {what}, this one has {got} or more: "
            "save it again and send that"
        )


def broken(part: str) -> InvalidImage:
    """Return the refusal of an image that cannot be read to its end."""
    return InvalidImage(
        f"expected a complete image; this one is truncated or broken ({part}): "
        "save it again and send that"
    )
