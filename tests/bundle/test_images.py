"""Untrusted bytes to fresh pixels, and pixels to what the image encoder reads."""

import hashlib
import io
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, PngImagePlugin
from PIL import _imaging as pillow_core
from pydantic import ValidationError

from bundle.errors import ImageTooLarge, InvalidImage, UnsupportedFormat
from bundle.images import (
    COHORT_LIMITS,
    HASH_ROWS,
    ImageInput,
    ImageLimits,
    content_hash,
    crop_box,
    decode_image,
    prepare_image,
    resize_image,
    standardise,
)

CANARY = "CANARY-Jane-Doe-1959"
SPEC = ImageInput(size_px=8, resize_px=10)


def picture(width: int = 7, height: int = 5, mode: str = "RGB") -> Image.Image:
    """Return a picture in which every pixel differs, so that a swapped axis shows."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 30 + 5, y * 40 + 5, (x + y) * 20], axis=2).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(image: Image.Image) -> npt.NDArray[np.uint8]:
    assert image.mode == "RGB"
    return np.asarray(image)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that states a size and holds nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")


# ------------------------------------------------------------------ formats and modes


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP"])
def test_a_lossless_picture_comes_back_pixel_for_pixel(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode_image(saved(picture(), kind, **options))
    np.testing.assert_array_equal(pixels_of(decoded), np.asarray(picture()))


def test_a_jpeg_comes_back_nearly() -> None:
    decoded = decode_image(saved(picture(40, 30), "JPEG", quality=98, subsampling=0))
    difference = pixels_of(decoded).astype(int) - np.asarray(picture(40, 30)).astype(int)
    assert np.abs(difference).mean() < 3


def test_a_service_refuses_bmp_which_a_cohort_accepts() -> None:
    data = saved(picture(), "BMP")
    assert decode_image(data, COHORT_LIMITS).size == (7, 5)
    with pytest.raises(
        UnsupportedFormat, match="expected an image in one of JPEG, PNG, WEBP, TIFF"
    ):
        decode_image(data, ImageLimits())


@pytest.mark.parametrize("kind", ["GIF", "PPM", "ICO", "JPEG2000"])
def test_other_image_formats_are_unsupported(kind: str) -> None:
    with pytest.raises(UnsupportedFormat, match="the content is none of them"):
        decode_image(saved(picture(32, 32), kind))


@pytest.mark.parametrize(
    "data", [b"", b"hello\n", b"name,age\na,5\n", b"%PDF-1.7", b"\x00" * 100, b"<svg/>"]
)
def test_what_is_no_image_is_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedFormat):
        decode_image(data)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_modes_that_can_say_rgb_are_converted(mode: str) -> None:
    image = picture(mode=mode)
    decoded = decode_image(saved(image, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"))
    np.testing.assert_array_equal(pixels_of(decoded), np.asarray(image.convert("RGB")))


def test_sixteen_bit_grey_is_scaled_to_eight() -> None:
    deep = np.asarray([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    for data in (saved(Image.fromarray(deep)), saved(Image.fromarray(deep), "TIFF")):
        decoded = pixels_of(decode_image(data))
        np.testing.assert_array_equal(decoded[:, :, 0], [[0, 0, 1], [128, 254, 255]])
        assert (decoded == decoded[:, :, :1]).all()


def test_big_endian_sixteen_bit_grey_is_read_in_its_own_byte_order() -> None:
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 0x1234, 0xFEDC))
    decoded = pixels_of(decode_image(saved(image, "TIFF")))
    np.testing.assert_array_equal(decoded[0, :, 0], [0x12, 0xFE])


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_mode_of_unknown_range_is_refused(mode: str) -> None:
    with pytest.raises(InvalidImage, match=f"expected 8 or 16 bits a channel, got mode '{mode}'"):
        decode_image(saved(picture(mode="L").convert(mode), "TIFF"))


# ------------------------------------------------------------------ transparency


def test_transparent_pixels_are_laid_on_white() -> None:
    layer = Image.new("RGBA", (3, 1))
    layer.putdata([(200, 0, 0, 255), (200, 0, 0, 0), (200, 0, 0, 51)])
    decoded = pixels_of(decode_image(saved(layer)))
    np.testing.assert_allclose(decoded[0], [[200, 0, 0], [255, 255, 255], [244, 204, 204]], atol=1)


def test_grey_with_alpha_is_laid_on_white() -> None:
    layer = Image.new("LA", (2, 1))
    layer.putdata([(90, 255), (90, 0)])
    decoded = pixels_of(decode_image(saved(layer)))
    np.testing.assert_array_equal(decoded[0], [[90] * 3, [255] * 3])


def test_a_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    decoded = pixels_of(decode_image(saved(image, transparency=1)))
    np.testing.assert_array_equal(decoded[0], [[10, 20, 30], [255, 255, 255]])


def test_a_transparent_colour_of_an_rgb_png_becomes_white() -> None:
    image = Image.new("RGB", (2, 1))
    image.putdata([(1, 2, 3), (9, 9, 9)])
    decoded = pixels_of(decode_image(saved(image, transparency=(9, 9, 9))))
    np.testing.assert_array_equal(decoded[0], [[1, 2, 3], [255, 255, 255]])


# ------------------------------------------------------------------ orientation

UPRIGHT: dict[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_picture_stands_upright_whatever_its_exif_orientation(
    kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode_image(saved(picture(), kind, exif=exif, **options))
    np.testing.assert_array_equal(pixels_of(decoded), UPRIGHT[orientation](np.asarray(picture())))


def test_a_photograph_on_its_side_is_turned() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    assert decode_image(saved(picture(40, 30), "JPEG", exif=exif)).size == (30, 40)


# ------------------------------------------------------------------ colour profiles


def s15(number: float) -> bytes:
    return struct.pack(">i", round(number * 65536))


def xyz(x: float, y: float, z: float) -> bytes:
    return b"XYZ \0\0\0\0" + s15(x) + s15(y) + s15(z)


WHITE_POINT = (0.9642, 1.0, 0.8249)
LINEAR = b"curv\0\0\0\0" + struct.pack(">I", 0)


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Return a display profile, by hand after the ICC specification.

    Pillow itself makes sRGB, XYZ and Lab profiles only.
    """
    every = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 78,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz(*WHITE_POINT),
        **tags,
    }
    table, body = struct.pack(">I", len(every)), b""
    start = 128 + 4 + 12 * len(every)
    for name, data in every.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    size = start + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"none", 0x02100000, b"mntr", space, b"XYZ ")
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28
    header += xyz(*WHITE_POINT)[8:]
    return header.ljust(128, b"\0") + table + body


