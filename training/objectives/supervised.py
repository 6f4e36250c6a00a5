"""Image and metadata fused under the labels: what supervision alone makes of the same towers."""

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from training.batch import Batch, Encode
from training.config import FitSettings
from training.heads import Classifier
from training.losses import Mean
from training.objectives.objective import Objective, Term
from training.processes import gather_rows

if TYPE_CHECKING:
    from training.model import Slimp


class Supervised(Objective):
    """Cross entropy under the classifier that `fit` trains, weighed so that labels count alike."""

    weight: torch.Tensor

    def __init__(self, settings: FitSettings, dim: int, labels: int) -> None:
        super().__init__({"supervised": 1.0})
        self.classifier = Classifier(dim, labels, hidden=settings.hidden, dropout=settings.dropout)
        self.register_buffer("weight", torch.ones(labels))

    def balance(self, label: torch.Tensor) -> None:
        """Weigh the labels against how often they occur; (N,) int64, -1 where there is none."""
        counts = torch.bincount(label[label >= 0], minlength=len(self.weight)).clamp(min=1)
        self.weight.copy_(counts.sum() / (len(counts) * counts))

    def forward(
        self, towers: "Slimp", images: torch.Tensor, batch: Batch, encode: Encode
    ) -> dict[str, Term]:
        """Return the term `supervised`."""
        of_image = batch["slot"][:, 0]
        lesions = patients = torch.zeros_like(images)
        absent = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        said = {"lesion": absent, "patient": absent}
        if towers.lesion is not None:
            lesions = encode(towers.lesion, batch["lesion_values"], batch["lesion_present"])
            said["lesion"] = batch["lesion_present"].any(1)
        if towers.patient is not None:
            known = batch["patient_present"]
            patients = encode(towers.patient, batch["patient_values"], known)[of_image]
            said["patient"] = known.any(1)[of_image]
        logits = self.classifier(
            images, lesions, patients, ~absent, said["lesion"], said["patient"]
        )
        label = gather_rows(batch["label"])
        labelled = label >= 0
        label = label[labelled]
        fused, alone = (
            gather_rows(answer)[labelled].to(self.weight.dtype)
            for answer in (logits, self.classifier.of_image(images))
        )
        if not len(label):
            return {"supervised": Mean(fused.sum() * 0)}
        right = (fused.argmax(1) == label).float().mean().item()
        loss = cross_entropy(fused, label, weight=self.weight)
        loss = loss + cross_entropy(alone, label, weight=self.weight)
        return {"supervised": Mean(loss, {"accuracy": right})}
