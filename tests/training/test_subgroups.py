"""Figures by subgroup, and what metadata changes, recomputed from the predictions of a report."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from bundle.calibration import Calibration
from bundle.fields import Record
from cohort.cohort import Cohort
from training.conditions import Answers
from training.evaluation import evaluate
from training.harm import harm_and_help
from training.scores import Raw, Truth, find_truth
from training.subgroups import subgroup_figures

LABELS = ("nv", "mel", "bcc")
COUNT = 90


@pytest.fixture
def calibration(fitted: Path) -> Calibration:
    return Calibration.model_validate_json((fitted / "calibration.json").read_bytes())


def told() -> tuple[Raw, Truth, dict[str, Answers], list[Record]]:
    rng = np.random.default_rng(0)
    malignant = rng.integers(0, 2, COUNT)
    raw = Raw(
        names=[LABELS[m] for m in malignant],
        malignant=malignant.astype(np.int64),
        groups=[str(i // 2) for i in range(COUNT)],
    )
    truth = find_truth(
        raw,
        own=LABELS,
        labels=LABELS,
        malignant=np.array([False, True, True]),
        prior=np.full(3, 1 / 3, np.float32),
        samples=50,
        seed=0,
    )
    answers = {}
    for name in ("image", "given"):
        yes = np.clip(0.5 * malignant + rng.random(COUNT) / 2 + 0.1 * rng.normal(size=COUNT), 0, 1)
        probabilities = np.stack([1 - yes, yes, 0 * yes], axis=1).astype(np.float32)
        answers[name] = Answers(probabilities, np.full(COUNT, "missing"))
    records: list[Record] = [
        {"sex": "female" if i % 3 else "male", "age_years": float(i)} for i in range(COUNT)
    ]
    records[0] = {}
    return raw, truth, answers, records


def test_every_subgroup_has_its_own_rows_figures(calibration: Calibration) -> None:
    raw, truth, answers, records = told()
    found = subgroup_figures(answers, records, raw, truth, calibration, samples=50, seed=0)
    assert set(found) == {"sex", "age_years"}
    assert set(found["age_years"]) == {"0 to 29", "30 to 49", "50 to 69", "70 and over"}
    assert found["age_years"]["0 to 29"]["images"] == 29
    for name in ("female", "male"):
        own = np.array([r.get("sex") == name for r in records])
        figures = found["sex"][name]
        assert figures["images"] == own.sum()
        for condition, answered in answers.items():
            p = answered.probabilities[own]
            truth_of = raw.malignant[own]
            expected = roc_auc_score(truth_of, p[:, 1])
            assert figures[condition]["malignant_auroc"]["value"] == pytest.approx(expected)
            balanced = recall_score(truth_of, p.argmax(1), average="macro")
            assert figures[condition]["balanced_accuracy"]["value"] == pytest.approx(balanced)
            sets = answered.sets(calibration)[own]
            covered = sets[np.arange(own.sum()), truth_of].mean()
            assert figures[condition]["conformal_coverage"]["value"] == pytest.approx(covered)


@pytest.mark.parametrize("field", ["fitzpatrick_skin_type", "skin_tone_class"])
def test_skin_types_are_subgroups_under_either_name(calibration: Calibration, field: str) -> None:
    raw, truth, answers, _ = told()
    records: list[Record] = [{field: str(i % 3)} for i in range(COUNT)]
    found = subgroup_figures(answers, records, raw, truth, calibration, samples=50, seed=0)
    assert {name: figures["images"] for name, figures in found[field].items()} == dict.fromkeys(
        "012", COUNT // 3
    )


def test_few_images_are_counted_and_not_judged(calibration: Calibration) -> None:
    raw, truth, answers, records = told()
    records = [{"anatom_site": "back" if i < 19 else "scalp"} for i in range(COUNT)]
    found = subgroup_figures(answers, records, raw, truth, calibration, samples=50, seed=0)
    back = found["anatom_site"]["back"]
    assert back["images"] == 19
    assert back["image"]["malignant_auroc"] == {"value": None, "reason": "fewer than 20 images"}
    assert found["anatom_site"]["scalp"]["image"]["malignant_auroc"]["low"] is not None


def test_an_auroc_needs_some_of_either_side(calibration: Calibration) -> None:
    raw, truth, answers, _ = told()
    benign = np.flatnonzero(raw.malignant == 0)[:30]
    places = set(benign) | set(np.flatnonzero(raw.malignant == 1)[:4])
    records: list[Record] = [{"sex": "male"} if i in places else {} for i in range(COUNT)]
    found = subgroup_figures(answers, records, raw, truth, calibration, samples=50, seed=0)
    male = found["sex"]["male"]["image"]
    assert male["malignant_auroc"]["reason"] == "fewer than 5 malignant or benign images"
    assert male["balanced_accuracy"]["value"] is not None


def test_harm_and_help_are_counted_against_the_image_alone() -> None:
    _, truth, answers, _ = told()
    found = harm_and_help(answers, truth)
    assert set(found) == {"given"}
    assert not isinstance(truth.labelled, str)
    right = {k: a.probabilities.argmax(1) == truth.labelled.label for k, a in answers.items()}
    counted = Counter(zip(right["image"].tolist(), right["given"].tolist(), strict=True))
    assert found["given"]["harmed"]["value"] == pytest.approx(counted[True, False] / COUNT)
    assert found["given"]["helped"]["value"] == pytest.approx(counted[False, True] / COUNT)


def test_labels_of_another_vocabulary_have_no_harm_and_no_accuracy(
    calibration: Calibration,
) -> None:
    raw, truth, answers, records = told()
    foreign = Truth(truth.labels, truth.prior, "other labels", truth.questions)
    assert harm_and_help(answers, foreign) == {"value": None, "reason": "other labels"}
    found = subgroup_figures(answers, records, raw, foreign, calibration, samples=50, seed=0)
    female = found["sex"]["female"]["image"]
    assert female["balanced_accuracy"]["reason"] == "other labels"
    assert female["malignant_auroc"]["value"] is not None


def test_a_report_shows_subgroups_and_harm(fitted: Path, cohort: Cohort, tmp_path: Path) -> None:
    metrics: dict[str, Any] = evaluate(fitted, cohort, tmp_path / "report", splits=["test", "val"])
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["harm"] == metrics["harm"]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "## By subgroup" in text
    assert "sex female" in text
    assert "right made wrong" in text
    assert "Malignant pAUC above 80 % sensitivity" in text
