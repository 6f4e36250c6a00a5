"""What is trained on the encoders' features: the classifier and the patient-context model."""

import numpy as np
import torch
from torch import nn

from training.whitening import Whitening

MODALITIES, RECORDS = 3, 2


class Classifier(nn.Module):
    """Image, lesion-record and patient-record features to logits, any of them absent.

    The image answers by itself, and records add to its answer: each votes alone through a linear
    layer, and all together, the image included, through a hidden layer. What they add does not
    train what the image says, and without a record nothing is added: such an answer is that of a
    classifier of images that never knew of records. An absent modality is replaced by a learned
    vector and its own vote falls away. The logits are those of a world where every label is equally
    frequent: the prior is added afterwards, by calibration (Menon et al., 2021, arXiv 2007.07314).

    A classifier that was trained with the image tower read its features before they had their
    metric: `image_basis` and `image_offset` give them back.
    """

    image_basis: torch.Tensor
    image_offset: torch.Tensor

    def __init__(self, dim: int, labels: int, *, hidden: int, dropout: float) -> None:
        super().__init__()
        self.labels = labels
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(MODALITIES))
        self.absent = nn.Parameter(torch.zeros(MODALITIES, dim))
        self.drop = nn.Dropout(dropout)
        self.image_vote = nn.Linear(dim, labels)
        self.image_hidden = _hidden_layer(dim, labels, hidden, dropout)
        self.votes = nn.ModuleList(nn.Linear(dim, labels) for _ in range(RECORDS))
        self.joint = _hidden_layer(MODALITIES * dim, labels, hidden, dropout)
        self.register_buffer("image_basis", torch.eye(dim))
        self.register_buffer("image_offset", torch.zeros(dim))

    def read_from(self, now: Whitening, trained: Whitening) -> None:
        """Read features in the metric `now` as the same features in the metric of training."""
        back = np.linalg.inv(now.basis.astype(np.float64))
        offset = (now.centre - trained.centre).astype(np.float64) @ trained.basis
        self.image_basis.copy_(torch.from_numpy(back @ trained.basis))
        self.image_offset.copy_(torch.from_numpy(offset))

    def of_image(self, image: torch.Tensor) -> torch.Tensor:
        """Return (N, C) logits of (N, D) image features alone."""
        part = self._part(0, image @ self.image_basis + self.image_offset)
        logits: torch.Tensor = self.image_vote(part) + self.image_hidden(part)
        return logits

    def forward(
        self,
        image: torch.Tensor,
        lesion_record: torch.Tensor,
        patient_record: torch.Tensor,
        image_present: torch.Tensor,
        lesion_present: torch.Tensor,
        patient_present: torch.Tensor,
    ) -> torch.Tensor:
        """Return (N, C) logits; no gradient reaches the image, whose answer has its own loss.

        Args:
            image: (N, D) features.
            lesion_record: (N, D) features.
            patient_record: (N, D) features.
            image_present: (N,) bool.
            lesion_present: (N,) bool.
            patient_present: (N,) bool.
        """
        flags = (image_present, lesion_present, patient_present)
        features = (image @ self.image_basis + self.image_offset, lesion_record, patient_record)
        there = [flag.unsqueeze(-1) for flag in flags]
        parts = [self._part(number, feature) for number, feature in enumerate(features)]
        # What is learnt from records reaches neither the image's norm nor a tower behind it.
        parts[0] = parts[0].detach()
        seen = [torch.where(t, p, a) for t, p, a in zip(there, parts, self.absent, strict=True)]
        added: torch.Tensor = self.joint(torch.cat(seen, dim=-1))
        for vote, known, part in zip(self.votes, there[1:], parts[1:], strict=True):
            added = added + torch.where(known, vote(part), 0)
        own = torch.where(there[0], self.of_image(image).detach(), 0)
        return own + torch.where(there[1] | there[2], added, 0)

    def _part(self, number: int, feature: torch.Tensor) -> torch.Tensor:
        part: torch.Tensor = self.drop(self.norms[number](feature))
        return part


