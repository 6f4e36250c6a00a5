"""Training the patient-context model on random subsets of each patient's lesions."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from training.config import FitSettings
from training.features import RecordFeatures
from training.heads import ContextModel
from training.schedule import warmup_cosine

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

MAX_LESIONS = 64
PATIENTS_IN_BATCH = 16
RECORD_SHARE = 0.7
# Ranking a patient's malignant lesion above the patient's others, beside its probability.
RANK_WEIGHT = 0.3


@dataclass(frozen=True)
class LesionTable:
    """What the context model reads, one row a lesion.

    Attributes:
        image: (N, D) float32.
        records: the rows' record features.
        malignancy_logit: (N,) float32, calibrated log odds of each lesion alone, record given.
        image_logit: (N,) float32, the same from the image alone.
        malignant: (N,) bool.
        patient: (N,) int64.
    """

    image: FloatArray
    records: RecordFeatures
    malignancy_logit: FloatArray
    image_logit: FloatArray
    malignant: npt.NDArray[np.bool_]
    patient: IntArray

    @property
    def company(self) -> IntArray:
        """(N,) int64, how many lesions each lesion's patient has."""
        _, number, count = np.unique(self.patient, return_inverse=True, return_counts=True)
        company: IntArray = count[number]
        return company

    @property
    def in_company(self) -> npt.NDArray[np.bool_]:
        """(N,) bool, lesions whose patient has others."""
        return self.company > 1

    def patients(self) -> list[IntArray]:
        """Return each patient's row numbers."""
        order = np.argsort(self.patient, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.patient[order])) + 1)


def train_context(
    model: ContextModel,
    table: LesionTable,
    weight: FloatArray,
    settings: FitSettings,
    *,
    seed: int,
    report: Callable[[int, int], None] = lambda step, total: None,
) -> None:
    """Train the context model in place.

    Each pass shows every patient once, a random subset of 1 to 64 lesions, with or without
    records, so that it works for any number of lesions and for pictures alone.

    Args:
        model: changed in place.
        table: N lesions.
        weight: (N,) float32, how much each counts.
        settings: rate and length.
        seed: of the subsets.
        report: called after each step with step and total.
    """
    rng = np.random.default_rng(seed)
    patients = table.patients()
    steps = -(-len(patients) // PATIENTS_IN_BATCH) * settings.context_epochs
    optimiser = AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    scheduler = LambdaLR(optimiser, warmup_cosine(steps, 0.1))
    model.train()
    passes = (_pass(patients, rng) for _ in range(settings.context_epochs))
    for step, subsets in enumerate(itertools.chain.from_iterable(passes)):
        batch = _batch(table, weight, subsets, rng)
        target, counts = batch.pop("malignant"), batch.pop("weight")
        loss = context_loss(model(**batch), target, batch["mask"], counts)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        scheduler.step()
        report(step + 1, steps)
    model.eval()


def context_loss(
    logits: torch.Tensor, malignant: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Return the mean cross entropy a lesion plus the weighted ranking term a patient.

    Args:
        logits: (B, L).
        malignant: (B, L) bool.
        mask: (B, L) bool.
        weight: (B, L), how much a lesion counts.
    """
    target = malignant[mask].float()
    each = binary_cross_entropy_with_logits(logits[mask], target, weight=weight[mask])
    afflicted = (malignant & mask).any(1)
    if not afflicted.any():
        return each
    shares = log_softmax(logits.masked_fill(~mask, -torch.inf), dim=1)[afflicted]
    target = (malignant & mask)[afflicted] * weight[afflicted]
    ranking = -(torch.where(target > 0, shares, 0) * target).sum(1) / target.sum(1)
    return each + RANK_WEIGHT * ranking.mean()


def _pass(patients: list[IntArray], rng: np.random.Generator) -> list[list[IntArray]]:
    """Return a subset of each patient's lesions, in batches of like size: little is padding."""
    subsets = [_subset(patients[p], rng) for p in rng.permutation(len(patients))]
    subsets.sort(key=len)
    starts = rng.permutation(range(0, len(subsets), PATIENTS_IN_BATCH))
    return [subsets[start : start + PATIENTS_IN_BATCH] for start in starts]


def _subset(rows: IntArray, rng: np.random.Generator) -> IntArray:
    """Return all of a patient's lesions half of the time, else a random subset."""
    most = min(len(rows), MAX_LESIONS)
    count = most if rng.random() < 0.5 else int(rng.integers(1, most + 1))
    return rng.choice(rows, count, replace=False)


def _batch(
    table: LesionTable, weight: FloatArray, subsets: list[IntArray], rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    longest = max(map(len, subsets))
    mask = np.zeros((len(subsets), longest), np.bool_)
    index = np.zeros((len(subsets), longest), np.int64)
    for row, subset in enumerate(subsets):
        mask[row, : len(subset)] = True
        index[row, : len(subset)] = subset
    shown = rng.random(len(subsets)) < RECORD_SHARE
    first = index[:, 0]
    arrays = {
        "image": table.image[index],
        "lesion_record": table.records.lesion[index],
        "lesion_present": table.records.lesion_present[index] & shown[:, None],
        "malignancy_logit": np.where(
            shown[:, None], table.malignancy_logit[index], table.image_logit[index]
        ),
        "mask": mask,
        "patient_record": table.records.patient[first],
        "patient_present": table.records.patient_present[first] & shown,
        "malignant": table.malignant[index] & mask,
        "weight": weight[index],
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def fit_scale(
    model: ContextModel, answers: FloatArray, alone: FloatArray, malignant: npt.NDArray[np.bool_]
) -> None:
    """Set the model's gain and offset so that its probabilities hold on calibration patients.

    Only the correction is scaled: at one lesion the answer stays the lesion's own.

    Args:
        model: changed in place; gain 1 and offset 0 before, and where there are no lesions.
        answers: (N,) float32 log odds in context of lesions whose patient has others.
        alone: (N,) float32 log odds of each lesion alone.
        malignant: (N,) bool.
    """
    if not len(answers):
        return
    correction = torch.from_numpy(answers - alone).double()
    base, target = torch.from_numpy(alone).double(), torch.from_numpy(malignant).double()
    log_gain = torch.zeros((), dtype=torch.double, requires_grad=True)
    offset = torch.zeros((), dtype=torch.double, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_gain, offset], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        scaled = base + log_gain.exp() * correction + offset
        penalty = (log_gain.square() + offset.square()) / len(target)
        loss = binary_cross_entropy_with_logits(scaled, target) + penalty
        loss.backward()
        return loss

    optimiser.step(closure)
    model.gain.fill_(float(log_gain.detach().clamp(-3, 3).exp()))
    model.offset.fill_(float(offset.detach()))
