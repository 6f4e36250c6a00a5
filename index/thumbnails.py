"""A lesion's small picture, made from the pixels and nothing else."""

import io

from PIL import Image

THUMBNAIL_PX = 192
THUMBNAIL_QUALITY = 85
# As in `bundle/images.py`; for the eye alone, so that less will do.
REDUCING_GAP = 2.0


def make_thumbnail(image: Image.Image) -> bytes:
    """Return a JPEG of at most 192 px a side, made from the pixels and nothing else."""
    scale = min(1, THUMBNAIL_PX / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP)
    fresh = Image.frombytes("RGB", small.size, small.tobytes())
    buffer = io.BytesIO()
    fresh.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY, optimize=True)
    return buffer.getvalue()