def srgb_encode(linear: float) -> int:
    """Return a linear share as an sRGB byte (IEC 61966-2-1)."""
    low = linear <= 0.0031308
    return round(255 * (12.92 * linear if low else 1.055 * linear ** (1 / 2.4) - 0.055))


# Linear, with the red and the blue primary exchanged.
SWAPPED = profile(
    b"RGB ",
    {
        b"rXYZ": xyz(0.1431, 0.0606, 0.7141),
        b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"bXYZ": xyz(0.4361, 0.2225, 0.0139),
        b"rTRC": LINEAR,
        b"gTRC": LINEAR,
        b"bTRC": LINEAR,
    },
)
LINEAR_GREY = profile(b"GRAY", {b"kTRC": LINEAR})
# A linear colour in the swapped profile, and what it is in sRGB.
STORED = (200, 100, 50)
MEANT = tuple(srgb_encode(v / 255) for v in reversed(STORED))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_colours_are_converted_to_srgb_by_the_embedded_profile(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.new("RGB", (4, 4), STORED), kind, icc_profile=SWAPPED, **options)
    decoded = pixels_of(decode_image(data))
    np.testing.assert_allclose(decoded[0, 0], MEANT, atol=2)
    assert decode_image(data).info == {}


def test_a_profile_holds_for_palette_transparent_and_turned_pictures_too() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([*STORED, 0, 0, 0])
    decoded = pixels_of(decode_image(saved(palette, icc_profile=SWAPPED)))
    np.testing.assert_allclose(decoded[0, 0], MEANT, atol=2)

    layer = Image.new("RGBA", (2, 1), (*STORED, 255))
    layer.putpixel((1, 0), (*STORED, 0))
    decoded = pixels_of(decode_image(saved(layer, icc_profile=SWAPPED)))
    np.testing.assert_allclose(decoded[0, 0], MEANT, atol=2)
    np.testing.assert_array_equal(decoded[0, 1], [255] * 3)

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = saved(Image.new("RGB", (4, 2), STORED), icc_profile=SWAPPED, exif=exif)
    np.testing.assert_allclose(pixels_of(decode_image(turned))[0, 0], MEANT, atol=2)


