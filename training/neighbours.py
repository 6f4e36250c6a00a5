"""Metadata extrapolated from visually similar lesions, for every row of a cohort.

The same vote as in service (`index.extrapolation`), with the same exclusion: never the lesion's or
the patient's own records.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bundle.calibration import Extrapolation
from bundle.encoder import unit_norm
from bundle.fields import FieldSchema, Record
from index.catalogue import Hit
from index.extrapolation import extrapolate
from training.config import FitSettings
from training.data import Rows

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


# Rows that are compared with every reference lesion at once.
BLOCK = 1024


class Neighbours:
    """The lesions of some rows as a reference for others' missing metadata."""

    def __init__(self, rows: Rows, embeddings: FloatArray) -> None:
        """Keep one vector a lesion, the mean over its images, as the catalogue does.

        Args:
            rows: the reference rows.
            embeddings: (N, D) float32 image features of the rows.
        """
        _, first, inverse = np.unique(rows.lesion, return_index=True, return_inverse=True)
        sums = np.zeros((len(first), embeddings.shape[1]), np.float64)
        np.add.at(sums, inverse, embeddings)
        means = sums / np.bincount(inverse)[:, None]
        self.directions = unit_norm(means.astype(np.float32))
        self.rows = rows.take(first)
        self.group = np.array(self.rows.group_id)

    def search(self, rows: Rows, embeddings: FloatArray, count: int) -> tuple[FloatArray, IntArray]:
        """Return (N, K) float32 similarities and (N, K) int64 reference positions, best first.

        Of the `count` nearest lesions, or all if there are fewer, the nearest of each group stays,
        as `extrapolate` asks; the row's own group is left out. The places of those left out come
        last, with a similarity of -inf.
        """
        blocks = [
            self._search(rows.take(block), embeddings[block], count)
            for block in np.split(np.arange(len(rows)), range(BLOCK, len(rows), BLOCK))
        ]
        scores, nearest = zip(*blocks, strict=True)
        return np.concatenate(scores), np.concatenate(nearest)

    def _search(
        self, rows: Rows, embeddings: FloatArray, count: int
    ) -> tuple[FloatArray, IntArray]:
        similarities = unit_norm(embeddings) @ self.directions.T
        own = np.array(rows.group_id)[:, None] == self.group[None, :]
        similarities[own] = -np.inf
        count = min(count, similarities.shape[1])
        nearest = np.argpartition(-similarities, count - 1, axis=1)[:, :count]
        scores = np.take_along_axis(similarities, nearest, axis=1)
        scores, nearest = _best_first(scores, nearest)
        group = self.rows.patient[nearest]
        scores[np.tril(group[:, :, None] == group[:, None, :], -1).any(axis=2)] = -np.inf
        return _best_first(scores, nearest)

    def extrapolated(
        self,
        rows: Rows,
        embeddings: FloatArray,
        schema: FieldSchema,
        settings: Extrapolation,
    ) -> list[Record]:
        """Return N records made of neighbours' values alone; a field they leave open is missing."""
        records: list[Record] = []
        for scores, nearest in zip(
            *self.search(rows, embeddings, settings.neighbours), strict=True
        ):
            answers = extrapolate(self._hits(scores, nearest), schema.fields, settings)
            records.append({name: answer.value for name, answer in answers.items()})
        return records

    def _hits(self, scores: FloatArray, nearest: IntArray) -> Sequence[Hit]:
        return [
            Hit(
                lesion_id=self.rows.lesion_id[i],
                score=float(score),
                label=None,
                malignant=None,
                record=self.rows.records[i],
                source="train",
                patient_id=None,
                has_thumbnail=False,
            )
            for score, i in zip(scores, nearest, strict=True)
            if np.isfinite(score)
        ]


def _best_first(scores: FloatArray, nearest: IntArray) -> tuple[FloatArray, IntArray]:
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(nearest, order, axis=1)


def fit_extrapolation(scores: FloatArray, settings: FitSettings) -> Extrapolation:
    """Return when neighbours may speak, so that all but the farthest calibration lesions get heard.

    Args:
        scores: (N, K) float32 similarities of calibration lesions, which no encoder saw, to their
            nearest reference lesions, as `Neighbours.search` gives them.
        settings: how many are asked, and how much they must agree.
    """
    reach = scores[:, min(settings.neighbours_support, scores.shape[1]) - 1]
    reach = reach[np.isfinite(reach)]
    farthest = float(np.quantile(reach, settings.neighbours_too_far)) if reach.size else -1.0
    return Extrapolation(
        neighbours=settings.neighbours,
        min_support=settings.neighbours_support,
        min_agreement=settings.neighbours_agreement,
        min_similarity=max(-1.0, farthest),
        weighting=settings.neighbours_weighting,
    )
