"""Patient-wise batches: P patients, at most L images of each.

Every epoch shows every image once. A patient with many images is cut into random pieces of L, which
land in different batches: within one batch every patient is there once, so that the outer loss has
no false negatives by sampling. Where one patient has more pieces than there are batches of P, all
batches of the epoch have fewer patients: else the last ones would hold that patient alone.
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from training.data import Indices

Pieces = deque[tuple[int, Indices]]


class PatientBatches(Sampler[Indices]):
    """Batches of row numbers, the rows of one patient together.

    The order is a function of seed and epoch alone, so that a resumed run goes on as it would have.
    """

    def __init__(
        self,
        patient: npt.NDArray[np.int64],
        *,
        patients: int,
        lesions: int,
        seed: int,
        share: tuple[int, int] = (0, 1),
        positive: npt.NDArray[np.bool_] | None = None,
        positive_share: float | None = None,
    ) -> None:
        """Prepare the sampler.

        Args:
            patient: (N,) int64, the patient of each row.
            patients: P, patients in a batch.
            lesions: L, images of one patient in a batch, at most.
            seed: of the order.
            share: which part of every batch to give, and of how many: each process takes its own.
                A batch of fewer patients than parts is left out.
            positive: (N,) bool, rows of patients to favour; all rows of a patient alike.
            positive_share: share of a batch's patients that are to be of those; they come again
                in an epoch, or not all of them do, as often as the others fill batches. None
                shows every image once.
        """
        order = np.argsort(patient, kind="stable")
        starts = np.flatnonzero(np.diff(patient[order])) + 1
        self.rows_of_patient = np.split(order, starts)
        self.patients, self.lesions, self.seed = patients, lesions, seed
        self.positive_share = positive_share
        self.is_positive = (
            np.zeros(len(self.rows_of_patient), np.bool_)
            if positive is None
            else np.array([positive[rows[0]] for rows in self.rows_of_patient], np.bool_)
        )
        self.part, self.parts = share
        self.epoch, self.skip = 0, 0
        self._length: dict[int, int] = {}

    def start(self, epoch: int, skip: int = 0) -> None:
        """Choose the epoch, and how many of its batches were already used."""
        self.epoch, self.skip = epoch, skip

    def __len__(self) -> int:
        if self.epoch not in self._length:
            self._length[self.epoch] = len(self._batches(self.epoch))
        return self._length[self.epoch]

    def __iter__(self) -> Iterator[Indices]:
        yield from self._batches(self.epoch)[self.skip :]

    def _batches(self, epoch: int) -> list[Indices]:
        rng = np.random.default_rng([self.seed, epoch])
        everyone = np.arange(len(self.rows_of_patient))
        if self.positive_share is None:
            waiting, rooms = self._spread(self._pieces(everyone, rng), self.patients, rng)
            return self._shared(lambda: self._next_batch(waiting, next(rooms)), waiting)
        wanted = round(self.positive_share * self.patients)
        others, rooms = self._spread(
            self._pieces(everyone[~self.is_positive], rng), self.patients - wanted, rng
        )
        favoured = everyone[self.is_positive]
        positives = self._pieces(favoured, rng)

        def mixed() -> list[Indices]:
            if len(positives) < wanted and len(favoured):
                positives.extend(self._pieces(favoured, rng))
            chosen = self._next_batch(positives, wanted)
            return chosen + self._next_batch(others, next(rooms))

        return self._shared(mixed, others)

    def _pieces(self, patients: npt.NDArray[np.int64], rng: np.random.Generator) -> Pieces:
        """Return these patients' images in random pieces, in random order."""
        pieces: list[tuple[int, Indices]] = []
        for patient in patients:
            rows = self.rows_of_patient[patient]
            shuffled = rng.permutation(rows)
            for start in range(0, len(rows), self.lesions):
                pieces.append((int(patient), shuffled[start : start + self.lesions].tolist()))
        return deque(pieces[i] for i in rng.permutation(len(pieces)))

    def _spread(
        self, pieces: Pieces, patients: int, rng: np.random.Generator
    ) -> tuple[Pieces, Iterator[int]]:
        """Return the pieces in an order that fills all batches alike, and each batch's patients.

        As they are, where every patient's pieces find batches of `patients`. Else they are dealt
        out, patient by patient, to as many batches as the one with most of them needs.
        """
        counts = Counter(patient for patient, _ in pieces)
        batches = max(counts.values(), default=0)
        if batches * patients <= len(pieces):
            return pieces, itertools.repeat(patients)
        by_patient = sorted(pieces, key=lambda piece: piece[0])
        dealt = [by_patient[number::batches] for number in rng.permutation(batches)]
        return deque(itertools.chain(*dealt)), map(len, dealt)

    def _shared(self, next_batch: Callable[[], list[Indices]], waiting: Pieces) -> list[Indices]:
        """Return this process's part of every batch, until nothing waits."""
        batches = []
        while waiting:
            batch = next_batch()
            if len(batch) >= self.parts:
                own = batch[self.part :: self.parts]
                batches.append([row for rows in own for row in rows])
        return batches

    def _next_batch(self, waiting: Pieces, patients: int) -> list[Indices]:
        """Take pieces of distinct patients; pieces of a patient already here wait in front."""
        chosen: dict[int, Indices] = {}
        postponed: list[tuple[int, Indices]] = []
        while waiting and len(chosen) < patients:
            patient, rows = waiting.popleft()
            if patient in chosen:
                postponed.append((patient, rows))
            else:
                chosen[patient] = rows
        waiting.extendleft(reversed(postponed))
        return list(chosen.values())