def _hidden_layer(inputs: int, labels: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, labels)
    )


class ContextModel(nn.Module):
    """Malignancy of each lesion of one patient, seen among the patient's others.

    The answer is the lesion's own log odds plus a correction from the lesion's look and record
    against the mean of the others' and from attention over all of them. With one lesion the
    correction is exactly 0. The order of the lesions does not matter.
    """

    gain: torch.Tensor
    offset: torch.Tensor

    def __init__(self, dim: int, *, width: int, dropout: float) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width))
        self.lesion = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width))
        self.patient = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width))
        # Look and record, each with its gap and two numbers; log odds with theirs; the patient.
        inputs = 2 * (2 * width + 2) + 2 + width
        self.token = nn.Sequential(nn.Linear(inputs, 2 * width), nn.GELU())
        self.attend = nn.TransformerEncoderLayer(
            2 * width, 4, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.correct = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Dropout(dropout), nn.Linear(2 * width, 1)
        )
        # Fitted on calibration patients after training; part of the graph.
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))

    def forward(
        self,
        image: torch.Tensor,
        lesion_record: torch.Tensor,
        lesion_present: torch.Tensor,
        malignancy_logit: torch.Tensor,
        mask: torch.Tensor,
        patient_record: torch.Tensor,
        patient_present: torch.Tensor,
    ) -> torch.Tensor:
        """Return (B, L) malignancy log odds in context; anything where the mask is False.

        Args:
            image: (B, L, D) features.
            lesion_record: (B, L, D) features.
            lesion_present: (B, L) bool.
            malignancy_logit: (B, L) log odds of each lesion alone.
            mask: (B, L) bool, True for a lesion.
            patient_record: (B, D) features.
            patient_present: (B,) bool.
        """
        inside, known = mask.unsqueeze(-1), (mask & lesion_present).unsqueeze(-1)
        odds = torch.where(mask, malignancy_logit, 0).unsqueeze(-1)
        person = torch.where(patient_present.unsqueeze(-1), self.patient(patient_record), 0)
        seen = [
            *against_others(torch.where(inside, self.image(image), 0), inside),
            *against_others(torch.where(known, self.lesion(lesion_record), 0), known),
            odds,
            gap_to_others(odds, inside),
            person.unsqueeze(1).expand(-1, image.shape[1], -1),
        ]
        tokens = self.attend(self.token(torch.cat(seen, dim=-1)), src_key_padding_mask=~mask)
        correction = self.gain * self.correct(tokens).squeeze(-1) + self.offset
        several = mask.sum(dim=1, keepdim=True) > 1
        return malignancy_logit + torch.where(several, correction, 0)


def against_others(values: torch.Tensor, there: torch.Tensor) -> list[torch.Tensor]:
    """Return values, their gap to the others, its size, and the log of size over the usual size.

    Args:
        values: (B, L, E), 0 where not there.
        there: (B, L, 1) bool.
    """
    gap = gap_to_others(values, there)
    size = gap.square().mean(-1, keepdim=True).add(1e-6).sqrt()
    count = there.sum(dim=1, keepdim=True).clamp(min=1)
    usual = torch.where(there, size, 0).sum(dim=1, keepdim=True) / count
    return [values, gap, size, torch.log(size / (usual + 1e-6) + 1e-3)]


def gap_to_others(values: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """Return (B, L, E), each lesion less the mean of the patient's others; 0 for an only one.

    Args:
        values: (B, L, E), 0 where not there.
        there: (B, L, 1) bool.
    """
    others = there.sum(dim=1, keepdim=True) - there.to(torch.int64)
    mean = (values.sum(dim=1, keepdim=True) - values) / others.clamp(min=1)
    return torch.where(there & (others > 0), values - mean, 0)
