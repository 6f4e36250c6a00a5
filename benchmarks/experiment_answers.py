"""What probes on frozen features answer to the synthetic cohort's held-out patients."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bundle.fields import FieldSchema
from bundle.images import standardise
from cohort.cohort import Cohort
from training.config import Config
from training.data import Rows, Squares, in_order
from training.features import LEVELS, FloatArray
from training.model import Slimp
from training.probes import probe, standardise_features
from training.retrieval import search_lesions, vote

IntArray = npt.NDArray[np.int64]
Answers = dict[str, npt.NDArray[Any]]
# What a lesion is likened by: its picture, or its picture and its record.
COMPARED = ("image", "both")
# Retrieved lesions that are judged.
FIRST = 5
# What the outer loss is about: fields of the patient's record that a look may tell.
PATIENT_FIELDS = ("fitzpatrick_skin_type", "sun_exposure", "family_history_melanoma", "sex")


@dataclass(frozen=True)
class Features:
    """Frozen features of N images.

    Attributes:
        image: (N, D) float32.
        record: (N, 2 D) float32, lesion and patient record; zeros where a tower is absent.
    """

    image: FloatArray
    record: FloatArray


@torch.inference_mode()
def frozen_features(
    towers: Slimp, cohort: Cohort, rows: Rows, config: Config, schema: FieldSchema
) -> Features:
    """Return the towers' features of the rows, by the preprocessing of serving.

    Args:
        towers: set to evaluation.
        cohort: the rows' cohort.
        rows: N.
        config: of the towers.
        schema: by which the towers read records: the fields as they were fitted in training.
    """
    towers.eval()
    squares = Squares(cohort, rows, config.image.input)
    encoded = {level: rows.encode(schema, level) for level in LEVELS}
    images, records = [], []
    for part in in_order(len(rows), 128):
        pixels = torch.from_numpy(standardise(squares.read(part), squares.spec))
        images.append(towers.image(pixels).numpy())
        both = []
        for level, known in encoded.items():
            tower, own = towers.records(level), known.rows(np.array(part))
            values, present = torch.from_numpy(own.values), torch.from_numpy(own.present)
            empty = torch.zeros(len(part), towers.embedding_dim)
            both.append(empty if tower is None else tower(values, present))
        records.append(torch.cat(both, dim=1).numpy())
    return Features(np.concatenate(images), np.concatenate(records))


def in_company(features: FloatArray, patient: IntArray) -> FloatArray:
    """Return (N, 2 D + 1) features, their gap to the patient's other lesions and its size."""
    gaps = np.zeros_like(features)
    for number in np.unique(patient):
        own = patient == number
        others = max(1, own.sum() - 1)
        gaps[own] = (features[own] - features[own].mean(0)) * own.sum() / others
    size = np.linalg.norm(gaps, axis=1, keepdims=True)
    return np.concatenate([features, gaps, size], axis=1)


def probed(features: FloatArray, target: IntArray, train: npt.NDArray[np.bool_]) -> FloatArray:
    """Return (M, C) probabilities of the held-out rows by balanced logistic regression."""
    known, asked = standardise_features(features[train], features[~train])
    return probe(known, target[train], asked, classes=int(target.max()) + 1)


def retrieved(
    features: FloatArray, rows: Rows, train: npt.NDArray[np.bool_]
) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    """Return what the train rows nearest to each held-out row say, by cosine.

    Every lesion of this cohort has one picture, so that rows are lesions.

    Returns:
        (M, C) shares of the labels among the ten nearest, and (M,) the share of the row's own
        label among the first `FIRST`.
    """
    known, asked = rows.take(train), rows.take(~train)
    reference, query = features[train], features[~train]
    shares = vote(
        query,
        asked.group_id,
        reference,
        known.group_id,
        known.label,
        classes=int(rows.label.max()) + 1,
    )
    found = search_lesions(
        query, asked.group_id, asked.label, reference, known.group_id, known.label
    )
    return shares, found.precision[FIRST]


def of_patients(features: FloatArray, patient: IntArray) -> FloatArray:
    """Return (P, D), the mean over each patient's images, patients in rising order."""
    number = np.unique(patient, return_inverse=True)[1]
    sums = np.zeros((number.max() + 1, features.shape[1]))
    np.add.at(sums, number, features)
    means: FloatArray = (sums / np.bincount(number)[:, None]).astype(np.float32)
    return means


def patient_answers(features: Features, rows: Rows) -> Answers:
    """Return probes of the patient's own record, asked of the mean of the patient's images.

    A field that a patient lacks is -1 among the true values.
    """
    first = rows.take(np.unique(rows.patient, return_index=True)[1])
    train = first.split == "train"
    means = of_patients(features.image, rows.patient)
    answers: Answers = {"patients": first.patient[~train]}
    for name in PATIENT_FIELDS:
        said = [record.get(name) for record in first.records]
        words = sorted({str(value) for value in said if value is not None})
        code = np.array([-1 if v is None else words.index(str(v)) for v in said], np.int64)
        known = train & (code >= 0)
        reference, query = standardise_features(means[known], means[~train])
        answers[f"record, {name}"] = probe(reference, code[known], query, classes=len(words))
        answers[f"true record, {name}"] = code[~train]
    return answers


def answers_of(features: Features, rows: Rows) -> Answers:
    """Return the probes' answers to the held-out images, and what is true of them."""
    train = rows.split == "train"
    both = np.concatenate([features.image, features.record], axis=1)
    seen = {"image": features.image, "record": features.record, "both": both}
    answers: Answers = {
        f"label, {name}": probed(values, rows.label, train) for name, values in seen.items()
    }
    for name in COMPARED:
        answers[f"neighbours, {name}"], answers[f"precision, {name}"] = retrieved(
            seen[name], rows, train
        )
        company = in_company(seen[name], rows.patient)
        answers[f"malignant, {name}"] = probed(seen[name], rows.malignant, train)[:, 1]
        answers[f"malignant in company, {name}"] = probed(company, rows.malignant, train)[:, 1]
    held_out = rows.take(~train)
    return {
        **answers,
        **patient_answers(features, rows),
        "true label": held_out.label,
        "malignant": held_out.malignant == 1,
        "patient": held_out.patient,
    }
