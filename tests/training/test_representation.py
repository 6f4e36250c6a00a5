"""Frozen features: every figure against a plain loop, and what no encoder may be asked."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from bundle.errors import TrainingError
from training.probes import draw_few, probe, standardise_features
from training.representation import compare_representations, evaluate_representation
from training.retrieval import FIRST, nearest_lesions, pool_lesions, search_lesions, vote
from training.task import Side, Task

FloatArray = npt.NDArray[np.float32]
LABELS = ("nevus", "melanoma", "other")


def make_side(count: int, name: str, *, images: int = 2, seed: int = 0) -> tuple[Side, FloatArray]:
    """Return lesions of `images` pictures, two lesions a patient, and features that show labels."""
    rng = np.random.default_rng(seed)
    lesion = np.repeat(np.arange(count), images)
    label = rng.integers(0, len(LABELS), count)[lesion]
    features = rng.normal(size=(len(label), 6)).astype(np.float32) + 5
    features[np.arange(len(label)), label] += 1.5
    return Side(
        label.astype(np.int64),
        (label == 1).astype(np.int64),
        [f"{name} lesion {i}" for i in lesion],
        [f"{name} patient {i // 2}" for i in lesion],
    ), features


def make_task(**changes: Any) -> tuple[Task, FloatArray, FloatArray]:
    reference, known = make_side(60, "train")
    query, asked = make_side(30, "test", seed=1)
    settings: dict[str, Any] = {"samples": 20, "draws": 2, "per_label": (1, 5), "shares": (0.2,)}
    task = Task(LABELS, ("melanoma",), reference, query, **{**settings, **changes})
    return task, known, asked


def test_the_linear_probe_is_a_balanced_logistic_regression() -> None:
    task, known, asked = make_task()
    mean, deviation = known.mean(0), known.std(0)
    model = LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000)
    model.fit((known - mean) / deviation, task.reference.label)
    decided = model.predict((asked - mean) / deviation)
    found = evaluate_representation(known, asked, task).figures["linear"]
    expected = balanced_accuracy_score(task.query.label, decided)
    assert found["balanced_accuracy"]["value"] == pytest.approx(expected)
    assert found["balanced_accuracy"]["low"] <= expected <= found["balanced_accuracy"]["high"]


def test_neighbours_vote_as_scikit_learn_counts_them() -> None:
    task, known, asked = make_task()
    centre = known.mean(0)
    model = KNeighborsClassifier(10, metric="cosine")
    model.fit(known - centre, task.reference.label)
    ours = vote(
        asked,
        task.query.group,
        known,
        task.reference.group,
        task.reference.label,
        classes=3,
    )
    np.testing.assert_allclose(ours, model.predict_proba(asked - centre), atol=1e-6)


def test_a_group_never_votes_on_itself() -> None:
    features = np.eye(4, dtype=np.float32)
    groups = ["a", "a", "b", "b"]
    label = np.array([0, 0, 1, 1])
    shares = vote(features, groups, features, groups, label, classes=2, count=3)
    np.testing.assert_array_equal(shares, [[0, 1], [0, 1], [1, 0], [1, 0]])


def test_with_nobody_but_the_own_group_no_label_has_a_vote() -> None:
    features = np.eye(2, dtype=np.float32)
    shares = vote(features, ["a", "a"], features, ["a", "a"], np.array([0, 1]), classes=2)
    np.testing.assert_array_equal(shares, np.zeros((2, 2)))


def test_a_search_is_judged_as_one_lesion_after_another_would_be() -> None:
    task, known, asked = make_task()
    own = task.reference
    lesions, first = pool_lesions(known, own.lesion)
    label = own.label[first]
    found = search_lesions(
        asked,
        task.query.group,
        task.query.label,
        lesions,
        [own.group[i] for i in first.tolist()],
        label,
    )
    centre = lesions.mean(0)
    for i in range(len(asked)):
        one = asked[i] - centre
        scores = [
            float(
                np.dot(one, other - centre) / np.linalg.norm(one) / np.linalg.norm(other - centre)
            )
            for other in lesions
        ]
        right = (label == task.query.label[i])[np.argsort(-np.array(scores))]
        for k in FIRST:
            assert found.precision[k][i] == pytest.approx(right[:k].mean())
            assert found.hit[k][i] == right[:k].any()
        expected = average_precision_score(label == task.query.label[i], scores)
        assert found.average_precision[i] == pytest.approx(expected)


def test_a_query_whose_label_no_other_group_has_is_not_judged() -> None:
    features = np.eye(3, dtype=np.float32)
    found = search_lesions(
        features[:1], ["a"], np.array([0]), features, ["a", "b", "c"], np.array([0, 1, 1])
    )
    assert np.isnan(found.average_precision).all()
    assert np.isnan(found.precision[5]).all()


def test_a_lesions_pictures_are_found_as_one() -> None:
    features = np.array([[1, 0], [0.8, 0.2], [0, 1], [-1, 0]], np.float32)
    found = nearest_lesions(
        features[:1], ["q"], features, ["a", "a", "b", "c"], ["l", "l", "m", "n"], count=9
    )
    np.testing.assert_array_equal(found.row, [[0, 2, 3]])
    assert (np.diff(found.cosine[0]) <= 0).all()


def test_few_labelled_images_are_of_as_many_groups() -> None:
    task, _, _ = make_task(per_label=(1, 5, 50))
    one, five, fifty, share = draw_few(task)
    assert [one.name, five.name, share.name] == ["1 per label", "5 per label", "20 %"]
    for rows in five.rows:
        label = task.reference.label[rows]
        np.testing.assert_array_equal(np.bincount(label), [5, 5, 5])
        for k in range(3):
            groups = [task.reference.group[i] for i in rows[label == k].tolist()]
            assert len(set(groups)) == 5
    assert set(fifty.fewer) == set(LABELS)
    assert not one.fewer
    for rows in share.rows:
        drawn = {task.reference.group[i] for i in rows.tolist()}
        assert len(drawn) == 6
        # All pictures of a drawn group are there.
        assert len(rows) == sum(group in drawn for group in task.reference.group)
    assert not np.array_equal(five.rows[0], five.rows[1])


def test_few_rows_are_probed_as_any_rows_are() -> None:
    task, known, asked = make_task()
    found = evaluate_representation(known, asked, task).figures["low_shot"]["5 per label"]
    standard, other = standardise_features(known, asked)
    accuracies = []
    for rows in draw_few(task)[1].rows:
        answers = probe(standard[rows], task.reference.label[rows], other, classes=3)
        accuracies.append(balanced_accuracy_score(task.query.label, answers.argmax(1)))
    assert found["balanced_accuracy"]["value"] == pytest.approx(np.mean(accuracies))
    assert found["balanced_accuracy"]["sd"] == pytest.approx(np.std(accuracies))
    assert found["images"] == 15


def test_rows_of_one_label_give_it_all_probability() -> None:
    features = np.eye(3, dtype=np.float32)
    answers = probe(features, np.array([2, 2, 2]), features, classes=4)
    np.testing.assert_array_equal(answers[:, 2], 1)
    assert answers.sum() == 3


def test_a_better_encoder_is_better_on_the_same_resamples() -> None:
    task, known, asked = make_task()
    rng = np.random.default_rng(2)
    good = evaluate_representation(known, asked, task)
    noise = evaluate_representation(
        rng.normal(size=known.shape).astype(np.float32),
        rng.normal(size=asked.shape).astype(np.float32),
        task,
    )
    gap = compare_representations(good, noise)["linear balanced_accuracy"]
    assert gap["low"] > 0
    expected = (
        good.figures["linear"]["balanced_accuracy"]["value"]
        - noise.figures["linear"]["balanced_accuracy"]["value"]
    )
    assert gap["value"] == pytest.approx(expected)
    same = compare_representations(good, good)
    assert all(figure["value"] == 0 for figure in same.values())


def test_answers_to_two_tasks_are_not_compared() -> None:
    task, known, asked = make_task()
    other, _, _ = make_task()
    with pytest.raises(TrainingError, match="one task"):
        compare_representations(
            evaluate_representation(known, asked, task),
            evaluate_representation(known, asked, other),
        )


def test_features_that_are_not_the_tasks_rows_are_refused() -> None:
    task, known, asked = make_task()
    with pytest.raises(TrainingError, match=r"expected \(120, D\) reference"):
        evaluate_representation(known[:-1], asked, task)
    with pytest.raises(TrainingError, match="one width"):
        evaluate_representation(known, asked[:, :3], task)
    asked[0, 0] = np.nan
    with pytest.raises(TrainingError, match="finite query"):
        evaluate_representation(known, asked, task)


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(TrainingError, match="one entry a row"):
        Side(np.zeros(2, np.int64), np.zeros(2, np.int64), ["a"], ["a", "b"])


def test_what_cannot_be_asked_says_why() -> None:
    task, known, asked = make_task()
    one = Side(
        np.zeros(120, np.int64),
        np.zeros(120, np.int64),
        task.reference.lesion,
        task.reference.group,
    )
    alone = Task(LABELS, (), one, task.query)
    assert "fewer than two" in evaluate_representation(known, asked, alone).figures["reason"]
    unlabelled = Side(np.full(60, -1), np.full(60, -1), task.query.lesion, task.query.group)
    nothing = Task(LABELS, (), task.reference, unlabelled)
    found = evaluate_representation(known, asked, nothing)
    assert "label" in found.figures["reason"]
    assert not found.draws


def test_the_order_of_the_cohort_decides_nothing_between_equals() -> None:
    rng = np.random.default_rng(0)
    label = np.sort(rng.integers(0, 2, 400))
    blind = np.ones((400, 3), np.float32)
    groups = [f"g{i}" for i in range(400)]
    found = search_lesions(blind, groups, label, blind, groups, label)
    share = np.mean([(label == k).mean() for k in label])
    assert np.nanmean(found.precision[10]) == pytest.approx(share, abs=0.2)
