"""Is this picture of a kind the model has seen, by its plain look: colours and fineness.

An encoder that was trained to tell labels apart forgets what does not tell them, and with it what
tells a telephone's picture, or a drawing, from a dermatoscope's. What a camera and its light leave
in every picture is measured here beside it (colour means and spreads, the light's fall towards the
rim, the power at each fineness: Torralba and Oliva, 2003, Network 14:391), at a size so small that
neither the file's resolution nor its compression counts for much. A mixture of Gaussians says how
likely such measurements are among the training pictures.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from bundle.arrays import ArrayModel
from bundle.errors import CorruptBundle
from bundle.images import ImageInput, resize_image
from bundle.quality import REDUCING_GAP

FloatArray = npt.NDArray[np.float32]

SIDE_PX = 64
SQUARE = ImageInput(size_px=SIDE_PX, resize_px=SIDE_PX)
# Of rings of spatial frequency, in cycles across the picture; the last reaches into the corners.
FINENESS = (1, 2, 4, 8, 16, 24, 46)
# Radii in sides: the middle, and what lies beyond the rim.
MIDDLE, RIM = 0.25, 0.45
# Of the light, where its percentiles lie in a sorted picture.
PERCENTILES = (5, 50, 95)
PLACES = np.array(PERCENTILES) / 100 * (SIDE_PX**2 - 1)
PLANES = np.array([[1 / 3, 1 / 3, 1 / 3], [1, -1, 0], [0.5, 0.5, -1]], np.float32)
# Below this power there is only the noise of the file.
FLOOR = 1e-6
LENGTH = 3 * (3 + len(FINENESS) - 1) + len(PERCENTILES)


def describe_appearance(image: Image.Image) -> FloatArray:
    """Return (F,) float32 measurements of the picture's centre square, F = `LENGTH`.

    Args:
        image: RGB, as `bundle.images.decode_image` returns it.
    """
    small = resize_image(image, SQUARE, reducing_gap=REDUCING_GAP)
    # Light, and the two differences of colours that do not change with it: (3, SIDE_PX ** 2).
    planes = PLANES @ (small.reshape(-1, 3).T.astype(np.float32) / 255)
    means = planes.mean(1)
    planes -= means[:, None]
    rings, fall = _weights()
    spectrum = np.abs(np.fft.rfft2(planes.reshape(3, SIDE_PX, SIDE_PX))) ** 2 / SIDE_PX**2
    power = spectrum.reshape(3, -1) @ rings
    described = [
        means,
        np.log(np.sqrt(np.einsum("cn,cn->c", planes, planes) / SIDE_PX**2) + 1e-3),
        planes @ fall,
        np.log(power + FLOOR).ravel(),
        means[0] + np.interp(PLACES, np.arange(SIDE_PX**2), np.sort(planes[0])),
    ]
    return np.concatenate(described).astype(np.float32)


@cache
def _weights() -> tuple[FloatArray, FloatArray]:
    """Return what makes ring means of half a spectrum, and middle less rim of a picture."""
    down, across = np.fft.fftfreq(SIDE_PX) * SIDE_PX, np.arange(SIDE_PX // 2 + 1)
    frequency = np.hypot(down[:, None], across[None]).ravel()
    # A real picture's other half is this one's mirror image, but for the first and last column.
    times = np.broadcast_to(np.where(across % (SIDE_PX // 2), 2, 1), (SIDE_PX, len(across))).ravel()
    rings = [times * ((frequency >= low) & (frequency < high)) for low, high in pairwise(FINENESS)]
    place = (np.arange(SIDE_PX) + 0.5) / SIDE_PX - 0.5
    radius = np.hypot(place[:, None], place[None]).ravel()
    middle, rim = radius < MIDDLE, radius > RIM
    fall = middle / middle.sum() - rim / rim.sum()
    return np.stack([r / r.sum() for r in rings], 1).astype(np.float32), fall.astype(np.float32)


@dataclass(frozen=True)
class AppearanceModel(ArrayModel):
    """What the training pictures' measurements are like: a mixture of K Gaussians.

    Attributes:
        centre: (LENGTH,) float32, their mean.
        scale: (LENGTH,) float32, their standard deviation.
        weights: (K,) float32, above 0, summing to 1.
        means: (K, LENGTH) float32, in units of `scale` from `centre`.
        whitening: (K, LENGTH, LENGTH) float32, upper triangular: times a deviation from the mean it
            has unit covariance.
    """

    FILE: ClassVar[str] = "appearance.npz"

    centre: FloatArray
    scale: FloatArray
    weights: FloatArray
    means: FloatArray
    whitening: FloatArray

    def score(self, described: FloatArray) -> FloatArray:
        """Return (N,) float32: the negative log density by measurement, higher the less alike.

        Args:
            described: (N, LENGTH) float32 of `describe_appearance`.
        """
        standard = (described.astype(np.float64) - self.centre) / self.scale
        gaps = standard[:, None, :] - self.means[None]
        whitened = np.einsum("nkf,kfg->nkg", gaps, self.whitening)
        determinant = np.log(np.diagonal(self.whitening, axis1=1, axis2=2)).sum(1)
        each = np.log(self.weights) + determinant - (whitened**2).sum(2) / 2
        density = np.logaddexp.reduce(each, axis=1) - LENGTH * np.log(2 * np.pi) / 2
        score: FloatArray = (-density / LENGTH).astype(np.float32)
        return score

    def shapes(self) -> dict[str, tuple[int, ...]] | None:
        count = self.weights.size
        if count == 0:
            return None
        return {
            "centre": (LENGTH,),
            "scale": (LENGTH,),
            "weights": (count,),
            "means": (count, LENGTH),
            "whitening": (count, LENGTH, LENGTH),
        }

    def check_values(self) -> None:
        diagonal = np.diagonal(self.whitening, axis1=1, axis2=2)
        if min(self.scale.min(), self.weights.min(), diagonal.min()) <= 0:
            raise CorruptBundle(f"{self.FILE}: expected scales and weights above 0")
