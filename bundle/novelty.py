"""Is this picture of a kind the model has seen: distance of an embedding to the training lesions.

The score is a Mahalanobis distance to the nearest label's mean in the leading principal components,
plus the part of the embedding that those components do not explain (Lee et al., 2018,
arXiv 1807.03888; the residual as in Wang et al., 2022, arXiv 2203.10807). Fitting and thresholds
belong to training; the threshold is fitted on lesions that no encoder saw.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from bundle.arrays import ArrayModel
from bundle.errors import CorruptBundle

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class NoveltyModel(ArrayModel):
    """What the training lesions' embeddings look like.

    Attributes:
        centre: (D,) float32, mean embedding.
        components: (R, D) float32, orthonormal directions.
        scales: (R,) float32, within-label standard deviation along each direction.
        label_means: (C, R) float32, label means in those directions, divided by `scales`.
        residual_scale: (1,) float32, root mean square of what the components leave unexplained.
    """

    FILE: ClassVar[str] = "novelty.npz"

    centre: FloatArray
    components: FloatArray
    scales: FloatArray
    label_means: FloatArray
    residual_scale: FloatArray

    def score(self, embeddings: FloatArray) -> FloatArray:
        """Return (N,) float32 novelty, 0 and up; about 1 for a training lesion.

        Args:
            embeddings: (N, D) float32, the image encoder's features, not normalised.
        """
        centred = embeddings - self.centre
        projected = centred @ self.components.T
        leftover = centred - projected @ self.components
        residual = np.mean(leftover**2, axis=1) / self.residual_scale[0] ** 2
        whitened = projected / self.scales
        gaps = whitened[:, None, :] - self.label_means[None, :, :]
        nearest = np.mean(gaps**2, axis=2).min(axis=1)
        score: FloatArray = np.sqrt((nearest + residual) / 2).astype(np.float32)
        return score

    def shapes(self) -> dict[str, tuple[int, ...]] | None:
        (dim, rank, labels) = (self.centre.size, self.scales.size, len(self.label_means))
        if labels == 0:
            return None
        return {
            "centre": (dim,),
            "components": (rank, dim),
            "scales": (rank,),
            "label_means": (labels, rank),
            "residual_scale": (1,),
        }

    def check_values(self) -> None:
        if (self.scales <= 0).any() or self.residual_scale[0] <= 0:
            raise CorruptBundle(f"{self.FILE}: expected scales above 0")