def test_grey_with_an_rgb_profile_is_read_as_equal_channels() -> None:
    data = saved(Image.new("L", (2, 2), 100), icc_profile=SWAPPED)
    np.testing.assert_allclose(
        pixels_of(decode_image(data))[0, 0], [srgb_encode(100 / 255)] * 3, atol=2
    )


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_with_its_own_profile_is_converted(bits: int) -> None:
    level = np.full((2, 2), 100 << (bits - 8), np.uint8 if bits == 8 else np.uint16)
    data = saved(Image.fromarray(level), icc_profile=LINEAR_GREY)
    np.testing.assert_allclose(
        pixels_of(decode_image(data))[0, 0], [srgb_encode(100 / 255)] * 3, atol=2
    )


def test_one_bit_a_pixel_with_a_grey_profile_stays_black_and_white() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    decoded = pixels_of(decode_image(saved(image, icc_profile=LINEAR_GREY)))
    np.testing.assert_allclose(decoded[0], [[0] * 3, [255] * 3], atol=1)


def test_an_srgb_profile_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    decoded = decode_image(saved(picture(), icc_profile=profile))
    difference = pixels_of(decoded).astype(int) - np.asarray(picture()).astype(int)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("unreadable", [b"not a profile", SWAPPED[:100], SWAPPED[:140]])
def test_an_unreadable_profile_is_refused_because_the_colours_are_not_known(
    unreadable: bytes,
) -> None:
    with pytest.raises(InvalidImage) as caught:
        decode_image(saved(picture(), icc_profile=unreadable))
    assert str(caught.value) == (
        "the embedded colour profile cannot be read, so the colours are not known: "
        "export the image in sRGB"
    )


def test_a_profile_of_another_colour_space_is_refused() -> None:
    with pytest.raises(InvalidImage, match="colour profile cannot be read"):
        decode_image(saved(picture(mode="CMYK"), "TIFF", icc_profile=SWAPPED))


# ------------------------------------------------------------------ frames


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_several_frames_or_pages_are_refused(kind: str) -> None:
    frames = saved(picture(), kind, save_all=True, append_images=[picture().rotate(180)])
    with pytest.raises(InvalidImage, match=r"^expected one still image, got several fr") as why:
        decode_image(frames)
    assert type(why.value) is InvalidImage


