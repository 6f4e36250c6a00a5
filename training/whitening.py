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

    The spread within lesions is shrunk towards a round one as far as the number of pictures asks
    for (Ledoit and Wolf, 2004), and the map keeps the features' mean variance.

    Args:
        features: (N, D) float32.
        lesion: N lesion ids.
    """
    centre = features.mean(0, dtype=np.float64)
    values = features - centre
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
        return Whitening.none(values.shape[1], centre.astype(np.float32))
    spread, _ = ledoit_wolf(within, assume_centered=True)
    variance, axes = np.linalg.eigh(spread)
    basis = (axes / np.sqrt(np.maximum(variance, 1e-6 * variance.max()))) @ axes.T
    basis *= np.sqrt((values**2).mean() / ((values @ basis) ** 2).mean())
    return Whitening(centre.astype(np.float32), basis.astype(np.float32))
