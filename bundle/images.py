"""Image bytes to arrays: the one preprocessing that evaluation, export, index and service share.

`decode_image` turns untrusted bytes into fresh sRGB pixels; `prepare_image` turns pixels into what
the image encoder reads. Augmentation for training is not here.
"""

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bundle.containers import broken, check_container, check_tags
from bundle.errors import ImageTooLarge, InvalidImage, UnsupportedFormat

BOMB_ERRORS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# What Pillow's decoders raise on broken input; warnings only where warnings are errors.
DECODE_ERRORS = (
    EOFError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    SyntaxError,
    TypeError,
    UserWarning,
    ValueError,
    struct.error,
    zlib.error,
    *BOMB_ERRORS,
)
SRGB = ImageCms.createProfile("sRGB")
TILE_WIDTH, TILE_LENGTH = 322, 323
# Tiles at the right and lower edge stand out of the picture.
TILE_MARGIN = 2
# Rows hashed at a time: a whole picture's bytes would double its memory.
HASH_ROWS = 64
# A picture of six times its prepared size or more is averaged over blocks of pixels first, to no
# less than three times: of photographs a pixel comes out 2 of 255 off at most, in a fifth of the
# time.
REDUCING_GAP = 3.0


class ImageLimits(BaseModel):
    """What bytes may become a picture; read from the header before anything is decoded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(default=20_000_000, gt=0)
    max_pixels: int = Field(default=40_000_000, gt=0)
    max_side_px: int = Field(default=12_000, gt=0)
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "TIFF")


# Cohorts also hold BMP (PH2).
COHORT_LIMITS = ImageLimits(formats=("JPEG", "PNG", "WEBP", "TIFF", "BMP"))


class ImageInput(BaseModel):
    """What the image encoder reads: (3, size_px, size_px) RGB, standardised by mean and std.

    The shorter side is scaled to `resize_px` and the centre `size_px` square is taken.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size_px: int = Field(gt=0, le=1024)
    resize_px: int = Field(gt=0, le=2048)
    interpolation: Literal["bicubic"] = "bicubic"
    channel_order: Literal["RGB"] = "RGB"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def _check_crop(self) -> Self:
        if self.size_px > self.resize_px:
            raise ValueError("size_px must not exceed resize_px: the crop lies inside the image")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self


def decode_image(data: bytes, limits: ImageLimits = COHORT_LIMITS) -> Image.Image:
    """Return the picture as fresh RGB pixels in sRGB, upright, with nothing else of the file.

    EXIF orientation is applied and an embedded colour profile converted; transparency is laid on
    white; 16-bit grey is scaled to 8. No metadata survives, because the result is made from pixels.
    Of a JPEG that carries further pictures (MPO: depth map, second lens) the first is taken, as
    every viewer does.

    Raises:
        ImageTooLarge: bytes, pixels or a side exceed the limits.
        UnsupportedFormat: the content is not of an accepted format.
        InvalidImage: the file is broken, truncated, animated, of several pages, of an unreadable
            mode, or carries an unreadable colour profile.
    """
    with _opened(data, limits) as image:
        image.load()
        # Loading first: a PNG's EXIF may stand behind its pixels.
        if exif := image.info.get("exif"):
            check_tags(exif)
        # In place, as wherever it can be done: a large picture's copies are what fills memory.
        ImageOps.exif_transpose(image, in_place=True)
        return _fresh_pixels(_to_srgb(image))


@contextmanager
def _opened(data: bytes, limits: ImageLimits) -> Iterator[Image.Image]:
    """Give the image once its header is accepted; what its decoder raises becomes our errors."""
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"expected at most {limits.max_bytes} bytes, got {len(data)}")
    try:
        check_container(data)
        image = Image.open(io.BytesIO(data), formats=limits.formats)
        _check_size_and_frames(image, limits)
        yield image
    except BOMB_ERRORS:
        raise ImageTooLarge(f"expected at most {limits.max_pixels} pixels") from None
    except UnidentifiedImageError:
        raise _unidentified(data, limits) from None
    except DECODE_ERRORS as error:
        raise broken(type(error).__name__) from None


def _unidentified(data: bytes, limits: ImageLimits) -> InvalidImage:
    """Return why Pillow could not open the bytes: a broken header, or another kind of content."""
    accepts = (Image.OPEN[name][1] for name in limits.formats if name in Image.OPEN)
    if any(accept is not None and accept(data[:16]) for accept in accepts):
        return broken("header")
    return UnsupportedFormat(
        f"expected an image in one of {', '.join(limits.formats)}; the content is none of them"
    )