def test_of_a_jpeg_with_a_second_picture_the_first_is_taken() -> None:
    first, second = picture(40, 30), Image.new("RGB", (40, 30), "blue")
    data = saved(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    decoded = decode_image(data, ImageLimits())
    np.testing.assert_array_equal(
        pixels_of(decoded), np.asarray(Image.open(io.BytesIO(saved(first, "JPEG"))))
    )


# ------------------------------------------------------------------ broken and oversized


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_file_cut_anywhere_is_an_invalid_image(kind: str) -> None:
    data = saved(picture(29, 23), kind)
    behind_the_pixels = 24 if kind == "PNG" else 2  # check sums and an end mark
    for length in {*range(16, len(data) - behind_the_pixels, 7), len(data) // 2}:
        with pytest.raises(InvalidImage) as caught:
            decode_image(data[:length])
        assert type(caught.value) is InvalidImage
        assert "truncated or broken" in str(caught.value)
        assert "save it again" in str(caught.value)
    for length in range(16):
        with pytest.raises(InvalidImage):
            decode_image(data[:length])


@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg"])
def test_a_tiff_cut_anywhere_is_an_invalid_image(compression: str) -> None:
    data = saved(picture(29, 23), "TIFF", compression=compression)
    whole = pixels_of(decode_image(data))
    for length in range(16, len(data) - 2, 37):
        try:
            decoded = decode_image(data[:length])
        except InvalidImage:
            continue
        # What is cut off behind the pixels is not missed.
        np.testing.assert_array_equal(pixels_of(decoded), whole)


def test_a_warning_of_the_decoder_becomes_an_invalid_image_where_warnings_are_errors() -> None:
    data = saved(picture(), "TIFF")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidImage):
            decode_image(data[: len(data) - 20])


@pytest.mark.parametrize(
    ("width", "height"), [(12_001, 1), (1, 12_001), (8_000, 8_000), (20_000, 20_000)]
)
def test_a_bomb_is_refused_by_its_header_before_anything_is_decoded(
    width: int, height: int
) -> None:
    with pytest.raises(ImageTooLarge, match="expected at most 40000000 pixels"):
        decode_image(png_header(width, height))


def test_a_refusal_of_a_broken_file_says_what_is_broken_and_what_to_do() -> None:
    data = saved(picture(29, 23), "JPEG")
    for cut, part in ((20, "header"), (len(data) // 2, "OSError")):
        with pytest.raises(InvalidImage) as caught:
            decode_image(data[:cut])
        assert str(caught.value) == (
            f"expected a complete image; this one is truncated or broken ({part}): "
            "save it again and send that"
        )


def test_a_stated_size_within_the_limits_is_accepted_and_then_missed() -> None:
    with pytest.raises(InvalidImage, match="truncated or broken"):
        decode_image(png_header(5, 5))


def test_the_limits_themselves_are_accepted() -> None:
    data = saved(picture(7, 5))
    exact = ImageLimits(max_bytes=len(data), max_pixels=35, max_side_px=7)
    assert decode_image(data, exact).size == (7, 5)
    for change in ({"max_bytes": len(data) - 1}, {"max_pixels": 34}, {"max_side_px": 6}):
        with pytest.raises(ImageTooLarge, match="expected at most"):
            decode_image(data, exact.model_copy(update=change))


def test_a_file_is_refused_for_what_its_header_says() -> None:
    limits = ImageLimits(max_pixels=35, formats=("PNG",))
    sound = saved(picture())
    decode_image(sound, limits)
    refusals: tuple[tuple[bytes, type[Exception], str], ...] = (
        (saved(picture(7, 6)), ImageTooLarge, "at most 35 pixels .* got 7x6"),
        (saved(picture(), "JPEG"), UnsupportedFormat, "in one of PNG"),
        (sound[:12], InvalidImage, "truncated or broken"),
    )
    for data, error, words in refusals:
        with pytest.raises(error, match=words):
            decode_image(data, limits)


def test_a_refusal_by_size_says_what_came() -> None:
    limits = ImageLimits(max_side_px=6)
    with pytest.raises(ImageTooLarge, match="40000000 pixels and 6 px a side, got 7x5"):
        decode_image(saved(picture(7, 5)), limits)
    with pytest.raises(ImageTooLarge, match="expected at most 3 bytes, got 4"):
        decode_image(b"\xff\xd8\xff\xe0", ImageLimits(max_bytes=3))


SEEDS = [
    saved(picture(), "JPEG"),
    saved(picture(), "PNG", icc_profile=SWAPPED),
    saved(picture(mode="P"), "PNG", transparency=3),
    saved(picture(), "WEBP"),
    saved(picture(), "TIFF", compression="tiff_lzw"),
    saved(picture(), "BMP"),
    saved(picture(), "MPO", save_all=True, append_images=[picture()]),
]


def decode_or_refuse(data: bytes) -> None:
    try:
        decoded = decode_image(data)
    except InvalidImage:
        return
    assert decoded.mode == "RGB"
    assert decoded.info == {}


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150)
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    keep=st.floats(0, 1) | st.just(1.0),
)
def test_a_damaged_picture_is_decoded_or_refused_and_nothing_else(
    seed: bytes, changes: list[tuple[float, int]], keep: float
) -> None:
    data = bytearray(seed)
    for place, value in changes:
        data[int(place**3 * len(data))] = value
    decode_or_refuse(bytes(data[: int(keep * len(data))]))


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(
    head=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"BM"]),
    tail=st.binary(max_size=200),
)
def test_arbitrary_bytes_are_refused_as_images_and_nothing_else(head: bytes, tail: bytes) -> None:
    decode_or_refuse(head + tail)


# ------------------------------------------------------------------ what leaves


