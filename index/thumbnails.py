"""A lesion's small picture, made from the pixels and nothing else."""

import io

from PIL import Image

THUMBNAIL_PX = 192
THUMBNAIL_QUALITY = 85


def make_thumbnail(image: Image.Image) -> bytes:
    """Return a JPEG of at most 192 px a side, made from the pixels and nothing else."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    fresh = Image.frombytes("RGB", small.size, small.tobytes())
    buffer = io.BytesIO()
    fresh.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY, optimize=True)
    return buffer.getvalue()