def _check_size_and_frames(image: Image.Image, limits: ImageLimits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels or max(width, height) > limits.max_side_px:
        raise ImageTooLarge(
            f"expected at most {limits.max_pixels} pixels and {limits.max_side_px} px a side, "
            f"got {width}x{height}"
        )
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise InvalidImage("expected one still image, got several frames: send one frame")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiles(image, limits)


def _check_tiles(image: TiffImagePlugin.TiffImageFile, limits: ImageLimits) -> None:
    """Refuse tiles that hold far more than the picture: they are decoded whole."""
    tile = image.tag_v2.get(TILE_WIDTH, 1), image.tag_v2.get(TILE_LENGTH, 1)
    if not all(isinstance(side, int) and side > 0 for side in tile):
        raise broken("tiles")
    width, height = (-(-whole // side) * side for whole, side in zip(image.size, tile, strict=True))
    if width * height > TILE_MARGIN * limits.max_pixels:
        raise ImageTooLarge(f"expected tiles as large as the picture, got {width}x{height} pixels")


def _to_srgb(image: Image.Image) -> Image.Image:
    """Return the image in sRGB, by its own profile where it carries one; RGB or RGBA."""
    plain = _to_plain_mode(image)
    profile = image.info.get("icc_profile")
    if not profile:
        return plain
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if plain.mode == "L" and source.profile.xcolor_space.strip() == "RGB":
            plain = plain.convert("RGB")
        mode = "RGBA" if plain.mode == "RGBA" else "RGB"
        transform = ImageCms.buildTransform(source, SRGB, plain.mode, mode)
    except (ImageCms.PyCMSError, OSError):
        raise InvalidImage(
            "the embedded colour profile cannot be read, so the colours are not known: "
            "export the image in sRGB"
        ) from None
    return transform.apply(plain, plain if plain.mode == mode else None)


def _to_plain_mode(image: Image.Image) -> Image.Image:
    """Return the image as L, RGB, RGBA or CMYK, 8 bits a channel: what a profile can describe."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InvalidImage(f"expected 8 or 16 bits a channel, got mode {image.mode!r}")
    if image.mode != "RGBA" and image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB", "RGBA", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _fresh_pixels(image: Image.Image) -> Image.Image:
    """Return RGB pixels in an image of their own, transparent ones laid on white."""
    if image.mode == "RGBA":
        fresh = Image.new("RGB", image.size, "white")
        fresh.paste(image, mask=image)
        return fresh
    # A conversion copies, also from RGB: of the file only `info` comes along.
    fresh = image.convert("RGB")
    fresh.info = {}
    return fresh


def content_hash(image: Image.Image) -> str:
    """Return the SHA-256 of the decoded pixels: equal for one picture however it was stored."""
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    for top in range(0, image.height, HASH_ROWS):
        bottom = min(top + HASH_ROWS, image.height)
        digest.update(image.crop((0, top, image.width, bottom)).tobytes())
    return digest.hexdigest()


def crop_box(width: int, height: int, spec: ImageInput) -> tuple[float, float, float, float]:
    """Return the centre square, in source pixels, that becomes the encoder's input."""
    side = min(width, height) * spec.size_px / spec.resize_px
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def resize_image(
    image: Image.Image, spec: ImageInput, *, reducing_gap: float = REDUCING_GAP
) -> npt.NDArray[np.uint8]:
    """Return the centre square as (H, W, 3) uint8, H = W = size_px.

    Args:
        image: RGB.
        spec: the square's size, and what of the picture it is.
        reducing_gap: how many times finer than the square pixels are before the filter.
    """
    box = crop_box(image.width, image.height, spec)
    size = (spec.size_px, spec.size_px)
    return np.asarray(
        image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=reducing_gap)
    )


def standardise(pixels: npt.NDArray[np.uint8], spec: ImageInput) -> npt.NDArray[np.float32]:
    """Return (..., 3, H, W) float32, zero mean and unit deviation by the spec.

    Args:
        pixels: (..., H, W, 3) uint8.
        spec: gives mean and std, for channels in [0, 1].
    """
    mean, std = (np.asarray(c, np.float32)[:, None, None] for c in (spec.mean, spec.std))
    # Channels go apart while they are bytes; the one array of floats is then worked on in place.
    planes = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C")
    planes /= np.float32(255)
    planes -= mean
    planes /= std
    return planes


def prepare_image(image: Image.Image, spec: ImageInput) -> npt.NDArray[np.float32]:
    """Return what the image encoder reads: (3, H, W) float32."""
    return standardise(resize_image(image, spec), spec)
