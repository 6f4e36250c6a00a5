"""A prepared cohort as arrays and batches for torch.

Records are encoded once, from the cohort's columns; images are read and decoded when a batch asks
for them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from bundle.fields import FieldSchema, Level, Record
from bundle.images import ImageInput, decode_image, resize_image
from bundle.records import EncodedRecords, encode_columns, fit_columns
from cohort.cohort import Cohort

IntArray = npt.NDArray[np.int64]
Indices = list[int]


@dataclass(frozen=True)
class Rows:
    """The N images of some splits of a cohort, without their pixels.

    Attributes:
        cohort: where the rows lie.
        position: (N,) int64, the rows' places in the cohort.
        image_id: N ids.
        lesion: (N,) int64, which lesion; numbers of no meaning beyond equality.
        patient: (N,) int64, which patient, or which lesion where there are no patient ids.
        group_id: N split groups (patient, else lesion).
        label: (N,) int64 position in the labels, -1 where there is none.
        malignant: (N,) int64, 1, 0, or -1 where it is not known.
        split: (N,) the rows' splits.
    """

    cohort: Cohort
    position: IntArray
    image_id: list[str]
    lesion_id: list[str]
    lesion: IntArray
    patient: IntArray
    group_id: list[str]
    label: IntArray
    malignant: IntArray
    split: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.position)

    def take(self, chosen: npt.ArrayLike) -> "Rows":
        """Return some rows; `chosen` is (M,) positions or an (N,) bool mask."""
        places = np.asarray(chosen)
        # NumPy makes an empty list float, which is no index.
        index = np.arange(len(self))[places if places.size else []]
        picked: dict[str, Any] = {"cohort": self.cohort}
        for name in (field.name for field in fields(self) if field.name != "cohort"):
            value = getattr(self, name)
            picked[name] = [value[i] for i in index] if isinstance(value, list) else value[index]
        return Rows(**picked)

    def one_a_lesion(self, seed: int) -> IntArray:
        """Return (L,) int64 rows in order, one image of every lesion, drawn by the seed.

        Lesions are independent of each other; photographs of one lesion are not.
        """
        order = np.random.default_rng(seed).permutation(len(self))
        _, first = np.unique(self.lesion[order], return_index=True)
        return np.sort(order[first])

    @cached_property
    def records(self) -> list[Record]:
        """N canonical records of both levels; many rows make much of them, pre-training none."""
        return self.cohort.records(self.position)

    def encode(self, schema: FieldSchema, level: Level) -> EncodedRecords:
        """Return the records of one level as arrays, without making records."""
        columns = [self.cohort.column(field, self.position) for field in schema.at(level)]
        return encode_columns(columns, schema.at(level), len(self))


def load_rows(cohort: Cohort, splits: Sequence[str], labels: Sequence[str]) -> Rows:
    """Return the rows of the splits, in the cohort's order.

    Args:
        cohort: the prepared data set.
        splits: any of train, val, cal, test.
        labels: the label vocabulary that numbers the rows' labels, whatever their case; others
            become -1.
    """
    table = cohort.table()
    keep = np.isin(table["split"].to_numpy(zero_copy_only=False).astype(str), list(splits))
    table = table.filter(keep)
    lesion_id: list[str] = table["lesion_id"].to_pylist()
    patient_id: list[str | None] = table["patient_id"].to_pylist()
    groups = [lesion if p is None else p for p, lesion in zip(patient_id, lesion_id, strict=True)]
    malignant = [-1 if m is None else int(m) for m in table["malignant"].to_pylist()]
    position = table["row"].to_numpy().astype(np.int64)
    return Rows(
        cohort=cohort,
        position=position,
        image_id=table["image_id"].to_pylist(),
        lesion_id=lesion_id,
        lesion=_numbered(lesion_id),
        patient=_numbered(groups),
        group_id=groups,
        label=number_labels(table["label"].to_pylist(), labels),
        malignant=np.array(malignant, np.int64),
        split=table["split"].to_numpy(zero_copy_only=False).astype(str),
    )


def number_labels(names: Sequence[str | None], labels: Sequence[str]) -> IntArray:
    """Return (N,) int64 positions in the labels, whatever the case, -1 where it is none of them."""
    number = {label.casefold(): i for i, label in enumerate(labels)}
    number |= {label: i for i, label in enumerate(labels)}
    found = [number.get(name or "", number.get((name or "").casefold(), -1)) for name in names]
    return np.array(found, np.int64)


def _numbered(ids: list[str]) -> IntArray:
    return np.unique(np.array(ids, dtype=str), return_inverse=True)[1].astype(np.int64)


def fit_schema(schema: FieldSchema, rows: Rows) -> FieldSchema:
    """Return the schema with numeric fields standardised on these rows."""
    columns = [rows.cohort.column(field, rows.position) for field in schema.fields]
    return FieldSchema(fields=fit_columns(schema.fields, columns))


class Squares(Dataset[dict[str, torch.Tensor]]):
    """Decoded square images by row number, each decoded once as long as they fit in memory.

    As a data set it gives "pixels" (H, W, 3) uint8 and "index" () int64.
    """

    def __init__(self, cohort: Cohort, rows: Rows, spec: ImageInput, *, keep_mib: int = 0) -> None:
        """Prepare to read; nothing is decoded yet.

        Args:
            cohort: the prepared data set.
            rows: the images that `read` numbers.
            spec: the square's side; mean and deviation are not applied here.
            keep_mib: memory for squares that were read once; 0 keeps none.
        """
        self.cohort, self.spec, self.position = cohort, spec, rows.position
        shape = (spec.size_px, spec.size_px, 3)
        room = min(len(rows), keep_mib * 2**20 // math.prod(shape))
        # Memory that is not written to is not taken.
        self._kept = np.empty((room, *shape), np.uint8)
        self._slot = np.full(len(rows), -1)
        self._used = 0

    def __len__(self) -> int:
        return len(self.position)

    def read(self, indices: Indices) -> npt.NDArray[np.uint8]:
        """Return (M, H, W, 3) uint8, H = W = size_px, in the order of the row numbers."""
        index = np.asarray(indices, np.int64)
        squares = np.empty((len(index), *self._kept.shape[1:]), np.uint8)
        slots = self._slot[index]
        squares[slots >= 0] = self._kept[slots[slots >= 0]]
        new = np.flatnonzero(slots < 0)
        files = self.cohort.images([int(p) for p in self.position[index[new]]])
        for place, data in zip(new, files, strict=True):
            squares[place] = resize_image(decode_image(data), self.spec)
        self._keep(index[new], squares[new])
        return squares

    def _keep(self, index: IntArray, squares: npt.NDArray[np.uint8]) -> None:
        count = min(len(index), len(self._kept) - self._used)
        slots = np.arange(self._used, self._used + count)
        self._kept[slots] = squares[:count]
        self._slot[index[:count]] = slots
        self._used += count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Indices) -> list[dict[str, torch.Tensor]]:
        """Read a batch at once, so that neighbours share a read."""
        pixels = torch.from_numpy(self.read(indices))
        return [
            {"pixels": square, "index": torch.tensor(i)}
            for i, square in zip(indices, pixels, strict=True)
        ]


def image_loader(
    squares: Squares, *, batches: Sampler[Indices] | Sequence[Indices], workers: int = 0
) -> DataLoader[dict[str, torch.Tensor]]:
    """Return a loader of "pixels" (N, H, W, 3) uint8 and "index" (N,) int64 row numbers."""
    return DataLoader(
        squares,
        batch_sampler=batches,
        num_workers=workers,
        # An iterator draws a seed when it is made: not from the numbers that a resume goes on with.
        generator=torch.Generator(),
        persistent_workers=workers > 0,
    )


def in_order(count: int, size: int) -> Iterator[Indices]:
    """Yield the row numbers 0..count-1 in batches of at most `size`."""
    for start in range(0, count, size):
        yield list(range(start, min(start + size, count)))
