"""One name planted wherever an image file can carry words, a slot a file."""

import struct
import zlib
from collections.abc import Iterator

from PIL import ExifTags, Image, ImageCms

from tests.image_parts import chunk, jpeg_with, png_with, saved, segment, webp_with

# As long as the description of the colour profile that it replaces.
CANARY = "JaneDoeCanary"
RAW = CANARY.encode()
XMP = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:creator>{CANARY}</dc:creator></x:xmpmeta>'.encode()
IPTC = b"\x1c\x02\x78" + struct.pack(">H", len(RAW)) + RAW
PHOTOSHOP = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC


def encodings() -> tuple[bytes, ...]:
    """Return how the name may stand in a file, uncompressed."""
    return RAW, CANARY.encode("utf-16-le"), CANARY.encode("utf-16-be"), RAW.hex().encode()


def holds(data: bytes) -> bool:
    return any(form in data for form in encodings())


def exif() -> Image.Exif:
    """Return EXIF with the name in its main, EXIF and GPS directories, and in a maker's note."""
    made = Image.Exif()
    for tag in (
        *(ExifTags.Base.ImageDescription, ExifTags.Base.Artist, ExifTags.Base.Copyright),
        *(ExifTags.Base.Make, ExifTags.Base.Software, ExifTags.Base.HostComputer),
    ):
        made[tag] = CANARY
    made[ExifTags.Base.XPComment] = CANARY.encode("utf-16-le")
    made[ExifTags.Base.Orientation] = 6
    details = made.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.UserComment] = b"ASCII\0\0\0" + RAW
    details[ExifTags.Base.MakerNote] = b"MAKER\0" + RAW
    details[ExifTags.Base.CameraOwnerName] = CANARY
    place = made.get_ifd(ExifTags.IFD.GPSInfo)
    place[ExifTags.GPS.GPSAreaInformation] = b"ASCII\0\0\0" + RAW
    place[ExifTags.GPS.GPSMapDatum] = CANARY
    return made


def profile() -> bytes:
    """Return sRGB as a colour profile that is described by the name."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return plain.replace("sRGB built-in".encode("utf-16-be"), CANARY.encode("utf-16-be"))


def canary_images(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Yield the slot's name and the picture as a file with the canary in it."""
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        yield f"{kind} EXIF", saved(image, kind, exif=exif())
        yield f"{kind} profile", saved(image, kind, icc_profile=profile())
        yield f"{kind} and words behind it", saved(image, kind) + RAW
    yield from _jpegs(saved(image, "JPEG"))
    yield from _pngs(saved(image, "PNG"))
    webp = saved(image, "WEBP", xmp=XMP)
    yield "WebP XMP", webp
    yield (
        "WebP private chunk",
        webp_with(b"prVt" + struct.pack("<I", len(RAW) + 1) + RAW + b"\0", webp),
    )
    for tag, body in (
        *((270, CANARY), (305, CANARY), (315, CANARY), (33432, CANARY), (65000, RAW)),
        *((700, XMP), (33723, IPTC), (34377, PHOTOSHOP)),
    ):
        directory = Image.Exif()
        directory[tag] = body
        yield f"TIFF tag {tag}", saved(image, "TIFF", exif=directory)


def _jpegs(jpeg: bytes) -> Iterator[tuple[str, bytes]]:
    extended = b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + XMP
    thumbnail = b"JFXX\0\x13" + bytes([len(RAW), 1]) + RAW * 3
    for name, kind, body in (
        ("comment", 0xFE, RAW),
        ("XMP", 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
        ("extended XMP", 0xE1, extended),
        ("IPTC", 0xED, b"Photoshop 3.0\0" + PHOTOSHOP),
        ("JFXX thumbnail", 0xE0, thumbnail),
        ("maker's segment", 0xE9, RAW),
    ):
        yield f"JPEG {name}", jpeg_with(segment(kind, body), jpeg)


def _pngs(png: bytes) -> Iterator[tuple[str, bytes]]:
    international = b"Patient\0\0\0en\0" + RAW + b"\0" + RAW
    for kind, body in (
        (b"tEXt", b"Patient\0" + RAW),
        (b"tEXt", RAW + b"\0Patient"),
        (b"zTXt", b"Patient\0\0" + zlib.compress(RAW)),
        (b"iTXt", international),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        (b"tIME", struct.pack(">HBBBBB", 1959, 4, 1, 8, 30, 0)),
        (b"prVt", RAW),
    ):
        for place in (b"IDAT", b"IEND"):
            yield (
                f"PNG {kind.decode()} before {place.decode()}",
                png_with(chunk(kind, body), png, before=place),
            )
    name = chunk(b"iCCP", RAW + b"\0\0" + zlib.compress(profile()))
    yield "PNG profile's name", png_with(name, png)
