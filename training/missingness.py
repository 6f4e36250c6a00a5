"""Which fields are missing must not say what the lesion is.

In many cohorts the record of a lesion that worried nobody was never filled in: what is missing then
tells the label, and a classifier that learns it answers for how the clinic keeps its files. Here
patterns of missing fields are drawn from all rows alike, laid over rows that have the fields, and
the loss is weighted so that no label goes with a pattern (reweighing, Kamiran and Calders, 2012).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bundle.fields import Field, FieldSchema, Record

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
# Rarer patterns than the most frequent ones are left as they are.
MOST_PATTERNS = 32
# One row shall not outweigh a batch.
MOST_WEIGHT = 10.0


def presence(records: Sequence[Record], fields: Sequence[Field]) -> BoolArray:
    """Return (N, F) bool: which fields N records have."""
    shape = (len(records), len(fields))
    flags = [[record.get(field.name) is not None for field in fields] for record in records]
    return np.array(flags, np.bool_).reshape(shape)


def balance_lesions(
    records: Sequence[Record],
    schema: FieldSchema,
    patient: IntArray,
    malignant: BoolArray,
    rng: np.random.Generator,
) -> tuple[list[Record], FloatArray]:
    """Return records whose missing fields do not tell which lesions, or patients, have cancer.

    Lesion fields are hidden lesion by lesion; patient fields for all of a patient's lesions at
    once, so that no patient with a malignant lesion is known by them.

    Args:
        records: of N lesions.
        schema: the fields.
        patient: (N,) int64.
        malignant: (N,) bool.
        rng: where the draws come from.

    Returns:
        N records and (N,) float32 weights of the loss.
    """
    _, first, number = np.unique(patient, return_index=True, return_inverse=True)
    afflicted = np.bincount(number, weights=malignant) > 0
    everyone = np.arange(len(records))
    shown: list[Record] = [{} for _ in records]
    weight = np.ones(len(records), np.float32)
    for fields, rows, of_row, label in (
        (schema.at("lesion"), everyone, everyone, malignant),
        (schema.at("patient"), first, number, afflicted),
    ):
        present = presence([records[i] for i in rows], fields)
        balance = PatternBalance(present, label.astype(np.int64))
        kept, own = balance.draw(np.arange(len(rows)), rng)
        weight *= own[of_row]
        for record, whole, flags in zip(shown, records, kept[of_row], strict=True):
            record |= {
                f.name: whole[f.name] for f, is_kept in zip(fields, flags, strict=True) if is_kept
            }
    return shown, weight.clip(max=MOST_WEIGHT)


class PatternBalance:
    """Draws patterns of missing fields that go with no label.

    Row i may show pattern m if it has every field that m has. It draws among those by their share
    of all rows; the weight of (label, pattern) is that share over what the label's rows draw.
    A label none of whose rows can show a pattern keeps that gap: nothing can be known there.
    """

    def __init__(self, present: BoolArray, label: IntArray) -> None:
        """Count patterns.

        Args:
            present: (N, F) bool, the fields each row has.
            label: (N,) int64, 0 or more.
        """
        patterns, count = np.unique(present, axis=0, return_counts=True)
        kept = np.argsort(-count, kind="stable")[:MOST_PATTERNS]
        self.present, self.label = present, label
        self.patterns = patterns[kept]
        share = count[kept] / count[kept].sum()
        lacking = ~present.astype(np.bool_)
        can_show = (lacking.astype(np.int64) @ self.patterns.T.astype(np.int64)) == 0
        chances = can_show * share
        total = chances.sum(1, keepdims=True)
        self.chances = np.divide(chances, total, out=np.zeros_like(chances), where=total > 0)
        self.weights = np.ones((label.max() + 1, len(share)))
        for known in np.unique(label):
            own = self.chances[label == known].mean(0)
            weights = np.divide(share, own, out=np.ones_like(share), where=own > 0)
            self.weights[known] = weights.clip(max=MOST_WEIGHT)

    def draw(self, index: IntArray, rng: np.random.Generator) -> tuple[BoolArray, FloatArray]:
        """Return (M, F) bool fields that are shown and (M,) float32 weights of the loss.

        A row that can show none of the patterns keeps its own, with weight 1.

        Args:
            index: (M,) int64 rows.
            rng: where the draws come from.
        """
        reached = self.chances[index].cumsum(1)
        place = (reached < rng.random(len(index))[:, None]).sum(1).clip(max=len(self.patterns) - 1)
        can = reached[:, -1] > 0
        shown = np.where(can[:, None], self.patterns[place], self.present[index])
        weight = np.where(can, self.weights[self.label[index], place], 1)
        return shown, weight.astype(np.float32)
