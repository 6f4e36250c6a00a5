"""What changes between photographs of one lesion is no difference: the embedding's metric.

Features are centred and mapped so that the spread between pictures of one lesion is the same in
all directions: relevant component analysis (Bar-Hillel et al., 2005, JMLR 6:937). No label is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.covariance import ledoit_wolf

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Whitening:
    """An affine map of features: (feature - centre) @ basis.

    Attributes:
        centre: (D,) float32, the mean feature.
        basis: (D, D) float32, symmetric and invertible.
    """

    centre: FloatArray
    basis: FloatArray

    @classmethod
    def none(cls, width: int, centre: FloatArray | None = None) -> "Whitening":
        """Return the map that moves the centre alone, or nothing."""
        zero = np.zeros(width, np.float32)
        return cls(zero if centre is None else centre, np.eye(width, dtype=np.float32))

    def apply(self, features: FloatArray) -> FloatArray:
        """Return (N, D) float32."""
        mapped: FloatArray = ((features - self.centre) @ self.basis).astype(np.float32)
        return mapped


def fit_whitening(features: FloatArray, lesion: Sequence[str]) -> Whitening:
    """Return the map; with no lesion of several pictures it centres alone.

    Args:
        features: (N, D) float32.
        lesion: N lesion ids.
    """
    spread = spread_within(features, lesion)
    if spread is None:
        return Whitening.none(features.shape[1], features.mean(0, dtype=np.float64).astype("f4"))
    return even_out(features, spread)


def spread_within(features: FloatArray, lesion: Sequence[str]) -> npt.NDArray[np.float64] | None:
    """Return the (D, D) covariance between pictures of one lesion, None where none has several.

    It is shrunk towards a round one as far as the number of pictures asks for (Ledoit and Wolf,
    2004).

    Args:
        features: (N, D) float32.
        lesion: N lesion ids.
    """
    values = features - features.mean(0, dtype=np.float64)
    _, number, count = np.unique(
        np.array(lesion, dtype=str), return_inverse=True, return_counts=True
    )
    sums = np.zeros((len(count), values.shape[1]))
    np.add.at(sums, number, values)
    several = count[number] > 1
    # A mean over its own pictures is too near to them: undone by the degrees of freedom.
    freedom = np.sqrt(count / np.maximum(count - 1, 1))[number][:, None]
    within = ((values - (sums / count[:, None])[number]) * freedom)[several]
    if not within.any():
        return None
    spread: npt.NDArray[np.float64] = ledoit_wolf(within, assume_centered=True)[0]
    return spread


def even_out(
    features: FloatArray, spread: npt.NDArray[np.float64], power: float = 1.0
) -> Whitening:
    """Return the map in which a spread is the same in all directions, or nearer to it.

    Args:
        features: (N, D) float32, whose mean is the centre and whose mean variance the map keeps.
        spread: (D, D), positive semidefinite.
        power: 1 makes the spread round, 0 leaves it.
    """
    centre = features.mean(0, dtype=np.float64)
    values = features - centre
    variance, axes = np.linalg.eigh(spread)
    variance = np.maximum(variance, 1e-6 * variance.max())
    basis = (axes / variance ** (power / 2)) @ axes.T
    basis *= np.sqrt((values**2).mean() / ((values @ basis) ** 2).mean())
    return Whitening(centre.astype(np.float32), basis.astype(np.float32))