def with_canary(kind: str) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = CANARY
    exif[ExifTags.Base.Artist] = CANARY
    options: dict[str, Any] = {"exif": exif}
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Patient", CANARY)
        text.add_itxt("XML:com.adobe.xmp", f"<x>{CANARY}</x>")
        text.add_text("Long", CANARY, zip=True)
        options["pnginfo"] = text
    elif kind == "JPEG":
        options |= {"comment": CANARY, "xmp": f"<x>{CANARY}</x>".encode()}
    elif kind == "WEBP":
        options["xmp"] = f"<x>{CANARY}</x>".encode()
    return saved(picture(), kind, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_no_metadata_survives_decoding(kind: str) -> None:
    data = with_canary(kind)
    assert CANARY.encode() in data
    decoded = decode_image(data)
    assert decoded.info == {}
    assert not decoded.getexif()
    assert type(decoded) is Image.Image
    for again in ("JPEG", "PNG", "WEBP", "TIFF"):
        assert CANARY.encode() not in saved(decoded, again)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("profile", [None, SWAPPED])
def test_a_photograph_is_copied_once_after_its_decoding(
    orientation: int, profile: bytes | None
) -> None:
    """A picture of 39 million pixels takes 156 MB a copy."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = saved(picture(400, 1500), "JPEG", exif=exif, icc_profile=profile)
    content_hash(decode_image(data))
    pillow_core.reset_stats()
    tracemalloc.start()
    try:
        decoded = decode_image(data)
        made = pillow_core.get_stats()["new_count"]
        content_hash(decoded)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made == (2 if orientation == 1 else 3)
    assert peak_bytes < 400 * 1500 * 3


def test_the_content_hash_is_that_of_the_pixels_whatever_the_container() -> None:
    upside_down = Image.Exif()
    upside_down[ExifTags.Base.Orientation] = 3
    files = [
        saved(picture(), "PNG"),
        saved(picture(), "PNG", compress_level=1),
        saved(picture(), "TIFF", compression="tiff_lzw"),
        saved(picture(), "BMP"),
        saved(picture(), "WEBP", lossless=True),
        saved(picture(mode="RGBA"), "PNG"),
        saved(picture().rotate(180), "PNG", exif=upside_down),
        with_canary("PNG"),
    ]
    hashes = {content_hash(decode_image(data)) for data in files}
    assert hashes == {content_hash(picture())}
    assert all(len(value) == 64 for value in hashes)


@pytest.mark.parametrize("height", [1, HASH_ROWS, HASH_ROWS + 1, 2 * HASH_ROWS])
def test_the_content_hash_is_that_of_size_and_bytes_together(height: int) -> None:
    image = picture(3, height)
    whole = hashlib.sha256(f"3x{height}".encode() + image.tobytes()).hexdigest()
    assert content_hash(image) == whole


def test_other_pixels_or_another_shape_of_the_same_bytes_hash_otherwise() -> None:
    changed = picture()
    changed.putpixel((6, 4), (0, 0, 0))
    flat = Image.new("RGB", (2, 3)), Image.new("RGB", (3, 2)), Image.new("RGB", (1, 6))
    images = (picture(), changed, picture().rotate(180), *flat)
    assert len({content_hash(image) for image in images}) == 6


# ------------------------------------------------------------------ pixels to the encoder


def cubic(x: float) -> float:
    """Return the bicubic kernel with a = -0.5 (Keys, 1981)."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resample_slowly(
    line: npt.NDArray[np.float64], start: float, stop: float, size: int
) -> npt.NDArray[np.float64]:
    """Return `size` samples of line[start:stop], antialiased: kernel widened when shrinking."""
    scale = (stop - start) / size
    width = max(scale, 1.0)
    out = []
    for i in range(size):
        centre = start + (i + 0.5) * scale
        # Pillow reads the pixels whose centre lies within two kernel widths, to whole pixels.
        low = max(int(centre - 2 * width + 0.5), 0)
        high = min(int(centre + 2 * width + 0.5), len(line))
        weights = np.asarray([cubic((x + 0.5 - centre) / width) for x in range(low, high)])
        out.append((line[low:high] * (weights / weights.sum())[:, None]).sum(axis=0))
    return np.asarray(out)


def prepare_slowly(image: Image.Image, spec: ImageInput) -> npt.NDArray[np.float64]:
    width, height = image.size
    side = min(width, height) * spec.size_px / spec.resize_px
    left, top = (width - side) / 2, (height - side) / 2
    pixels = np.asarray(image, np.float64)
    rows = np.stack([resample_slowly(row, left, left + side, spec.size_px) for row in pixels])
    across = np.clip(np.round(rows), 0, 255).astype(np.float64)
    columns = [
        resample_slowly(across[:, x], top, top + side, spec.size_px) for x in range(spec.size_px)
    ]
    resized = np.clip(np.round(np.asarray(columns)), 0, 255)  # (W, H, C)
    out = np.zeros((3, spec.size_px, spec.size_px))
    for channel in range(3):
        for x in range(spec.size_px):
            for y in range(spec.size_px):
                share = resized[x, y, channel] / 255
                out[channel, y, x] = (share - spec.mean[channel]) / spec.std[channel]
    return out


@pytest.mark.parametrize(
    ("width", "height"), [(7, 5), (5, 7), (31, 23), (23, 61), (10, 10), (64, 9)]
)
def test_preparing_an_image_agrees_with_the_slow_oracle(width: int, height: int) -> None:
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(noise)
    prepared = prepare_image(image, SPEC)
    assert prepared.shape == (3, 8, 8)
    assert prepared.dtype == np.float32
    one_level = 1 / 255 / min(SPEC.std)
    np.testing.assert_allclose(prepared, prepare_slowly(image, SPEC), atol=1.01 * one_level)


