"""SLIMP: three towers, their projections and the phenotype.

The lesion tower reads lesion-level fields only and the patient tower patient-level fields only;
otherwise the outer loss would be solved by copying.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import normalize

from bundle.fields import FieldSchema, Level
from training.config import Config
from training.image_encoder import build_image_encoder
from training.losses import Contrast, identical_rows, info_nce
from training.pooling import Pooling
from training.processes import gather_rows
from training.record_encoder import RecordEncoder

# As CLIP does (Radford et al., 2021, arXiv 2103.00020): the inverse temperature stays below 100.
MAX_LOG_SCALE = math.log(100)

Batch = dict[str, torch.Tensor]
Encode = Callable[..., torch.Tensor]


def encode_at_once(tower: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """Return the tower's features; `GradientCache.encode` is the other way."""
    features: torch.Tensor = tower(*inputs)
    return features


class Slimp(nn.Module):
    """Image tower, lesion-record tower, patient-record tower and what pre-training adds to them."""

    def __init__(self, config: Config, schema: FieldSchema, *, pretrained: bool = True) -> None:
        """Build the towers.

        Args:
            config: the experiment.
            schema: fitted fields; a level without fields has no tower.
            pretrained: False skips the checkpoint's weights, for a run that brings its own.
        """
        super().__init__()
        self.image = build_image_encoder(config.image, pretrained=pretrained)
        dim = self.image.width
        lesion, patient = schema.at("lesion"), schema.at("patient")
        self.lesion = RecordEncoder(lesion, config.record, dim) if lesion else None
        self.patient = RecordEncoder(patient, config.record, dim) if patient else None
        out = config.objective.projection_dim
        self.image_projection = _projection(dim, out)
        self.lesion_projection = _projection(dim, out)
        self.phenotype_projection = _projection(2 * dim, out)
        self.patient_projection = _projection(dim, out)
        self.pooling = Pooling(config.objective.pooling, 2 * dim)
        start = math.log(1 / config.objective.temperature)
        self.lesion_log_scale = nn.Parameter(torch.tensor(start))
        self.patient_log_scale = nn.Parameter(torch.tensor(start))

    @property
    def embedding_dim(self) -> int:
        return self.image.width

    def records(self, level: Level) -> RecordEncoder | None:
        """Return the level's record tower, None where the schema has no field of it."""
        return self.lesion if level == "lesion" else self.patient

    def forward(self, batch: Batch, encode: Encode = encode_at_once) -> dict[str, Contrast]:
        """Return the contrastive terms that this batch and schema allow.

        Under several processes the batch is this one's share, and the terms are the whole batch's.

        Args:
            batch: pixels (N, 3, H, W); lesion_values, lesion_present (N, F); patient_values,
                patient_present (P, F'); lesion_group (N,) and slot (N, 2) int64: which lesion an
                image shows, and which (patient, place) of the batch it has; the raw_* records
                before column dropout, for the masks.
            encode: calls a tower on its inputs.
        """
        images = encode(self.image, batch["pixels"])
        terms = {}
        records = torch.zeros_like(images)
        if self.lesion is not None:
            records = encode(self.lesion, batch["lesion_values"], batch["lesion_present"])
            terms["lesion"] = self._contrast_lesions(images, records, batch)
        if self.patient is not None:
            patients = encode(self.patient, batch["patient_values"], batch["patient_present"])
            terms["patient"] = self._contrast_patients(images, records, patients, batch)
        return terms

    def _contrast_lesions(
        self, images: torch.Tensor, records: torch.Tensor, batch: Batch
    ) -> Contrast:
        group = gather_rows(batch["lesion_group"])
        return info_nce(
            gather_rows(normalize(self.image_projection(images), dim=1)),
            gather_rows(normalize(self.lesion_projection(records), dim=1)),
            self.lesion_log_scale.clamp(max=MAX_LOG_SCALE).exp(),
            excluded=(group[:, None] == group[None]) | same_records(batch, "lesion"),
            valid=gather_rows(batch["lesion_present"]).any(1),
        )

    def _contrast_patients(
        self, images: torch.Tensor, records: torch.Tensor, patients: torch.Tensor, batch: Batch
    ) -> Contrast:
        slots = batch["slot"]
        shape = (len(batch["patient_values"]), int(slots[:, 1].max()) + 1)
        mask = torch.zeros(shape, dtype=torch.bool, device=images.device)
        mask[slots[:, 0], slots[:, 1]] = True
        pairs = torch.cat([images, records], dim=1)
        grid = pairs.new_zeros((*shape, pairs.shape[1]))
        grid[slots[:, 0], slots[:, 1]] = pairs
        phenotypes = self.phenotype_projection(self.pooling(grid, mask))
        return info_nce(
            gather_rows(normalize(phenotypes, dim=1)),
            gather_rows(normalize(self.patient_projection(patients), dim=1)),
            self.patient_log_scale.clamp(max=MAX_LOG_SCALE).exp(),
            excluded=same_records(batch, "patient"),
            valid=gather_rows(batch["patient_present"]).any(1),
        )


def same_records(batch: Batch, level: str) -> torch.Tensor:
    """Return (N, N) bool, N rows of all processes: identical before or after augmentation."""

    def identical(prefix: str) -> torch.Tensor:
        values, present = (batch[f"{prefix}{level}_{part}"] for part in ("values", "present"))
        return identical_rows(gather_rows(values), gather_rows(present))

    return identical("raw_") | identical("")


def _projection(width: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))
