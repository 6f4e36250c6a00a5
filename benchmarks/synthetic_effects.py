"""What can be learnt from the synthetic cohort: oracles that never see a hidden variable.

    python -m benchmarks.synthetic_effects [--seeds 2024 1 2 3] [--train 300] [--test 120]

Logistic regression and gradient boosting on plain statistics of the pixels (colours of centre and
surroundings, size, shape, texture) and on the records, patient-disjoint. Two tables: balanced
accuracy over the labels by what the model sees, and how often a patient's malignant lesion is
among the patient's three most suspicious, with and without the patient's other lesions.
"""

import argparse
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bundle.fields import FieldSchema, Record
from cohort.rows import LesionImage, Source
from cohort.synthetic import DEMO_SETTINGS, synthetic_source

Table = NDArray[np.float64]
TOP = 3
MIN_LESIONS = 15


@dataclass(frozen=True)
class Tables:
    """The cohort as numbers: (N, F) of pixels, (N, F) of records, and what is to be found."""

    image: Table
    metadata: Table
    labels: NDArray[Any]
    malignant: NDArray[np.bool_]
    patients: NDArray[np.int64]


def image_statistics(image: bytes) -> list[float]:
    """Return plain statistics of a picture, relative to the skin at its rim where they can be."""
    with Image.open(io.BytesIO(image)) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=np.float64)
    px = len(pixels)
    rim = np.ones((px, px), dtype=bool)
    rim[px // 10 : -(px // 10), px // 10 : -(px // 10)] = False
    skin = np.median(pixels[rim], axis=0)
    density = np.log((skin + 1.0) / (pixels + 1.0))
    dark = density.mean(axis=2)
    smooth = _blur(dark)
    axis = (np.arange(px) + 0.5) / px * 2.0 - 1.0
    x, y = np.meshgrid(axis, axis)
    smooth = smooth * (np.hypot(x, y) < 0.9)
    inside = smooth > max(0.45 * np.percentile(smooth, 97), 0.04)
    if inside.sum() < 6:
        inside = np.hypot(x, y) < 0.2
    return [
        *skin,
        *_shape(inside, x, y),
        *density[inside].mean(axis=0),
        *density[inside].std(axis=0),
        *np.percentile(dark[inside], (5, 50, 95)),
        *np.percentile(density[inside][:, 0] - density[inside][:, 2], (5, 50, 95)),
        *np.percentile(density[inside][:, 1] - density[inside][:, 0], (5, 50, 95)),
        float(np.std((dark - smooth)[inside])),
        float(np.std((dark - smooth)[~inside])),
        float(np.std(smooth[~inside])),
        float(np.std(_blur(_blur(smooth))[inside])),
        float(_halves(density, inside, x, y)),
    ]


def _blur(plane: Table) -> Table:
    padded = np.pad(plane, 1, mode="edge")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4.0
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4.0)


def _shape(inside: NDArray[np.bool_], x: Table, y: Table) -> list[float]:
    """Return the log of the area, the axis ratio and the outline's length over a circle's."""
    area = inside.sum()
    spread = np.cov(np.stack([x[inside], y[inside]]))
    short, long = np.sqrt(np.maximum(np.linalg.eigvalsh(spread), 1e-6))
    edges = (inside[1:] != inside[:-1]).sum() + (inside[:, 1:] != inside[:, :-1]).sum()
    return [float(np.log(area)), float(short / long), float(edges / np.sqrt(area))]


def _halves(density: Table, inside: NDArray[np.bool_], x: Table, y: Table) -> float:
    """Return how different the colours of opposite halves are, over the worst of four cuts."""
    worst = 0.0
    for angle in np.arange(4) * np.pi / 4:
        side = np.cos(angle) * (x - x[inside].mean()) + np.sin(angle) * (y - y[inside].mean()) > 0
        halves = [density[inside & side], density[inside & ~side]]
        if min(len(half) for half in halves) > 0:
            worst = max(worst, float(np.linalg.norm(halves[0].mean(0) - halves[1].mean(0))))
    return worst


def record_values(record: Record, schema: FieldSchema) -> list[float]:
    """Return one number a field (categories as 0/1 columns), NaN where the record is silent."""
    values: list[float] = []
    for field in schema.fields:
        value = record.get(field.name)
        if field.kind == "categorical":
            known = value is not None
            values += [float(value == c) if known else np.nan for c in field.categories]
        else:
            values.append(np.nan if value is None else float(value))
    return values


def read(source: Source) -> Tables:
    """Return the whole source as tables."""
    images = [row for row in source.rows() if isinstance(row, LesionImage)]
    order = {
        patient: place for place, patient in enumerate(dict.fromkeys(i.group_id for i in images))
    }
    return Tables(
        image=np.array([image_statistics(image.image) for image in images]),
        metadata=np.array([record_values(image.record, source.schema) for image in images]),
        labels=np.array([image.label for image in images]),
        malignant=np.array([bool(image.malignant) for image in images]),
        patients=np.array([order[image.group_id] for image in images]),
    )


