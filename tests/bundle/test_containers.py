"""What surrounds the pixels of an image, counted before a decoder works on it."""

import struct
import zlib
from typing import Any

import pytest
from PIL import ExifTags, Image

from bundle.containers import (
    MAX_DATA_CHUNKS,
    MAX_GAP_BYTES,
    MAX_METADATA_BYTES,
    MAX_PARTS,
    MAX_PIECES,
    MAX_SCANS,
    MAX_TAGS,
    MAX_VALUES,
    check_container,
    check_tags,
)
from bundle.errors import ImageTooLarge, InvalidImage
from bundle.images import ImageLimits, decode_image
from tests import image_parts
from tests.image_parts import (
    LONG,
    RATIONAL,
    SHORT,
    UNDEFINED,
    chunk,
    jpeg_scans,
    segment,
    tags,
    tiled,
)

NOISE = Image.effect_noise((24, 24), 40).convert("RGB")


def saved(kind: str, **options: Any) -> bytes:
    return image_parts.saved(NOISE, kind, **options)


def jpeg_with(segments: bytes) -> bytes:
    return image_parts.jpeg_with(segments, saved("JPEG"))


def png_with(chunks: bytes, *, before: bytes = b"IDAT") -> bytes:
    return image_parts.png_with(chunks, saved("PNG"), before=before)


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidImage) as caught:
        check_container(data)
    assert type(caught.value) is InvalidImage
    return str(caught.value)


def test_what_cameras_and_editors_write_passes() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "x" * 60_000
    for data in (
        saved("JPEG", progressive=True, exif=exif, comment=b"x" * 60_000),
        saved("PNG", exif=exif),
        saved("TIFF", compression="tiff_lzw"),
        saved("WEBP", exif=exif),
        saved("BMP"),
        b"",
        b"words",
    ):
        check_container(data)


# ------------------------------------------------------------------ JPEG


def test_a_jpeg_of_as_many_scans_as_allowed_is_read_and_one_more_is_refused() -> None:
    _, own = jpeg_scans(NOISE, 0)
    data, scans = jpeg_scans(NOISE, MAX_SCANS - own)
    assert scans == MAX_SCANS
    decode_image(data)
    assert "at most 32 scans, this one has 33 or more" in refusal(
        jpeg_scans(NOISE, MAX_SCANS - own + 1)[0]
    )


def test_segments_of_a_jpeg_are_counted() -> None:
    own = saved("JPEG").count(b"\xff") - saved("JPEG").count(b"\xff\x00")
    check_container(jpeg_with(segment(0xEC) * (MAX_PARTS - own)))
    assert "at most 500 segments" in refusal(jpeg_with(segment(0xEC) * MAX_PARTS))


