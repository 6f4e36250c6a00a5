"""The plain look of a picture, and whether it is that of the training pictures."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFilter
from scipy.stats import multivariate_normal

from bundle.appearance import LENGTH, AppearanceModel, describe_appearance
from bundle.errors import CorruptBundle

FloatArray = npt.NDArray[np.float32]
FREQUENCIES = slice(9, 27)


def picture(seed: int, side: tuple[int, int] = (96, 80)) -> Image.Image:
    """Return soft noise with a dark spot in its middle."""
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(60, 220, (*side, 3), np.uint8))
    soft = noise.filter(ImageFilter.GaussianBlur(3))
    soft.paste((70, 40, 30), (30, 35, 50, 60))
    return soft


def make_model() -> AppearanceModel:
    rng = np.random.default_rng(3)
    count = 2
    upper = np.triu(rng.normal(0, 0.1, (count, LENGTH, LENGTH)), 1)
    diagonal = np.eye(LENGTH) * rng.uniform(0.5, 2, (count, 1, LENGTH))
    return AppearanceModel(
        centre=rng.normal(size=LENGTH).astype(np.float32),
        scale=rng.uniform(0.5, 2, LENGTH).astype(np.float32),
        weights=np.asarray([0.3, 0.7], np.float32),
        means=rng.normal(size=(count, LENGTH)).astype(np.float32),
        whitening=(upper + diagonal).astype(np.float32),
    )


MODEL = make_model()


def test_a_picture_has_one_row_of_finite_numbers() -> None:
    described = describe_appearance(picture(0))
    assert described.shape == (LENGTH,)
    assert described.dtype == np.float32
    assert np.isfinite(describe_appearance(Image.new("RGB", (1, 1)))).all()


def test_colours_are_means_of_the_centre_square() -> None:
    wide = Image.new("RGB", (300, 100), (10, 250, 250))
    wide.paste((204, 102, 51), (100, 0, 200, 100))
    light, red_green, yellow_blue = describe_appearance(wide)[:3]
    assert light == pytest.approx((0.8 + 0.4 + 0.2) / 3, abs=0.02)
    assert red_green == pytest.approx(0.4, abs=0.02)
    assert yellow_blue == pytest.approx(0.4, abs=0.02)


def test_a_dark_rim_is_a_fall_of_light() -> None:
    around = np.hypot(*(np.mgrid[-1:1:200j, -1:1:200j]))
    plane = np.where(around < 0.9, 200, 20).astype(np.uint8)
    vignetted = Image.fromarray(np.stack([plane] * 3, -1))
    assert describe_appearance(vignetted)[6] > 0.3
    assert describe_appearance(Image.new("RGB", (200, 200), (200, 200, 200)))[6] < 1e-4


def test_a_wave_has_power_at_its_own_fineness_alone() -> None:
    # Twelve waves across: the fourth ring, 8 to 16.
    wave = 128 + 60 * np.sin(np.arange(640) / 640 * 2 * np.pi * 12)
    plane = np.broadcast_to(wave, (640, 640)).astype(np.uint8)
    light = describe_appearance(Image.fromarray(np.stack([plane] * 3, -1)))[FREQUENCIES][:6]
    assert light.argmax() == 3
    assert light[3] - np.delete(light, 3).max() > np.log(100)


def test_resolution_and_direction_hardly_count() -> None:
    own = describe_appearance(picture(1, (256, 256)))
    large = picture(1, (256, 256)).resize((768, 768), Image.Resampling.BICUBIC)
    turned = picture(1, (256, 256)).transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_allclose(describe_appearance(large), own, atol=0.1)
    np.testing.assert_allclose(describe_appearance(turned), own, atol=0.1)


def test_the_score_is_the_mixtures_negative_log_density_by_measurement() -> None:
    described = np.random.default_rng(5).normal(size=(7, LENGTH)).astype(np.float32)
    standard = (described - MODEL.centre) / MODEL.scale
    densities = []
    for weight, mean, whitening in zip(MODEL.weights, MODEL.means, MODEL.whitening, strict=True):
        precision = whitening.astype(np.float64) @ whitening.astype(np.float64).T
        normal = multivariate_normal(mean, np.linalg.inv(precision))
        densities.append(np.log(weight) + normal.logpdf(standard))
    expected = -np.logaddexp(*densities) / LENGTH
    scores = MODEL.score(described)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert MODEL.score(np.zeros((0, LENGTH), np.float32)).shape == (0,)


def test_a_model_comes_back_from_its_bytes() -> None:
    again = AppearanceModel.from_bytes(MODEL.to_bytes())
    for field in fields(AppearanceModel):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(MODEL, field.name))


@pytest.mark.parametrize("name", [field.name for field in fields(AppearanceModel)])
def test_a_number_that_is_not_finite_is_refused(name: str) -> None:
    broken = getattr(MODEL, name).copy()
    broken.flat[0] = np.nan
    with pytest.raises(CorruptBundle, match=r"^appearance\.npz: expected finite float32 arrays$"):
        AppearanceModel.from_bytes(replace(MODEL, **{name: broken}).to_bytes())


@pytest.mark.parametrize(
    "change",
    [
        {"centre": np.zeros(LENGTH + 1, np.float32)},
        {"scale": np.ones((1, LENGTH), np.float32)},
        {"weights": np.ones(3, np.float32)},
        {"weights": np.ones(0, np.float32)},
        {"means": np.zeros((LENGTH, 2), np.float32)},
        {"whitening": np.ones((2, LENGTH), np.float32)},
    ],
)
def test_shapes_that_do_not_fit_together_are_refused(change: dict[str, FloatArray]) -> None:
    with pytest.raises(CorruptBundle, match=r"^appearance\.npz: the arrays' shapes do not fit"):
        AppearanceModel.from_bytes(replace(MODEL, **change).to_bytes())


@pytest.mark.parametrize("name", ["scale", "weights", "whitening"])
def test_a_scale_that_divides_by_nothing_is_refused(name: str) -> None:
    broken: Any = getattr(MODEL, name).copy()
    broken.flat[0] = 0
    with pytest.raises(CorruptBundle, match=r"^appearance\.npz: expected scales and weights above"):
        AppearanceModel.from_bytes(replace(MODEL, **{name: broken}).to_bytes())
