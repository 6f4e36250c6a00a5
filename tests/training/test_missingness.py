"""What is missing must not tell the label."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.fields import Record
from bundle.records import encode_records
from cohort.cohort import Cohort
from cohort.rows import LesionImage
from tests.training.squares import LABELS, SCHEMA, draw_square, tiny_config, write_cohort
from training.classifier import ConditionRecords, classify, feature_table, train_classifier
from training.data import fit_schema, load_rows
from training.features import LEVELS
from training.heads import Classifier
from training.missing_figures import indicators_alone
from training.missingness import PatternBalance, balance_lesions, presence
from training.model import Slimp
from training.scores import Raw, find_truth

GAPS = ("diameter_mm", "age_years", "sex")


def gappy(count: int = 600) -> list[LesionImage]:
    """Return lesions whose label nothing tells but which fields are missing."""
    rng = np.random.default_rng(0)
    images: list[LesionImage] = []
    for i in range(count):
        label = ("nv", "mel")[i % 2]
        record: Record = {
            "diameter_mm": float(rng.uniform(2, 10)),
            "itch": bool(rng.integers(2)),
            "anatom_site": ("back", "scalp")[rng.integers(2)],
            "age_years": float(rng.uniform(20, 80)),
            "sex": ("female", "male")[rng.integers(2)],
        }
        if label == "nv" and rng.random() < 0.7:
            record = {k: v for k, v in record.items() if k not in GAPS}
        images.append(
            LesionImage(
                image_id=f"i{i}",
                lesion_id=f"l{i}",
                patient_id=f"p{i}",
                image=draw_square("nv", 0.5, 0.5, 0) if i < 2 else images[i % 2].image,
                label=label,
                malignant=label == "mel",
                record=record,
            )
        )
    return images


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    path: Path = tmp_path_factory.mktemp("gappy") / "cohort"
    return write_cohort(path, gappy(), labels=("nv", "mel"), malignant_labels=("mel",))


def test_no_label_goes_with_a_pattern() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 2], [500, 300, 200])
    present = np.ones((1000, 4), np.bool_)
    present[:350, 1:3] = False
    present[350:400, 0] = False
    present[500:520, 1:3] = False
    balance = PatternBalance(present, label)
    index = np.tile(np.arange(1000), 200)
    shown, weight = balance.draw(index, rng)
    assert (shown <= present[index]).all()
    patterns, counts = np.unique(present, axis=0, return_counts=True)
    for pattern, count in zip(patterns, counts, strict=True):
        for known in range(3):
            own = label[index] == known
            is_it = (shown == pattern).all(1) & own
            assert weight[is_it].sum() / weight[own].sum() == pytest.approx(count / 1000, abs=0.01)


def test_records_without_gaps_weigh_alike() -> None:
    present = np.ones((50, 3), np.bool_)
    shown, weight = PatternBalance(present, np.arange(50) % 2).draw(
        np.arange(50), np.random.default_rng(0)
    )
    assert shown.all()
    assert (weight == 1).all()


def test_a_label_that_never_has_a_field_keeps_its_gap_and_no_weight_explodes() -> None:
    label = np.repeat([0, 1], [990, 10])
    present = np.ones((1000, 2), np.bool_)
    present[label == 1, 1] = False
    shown, weight = PatternBalance(present, label).draw(np.arange(1000), np.random.default_rng(0))
    assert not shown[label == 1, 1].any()
    assert weight.max() <= 10


def test_a_row_that_can_show_no_pattern_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.missingness.MOST_PATTERNS", 1)
    present = np.array([[True, False]] * 5 + [[False, True]])
    shown, weight = PatternBalance(present, np.zeros(6, np.int64)).draw(
        np.arange(6), np.random.default_rng(0)
    )
    np.testing.assert_array_equal(shown, present)
    assert weight[5] == 1


def test_which_fields_are_missing_gives_the_planted_label_away(cohort: Cohort) -> None:
    rows = load_rows(cohort, ["train"], ("nv", "mel"))
    test = load_rows(cohort, ["test"], ("nv", "mel"))
    truth = find_truth(
        Raw([("nv", "mel")[k] for k in test.label], test.malignant, test.group_id),
        own=("nv", "mel"),
        labels=("nv", "mel"),
        malignant=np.array([False, True]),
        prior=np.ones(2, np.float32),
        samples=20,
        seed=0,
    )
    fields = cohort.schema.fields
    got = indicators_alone(fields, rows.records, rows.label, test.records, truth)
    # 70 % of one label lack them, none of the other: (1 + 0.7) / 2.
    assert got["malignant_auroc"]["value"] == pytest.approx(0.85, abs=0.07)
    whole = [r for r in rows.records if len(r) == len(fields)]
    label = np.zeros(len(whole), np.int64)
    assert "same fields" in indicators_alone(fields, whole, label, test.records, truth)["reason"]
    none = np.zeros(0, np.int64)
    assert "no labelled" in indicators_alone(fields, [], none, test.records, truth)["reason"]
    assert presence(whole, fields).all()


@pytest.mark.parametrize("balance", [True, False])
def test_blanking_a_record_moves_the_answer_only_without_the_balance(
    cohort: Cohort, balance: bool
) -> None:
    rows = load_rows(cohort, ["train"], ("nv", "mel"))
    schema = fit_schema(cohort.schema, rows)
    config = tiny_config(fit={"epochs": 12})
    torch.manual_seed(0)
    towers = Slimp(config, schema)
    classifier = Classifier(towers.embedding_dim, 2, hidden=16, dropout=0.0)
    size = (len(rows), towers.embedding_dim)
    blind = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    records = ConditionRecords.of(rows, [{}] * len(rows), schema, balance_missing=balance)
    train_classifier(
        towers,
        classifier,
        feature_table(blind, 32, 0),
        rows,
        records,
        config.fit,
        tune=False,
        steps_per_epoch=-(-len(rows) // 32),
        seed=0,
    )
    whole = [r for r in rows.records if len(r) == len(schema.fields)]
    gaps = [{k: v for k, v in r.items() if k not in GAPS} for r in whole]

    def malignancy(own: list[Record]) -> float:
        encoded = {level: encode_records(own, schema.at(level)) for level in LEVELS}
        features = torch.from_numpy(blind[: len(own)])
        with torch.no_grad():
            logits = classify(towers, classifier, features, encoded, np.ones(len(own), np.bool_))
        return float(logits.softmax(1)[:, LABELS.index("mel")].mean())

    moved = malignancy(gaps) - malignancy(whole)
    if balance:
        assert abs(moved) <= 0.02
    else:
        assert moved < -0.2


def test_neither_lesions_nor_patients_with_cancer_are_known_by_their_gaps() -> None:
    """Lesions without cancer lack a lesion field, patients without it a patient field."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(600), 4)
    afflicted = rng.random(600) < 0.4
    malignant = afflicted[patient] & (np.arange(2400) % 4 == 0)
    has_diameter = malignant | (rng.random(2400) < 0.3)
    has_age = (afflicted | (rng.random(600) < 0.3))[patient]
    whole: Record = {"sex": "male", "itch": True, "diameter_mm": 3.0, "age_years": 50.0}
    lacking = [
        {n for n, has in (("diameter_mm", diameter), ("age_years", age)) if not has}
        for diameter, age in zip(has_diameter, has_age, strict=True)
    ]
    records: list[Record] = [{k: v for k, v in whole.items() if k not in gaps} for gaps in lacking]
    shown, weight = balance_lesions(records, SCHEMA, patient, malignant, rng)
    assert all(
        record.items() <= whole.items() for record, whole in zip(shown, records, strict=True)
    )
    for name, among, known in (
        ("diameter_mm", malignant, has_diameter),
        ("age_years", afflicted[patient], has_age),
    ):
        there = np.array([name in record for record in shown])
        before = [known[side].mean() for side in (among, ~among)]
        after = [np.average(there[side], weights=weight[side]) for side in (among, ~among)]
        assert before[0] - before[1] > 0.5
        assert abs(after[0] - after[1]) < 0.1
    ages = [{"age_years" in shown[i] for i in np.flatnonzero(patient == p)} for p in range(600)]
    assert all(len(one) == 1 for one in ages)