def test_a_uniform_picture_becomes_its_standardised_colour() -> None:
    spec = ImageInput(size_px=4, resize_px=4, mean=(0.5, 0.25, 0), std=(0.5, 0.25, 2))
    prepared = prepare_image(Image.new("RGB", (9, 5), (255, 0, 51)), spec)
    np.testing.assert_allclose(prepared[:, 2, 2], [1, -1, 0.1], rtol=1e-6)
    assert np.ptp(prepared, axis=(1, 2)).max() == 0


def test_only_the_centre_square_is_read() -> None:
    wide = Image.new("RGB", (30, 10), "black")
    wide.paste(Image.new("RGB", (10, 10), "white"), (10, 0))
    spec = ImageInput(size_px=8, resize_px=8)
    assert resize_image(wide, spec)[:, 2:6].min() == 255
    tall = wide.transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_array_equal(resize_image(tall, spec), resize_image(wide, spec).swapaxes(0, 1))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 37), (37, 1), (2, 3)])
def test_the_smallest_images_are_prepared(width: int, height: int) -> None:
    prepared = prepare_image(Image.new("RGB", (width, height), (255, 255, 255)), SPEC)
    assert prepared.shape == (3, 8, 8)
    np.testing.assert_allclose(prepared[0], (1 - SPEC.mean[0]) / SPEC.std[0], rtol=1e-6)


@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    sizes=st.tuples(st.integers(1, 1024), st.integers(1, 1024)),
)
def test_the_crop_is_a_centred_square_inside_the_image(
    width: int, height: int, sizes: tuple[int, int]
) -> None:
    spec = ImageInput(size_px=min(sizes), resize_px=max(sizes))
    left, top, right, bottom = crop_box(width, height, spec)
    assert right - left == pytest.approx(bottom - top)
    assert right - left == pytest.approx(min(width, height) * min(sizes) / max(sizes))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert left == pytest.approx(width - right)
    assert top == pytest.approx(height - bottom)


@pytest.mark.parametrize("side", [8 * 16, 8 * 96])
def test_a_large_picture_is_averaged_over_blocks_first_and_comes_out_the_same(side: int) -> None:
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 20, 3), np.uint8))
    image = coarse.resize((side * 2, side), Image.Resampling.BICUBIC)
    spec = ImageInput(size_px=14, resize_px=16)
    box = crop_box(image.width, image.height, spec)
    exact = np.asarray(image.resize((14, 14), Image.Resampling.BICUBIC, box=box))
    made = resize_image(image, spec)
    assert np.abs(made.astype(int) - exact).max() <= 3


def test_a_batch_is_standardised_as_each_of_its_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 6, 3), np.uint8)
    before = pixels.copy()
    batch = standardise(pixels, SPEC)
    assert batch.shape == (2, 5, 3, 4, 6)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    np.testing.assert_array_equal(batch[1, 3], standardise(pixels[1, 3], SPEC))
    np.testing.assert_array_equal(pixels, before)
    for channel in range(3):
        expected = (pixels[1, 3, 2, 5, channel] / 255 - SPEC.mean[channel]) / SPEC.std[channel]
        assert batch[1, 3, channel, 2, 5] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size_px": 11}, "size_px must not exceed resize_px"),
        ({"size_px": 0}, "greater than 0"),
        ({"size_px": 1025, "resize_px": 2000}, "less than or equal to 1024"),
        ({"resize_px": 2049}, "less than or equal to 2048"),
        ({"std": (1, 1, 0)}, "std must be positive"),
        ({"std": (1, -1, 1)}, "std must be positive"),
        ({"mean": (0, 0, float("nan"))}, "finite"),
        ({"interpolation": "nearest"}, "bicubic"),
        ({"channel_order": "BGR"}, "RGB"),
        ({"gamma": 1}, "not permitted"),
    ],
)
def test_an_image_input_that_makes_no_sense_is_refused(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        ImageInput(**{"size_px": 8, "resize_px": 10, **changes})


@pytest.mark.parametrize("name", ["max_bytes", "max_pixels", "max_side_px"])
def test_a_limit_is_above_zero(name: str) -> None:
    assert ImageLimits.model_validate({name: 1}) != ImageLimits()
    with pytest.raises(ValidationError, match="greater than 0"):
        ImageLimits.model_validate({name: 0})
