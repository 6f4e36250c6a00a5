"""The records of a batch, as the towers see them in pre-training."""

import torch

from bundle.fields import FieldSchema
from bundle.records import EncodedRecords
from training.batch import Batch
from training.config import ObjectiveSettings
from training.data import Rows
from training.features import LEVELS


class RecordBatches:
    """Encoded records of a batch, before and after corruption and column dropout."""

    def __init__(self, rows: Rows, schema: FieldSchema, settings: ObjectiveSettings) -> None:
        self.lesion = rows.lesion
        self.patient = rows.patient
        self.label = rows.label if settings.name == "supervised" else None
        self.encoded = {level: rows.encode(schema, level) for level in LEVELS if schema.at(level)}
        self.numeric = {
            level: torch.tensor([field.kind == "numeric" for field in schema.at(level)])
            for level in LEVELS
        }
        self.settings = settings

    def batch(self, index: torch.Tensor) -> Batch:
        """Return the arrays that `Slimp.forward` names, without the pixels.

        Args:
            index: (N,) int64 row numbers, rows of one patient together.
        """
        chosen = index.numpy()
        slot, first = _slots(torch.from_numpy(self.patient[chosen]))
        batch: Batch = {"lesion_group": torch.from_numpy(self.lesion[chosen]), "slot": slot}
        if self.label is not None:
            batch["label"] = torch.from_numpy(self.label[chosen])
        for level, encoded in self.encoded.items():
            # A patient's record is the same in all its rows: the first stands for it.
            part = encoded.rows(chosen if level == "lesion" else chosen[first.numpy()])
            values, present = torch.from_numpy(part.values), torch.from_numpy(part.present)
            batch[f"raw_{level}_values"], batch[f"raw_{level}_present"] = values, present
            batch[f"{level}_values"] = self._corrupted(values, present, encoded)
            kept = torch.rand(present.shape) >= self.settings.column_dropout
            batch[f"{level}_present"] = present & kept
            batch[f"{level}_numeric"] = self.numeric[level]
        return batch

    def _corrupted(
        self, values: torch.Tensor, present: torch.Tensor, encoded: EncodedRecords
    ) -> torch.Tensor:
        """Return the values, some of them another row's of the same column.

        After Bahri et al. (2022), "SCARF", arXiv 2106.15147. What is missing stays missing, in the
        row and in its donor.
        """
        if not self.settings.column_corruption:
            return values
        donor = torch.randint(len(encoded.values), values.shape)
        column = torch.arange(values.shape[1])
        known = present & torch.from_numpy(encoded.present)[donor, column]
        corrupted = known & (torch.rand(values.shape) < self.settings.column_corruption)
        return torch.where(corrupted, torch.from_numpy(encoded.values)[donor, column], values)


def _slots(patient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (N, 2) (patient, place) of each row and (P,) the first row of each patient."""
    new = torch.ones(len(patient), dtype=torch.bool)
    new[1:] = patient[1:] != patient[:-1]
    number = new.cumsum(0) - 1
    first = new.nonzero()[:, 0]
    place = torch.arange(len(patient)) - first[number]
    return torch.stack([number, place], dim=1), first
