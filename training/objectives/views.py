"""Two augmented views of one image (SimCLR; Chen et al., 2020, arXiv 2002.05709).

An objective of its own, or a term beside another one.
"""

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

from training.batch import Batch, Encode
from training.config import ObjectiveSettings
from training.losses import nt_xent
from training.objectives.objective import Objective, Term, projection
from training.processes import gather_rows

if TYPE_CHECKING:
    from training.model import Slimp


class Views(Objective):
    """NT-Xent between the views; images of one lesion are no negatives of each other."""

    def __init__(self, settings: ObjectiveSettings, dim: int, *, weight: float = 1.0) -> None:
        super().__init__({"image": weight})
        self.scale = 1 / settings.view_temperature
        self.projection = projection(dim, settings.projection_dim)

    def forward(
        self, towers: "Slimp", images: torch.Tensor, batch: Batch, encode: Encode
    ) -> dict[str, Term]:
        """Return the term `image`."""
        second = encode(towers.image, batch["second_pixels"])
        group = gather_rows(batch["lesion_group"])
        term = nt_xent(
            gather_rows(normalize(self.projection(images), dim=1)),
            gather_rows(normalize(self.projection(second), dim=1)),
            self.scale,
            excluded=group[:, None] == group[None],
        )
        return {"image": term}
