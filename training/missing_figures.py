"""What missing fields give away: in the cohort, and in a model's answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.fields import Field, Record
from training.conditions import answer
from training.data import IntArray
from training.features import FloatArray
from training.fitted import FittedModel
from training.missingness import BoolArray, presence
from training.probes import probe
from training.resampling import Resampling, estimate, mean_of
from training.scores import Truth, headline, null


def indicators_alone(
    fields: Sequence[Field],
    train: Sequence[Record],
    train_label: IntArray,
    records: Sequence[Record],
    truth: Truth,
) -> dict[str, Any]:
    """Return the figures of a logistic regression that sees only which fields are missing.

    Args:
        fields: the fields that the model reads.
        train: the train split's records.
        train_label: their labels, -1 where there is none.
        records: the N evaluated records.
        truth: what is known of them.
    """
    if isinstance(truth.labelled, str):
        # What would be learned is the labels that both happen to have.
        return null(truth.labelled)
    known = train_label >= 0
    flags = presence(train, fields)[known]
    if not len(flags):
        return null("the cohort has no labelled train split beside the evaluated images")
    if not len(fields) or not (flags != flags[0]).any():
        return null("the train split's records all have the same fields")
    said = probe(
        flags.astype(np.float32),
        train_label[known],
        presence(records, fields).astype(np.float32),
        classes=len(truth.labels),
    )
    figures = headline(said, truth)
    return {name: figures[name] for name in ("macro_auroc", "malignant_auroc")}


def blanked(
    model: FittedModel,
    embeddings: FloatArray,
    records: Sequence[Record],
    fields: Sequence[Field],
    groups: Sequence[str],
    *,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Return how far malignancy moves when records are blanked to the commonest gaps.

    The pattern is the most frequent incomplete one; the rows are those that have all its fields and
    more. The mean change is what a gap says by itself; the mean of its size holds what the blanked
    values said, too.

    Args:
        model: the run or bundle.
        embeddings: (N, D) float32 image features.
        records: N canonical records.
        fields: the fields that the model reads.
        groups: N patients (or lesions).
        samples: resamplings of the groups.
        seed: of the resampling.
    """
    if not model.malignant.any():
        return null("the model has no malignant label")
    flags = presence(records, fields)
    pattern = _commonest_gap(flags)
    if pattern is None:
        return null("no record with gaps is here, or all have the same")
    rows = np.flatnonzero((flags >= pattern).all(1) & (flags > pattern).any(1))
    if not len(rows):
        return null("no record has more fields than the commonest one with gaps")
    kept = [field.name for field, stays in zip(fields, pattern, strict=True) if stays]
    whole = [records[i] for i in rows.tolist()]
    gaps: list[Record] = [{k: v for k, v in record.items() if k in kept} for record in whole]
    before, after = (
        answer(model, embeddings[rows], own, "given").probabilities[:, model.malignant].sum(1)
        for own in (whole, gaps)
    )
    resampling = Resampling([groups[i] for i in rows.tolist()], samples=samples, seed=seed)
    moved = after - before
    return {
        "missing": [field.name for field in fields if field.name not in kept],
        "images": len(rows),
        "images_with_these_gaps": int((flags == pattern).all(1).sum()),
        "mean_change": estimate(resampling.draws(mean_of(moved))),
        "mean_size_of_change": estimate(resampling.draws(mean_of(np.abs(moved)))),
    }


def _commonest_gap(flags: BoolArray) -> npt.NDArray[np.bool_] | None:
    """Return the (F,) most frequent pattern that lacks a field and has one, None without any."""
    partly = flags[flags.any(1) & ~flags.all(1)]
    if not len(partly):
        return None
    patterns, count = np.unique(partly, axis=0, return_counts=True)
    chosen: npt.NDArray[np.bool_] = patterns[count.argmax()]
    return chosen
