"""Training the classifier, on features of frozen image towers or together with the image tower.

The classifier sees in training what it sees in service: metadata given in full or in part, or
extrapolated from other groups' lesions, now and then a record without an image, and always the
image alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from bundle.fields import FieldSchema, Level, Record
from bundle.records import EncodedRecords, encode_records
from training.config import FitSettings
from training.data import Rows
from training.features import LEVELS
from training.heads import Classifier
from training.missingness import PatternBalance
from training.model import Slimp
from training.passes import Passes, Stateful
from training.precision import is_bf16
from training.sampler import PatientBatches
from training.schedule import warmup_cosine

FloatArray = npt.NDArray[np.float32]

# How often a training row shows its own metadata; else it shows what neighbours say.
GIVEN_SHARE = 0.7
# Rows of the given condition whose columns are thinned, and those that show no image.
THINNED_SHARE = 0.5
NO_IMAGE_SHARE = 0.25
# Batches of a fine-tuning with mixup that are not mixed: from these the records learn.
UNMIXED_SHARE = 0.5


@dataclass(frozen=True)
class FeatureBatch:
    """Features of M rows, of whose pictures each may be mixed with another one's.

    Attributes:
        features: (M, D) float32, with gradients where the tower behind them trains.
        index: (M,) int64, the rows.
        other: (M,) int64, the rows whose pictures were mixed in.
        share: of a row's own picture; 1 where nothing is mixed in.
    """

    features: torch.Tensor
    index: torch.Tensor
    other: torch.Tensor
    share: float = 1.0

    @property
    def is_mixed(self) -> bool:
        return self.share < 1


# Of one pass, by its number.
FeatureBatches = Callable[[int], Iterator[FeatureBatch]]


@dataclass(frozen=True)
class Drawn:
    """What M training rows show of themselves.

    Attributes:
        records: by level.
        show_image: (M,) bool.
        weight: (M,) float32 of the loss.
    """

    records: dict[Level, EncodedRecords]
    show_image: npt.NDArray[np.bool_]
    weight: FloatArray


@dataclass(frozen=True)
class ConditionRecords:
    """The same N rows' encoded records, as given and as extrapolated, by level."""

    given: dict[Level, EncodedRecords]
    extrapolated: dict[Level, EncodedRecords]
    balance: PatternBalance | None

    @classmethod
    def of(
        cls,
        rows: Rows,
        extrapolated: list[Record],
        schema: FieldSchema,
        *,
        balance_missing: bool = True,
    ) -> "ConditionRecords":
        """Encode.

        Args:
            rows: the N rows, with their own records and labels.
            extrapolated: N records of neighbours' answers.
            schema: the fields.
            balance_missing: whether what is missing is made to go with no label.
        """

        def encode(records: list[Record]) -> dict[Level, EncodedRecords]:
            return {level: encode_records(records, schema.at(level)) for level in LEVELS}

        given = encode(rows.records)
        present = np.concatenate([given[level].present for level in LEVELS], axis=1)
        balance = PatternBalance(present, rows.label) if balance_missing else None
        return cls(given, encode(extrapolated), balance)

    def draw(self, index: npt.NDArray[np.int64], rng: np.random.Generator) -> Drawn:
        """Return records under a random condition a row, some without their image."""
        given = rng.random(len(index)) < GIVEN_SHARE
        thinning = np.where(rng.random(len(index)) < THINNED_SHARE, rng.random(len(index)), 0)
        records: dict[Level, EncodedRecords] = {}
        shown, weight = self._shown(index, rng)
        for level in LEVELS:
            own, guessed = self.given[level].rows(index), self.extrapolated[level].rows(index)
            kept = rng.random(own.present.shape) >= thinning[:, None]
            present = np.where(given[:, None], shown[level] & kept, guessed.present)
            values = np.where(given[:, None], own.values, guessed.values)
            records[level] = EncodedRecords(values.astype(np.float32), present)
        show = ~(given & (rng.random(len(index)) < NO_IMAGE_SHARE))
        return Drawn(records, show, np.where(given, weight, 1).astype(np.float32))

    def _shown(
        self, index: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[dict[Level, npt.NDArray[np.bool_]], FloatArray]:
        """Return (M, F) bool fields that are shown by level, and (M,) float32 weights."""
        own = {level: self.given[level].present[index] for level in LEVELS}
        if self.balance is None:
            return own, np.ones(len(index), np.float32)
        shown, weight = self.balance.draw(index, rng)
        lesion, patient = np.split(shown, [own["lesion"].shape[1]], axis=1)
        return {"lesion": lesion, "patient": patient}, weight


def feature_table(embeddings: FloatArray, size: int, seed: int) -> FeatureBatches:
    """Return epochs of shuffled features.

    Args:
        embeddings: (N, D) float32.
        size: rows in a batch.
        seed: of the order.
    """
    table = torch.from_numpy(embeddings)
    generator = torch.Generator().manual_seed(seed)

    def epoch(_: int) -> Iterator[FeatureBatch]:
        for part in torch.randperm(len(table), generator=generator).split(size):
            yield FeatureBatch(table[part], part, part)

    return epoch


def tuned_features(
    towers: Slimp,
    loader: DataLoader,
    augment: nn.Module,
    batches: PatientBatches,
    precision: str,
    mixup: float,
) -> FeatureBatches:
    """Return epochs of features of augmented images, with gradients into the tower.

    Args:
        towers: the image tower is asked.
        loader: images as `batches` draws them.
        augment: as in pre-training.
        batches: told which epoch begins.
        precision: of the tower.
        mixup: the Beta distribution's parameter of mixup (Zhang et al., 2018, arXiv 1710.09412);
            half of the batches, drawn at random, are mixed. 0 mixes none.
    """
    device = next(towers.parameters()).device

    def epoch(number: int) -> Iterator[FeatureBatch]:
        batches.start(number)
        for images in loader:
            pixels, index = augment(images["pixels"].to(device)), images["index"]
            share, order = _draw_mix(len(index), mixup)
            if share < 1:
                pixels = share * pixels + (1 - share) * pixels[order]
            with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16(precision, device)):
                features = towers.image(pixels)
            yield FeatureBatch(features.float(), index, index[order], share)

    return epoch


