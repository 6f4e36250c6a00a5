"""A model's answers to a cohort's rows, by what it may see: image, metadata, both, neighbours."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.calibration import CONDITIONS, Calibration, Condition, prediction_set
from bundle.errors import InvalidRecord
from bundle.fields import Field, FieldSchema, Record, Value
from bundle.images import content_hash, decode_image
from cohort.cohort import Cohort
from index.catalogue import Catalogue, Exclusion
from index.extrapolation import extrapolate
from training.data import Rows
from training.features import Modality, classify_rows, record_features
from training.fitted import FittedModel

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
CONDITION_NAMES = ("image", "metadata", "given", "extrapolated")


@dataclass(frozen=True)
class Accepted:
    """A cohort's records as a model's schema reads them.

    Attributes:
        records: N canonical records; an absent key is missing.
        fields: the model's fields that the cohort has.
        left_out: the cohort's fields that the model does not read, with the reason.
        rejected: by field, values that the model's schema does not accept; they count as missing.
    """

    records: list[Record]
    fields: tuple[Field, ...]
    left_out: dict[str, str]
    rejected: dict[str, int]


def accept_records(records: Sequence[Record], own: FieldSchema, schema: FieldSchema) -> Accepted:
    """Return the records under the model's schema.

    Args:
        records: canonical records of the cohort.
        own: the cohort's schema.
        schema: the model's.
    """
    read, left_out = schema.match(own)
    rejected: Counter[str] = Counter()
    accepted: list[Record] = []
    for record in records:
        kept: Record = {}
        for name, field in read.items():
            try:
                value = field.parse(record.get(name))
            except InvalidRecord:
                rejected[field.name] += 1
                continue
            if value is not None:
                kept[field.name] = value
        accepted.append(kept)
    return Accepted(accepted, tuple(read.values()), left_out, dict(rejected))


@dataclass(frozen=True)
class Answers:
    """What a model says of N rows.

    Attributes:
        probabilities: (N, C) float32, calibrated, rows summing to 1.
        calibrated_as: (N,) which calibration holds for each row.
    """

    probabilities: FloatArray
    calibrated_as: npt.NDArray[np.str_]

    def sets(self, calibration: Calibration) -> BoolArray:
        """Return (N, C) bool: the conformal prediction sets."""
        inside = np.zeros(self.probabilities.shape, np.bool_)
        for row, condition in enumerate(self.calibrated_as):
            fitted = calibration.conditions[_condition(condition)]
            inside[row, prediction_set(self.probabilities[row], fitted.conformal)] = True
        return inside


def _condition(name: str) -> Condition:
    return next(condition for condition in CONDITIONS if condition == name)


def answer(
    model: FittedModel,
    embeddings: FloatArray,
    records: Sequence[Record],
    condition: Condition,
    *,
    modality: Modality = "both",
) -> Answers:
    """Return the model's answers, calibrated as in service: an empty record is a missing one.

    Extrapolated values move an answer as far as the calibration says. Metadata without an image has
    no calibration of its own: it takes the condition's.

    Args:
        model: the run or bundle.
        embeddings: (N, D) float32 image features.
        records: N canonical records.
        condition: where the records' values come from.
        modality: what the classifier may see.
    """
    features = record_features(model.encoders, records, model.schema)
    logits = classify_rows(model.encoders, embeddings, features, modality)
    if condition == "extrapolated":
        nothing = record_features(model.encoders, absent(records), model.schema)
        own = classify_rows(model.encoders, embeddings, nothing, modality)
        logits = model.calibration.extrapolation.weigh(own, logits)
    said = features.lesion_present | features.patient_present | (modality == "record")
    calibrated_as = np.where(said, condition, "missing")
    probabilities = np.zeros(logits.shape, np.float32)
    for name in np.unique(calibrated_as):
        own = calibrated_as == name
        probabilities[own] = model.calibration.probabilities(logits[own], _condition(name))
    return Answers(probabilities, calibrated_as)


def neighbours_records(
    model: FittedModel,
    cohort: Cohort,
    rows: Rows,
    embeddings: FloatArray,
    catalogue: Catalogue,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Record]:
    """Return N records of a catalogue's answers alone, as in service.

    No row is answered by its own lesion, patient or pictures.

    Args:
        model: the run or bundle.
        cohort: holds the images, whose content is excluded.
        rows: the N rows.
        embeddings: (N, D) float32 image features.
        catalogue: the reference lesions.
        report: called with done and total.
    """
    settings = model.calibration.extrapolation
    records: list[Record] = [{} for _ in range(len(rows))]
    groups = np.unique(np.array(rows.group_id), return_inverse=True)[1]
    order = np.argsort(groups, kind="stable")
    done = 0
    for own in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        files = cohort.images(rows.position[own].tolist())
        exclude = Exclusion(
            lesions=frozenset(rows.lesion_id[i] for i in own),
            patients=frozenset({rows.group_id[own[0]]}),
            contents=frozenset(content_hash(decode_image(data)) for data in files),
        )
        found = catalogue.search(embeddings[own], k=settings.neighbours, exclude=exclude)
        for i, hits in zip(own, found, strict=True):
            answers = extrapolate(hits, model.schema.fields, settings)
            records[i] = {k: a.value for k, a in answers.items() if a.value is not None}
        done += len(own)
        report(done, len(rows))
    return records


def compare_fields(
    fields: Sequence[Field], given: Sequence[Record], guessed: Sequence[Record]
) -> dict[str, dict[str, Any]]:
    """Return for each field how often neighbours answer and how often they are right."""
    return {
        field.name: _compare(
            field, [r.get(field.name) for r in given], [r.get(field.name) for r in guessed]
        )
        for field in fields
    }


def _compare(field: Field, given: Sequence[Value], guessed: Sequence[Value]) -> dict[str, Any]:
    filled = sum(value is not None for value in guessed)
    pairs = [(a, b) for a, b in zip(given, guessed, strict=True) if a is not None and b is not None]
    figures: dict[str, Any] = {"fill_share": filled / len(given), "compared": len(pairs)}
    if not pairs:
        return {**figures, "accuracy": None, "reason": "no row has both an answer and the value"}
    if field.kind != "numeric" or field.std is None:
        return {**figures, "accuracy": sum(a == b for a, b in pairs) / len(pairs)}
    gaps = np.abs([float(a) - float(b) for a, b in pairs])
    return {
        **figures,
        "accuracy": float(np.mean(gaps <= field.std)),
        "within": field.std,
        "mean_absolute_error": float(gaps.mean()),
    }


def hide_values(
    records: Sequence[Record], names: Sequence[str], share: float, *, seed: int
) -> list[Record]:
    """Return the records with a random share of the columns hidden, drawn for each row.

    With one seed a larger share hides what a smaller one hides, and more.
    """
    ranks = np.random.default_rng(seed).random((len(records), len(names))).argsort(axis=1)
    hidden = ranks < round(share * len(names))
    return [
        {k: v for k, v in record.items() if not row[names.index(k)]}
        for record, row in zip(records, hidden, strict=True)
    ]


def absent(records: Sequence[Mapping[str, Value]]) -> list[Record]:
    """Return as many empty records."""
    return [{} for _ in records]
