"""An image with all that is known of it, lesion and patient in one record: no nesting.

`flat` is InfoNCE under the nested loss's masks, `clip` the same without any mask (Radford et al.,
2021, arXiv 2103.00020), `siglip` the pairwise sigmoid loss (Zhai et al., 2023, arXiv 2303.15343).
"""

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import normalize

from bundle.fields import Level
from training.batch import Batch, Encode, same_whole_records
from training.config import ObjectiveSettings
from training.losses import Contrast, info_nce, pairwise_sigmoid
from training.objectives.objective import Objective, Term, learned_scale, projection
from training.processes import gather_rows

if TYPE_CHECKING:
    from training.model import Slimp

LEVELS: tuple[Level, ...] = ("lesion", "patient")
# SigLIP's own; its inverse temperature starts at 10, that is `objective.temperature = 0.1`.
SIGMOID_BIAS = -10.0


class WholeRecord(Objective):
    """One contrastive term between images and their whole records."""

    def __init__(self, settings: ObjectiveSettings, dim: int) -> None:
        super().__init__({settings.name: 1.0})
        self.name = settings.name
        self.image_projection = projection(dim, settings.projection_dim)
        self.record_projection = projection(2 * dim, settings.projection_dim)
        if self.name == "siglip":
            self.bias = nn.Parameter(torch.tensor(SIGMOID_BIAS))
        self.log_scale = learned_scale(1 / settings.temperature)

    def forward(
        self, towers: "Slimp", images: torch.Tensor, batch: Batch, encode: Encode
    ) -> dict[str, Term]:
        """Return one term, named as the objective."""
        lesions = patients = torch.zeros_like(images)
        known = []
        if towers.lesion is not None:
            lesions = encode(towers.lesion, batch["lesion_values"], batch["lesion_present"])
            known.append(batch["lesion_present"].any(1))
        if towers.patient is not None:
            of_image = batch["slot"][:, 0]
            features = encode(towers.patient, batch["patient_values"], batch["patient_present"])
            patients = features[of_image]
            known.append(batch["patient_present"].any(1)[of_image])
        first = gather_rows(normalize(self.image_projection(images), dim=1))
        records = self.record_projection(torch.cat([lesions, patients], dim=1))
        second = gather_rows(normalize(records, dim=1))
        valid = gather_rows(torch.stack(known).any(0))
        return {self.name: self._contrast(first, second, valid, batch, towers)}

    def _contrast(
        self,
        first: torch.Tensor,
        second: torch.Tensor,
        valid: torch.Tensor,
        batch: Batch,
        towers: "Slimp",
    ) -> Contrast:
        scale = self.log_scale.exp()
        if self.name == "siglip":
            return pairwise_sigmoid(first[valid], second[valid], scale, self.bias)
        excluded = torch.zeros(len(first), len(first), dtype=torch.bool, device=first.device)
        if self.name == "flat":
            group = gather_rows(batch["lesion_group"])
            levels = [level for level in LEVELS if towers.records(level) is not None]
            excluded = (group[:, None] == group[None]) | same_whole_records(batch, levels)
        return info_nce(first, second, scale, excluded=excluded, valid=valid)