def _draw_mix(count: int, mixup: float) -> tuple[float, torch.Tensor]:
    """Return the share of a batch's own pictures, half of them or more, and what to mix them with.

    In half of the batches the share is 1.
    """
    if mixup == 0 or torch.rand(()) < UNMIXED_SHARE:
        return 1.0, torch.arange(count)
    share = float(torch.distributions.Beta(mixup, mixup).sample())
    return max(share, 1 - share), torch.randperm(count)


def train_classifier(
    towers: Slimp,
    classifier: Classifier,
    batches: FeatureBatches,
    rows: Rows,
    records: ConditionRecords,
    settings: FitSettings,
    *,
    tune: bool,
    steps_per_epoch: int,
    seed: int,
    passes: Passes | None = None,
    report: Callable[[int, int], None] = lambda step, total: None,
) -> None:
    """Train classifier and record towers, and the image tower where the batches carry gradients.

    Args:
        towers: changed in place.
        classifier: changed in place.
        batches: yields an epoch's image features and row numbers.
        rows: the N training rows; all carry a label.
        records: their records under each condition.
        settings: rates and lengths.
        tune: whether the image tower trains too.
        steps_per_epoch: batches in an epoch.
        seed: of the conditions drawn.
        passes: keeps everything after each pass, and has what to go on from.
        report: called after each step with step and total.
    """
    device = next(towers.parameters()).device
    epochs = settings.tune_epochs if tune else settings.epochs
    total = steps_per_epoch * epochs
    optimiser = _optimiser(towers, classifier, settings, tune)
    scheduler = LambdaLR(optimiser, warmup_cosine(total, 0.1))
    label = torch.from_numpy(rows.label)
    log_prior = _log_prior(label, classifier.labels).to(device)
    rng = np.random.default_rng(seed)
    towers.train()
    classifier.train()
    parts: dict[str, Stateful] = {
        "towers": towers,
        "classifier": classifier,
        "optimiser": optimiser,
        "scheduler": scheduler,
    }
    done = 0 if passes is None else passes.restore(parts, rng)
    step = done * steps_per_epoch
    for number in range(done, epochs):
        for batch in batches(number):
            features = batch.features.to(device)
            target, other = label[batch.index].to(device), label[batch.other].to(device)
            # Balanced logits: the prior is added here and again, refitted, in calibration.
            loss = torch.zeros((), device=device)
            if not batch.is_mixed:
                # No record is that of a mixed picture.
                drawn = records.draw(batch.index.numpy(), rng)
                logits = classify(towers, classifier, features, drawn.records, drawn.show_image)
                losses = cross_entropy(logits + log_prior, target, reduction="none")
                loss = (losses * torch.from_numpy(drawn.weight).to(device)).mean()
            own = classifier.of_image(features) + log_prior
            loss = loss + batch.share * cross_entropy(own, target)
            if batch.is_mixed:
                loss = loss + (1 - batch.share) * cross_entropy(own, other)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            scheduler.step()
            step += 1
            report(step, total)
        if passes is not None:
            passes.save(number + 1, parts, rng)
    towers.eval()
    classifier.eval()


def classify(
    towers: Slimp,
    classifier: Classifier,
    features: torch.Tensor,
    records: dict[Level, EncodedRecords],
    show_image: npt.NDArray[np.bool_],
) -> torch.Tensor:
    """Return (M, C) logits of (M, D) image features and encoded records."""
    device = features.device
    embedded, present = {}, {}
    for level in LEVELS:
        tower = towers.records(level)
        values = torch.from_numpy(records[level].values).to(device)
        known = torch.from_numpy(records[level].present).to(device)
        present[level] = known.any(1)
        embedded[level] = torch.zeros_like(features) if tower is None else tower(values, known)
    return classifier(
        features,
        embedded["lesion"],
        embedded["patient"],
        torch.from_numpy(show_image).to(device),
        present["lesion"],
        present["patient"],
    )


def _optimiser(towers: Slimp, classifier: Classifier, settings: FitSettings, tune: bool) -> AdamW:
    towers.requires_grad_(False)
    groups = [{"params": list(classifier.parameters()), "lr": settings.learning_rate}]
    for tower in map(towers.records, LEVELS):
        if tower is not None:
            tower.requires_grad_(True)
            groups.append({"params": list(tower.parameters()), "lr": settings.learning_rate / 3})
    if tune:
        towers.image.set_trainable(True)
        tuned = [p for p in towers.image.parameters() if p.requires_grad]
        groups.append({"params": tuned, "lr": settings.tune_rate})
    return AdamW(groups, weight_decay=settings.weight_decay, fused=True)


def _log_prior(label: torch.Tensor, labels: int) -> torch.Tensor:
    counts = torch.bincount(label, minlength=labels).clamp(min=1)
    return (counts / counts.sum()).log()
