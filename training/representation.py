"""What frozen features are worth: linear probe, neighbours' vote, retrieval, few labelled rows.

    task = Task(labels, malignant_labels, Side.of(train_rows), Side.of(test_rows))
    first = evaluate_representation(train_features, test_features, task)
    second = evaluate_representation(other_train_features, other_test_features, task)
    compare_representations(first, second)

Features are any (N, D) arrays. Intervals and comparisons are over the same resampled query groups
and the same draws of few rows, so that encoders are compared in pairs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import TrainingError
from training.probes import FewRows, draw_few, probe, standardise_features
from training.resampling import (
    Draws,
    Estimate,
    Resampling,
    auroc_of,
    balanced_accuracy_of,
    estimate,
    macro_auroc_of,
    mean_by_label_of,
    mean_of,
    mean_of_known,
)
from training.retrieval import FIRST, NEIGHBOURS, pool_lesions, search_lesions, vote
from training.scores import Labelled, Truth, null
from training.task import Task

FloatArray = npt.NDArray[np.float32]
MEANING = {
    "linear": "balanced logistic regression (C 0.01) on standardised features, of all labelled "
    "train images",
    "neighbours": f"vote of the {NEIGHBOURS} nearest train images, by cosine, features centred by "
    "the train mean",
    "retrieval": "train lesions (mean over a lesion's images, centred by their mean) in the order "
    "of their cosine with the query, its own group left out; queries whose label no such lesion "
    "has are left out",
    "precision_at_k": "share of the query's label among the first k lesions, mean over queries",
    "recall_at_k": "share of queries with a lesion of their label among the first k",
    "mean_average_precision": "mean over queries of the average precision over all lesions",
    "macro": "the mean over labels of the mean over their queries",
    "low_shot": "the linear probe of few labelled train images, mean and standard deviation (sd) "
    "over draws: so many images per label, each of another group, or all images of a share of the "
    "groups; features are standardised over the whole train split, which takes no label",
}


@dataclass(frozen=True)
class Representation:
    """What one encoder's features are worth.

    Attributes:
        task: what was asked.
        draws: by figure, (1 + samples,) values, for paired comparisons.
        figures: ready for JSON.
    """

    task: Task
    draws: dict[str, Draws]
    figures: dict[str, Any]


def evaluate_representation(reference: FloatArray, query: FloatArray, task: Task) -> Representation:
    """Return every figure of features.

    Args:
        reference: (R, D) float32 of the task's reference rows.
        query: (N, D) float32 of its query rows.
        task: what is asked.

    Raises:
        TrainingError: the arrays are not those rows', or hold NaN or infinity.
    """
    _check(reference, query, task)
    truth = task.truth
    if task.problem is not None or isinstance(truth.labelled, str):
        return Representation(task, {}, null(task.problem or "no query has a label"))
    labelled = np.flatnonzero(task.reference.label >= 0)
    known, classes = task.reference.take(labelled), len(task.labels)
    standard, asked = standardise_features(reference, query)
    linear = probe(standard[labelled], known.label, asked, classes=classes)
    voted = vote(
        query,
        task.query.group,
        reference[labelled],
        known.group,
        known.label,
        classes=classes,
    )
    draws = {
        **_named("linear", _probability_draws(linear, truth, truth.labelled)),
        **_named("neighbours", _probability_draws(voted, truth, truth.labelled)),
    }
    figures = {
        kind: _probability_figures(draws, kind, truth, truth.labelled)
        for kind in ("linear", "neighbours")
    }
    retrieval, counts = _retrieve(reference, query, task, truth.labelled)
    draws |= _named("retrieval", retrieval)
    figures["retrieval"] = {
        **counts,
        **{k: estimate(v, "no query's label occurs") for k, v in retrieval.items()},
    }
    few = draw_few(task)
    low_shot = {}
    for size in few:
        low_shot[size.name], of_size = _learn_few(standard, asked, task, size, truth.labelled)
        draws[f"low_shot {size.name} balanced_accuracy"] = of_size
    return Representation(task, draws, {**figures, "low_shot": low_shot})


def compare_representations(first: Representation, second: Representation) -> dict[str, Estimate]:
    """Return first minus second for every figure, with intervals over the same resamples.

    Raises:
        TrainingError: the two did not answer the same task object.
    """
    if first.task is not second.task:
        raise TrainingError(
            "expected representations of one task, got two: evaluate both under the same Task"
        )
    return {
        name: estimate(values - second.draws[name])
        for name, values in first.draws.items()
        if name in second.draws
    }


def _check(reference: FloatArray, query: FloatArray, task: Task) -> None:
    expected = {"reference": (reference, task.reference), "query": (query, task.query)}
    for name, (features, side) in expected.items():
        if features.ndim != 2 or len(features) != len(side):
            raise TrainingError(f"expected ({len(side)}, D) {name} features, got {features.shape}")
        if not np.isfinite(features).all():
            raise TrainingError(f"expected finite {name} features, got NaN or infinity")
    if reference.shape[1] != query.shape[1]:
        raise TrainingError(
            f"expected features of one width, got {reference.shape[1]} and {query.shape[1]}"
        )


def _named(prefix: str, draws: dict[str, Draws]) -> dict[str, Draws]:
    return {f"{prefix} {name}": values for name, values in draws.items()}


def _probability_draws(
    probabilities: FloatArray, truth: Truth, labelled: Labelled
) -> dict[str, Draws]:
    own, label = probabilities[labelled.rows], labelled.label
    aurocs = {
        f"auroc of {truth.labels[k]}": labelled.resampling.draws(auroc_of(label == k, own[:, k]))
        for k in np.unique(label)
    }
    decided = balanced_accuracy_of(label, own.argmax(1))
    asked = {
        name: question.resampling.draws(auroc_of(question.positive, question.score(probabilities)))
        for name, question in truth.questions.items()
        if not isinstance(question, str)
    }
    return {
        "balanced_accuracy": labelled.resampling.draws(decided),
        "macro_auroc": mean_of_known(list(aurocs.values())),
        **asked,
        **aurocs,
    }


def _probability_figures(
    draws: dict[str, Draws], kind: str, truth: Truth, labelled: Labelled
) -> dict[str, Any]:
    def figure(name: str, reason: str) -> Estimate:
        key = f"{kind} {name}"
        return estimate(draws[key]) if key in draws else null(reason)

    asked = {
        name: figure(name, question if isinstance(question, str) else "")
        for name, question in truth.questions.items()
    }
    labels = {
        name: {
            "images": int((labelled.label == k).sum()),
            "auroc": figure(f"auroc of {name}", "no image carries this label"),
        }
        for k, name in enumerate(truth.labels)
    }
    main = {name: figure(name, "") for name in ("balanced_accuracy", "macro_auroc")}
    return {**main, **asked, "labels": labels}


def _retrieve(
    reference: FloatArray, query: FloatArray, task: Task, labelled: Labelled
) -> tuple[dict[str, Draws], dict[str, int]]:
    rows = np.flatnonzero(task.reference.label >= 0)
    lesions, shown = pool_lesions(
        reference[rows], [task.reference.lesion[i] for i in rows.tolist()]
    )
    known = task.reference.take(rows[shown])
    group = [task.query.group[i] for i in labelled.rows]
    found = search_lesions(
        query[labelled.rows],
        group,
        labelled.label,
        lesions,
        known.group,
        known.label,
        seed=task.seed,
    )
    judged = ~np.isnan(found.average_precision)
    counts = {
        "lesions": len(lesions),
        "queries": int(judged.sum()),
        "queries_without_a_like_lesion": int((~judged).sum()),
    }
    if not judged.any():
        return {}, counts
    label = labelled.label[judged]
    resampling = Resampling(
        [g for g, j in zip(group, judged, strict=True) if j], samples=task.samples, seed=task.seed
    )
    values = {
        **{f"precision_at_{k}": found.precision[k] for k in FIRST},
        **{f"recall_at_{k}": found.hit[k] for k in FIRST},
        "mean_average_precision": found.average_precision,
    }
    draws = {name: resampling.draws(mean_of(value[judged])) for name, value in values.items()}
    for name in ("precision_at_5", "mean_average_precision"):
        macro = mean_by_label_of(label, values[name][judged])
        draws[f"macro_{name}"] = resampling.draws(macro)
    return draws, counts


def _learn_few(
    standard: FloatArray, asked: FloatArray, task: Task, size: FewRows, labelled: Labelled
) -> tuple[dict[str, Any], Draws]:
    label, whole = labelled.label, np.ones((1, len(labelled.rows)))
    accuracies: list[Draws] = []
    aurocs: list[float] = []
    for rows in size.rows:
        few = task.reference.label[rows]
        own = probe(standard[rows], few, asked[labelled.rows], classes=len(task.labels))
        decided = balanced_accuracy_of(label, own.argmax(1))
        accuracies.append(labelled.resampling.draws(decided))
        aurocs.append(float(macro_auroc_of(label, own)(whole)[0]))
    mean = np.mean(accuracies, axis=0)
    spread = float(np.std([draws[0] for draws in accuracies]))
    present = [len(np.unique(task.reference.label[rows])) for rows in size.rows]
    macro = (
        null("the rows hold only one side")
        if np.isnan(aurocs).any()
        else {"value": float(np.mean(aurocs)), "sd": float(np.std(aurocs))}
    )
    figures = {
        "draws": len(size.rows),
        "images": float(np.mean([len(rows) for rows in size.rows])),
        "labels_present": float(np.mean(present)),
        "labels_with_fewer": size.fewer,
        "balanced_accuracy": {**estimate(mean), "sd": spread},
        "macro_auroc": macro,
    }
    return figures, mean
