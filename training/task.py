"""What is asked of features: rows whose labels may be learned from, and rows to answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from bundle.errors import TrainingError
from training.data import Rows
from training.resampling import SAMPLES
from training.scores import Raw, Truth, find_truth

IntArray = npt.NDArray[np.int64]
PER_LABEL = (1, 5, 10, 50)
SHARES = (0.01, 0.1)


@dataclass(frozen=True, eq=False)
class Side:
    """What is known of the N rows of one side.

    Attributes:
        label: (N,) int64 position in the task's labels, -1 where there is none.
        malignant: (N,) int64, 1, 0, or -1 where it is not known.
        lesion: N lesion ids.
        group: N patients (or lesions).
    """

    label: IntArray
    malignant: IntArray
    lesion: Sequence[str]
    group: Sequence[str]

    def __post_init__(self) -> None:
        lengths = {len(part) for part in (self.label, self.malignant, self.lesion, self.group)}
        if len(lengths) > 1:
            raise TrainingError(f"expected one entry a row, got columns of {sorted(lengths)} rows")

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def of(cls, rows: Rows) -> "Side":
        return cls(rows.label, rows.malignant, rows.lesion_id, rows.group_id)

    def take(self, chosen: IntArray) -> "Side":
        """Return some rows; `chosen` is (M,) positions."""
        return Side(
            self.label[chosen],
            self.malignant[chosen],
            [self.lesion[i] for i in chosen.tolist()],
            [self.group[i] for i in chosen.tolist()],
        )


@dataclass(frozen=True, eq=False)
class Task:
    """One question to any number of encoders; what one task draws is the same for all of them.

    Attributes:
        labels: the C labels.
        malignant_labels: those that count as malignant.
        reference: rows with labels to learn from, the train split.
        query: rows to answer, of other groups.
        samples: resamplings of the query groups.
        draws: of few labelled rows, for each size.
        per_label: sizes of those draws, labelled images a label.
        shares: sizes of those draws, shares of the reference groups.
        seed: of resampling and draws.
        refused: why nothing may be measured, known beforehand: labels that are not the task's look
            like none here.
    """

    labels: tuple[str, ...]
    malignant_labels: tuple[str, ...]
    reference: Side
    query: Side
    samples: int = SAMPLES
    draws: int = 5
    per_label: tuple[int, ...] = PER_LABEL
    shares: tuple[float, ...] = SHARES
    seed: int = 0
    refused: str | None = None

    @cached_property
    def truth(self) -> Truth:
        """What is known of the queries."""
        malignant = np.isin(self.labels, self.malignant_labels)
        names = [None if i < 0 else self.labels[i] for i in self.query.label]
        return find_truth(
            Raw(names, self.query.malignant, list(self.query.group)),
            own=self.labels,
            labels=self.labels,
            malignant=malignant,
            # Probes weigh all labels alike: their likeliest label is the balanced decision.
            prior=np.ones(len(self.labels), np.float32),
            samples=self.samples,
            seed=self.seed,
        )

    @cached_property
    def problem(self) -> str | None:
        """Why nothing can be measured, None where it can."""
        if self.refused is not None:
            return self.refused
        if len(np.unique(self.reference.label[self.reference.label >= 0])) < 2:
            return "the train split holds fewer than two labels"
        if isinstance(self.truth.labelled, str):
            return self.truth.labelled
        return None