def test_metadata_of_a_jpeg_is_counted_in_bytes() -> None:
    full = segment(0xE1, b"x" * 65_000)
    check_container(jpeg_with(full * (MAX_METADATA_BYTES // 66_000)))
    assert "8000000 bytes of metadata" in refusal(
        jpeg_with(full * (1 + MAX_METADATA_BYTES // 65_000))
    )


def test_filling_before_a_segment_is_bounded() -> None:
    check_container(jpeg_with(b"\xff" * (MAX_GAP_BYTES - 2)))
    for filling in (b"\xff", b"\xff\x00", b"\x00"):
        assert "broken (segments)" in refusal(jpeg_with(filling * 2 * MAX_GAP_BYTES))


@pytest.mark.parametrize(
    "odd", [b"\xff\xd8", b"\xff\xd9", b"\xff\xf0\xff\xff", b"\xff\x01", b"\xff\xc8\x00\x02"]
)
def test_a_marker_that_readers_skip_unlike_is_refused(odd: bytes) -> None:
    assert "broken (segments)" in refusal(jpeg_with(odd))


def test_a_segment_that_is_shorter_than_its_own_length_is_refused() -> None:
    check_container(jpeg_with(b"\xff\xec\x00\x02"))
    assert "broken (segments)" in refusal(jpeg_with(b"\xff\xec\x00\x01"))


def test_what_follows_the_end_of_a_jpeg_is_not_counted() -> None:
    decode_image(saved("JPEG") + segment(0xEC) * 2 * MAX_PARTS)


# ------------------------------------------------------------------ PNG


def test_chunks_of_a_png_are_counted() -> None:
    own = 2  # its header and its end
    decode_image(png_with(chunk(b"prVt") * (MAX_PARTS - own)))
    assert "at most 500 other chunks" in refusal(png_with(chunk(b"prVt") * (MAX_PARTS - own + 1)))
    check_container(png_with(chunk(b"IDAT") * (MAX_DATA_CHUNKS - 1)))
    assert "10000 chunks of pixels" in refusal(png_with(chunk(b"IDAT") * MAX_DATA_CHUNKS))


def test_metadata_of_a_png_is_counted_in_bytes() -> None:
    big = chunk(b"prVt", bytes(MAX_METADATA_BYTES // 2))
    check_container(png_with(big))
    assert "8000000 bytes of metadata" in refusal(png_with(big * 2))


def test_a_second_colour_profile_is_refused() -> None:
    one = chunk(b"iCCP", b"name\0\0" + zlib.compress(b"profile"))
    check_container(png_with(one))
    assert "at most 1 colour profile" in refusal(png_with(one * 2))


def test_chunks_behind_the_pixels_count_and_those_behind_the_end_do_not() -> None:
    many = chunk(b"tEXt") * MAX_PARTS
    assert "other chunks" in refusal(png_with(many, before=b"IEND"))
    check_container(saved("PNG") + many)


# ------------------------------------------------------------------ TIFF and EXIF


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_values_of_tags_are_counted_in_every_kind_of_tiff(order: str, big: bool) -> None:
    def made(count: int) -> bytes:
        return tags((282, RATIONAL, count, 0), order=order, big=big)

    check_container(made(MAX_VALUES))
    assert "at most 10000 values in tags" in refusal(made(MAX_VALUES + 1))


def test_text_and_tables_of_strips_may_be_longer() -> None:
    check_tags(tags((270, UNDEFINED, 10**6, 0), (273, LONG, MAX_PIECES, 0)))
    assert "200000 strips or tiles" in refusal(tags((324, LONG, MAX_PIECES + 1, 0)))


def test_tags_are_counted() -> None:
    entry = (40_000, SHORT, 1, 0)
    check_tags(tags(*[entry] * MAX_TAGS))
    assert "at most 1000 tags" in refusal(tags(*[entry] * (MAX_TAGS + 1)))


@pytest.mark.parametrize("pointer", [34665, 34853, 40965])
def test_directories_that_are_pointed_at_count_too(pointer: int) -> None:
    inner = struct.pack("<HHHII", 1, 282, RATIONAL, MAX_VALUES, 0)
    place = 8 + 2 + 12
    for prefix in (b"", b"Exif\0\0"):
        with pytest.raises(InvalidImage, match="10000 values"):
            check_tags(prefix + tags((pointer, LONG, 1, place), tail=inner))


def test_directories_in_a_circle_are_walked_once() -> None:
    check_tags(tags((34665, LONG, 1, 8)))


@pytest.mark.parametrize(("kind", "count"), [(SHORT, 1), (RATIONAL, 1), (LONG, 2)])
def test_a_pointer_that_readers_may_take_unlike_is_refused(kind: int, count: int) -> None:
    assert "broken (tags)" in refusal(tags((34665, kind, count, 8), order=">"))


def test_an_odd_header_of_a_tiff_is_refused() -> None:
    assert "broken (tags)" in refusal(b"MM*\0" + bytes(30))


def test_tags_that_are_cut_off_are_the_decoders_to_miss() -> None:
    whole = tags((282, RATIONAL, 2, 0), (283, RATIONAL, 2, 0))
    for length in range(4, len(whole)):
        check_tags(whole[:length])


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_of_a_picture_is_counted_wherever_it_stands(kind: str) -> None:
    exif = tags((274, RATIONAL, MAX_VALUES + 1, 26), tail=bytes(8 * MAX_VALUES + 100))
    data = saved(kind, exif=exif)
    with pytest.raises(InvalidImage, match="10000 values in tags"):
        decode_image(data)
    if kind == "PNG":
        with pytest.raises(InvalidImage, match="10000 values in tags"):
            decode_image(png_with(chunk(b"eXIf", exif), before=b"IEND"))


def test_tiles_may_stand_out_of_the_picture_but_not_far() -> None:
    limits = ImageLimits(max_pixels=3000)
    assert decode_image(tiled(64), limits).size == (16, 16)
    with pytest.raises(ImageTooLarge, match="tiles as large as the picture, got 80x80 pixels"):
        decode_image(tiled(80), limits)
    with pytest.raises(InvalidImage, match="broken"):
        decode_image(tiled(0), limits)
