"""Patient-wise batches: P patients, at most L images of each.

Every epoch shows every image once. A patient with many images is cut into random pieces of L, which
land in different batches: within one batch every patient is there once, so that the outer loss has
no false negatives by sampling.
"""

from collections import deque
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from training.data import Indices


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
    ) -> None:
        """Prepare the sampler.

        Args:
            patient: (N,) int64, the patient of each row.
            patients: P, patients in a batch.
            lesions: L, images of one patient in a batch, at most.
            seed: of the order.
            share: which part of every batch to give, and of how many: each process takes its own.
                A batch of fewer patients than parts is left out.
        """
        order = np.argsort(patient, kind="stable")
        starts = np.flatnonzero(np.diff(patient[order])) + 1
        self.rows_of_patient = np.split(order, starts)
        self.patients, self.lesions, self.seed = patients, lesions, seed
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
        pieces: list[tuple[int, Indices]] = []
        for patient, rows in enumerate(self.rows_of_patient):
            shuffled = rng.permutation(rows)
            for start in range(0, len(rows), self.lesions):
                pieces.append((patient, shuffled[start : start + self.lesions].tolist()))
        waiting = deque(pieces[i] for i in rng.permutation(len(pieces)))
        batches = []
        while waiting:
            batch = self._next_batch(waiting)
            if len(batch) >= self.parts:
                own = batch[self.part :: self.parts]
                batches.append([row for rows in own for row in rows])
        return batches

    def _next_batch(self, waiting: "deque[tuple[int, Indices]]") -> list[Indices]:
        """Take pieces of distinct patients; pieces of a patient already here wait in front."""
        chosen: dict[int, Indices] = {}
        postponed: list[tuple[int, Indices]] = []
        while waiting and len(chosen) < self.patients:
            patient, rows = waiting.popleft()
            if patient in chosen:
                postponed.append((patient, rows))
            else:
                chosen[patient] = rows
        waiting.extendleft(reversed(postponed))
        return list(chosen.values())
