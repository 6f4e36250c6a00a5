"""Is this picture good enough to be judged: plain measurements and the thresholds on them.

The thresholds are fitted on calibration groups and live in `calibration.json`.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

MEASURE_PX = 128
# As in `bundle/images.py`; wider, because sharpness feels an average of pixels (by 0.5 % at 12 MP).
REDUCING_GAP = 6.0


class QualityThresholds(BaseModel):
    """Bounds outside which a picture is not assessable. Brightness and contrast are in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_side_px: int = Field(ge=1)
    sharpness_min: float
    brightness_min: float
    brightness_max: float
    contrast_min: float


def measure_quality(image: Image.Image) -> dict[str, float]:
    """Return the picture's measurements, at one working size so that they compare.

    Returns:
        min_side_px: the shorter side as sent. sharpness: standard deviation of the Laplacian of
        the luma (0 = flat). brightness: mean luma. contrast: standard deviation of the luma.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert("L").crop((left, top, left + side, top + side))
    small = square.resize(
        (MEASURE_PX, MEASURE_PX), Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP
    )
    # Whole numbers as long as they are exact: a quarter of the bytes to move.
    luma = np.asarray(small, np.int16)
    return {
        "min_side_px": float(side),
        "sharpness": float(_laplacian(luma).std()) / 255,
        "brightness": float(luma.mean()) / 255,
        "contrast": float(luma.std()) / 255,
    }


def _laplacian(luma: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    centre = luma[1:-1, 1:-1]
    return luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * centre


def quality_reasons(scores: dict[str, float], thresholds: QualityThresholds) -> list[str]:
    """Return why the picture is not assessable: stable reason codes, empty when it is."""
    checks = {
        "too_small": scores["min_side_px"] < thresholds.min_side_px,
        "blurred": scores["sharpness"] < thresholds.sharpness_min,
        "too_dark": scores["brightness"] < thresholds.brightness_min,
        "too_bright": scores["brightness"] > thresholds.brightness_max,
        "no_contrast": scores["contrast"] < thresholds.contrast_min,
    }
    return [reason for reason, failed in checks.items() if failed]