def relative_features(features: Table, patients: NDArray[np.int64]) -> Table:
    """Return each lesion against the same patient's others.

    Args:
        features: (N, F) of pixels and measurements, no missing values.
        patients: (N,) patient of each lesion.

    Returns:
        (N, F + 3): difference to the patient's median in units of the whole cohort's spread
        inside patients, its norm, the mean distance to the 5 nearest others, and the local
        outlier factor.
    """
    out = np.zeros((len(features), features.shape[1] + 3))
    centred = features.copy()
    for patient in np.unique(patients):
        rows = patients == patient
        centred[rows] -= np.median(features[rows], axis=0)
    centred = np.clip(centred / (np.subtract(*np.percentile(centred, (84, 16), axis=0)) / 2), -6, 6)
    for patient in np.unique(patients):
        rows = np.flatnonzero(patients == patient)
        own = centred[rows]
        apart = np.sort(np.linalg.norm(own[:, None] - own[None], axis=2), axis=1)
        factor = LocalOutlierFactor(n_neighbors=min(8, len(rows) - 1)).fit(own)
        out[rows, :-3] = own
        out[rows, -3] = np.linalg.norm(own, axis=1)
        out[rows, -2] = apart[:, 1:6].mean(axis=1)
        out[rows, -1] = -factor.negative_outlier_factor_
    return out


def with_gaps(metadata: Table, train: NDArray[np.bool_]) -> Table:
    """Return the records with a column that marks each gap, gaps filled by the training mean."""
    gaps = np.isnan(metadata)
    filled = np.where(gaps, np.nanmean(metadata[train], axis=0), metadata)
    return np.hstack([filled, gaps.astype(float)])


def logistic(features: Table, wanted: NDArray[Any], train: NDArray[np.bool_]) -> Any:
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=500)
    )
    return model.fit(features[train], wanted[train])


def boosting(features: Table, wanted: NDArray[Any], train: NDArray[np.bool_]) -> Any:
    model = HistGradientBoostingClassifier(
        class_weight="balanced",
        max_iter=60,
        learning_rate=0.08,
        max_leaf_nodes=8,
        l2_regularization=5.0,
        min_samples_leaf=10,
    )
    return model.fit(features[train], wanted[train])


MODELS = {"logistic": logistic, "boosting": boosting}


def top_share(scores: Table, tables: Tables, test: NDArray[np.bool_]) -> tuple[float, int]:
    """Return how many of the test patients with a malignant lesion have one in their top 3."""
    found, patients = 0, 0
    for patient in np.unique(tables.patients[test]):
        rows = np.flatnonzero(tables.patients == patient)
        if len(rows) < MIN_LESIONS or not tables.malignant[rows].any():
            continue
        patients += 1
        best = rows[np.argsort(-scores[rows], kind="stable")[:TOP]]
        found += bool(tables.malignant[best].any())
    return found / patients, patients


def measure(tables: Tables, train_patients: int) -> dict[str, float]:
    """Return every figure of one cohort, by name; the first patients train, the others test."""
    train = tables.patients < train_patients
    metadata = with_gaps(tables.metadata, train)
    both = np.hstack([tables.image, metadata])
    relative = relative_features(tables.image, tables.patients)
    figures = {"lesions": float(len(tables.labels)), "malignant share": tables.malignant.mean()}
    for name, features in (("image", tables.image), ("metadata", metadata), ("both", both)):
        figures |= _measure_labels(name, features, tables, train)
    for name, features in (
        ("image", tables.image),
        ("image + metadata", both),
        ("oddness alone", relative[:, -3:]),
        ("image + the patient's others", np.hstack([tables.image, relative])),
        ("image + metadata + the patient's others", np.hstack([both, relative])),
    ):
        figures |= _measure_ranks(name, features, tables, train)
    return figures


def _measure_labels(
    name: str, features: Table, tables: Tables, train: NDArray[np.bool_]
) -> dict[str, float]:
    figures: dict[str, float] = {}
    labels = tables.labels[~train]
    for kind, fit in MODELS.items():
        guess = fit(features, tables.labels, train).predict(features[~train])
        figures[f"balanced accuracy: {name}, {kind}"] = balanced_accuracy_score(labels, guess)
        if kind == "logistic":
            for label in np.unique(labels):
                figures[f"recall of {label}: {name}"] = (guess == label)[labels == label].mean()
    return figures


def _measure_ranks(
    name: str, features: Table, tables: Tables, train: NDArray[np.bool_]
) -> dict[str, float]:
    figures: dict[str, float] = {}
    for kind, fit in MODELS.items():
        scores = fit(features, tables.malignant, train).predict_proba(features)[:, 1]
        share, patients = top_share(scores, tables, ~train)
        figures["test patients that are ranked"] = patients
        figures[f"in the top {TOP}: {name}, {kind}"] = share
        if kind == "logistic":
            auroc = roc_auc_score(tables.malignant[~train], scores[~train])
            figures[f"malignant AUROC: {name}"] = float(auroc)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[DEMO_SETTINGS["seed"], 1, 2, 3])
    parser.add_argument("--train", type=int, default=300, help="patients, the first ones")
    parser.add_argument("--test", type=int, default=120, help="patients, those after them")
    parser.add_argument("--difficulty", type=float, default=DEMO_SETTINGS["difficulty"])
    options = parser.parse_args()
    results = []
    for seed in options.seeds:
        arguments = DEMO_SETTINGS.copy()
        arguments["patients"] = options.train + options.test
        arguments["seed"], arguments["difficulty"] = seed, options.difficulty
        results.append(measure(read(synthetic_source(**arguments)), options.train))
    print(f"| seeds {', '.join(map(str, options.seeds))} | mean | sd |\n| --- | --- | --- |")
    for name in results[0]:
        values = np.array([result[name] for result in results])
        print(f"| {name} | {values.mean():.3f} | {values.std():.3f} |")


if __name__ == "__main__":
    main()
