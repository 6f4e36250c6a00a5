"""The nested loss of SLIMP (arXiv 2505.23709): lesion with record, patient with lesions.

With one of its two weights at 0 it is the inner loss (`lesion`) or the outer one (`patient`) alone.
"""

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

from training.batch import Batch, Encode, alike_records, same_records
from training.config import ObjectiveSettings
from training.losses import Contrast, info_nce
from training.objectives.objective import Objective, Term, learned_scale, projection
from training.pooling import Pooling
from training.processes import gather_rows

if TYPE_CHECKING:
    from training.model import Slimp


class Nested(Objective):
    """L = lambda L_lesions + (1 - lambda) L_patient."""

    def __init__(self, settings: ObjectiveSettings, dim: int) -> None:
        weight = {"lesion": 1.0, "patient": 0.0}.get(settings.name, settings.lesion_weight)
        super().__init__({"lesion": weight, "patient": 1 - weight})
        out = settings.projection_dim
        self.image_projection = projection(dim, out)
        self.lesion_projection = projection(dim, out)
        self.phenotype_projection = projection(2 * dim, out)
        self.patient_projection = projection(dim, out)
        self.soft_width = settings.soft_width
        self.pooling = Pooling(settings.pooling, 2 * dim)
        self.lesion_log_scale = learned_scale(1 / settings.temperature)
        self.patient_log_scale = learned_scale(1 / settings.temperature)

    def forward(
        self, towers: "Slimp", images: torch.Tensor, batch: Batch, encode: Encode
    ) -> dict[str, Term]:
        """Return the terms `lesion` and `patient`; one of weight 0 is left out."""
        terms: dict[str, Term] = {}
        records = torch.zeros_like(images)
        if towers.lesion is not None:
            records = encode(towers.lesion, batch["lesion_values"], batch["lesion_present"])
            if self.weights["lesion"]:
                terms["lesion"] = self._contrast_lesions(images, records, batch)
        if towers.patient is not None and self.weights["patient"]:
            patients = encode(towers.patient, batch["patient_values"], batch["patient_present"])
            terms["patient"] = self._contrast_patients(images, records, patients, batch)
        return terms

    def _contrast_lesions(
        self, images: torch.Tensor, records: torch.Tensor, batch: Batch
    ) -> Contrast:
        group = gather_rows(batch["lesion_group"])
        return info_nce(
            gather_rows(normalize(self.image_projection(images), dim=1)),
            gather_rows(normalize(self.lesion_projection(records), dim=1)),
            self.lesion_log_scale.exp(),
            excluded=(group[:, None] == group[None]) | same_records(batch, "lesion"),
            valid=gather_rows(batch["lesion_present"]).any(1),
            alike=alike_records(batch, "lesion", self.soft_width),
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
            self.patient_log_scale.exp(),
            excluded=same_records(batch, "patient"),
            valid=gather_rows(batch["patient_present"]).any(1),
            alike=alike_records(batch, "patient", self.soft_width),
        )
