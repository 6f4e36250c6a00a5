"""Measurements of a picture and the thresholds on them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from bundle.quality import MEASURE_PX, QualityThresholds, measure_quality, quality_reasons

THRESHOLDS = QualityThresholds(
    min_side_px=32, sharpness_min=0.05, brightness_min=0.2, brightness_max=0.8, contrast_min=0.1
)
GOOD = {"min_side_px": 32.0, "sharpness": 0.05, "brightness": 0.5, "contrast": 0.1}


def grey(pixels: list[list[int]] | np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> Image.Image:
    return Image.fromarray(np.asarray(pixels, np.uint8)).convert("RGB")


def test_a_flat_picture_has_its_brightness_and_nothing_else() -> None:
    scores = measure_quality(Image.new("RGB", (200, 90), (51, 51, 51)))
    assert scores == {
        "min_side_px": 90.0,
        "sharpness": 0.0,
        "brightness": pytest.approx(0.2),
        "contrast": pytest.approx(0.0, abs=1e-12),
    }


def test_measurements_at_the_working_size_agree_with_the_slow_oracle() -> None:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (MEASURE_PX, MEASURE_PX), np.uint8)
    scores = measure_quality(grey(pixels))
    luma = [[float(v) / 255 for v in row] for row in pixels]
    edges = [
        luma[y - 1][x] + luma[y + 1][x] + luma[y][x - 1] + luma[y][x + 1] - 4 * luma[y][x]
        for y in range(1, MEASURE_PX - 1)
        for x in range(1, MEASURE_PX - 1)
    ]
    everything = [v for row in luma for v in row]

    def spread(values: list[float]) -> float:
        mean = math.fsum(values) / len(values)
        return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))

    assert scores["sharpness"] == pytest.approx(spread(edges))
    assert scores["brightness"] == pytest.approx(math.fsum(everything) / len(everything))
    assert scores["contrast"] == pytest.approx(spread(everything))


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (101, 300)])
def test_only_the_centre_square_is_measured(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "white")
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    image.paste(Image.new("RGB", (side, side), "black"), (left, top))
    scores = measure_quality(image)
    assert scores["brightness"] == 0
    assert scores["min_side_px"] == side


@pytest.mark.parametrize(
    ("colour", "luma"), [((255, 0, 0), 0.299), ((0, 255, 0), 0.587), ((0, 0, 255), 0.114)]
)
def test_brightness_is_luma_as_the_eye_weighs_it(colour: tuple[int, int, int], luma: float) -> None:
    scores = measure_quality(Image.new("RGB", (40, 40), colour))
    assert scores["brightness"] == pytest.approx(luma, abs=1 / 255)


def test_a_blurred_picture_is_less_sharp_than_the_same_in_focus() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), np.uint8)
    image = grey(noise)
    soft = image.resize((16, 16)).resize((128, 128))
    assert measure_quality(soft)["sharpness"] < measure_quality(image)["sharpness"] / 10


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 3)])
def test_the_smallest_pictures_are_measured(size: tuple[int, int]) -> None:
    scores = measure_quality(Image.new("RGB", size, "white"))
    assert scores["min_side_px"] == min(size)
    assert scores["brightness"] == 1


def test_a_picture_on_every_threshold_is_assessable() -> None:
    assert quality_reasons(GOOD, THRESHOLDS) == []
    for brightness in (0.2, 0.8):
        assert quality_reasons({**GOOD, "brightness": brightness}, THRESHOLDS) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"min_side_px": 31.0}, "too_small"),
        ({"sharpness": 0.0499}, "blurred"),
        ({"brightness": 0.1999}, "too_dark"),
        ({"brightness": 0.8001}, "too_bright"),
        ({"contrast": 0.0999}, "no_contrast"),
    ],
)
def test_each_threshold_gives_its_own_reason(change: dict[str, float], reason: str) -> None:
    assert quality_reasons({**GOOD, **change}, THRESHOLDS) == [reason]


def test_several_reasons_come_in_one_order() -> None:
    worst = {"min_side_px": 1.0, "sharpness": 0.0, "brightness": 0.0, "contrast": 0.0}
    expected = ["too_small", "blurred", "too_dark", "no_contrast"]
    assert quality_reasons(worst, THRESHOLDS) == expected


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
def test_shares_stay_between_0_and_1(width: int, height: int, level: int) -> None:
    scores = measure_quality(Image.new("RGB", (width, height), (level, level, level)))
    assert 0 <= scores["brightness"] <= 1
    assert scores["brightness"] == pytest.approx(level / 255)


def test_a_threshold_that_would_pass_everything_is_refused() -> None:
    with pytest.raises(ValidationError, match="finite"):
        THRESHOLDS.model_validate({**THRESHOLDS.model_dump(), "brightness_min": math.nan})
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        THRESHOLDS.model_validate({**THRESHOLDS.model_dump(), "min_side_px": 0})


def test_a_large_picture_measures_as_if_all_its_pixels_went_through_the_filter() -> None:
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (40, 40), np.uint8))
    image = coarse.resize((3000, 2400), Image.Resampling.BICUBIC).convert("RGB")
    square = image.convert("L").crop((300, 0, 2700, 2400))
    small = square.resize((MEASURE_PX, MEASURE_PX), Image.Resampling.BICUBIC)
    exact = measure_quality(small.convert("RGB"))
    scores = measure_quality(image)
    assert scores["min_side_px"] == 2400
    for name in ("sharpness", "brightness", "contrast"):
        assert scores[name] == pytest.approx(exact[name], rel=0.01)
