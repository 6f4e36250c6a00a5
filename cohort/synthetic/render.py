"""Pixels: a lesion on its patient's skin, as an encoded picture."""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cohort.synthetic.appearance import Appearance
from cohort.synthetic.colour import BLOOD, WARM_MELANIN, tint
from cohort.synthetic.lesions import Lesion
from cohort.synthetic.outline import Outline, draw_outline
from cohort.synthetic.phenotype import Patient
from cohort.synthetic.settings import SyntheticSettings
from cohort.synthetic.structures import add_structures
from cohort.synthetic.texture import Plane, curve, grid, smooth_noise, strokes


def render(
    patient: Patient,
    lesion: Lesion,
    look: Appearance,
    rng: np.random.Generator,
    image_px: int,
    settings: SyntheticSettings,
) -> bytes:
    """Return the lesion's picture as JPEG bytes, image_px square."""
    view = settings.field_of_view_mm
    outline = draw_outline(look, rng, image_px, view)
    density = _skin(patient, look, rng, image_px)
    add_structures(density, lesion, look, outline, patient.pattern, rng, view)
    _add_halo(density, lesion, outline, rng)
    picture = np.exp(-density)
    _add_hairs(picture, patient, rng)
    _light(picture, patient, rng)
    return _encode(picture, settings.jpeg_quality)


def _skin(
    patient: Patient, look: Appearance, rng: np.random.Generator, px: int
) -> NDArray[np.float32]:
    """Return the (3, px, px) optical density of the patient's bare skin."""
    age = (patient.age_years - 18) / 74.0
    mottle = smooth_noise(rng, px, 4)
    freckles = np.maximum(smooth_noise(rng, px, 9) - 1.1, 0.0)
    pigment = 0.02 * mottle + (0.03 + 0.11 * patient.sun) * freckles
    pigment += (0.008 + 0.022 * age) * _creases(rng, px)
    fine = smooth_noise(rng, px, px // 3)
    blood = 0.03 * smooth_noise(rng, px, 3) + 0.012 * fine
    grain = 0.012 * rng.standard_normal((px, px), dtype=np.float32)
    density = tint(WARM_MELANIN, pigment) + tint(BLOOD, blood)
    density += grain + look.skin.astype(np.float32)[:, None, None]
    return density


def _creases(rng: np.random.Generator, px: int) -> Plane:
    """Return the criss-cross of skin lines, about 0 with unit amplitude."""
    x, y = grid(px)
    angle = rng.uniform(0.0, math.pi)
    along = math.cos(angle) * x + math.sin(angle) * y
    across = math.cos(angle + 1.2) * x + math.sin(angle + 1.2) * y
    bend = 0.5 * smooth_noise(rng, px, 5)
    return np.sin(22.0 * along + bend) + np.sin(19.0 * across + bend)


def _add_halo(
    density: NDArray[np.float32], lesion: Lesion, outline: Outline, rng: np.random.Generator
) -> None:
    """Add redness around the lesion: rarely much on a naevus, more on what is irritated."""
    mean = 0.10 if lesion.malignant or lesion.label == "seborrheic_keratosis" else 0.04
    amount = min(rng.exponential(mean), 0.3)
    ring = np.exp(-np.maximum(outline.distance - 1.0, 0.0) * 2.2) * (1.0 - outline.mask)
    density += tint(amount * BLOOD, ring)


def _add_hairs(picture: NDArray[np.float32], patient: Patient, rng: np.random.Generator) -> None:
    count = int(rng.poisson(1.3 if patient.sex == "male" else 0.4))
    if count == 0:
        return
    px = picture.shape[-1]
    paths = [curve(rng, rng.uniform(-1.0, 1.0, 2), rng.uniform(0.7, 2.0)) for _ in range(count)]
    widths = [float(width) for width in rng.uniform(0.5, 1.1, count) * px / 64.0]
    cover = strokes(px, paths, widths) * np.float32(rng.uniform(0.35, 0.8))
    dark = 0.12 if patient.skin_type > 1 else 0.28
    picture += cover * (np.float32(dark) - picture)


def _light(picture: NDArray[np.float32], patient: Patient, rng: np.random.Generator) -> None:
    """Apply exposure, a lighting gradient, the lens's darker corners and the camera's gains."""
    x, y = grid(picture.shape[-1])
    right, down = rng.normal(0.0, 0.04, 2).tolist()
    gain = 1.0 + right * x + down * y - rng.uniform(0.03, 0.10) * (x * x + y * y)
    exposure = math.exp(rng.normal(0.0, 0.035))
    picture *= tint(exposure * (patient.camera + rng.normal(0.0, 0.008, 3)), gain)


def _encode(picture: NDArray[np.float32], quality: int) -> bytes:
    pixels = np.clip(picture.transpose(1, 2, 0) * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
