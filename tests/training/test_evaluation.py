"""Evaluation of fakes whose answers can be done in the head, and of a tiny fitted run."""

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bundle.calibration import softmax
from bundle.errors import CohortError, ForeignCatalogue, InvalidSettings, SeenGroups, TrainingError
from bundle.fields import Field, FieldSchema, Record
from bundle.images import decode_image, prepare_image
from bundle.records import encode_records
from bundle.store import MANIFEST, seal
from cohort.cohort import Cohort
from cohort.rows import Group, LesionImage, Source
from cohort.store import prepare
from tests.fakes import (
    BLUE,
    DIM,
    GREEN,
    IMAGE_INPUT,
    LABELS,
    MALIGNANT,
    RED,
    SCHEMA,
    FakeEncoders,
    draw_image,
    make_calibration,
    make_lesion,
    manifest_content,
    write_bundle,
    write_catalogue,
)
from tests.training.slow_figures import auroc, balanced_accuracy, group_bootstrap, macro_auroc
from training.anchor import read_anchor
from training.conditions import (
    Answers,
    absent,
    accept_records,
    answer,
    compare_fields,
    hide_values,
)
from training.data import Squares, load_rows
from training.evaluation import evaluate
from training.fitted import open_fitted
from training.pages import harm_page
from training.plots import reliability
from training.report import show
from training.resampling import (
    Resampling,
    auroc_of,
    balanced_accuracy_of,
    estimate,
    mean_of,
    mean_of_known,
    means_by_label_of,
    over_seeds,
)
from training.run import SEEN, write_seen
from training.run import SeenGroups as SeenList
from training.scores import Raw, find_truth, headline

PATIENTS = 8
LESIONS = 19
FloatArray = npt.NDArray[np.float32]


def coloured(
    *, patients: bool = True, labels: dict[str, str | None] | None = None, bare: bool = False
) -> Iterator[LesionImage]:
    """Yield eight patients' lesions: one malignant each, the first lesion photographed twice."""
    names = labels or {}
    for patient in range(PATIENTS):
        for place in range(LESIONS):
            # The last lesion is malignant; its picture is often misleading, its size is not.
            label = "nv" if place < LESIONS - 1 else ("mel", "bcc")[patient % 2]
            colour = {"nv": RED, "mel": GREEN, "bcc": BLUE}[label]
            if (patient + place) % 5 == 0:
                colour = (133, 129, 60 + 10 * patient)
            # No two pictures alike: ties would be broken by rounding.
            red, green, blue = colour
            colour = (red + 2 * place, green + 5 * patient - place, blue - 3 * patient + place)
            record: Record = {"diameter_mm": 3.0 + place % 4, "age_years": 40.0 + patient}
            if place % 7 == 3:
                record = {}
            for picture in range(2 if place == 0 else 1):
                yield LesionImage(
                    image_id=f"i{patient}-{place}-{picture}",
                    lesion_id=f"l{patient}-{place}",
                    patient_id=f"p{patient}" if patients else None,
                    image=draw_image(colour, seed=place + 100 * patient + picture, size=40),
                    label=names.get(label, label),
                    malignant=label in MALIGNANT,
                    record={} if bare else record,
                )


def make_cohort(out: Path, images: list[LesionImage] | None = None, **changes: Any) -> Cohort:
    rows = list(coloured()) if images is None else images
    content: dict[str, Any] = {
        "name": "coloured",
        "schema": SCHEMA,
        "labels": LABELS,
        "malignant_labels": MALIGNANT,
        "licence": "CC0-1.0",
        "citation": "drawn by the tests",
        "groups": lambda: iter([Group(i.group_id, i.label) for i in rows]),
        "rows": lambda: iter(rows),
    }
    prepare(Source(**{**content, **changes}), out)
    return Cohort.open(out)


def make_bundle(out: Path, *, shown: set[str] | None = None, **changes: Any) -> Path:
    """Write a bundle that says which groups it was shown."""
    draft = out.with_name(out.name + ".draft")
    parts = ("context", "novelty", "calibration")
    overrides = {k: v for k, v in changes.items() if k not in parts}
    write_bundle(draft, **changes)
    shutil.copytree(draft, out, ignore=shutil.ignore_patterns(MANIFEST))
    write_seen(out / SEEN, (SeenList.of({"someone else"} if shown is None else shown),))
    seal(out, manifest_content(**overrides))
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def colours(folder: Path) -> Cohort:
    return make_cohort(folder / "cohort")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    return make_bundle(folder / "bundle")


@pytest.fixture(scope="module")
def catalogue(folder: Path, bundle: Path) -> Path:
    """Strangers' lesions, which say "back", and the cohort's own patients', which say "scalp"."""
    bundle_id = json.loads((bundle / MANIFEST).read_text())["bundle_id"]
    lesions = [
        make_lesion(f"s{n}", colour, seed=900 + n, record={"anatom_site": "back", "itch": False})
        for n, colour in enumerate((RED, GREEN, BLUE) * 7)
    ]
    lesions += [
        make_lesion(
            f"own{n}",
            (RED, GREEN, BLUE)[n % 3],
            seed=950 + n,
            patient_id="p0",
            record={"anatom_site": "scalp", "itch": True},
        )
        for n in range(30)
    ]
    with write_catalogue(folder / "catalogue", lesions, bundle_id=bundle_id):
        return folder / "catalogue"


@pytest.fixture(scope="module")
def anchor(folder: Path, colours: Cohort) -> Path:
    """Answers that are always right, with the labels in another order and two images missing."""
    table = colours.table()
    labels = [*LABELS[1:], LABELS[0]]
    chances = np.full((len(table), 3), 0.1, np.float32)
    chances[np.arange(len(table)), [labels.index(x) for x in table["label"].to_pylist()]] = 0.8
    np.savez(
        folder / "anchor.npz",
        image_id=np.array(table["image_id"].to_pylist())[2:],
        probabilities=chances[2:],
        labels=np.array(labels),
    )
    return folder / "anchor.npz"


@pytest.fixture(scope="module")
def made(
    folder: Path, bundle: Path, colours: Cohort, catalogue: Path, anchor: Path
) -> tuple[dict[str, Any], Path]:
    out = folder / "out"
    metrics = evaluate(bundle, colours, out, splits=("all",), catalogue=catalogue, against=anchor)
    return metrics, out


def fake_probabilities(cohort: Cohort, *, image: bool, record: bool) -> FloatArray:
    """Return (N, 3): the fake's answers, one row at a time."""
    fake, answers = FakeEncoders(), []
    for data, known in zip(
        cohort.images(range(len(cohort))), cohort.records(range(len(cohort))), strict=True
    ):
        embedding = fake.embed_images(prepare_image(decode_image(data), IMAGE_INPUT)[None])
        parts = [encode_records([known], SCHEMA.at(level)) for level in ("lesion", "patient")]
        logits = fake.classify(
            embedding,
            fake.embed_records(parts[0], "lesion"),
            fake.embed_records(parts[1], "patient"),
            image_present=np.array([image]),
            lesion_present=parts[0].any_present & record,
            patient_present=parts[1].any_present & record,
        )
        answers.append(softmax(logits)[0])
    return np.array(answers, np.float32)


def facts(cohort: Cohort) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], list[str]]:
    table = cohort.table()
    label = np.array([LABELS.index(x) for x in table["label"].to_pylist()], np.int64)
    return label, np.array(table["malignant"].to_pylist()), cohort.group_ids()


def noisy(seed: int, count: int = 90) -> tuple[npt.NDArray[np.int64], FloatArray, list[str]]:
    """Return labels, rounded (so tied) probabilities that know a little of them, and groups."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, count)
    logits = (rng.normal(0, 1, (count, 3)) + np.eye(3)[label]).astype(np.float32)
    return label, np.round(softmax(logits), 1), [f"g{g}" for g in rng.integers(0, 30, count)]


def test_over_seeds_an_interval_is_of_other_groups_and_other_seeds() -> None:
    rng = np.random.default_rng(0)
    seeds, groups = rng.normal(0, 3, 5), rng.normal(0, 1, (5, 1, 1001))
    runs = [value + groups[number, 0] for number, value in enumerate(seeds)]
    drawn = over_seeds(runs)
    assert drawn.shape == (1001,)
    assert drawn[0] == pytest.approx(np.mean([run[0] for run in runs]))
    # Of the mean of five seeds; and of noise, some of it drawn more than once.
    assert drawn[1:].var() == pytest.approx(seeds.var() / 5 + 9 / 25, rel=0.15)


def test_over_seeds_one_run_stays_and_a_common_shift_is_a_certain_difference() -> None:
    rng = np.random.default_rng(1)
    runs = list(rng.normal(0, 1, (3, 101, 2)))
    np.testing.assert_array_equal(over_seeds(runs[:1]), runs[0])
    shifted = over_seeds([run + 0.25 for run in runs])
    np.testing.assert_allclose(shifted - over_seeds(runs), 0.25)


def test_intervals_are_those_of_the_bootstrap_one_sample_at_a_time() -> None:
    label, chances, groups = noisy(0)
    resampling = Resampling(groups, samples=60, seed=5)
    cases: list[tuple[Any, Callable[[npt.NDArray[np.int64]], float]]] = [
        (
            balanced_accuracy_of(label, chances.argmax(1)),
            lambda rows: balanced_accuracy(label[rows], chances.argmax(1)[rows]),
        ),
        (
            auroc_of(label == 1, chances[:, 1]),
            lambda rows: auroc(label[rows] == 1, chances[rows, 1]) or np.nan,
        ),
        (mean_of(chances[:, 0]), lambda rows: float(chances[rows, 0].astype(np.float64).mean())),
    ]
    for statistic, slow in cases:
        got = estimate(resampling.draws(statistic))
        expected = group_bootstrap(groups, slow, samples=60, seed=5)
        assert (got["value"], got["low"], got["high"]) == pytest.approx(expected, abs=1e-9)
    macro = mean_of_known([resampling.draws(auroc_of(label == k, chances[:, k])) for k in range(3)])
    expected = group_bootstrap(
        groups, lambda rows: macro_auroc(label[rows], chances[rows]) or np.nan, samples=60, seed=5
    )
    assert tuple(estimate(macro).values()) == pytest.approx(expected, abs=1e-9)


def test_every_labels_interval_is_that_of_its_rows_one_sample_at_a_time() -> None:
    label, chances, groups = noisy(4)
    resampling = Resampling(groups, samples=60, seed=5)
    draws = resampling.draws(means_by_label_of(label, chances[:, 0], count=4))
    assert draws.shape == (61, 4)

    def slow(k: int, rows: npt.NDArray[np.int64]) -> float:
        return float(chances[rows[label[rows] == k], 0].astype(np.float64).mean())

    for k in range(3):
        expected = group_bootstrap(groups, partial(slow, k), samples=60, seed=5)
        assert tuple(estimate(draws[:, k]).values()) == pytest.approx(expected, abs=1e-9)
    assert estimate(draws[:, 3], "no image") == {"value": None, "reason": "no image"}


def test_one_group_alone_has_a_value_and_no_interval() -> None:
    score, positive = np.arange(6, dtype=np.float32), np.arange(6) % 2 == 1
    drawn = Resampling(["p1"] * 6, samples=20).draws(auroc_of(positive, score))
    got = estimate(drawn)
    assert got["value"] == pytest.approx(auroc(positive, score))
    assert (got["low"], got["high"]) == (None, None)
    assert "one group alone" in got["reason"]
    assert estimate(Resampling(["p1"] * 5 + ["p2"], samples=20).draws(mean_of(score)))["low"] == 2


def test_a_difference_is_paired_over_the_same_resamples() -> None:
    label, chances, groups = noisy(1)
    other = noisy(2)[1]
    resampling = Resampling(groups, samples=60, seed=5)
    first, second = (
        resampling.draws(balanced_accuracy_of(label, c.argmax(1))) for c in (chances, other)
    )
    expected = group_bootstrap(
        groups,
        lambda rows: (
            balanced_accuracy(label[rows], chances.argmax(1)[rows])
            - balanced_accuracy(label[rows], other.argmax(1)[rows])
        ),
        samples=60,
        seed=5,
    )
    assert tuple(estimate(first - second).values()) == pytest.approx(expected, abs=1e-9)


def test_draws_do_not_depend_on_how_many_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    label, chances, groups = noisy(3)
    resampling = Resampling(groups, samples=10)
    whole = resampling.draws(auroc_of(label == 0, chances[:, 0]))
    monkeypatch.setattr("training.resampling.CHUNK", 1)
    np.testing.assert_array_equal(whole, resampling.draws(auroc_of(label == 0, chances[:, 0])))


def test_a_figure_without_a_value_or_an_interval_says_why() -> None:
    groups = ["a", "b", "c"]
    one_side = Resampling(groups, samples=50).draws(auroc_of(np.ones(3, bool), np.arange(3)))
    assert estimate(one_side, "only one side") == {"value": None, "reason": "only one side"}
    rare = Resampling(groups, samples=50).draws(
        auroc_of(np.array([True, False, False]), np.arange(3))
    )
    got = estimate(rare)
    assert (got["value"], got["low"], got["high"]) == (0.0, None, None)
    assert "no interval" in got["reason"]
    assert show(got) == "0.000"
    assert show(None) == ""


def test_reliability_bins_leave_out_those_with_few_images() -> None:
    chances = np.array([[0.95, 0.05]] * 6 + [[0.35, 0.65]] * 2, np.float32)
    confidence, right, count = reliability(chances, np.array([0] * 3 + [1] * 5))
    assert confidence == pytest.approx([0.95])
    assert right == pytest.approx([0.5])
    assert count.tolist() == [6]


def test_fields_that_the_model_does_not_read_are_left_out_and_odd_values_counted() -> None:
    own = FieldSchema(
        fields=(
            Field(name="age", level="patient", kind="numeric", unit="years"),
            Field(name="age_approx", level="patient", kind="numeric", unit="years"),
            Field(name="diameter_mm", level="lesion", kind="numeric", unit="inch"),
            Field(name="anatom_site", level="lesion", kind="categorical", categories=("leg", "x")),
            Field(name="colour", level="lesion", kind="boolean"),
        )
    )
    records: list[Record] = [
        {"age": 40.0, "age_approx": 41.0, "diameter_mm": 1.0, "anatom_site": "leg"},
        {"age": 300.0, "anatom_site": "x", "colour": True},
        {"age": 0.0},
    ]
    accepted = accept_records(records, own, SCHEMA)
    assert accepted.records == [
        {"age_years": 40.0, "anatom_site": "lower extremity"},
        {},
        {"age_years": 0.0},
    ]
    assert set(accepted.left_out) == {"age_approx", "diameter_mm", "colour"}
    assert accepted.rejected == {"age_years": 1, "anatom_site": 1}
    assert [field.name for field in accepted.fields] == ["age_years", "anatom_site"]


def test_a_larger_share_hides_what_a_smaller_one_hides_and_more() -> None:
    names = ["a", "b", "c", "d"]
    records: list[Record] = [dict.fromkeys(names, 1.0) for _ in range(20)]
    kept = [hide_values(records, names, share, seed=1) for share in (0, 0.25, 0.75, 1)]
    assert [{len(r) for r in part} for part in kept] == [{4}, {3}, {1}, {0}]
    assert all(set(b) <= set(a) for a, b in zip(kept[1], kept[2], strict=True))
    assert len({tuple(r) for r in kept[2]}) == 4


def test_guessed_fields_are_compared_where_both_are_known() -> None:
    given: list[Record] = [{"itch": True, "age_years": 30.0}, {"itch": False}, {"age_years": 90.0}]
    guessed: list[Record] = [
        {"itch": True, "age_years": 40.0},
        {"itch": True, "age_years": 1.0},
        {"age_years": 50.0},
    ]
    got = compare_fields(SCHEMA.fields, given, guessed)
    assert got["itch"] == {"fill_share": pytest.approx(2 / 3), "compared": 2, "accuracy": 0.5}
    assert got["age_years"]["accuracy"] == 0.5
    assert got["age_years"]["mean_absolute_error"] == 25
    assert got["sex"]["accuracy"] is None
    assert got["sex"]["reason"]


@pytest.mark.parametrize(
    ("name", "image", "record"),
    [("image", True, False), ("metadata", False, True), ("given", True, True)],
)
def test_a_condition_shows_the_model_what_its_name_says(
    made: tuple[dict[str, Any], Path], colours: Cohort, name: str, image: bool, record: bool
) -> None:
    chances = fake_probabilities(colours, image=image, record=record)
    label, malignant, groups = facts(colours)
    prior = np.array([0.8, 0.15, 0.05], np.float32)
    figures = made[0]["conditions"][name]
    decided = (chances / prior).argmax(1)
    assert figures["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy(label, decided))
    assert figures["accuracy_most_probable"]["value"] == pytest.approx(
        (chances.argmax(1) == label).mean()
    )
    assert figures["macro_auroc"]["value"] == pytest.approx(macro_auroc(label, chances), abs=2e-3)
    for metric, positive, scores in (
        ("malignant_auroc", malignant, chances[:, 1:].sum(1)),
        ("melanoma_auroc", label == 1, chances[:, 1]),
    ):
        assert figures[metric]["value"] == pytest.approx(auroc(positive, scores), abs=2e-3)
    right = chances.argmax(1) == label
    expected = group_bootstrap(groups, lambda rows: float(right[rows].mean()))
    assert tuple(figures["accuracy_most_probable"].values()) == pytest.approx(expected)
    inside = (1 - chances <= 0.9) | (np.eye(3)[chances.argmax(1)] > 0)
    assert figures["conformal_set_size"]["value"] == pytest.approx(inside.sum(1).mean())
    assert figures["conformal_coverage"]["value"] == pytest.approx(
        inside[np.arange(len(label)), label].mean()
    )
    error = figures["expected_calibration_error"]
    assert 0 < error["low"] < error["high"]
    for number, own in enumerate(figures["labels"].values()):
        mine = label == number
        assert own["images"] == mine.sum()
        assert own["recalled"] == (decided[mine] == number).sum()
        for metric, expected_value in (
            ("recall", (decided[mine] == number).mean()),
            ("conformal_coverage", inside[mine, number].mean()),
            ("conformal_set_size", inside[mine].sum(1).mean()),
        ):
            assert own[metric]["value"] == pytest.approx(expected_value)
            assert own[metric]["low"] <= own[metric]["value"] <= own[metric]["high"]


def test_differences_are_those_of_the_figures(made: tuple[dict[str, Any], Path]) -> None:
    conditions = made[0]["conditions"]
    for name, difference in made[0]["differences"].items():
        first, second = name.split(" - ")
        for metric in ("balanced_accuracy", "macro_auroc", "malignant_auroc"):
            gap = conditions[first][metric]["value"] - conditions[second][metric]["value"]
            assert difference[metric]["value"] == pytest.approx(gap)
            assert difference[metric]["low"] <= difference[metric]["high"]


def test_pseudo_metadata_stands_beside_the_neighbours(made: tuple[dict[str, Any], Path]) -> None:
    metrics, out = made
    found = metrics["extrapolation"]
    assert 0 < found["filled_share"] <= 1
    assert found["study"]["weight"] == 1.0
    study = found["study"]["answers"]
    assert set(study) == {"image", "extrapolated", "neighbours", "shuffled", "marginal"}
    assert study["extrapolated"] | study["neighbours"] == study["neighbours"]
    for name, figures in study.items():
        for metric in ("balanced_accuracy", "macro_auroc"):
            assert figures[metric]["value"] == pytest.approx(
                study["image"][metric]["value"] + figures["minus_image"][metric]["value"]
            )
        if name in metrics["conditions"]:
            own = metrics["conditions"][name]
            assert figures["macro_auroc"] == own["macro_auroc"]
            error = own["expected_calibration_error"]["value"]
            assert figures["expected_calibration_error"]["value"] == pytest.approx(error)
    report = (out / "report.md").read_text()
    assert "| marginal |" in report


def test_a_precision_that_the_model_does_not_have_is_refused(bundle: Path, fitted: Path) -> None:
    assert open_fitted(bundle, "fp32").variant == "fp32"
    assert open_fitted(fitted, "fp32").variant == "fp32"
    for model in (bundle, fitted):
        with pytest.raises(InvalidSettings, match="bf16"):
            open_fitted(model, "bf16")


def test_subgroups_are_of_the_cohorts_records_whatever_the_model_reads(
    tmp_path: Path, bundle: Path
) -> None:
    skin = Field(
        name="fitzpatrick_skin_type", level="patient", kind="categorical", categories=("1", "6")
    )
    rows = [
        replace(row, record={**row.record, skin.name: "6" if row.patient_id == "p1" else "1"})
        for row in coloured()
    ]
    cohort = make_cohort(
        tmp_path / "cohort", rows, schema=FieldSchema(fields=(*SCHEMA.fields, skin))
    )
    got = evaluate(bundle, cohort, tmp_path / "out", splits=("all",), allow_seen=True)
    assert skin.name in got["fields"]["left_out"]
    assert set(got["subgroups"][skin.name]) == {"1", "6"}


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_guesses_count_as_much_as_calibration_says(bundle: Path, weight: float) -> None:
    model = open_fitted(bundle)
    embeddings = np.random.default_rng(0).random((6, DIM)).astype(np.float32)
    guessed: list[Record] = [{"diameter_mm": 20.0}] * 6
    extrapolation = model.calibration.extrapolation.model_copy(update={"weight": weight})
    calibration = model.calibration.model_copy(update={"extrapolation": extrapolation})
    wary = replace(model, calibration=calibration)
    found = answer(wary, embeddings, guessed, "extrapolated").probabilities
    alone = answer(model, embeddings, absent(guessed), "missing").probabilities
    believed = answer(model, embeddings, guessed, "extrapolated").probabilities
    assert np.abs(believed - alone).max() > 0.05
    mixed = alone ** (1 - weight) * believed**weight
    np.testing.assert_allclose(found, mixed / mixed.sum(1, keepdims=True), atol=1e-5)


def test_neighbours_of_the_own_patient_have_no_voice(
    made: tuple[dict[str, Any], Path], folder: Path, bundle: Path, catalogue: Path
) -> None:
    images = [i for i in coloured() if i.patient_id == "p0"]
    told = [
        LesionImage(**{**i.__dict__, "record": {"anatom_site": "back", "itch": True}})
        for i in images
    ]
    own = make_cohort(folder / "own", told)
    got = evaluate(bundle, own, folder / "own out", splits=("all",), catalogue=catalogue)
    fields = got["extrapolation"]["fields"]
    assert fields["anatom_site"] == {
        "fill_share": 1.0,
        "compared": len(told),
        "accuracy": 1.0,
        "commonest_value_right": 0.0,
    }
    assert fields["itch"]["accuracy"] == 0.0
    assert made[0]["extrapolation"]["fields"]["anatom_site"]["fill_share"] > 0


def test_the_comparison_is_over_the_shared_images(made: tuple[dict[str, Any], Path]) -> None:
    against = made[0]["against"]
    assert (against["images"], against["images_without_answer"]) == (
        PATIENTS * (LESIONS + 1) - 2,
        2,
    )
    assert {figure["value"] for figure in against["other"].values()} == {1}
    assert set(against["other"]) >= {"malignant_auroc", "melanoma_auroc"}
    assert set(against["difference"]) == {"image", "metadata", "given", "extrapolated"}
    for difference in against["difference"].values():
        assert all(figure["value"] <= 0 for figure in difference.values())


def given_malignancy(cohort: Cohort) -> dict[str, dict[str, float]]:
    """Return by patient and lesion the malignancy, of two pictures that of their mean logits."""
    chances, table = fake_probabilities(cohort, image=True, record=True), cohort.table()
    logits: dict[str, dict[str, list[FloatArray]]] = {}
    for patient, lesion, own in zip(
        table["patient_id"].to_pylist(), table["lesion_id"].to_pylist(), chances, strict=True
    ):
        logits.setdefault(patient, {}).setdefault(lesion, []).append(np.log(own))
    return {
        patient: {k: float(softmax(np.mean([v], axis=1))[0, 1:].sum()) for k, v in lesions.items()}
        for patient, lesions in logits.items()
    }


def test_the_malignant_lesion_is_sought_among_its_patients_others(
    made: tuple[dict[str, Any], Path], colours: Cohort
) -> None:
    patients = made[0]["patients"]
    assert patients["lesions"] == PATIENTS * LESIONS
    places = []
    for patient, own in given_malignancy(colours).items():
        # The one malignant lesion is the last.
        malignant = own.pop(f"{patient.replace('p', 'l')}-{LESIONS - 1}")
        places.append(sum(score >= malignant for score in own.values()))
    assert 0 < places.count(0) < PATIENTS
    for top in (1, 3, 15):
        found = patients[f"sensitivity_in_top_{top}"]
        assert found["patients"] == PATIENTS
        assert found["alone"]["value"] == np.mean([place < top for place in places])
        gap = found["in_context"]["value"] - found["alone"]["value"]
        assert found["difference"]["value"] == pytest.approx(gap)
    text = (made[1] / "report.md").read_text()
    value = show(patients["sensitivity_in_top_15"]["alone"])
    assert f"| sensitivity in top 15 | {PATIENTS} | {value} |" in text


def test_all_metadata_hidden_is_the_image_alone(made: tuple[dict[str, Any], Path]) -> None:
    curve, conditions = made[0]["missing_metadata"], made[0]["conditions"]
    # Of five columns.
    assert [point["hidden_share"] for point in curve] == [0, 0.2, 0.4, 0.8, 1]
    for metric in ("balanced_accuracy", "macro_auroc", "malignant_auroc"):
        assert curve[0][metric] == conditions["given"][metric]
        assert curve[-1][metric] == conditions["image"][metric]


def test_the_folder_holds_the_figures_the_report_and_the_predictions(
    made: tuple[dict[str, Any], Path], colours: Cohort
) -> None:
    metrics, out = made
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    report = (out / "report.md").read_text()
    assert "in training" not in report.split("## Metadata")[1]
    pictures = re.findall(r"\((\w+\.png)\)", report)
    plots = {"roc_malignant", "reliability", "confusion_given", "missing_metadata", "occlusion"}
    assert set(pictures) == {f"{name}.png" for name in plots}
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    value = metrics["conditions"]["given"]["macro_auroc"]
    assert f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})" in report
    by_label = report.split("## By label")[1].split("## By subgroup")[0]
    assert "Conformal coverage, given | Conformal set size, given" in by_label
    assert f" | {show(metrics['conditions']['given']['labels']['mel']['recall'])} | " in by_label
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name, record in (("image", False), ("given", True)):
        written = np.array([[float(row[f"{name}_{label}"]) for label in LABELS] for row in rows])
        expected = fake_probabilities(colours, image=True, record=record)
        np.testing.assert_allclose(written, expected, atol=1e-4)
    assert [row["image_id"] for row in rows] == colours.table()["image_id"].to_pylist()


def test_groups_that_training_saw_are_refused_unless_allowed(
    tmp_path: Path, colours: Cohort
) -> None:
    bundle = make_bundle(tmp_path / "bundle", shown={"p0", "p1"}, context=False, novelty=False)
    with pytest.raises(SeenGroups, match="2 of these 8 groups"):
        evaluate(bundle, colours, tmp_path / "out", splits=("all",))
    assert not (tmp_path / "out").exists()
    got = evaluate(bundle, colours, tmp_path / "out", splits=("all",), allow_seen=True)
    assert got["seen"] == {
        "groups": 2,
        "mark": "includes groups seen in training",
        "images_left_out": 0,
        "unseen_images_elsewhere": None,
    }
    alone = got["patients"]["sensitivity_in_top_15"]
    assert alone["alone"]["value"] is not None
    assert alone["in_context"]["reason"] == "the model has no context model"
    assert got["assessable"]["novelty"]["value"] is None
    report = (tmp_path / "out" / "report.md").read_text()
    tables = sum(line.startswith("| --- |") for line in report.splitlines())
    assert tables > 3
    assert report.count("*This table includes groups seen in training.*") == tables


def test_groups_that_training_saw_can_be_left_out(tmp_path: Path, colours: Cohort) -> None:
    bundle = make_bundle(tmp_path / "bundle", shown={"p0", "p1"}, context=False, novelty=False)
    got = evaluate(bundle, colours, tmp_path / "out", splits=("all",), without_seen=True)
    patients = colours.table()["patient_id"].to_pylist()
    left_out = sum(patient in ("p0", "p1") for patient in patients)
    assert got["seen"]["images_left_out"] == left_out
    assert got["seen"]["mark"] is None
    assert got["cohort"]["images"] == len(patients) - left_out
    assert f"{left_out} images of groups that the model" in (tmp_path / "out/report.md").read_text()
    everybody = make_bundle(tmp_path / "all", shown=set(patients), context=False, novelty=False)
    with pytest.raises(SeenGroups, match="all 8 of these groups"):
        evaluate(everybody, colours, tmp_path / "none", splits=("all",), without_seen=True)


def test_a_cohort_that_was_kept_back_is_told_how_to_be_evaluated_whole(
    tmp_path: Path, bundle: Path, colours: Cohort
) -> None:
    got = evaluate(bundle, colours, tmp_path / "out")
    elsewhere = got["seen"]["unseen_images_elsewhere"]
    assert elsewhere == len(colours.table()) - got["cohort"]["images"] > 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert f"other {elsewhere} images either: `--split all`" in report


def test_labels_in_another_case_and_one_that_no_image_has_are_the_models(
    tmp_path: Path, bundle: Path
) -> None:
    labels = tuple(label.upper() for label in LABELS)
    cohort = make_cohort(
        tmp_path / "cohort",
        list(coloured(labels=dict(zip(LABELS, labels, strict=True)))),
        labels=(*labels, "SCC"),
        malignant_labels=("MEL", "BCC", "SCC"),
    )
    got = evaluate(bundle, cohort, tmp_path / "out", splits=("all",))
    assert got["conditions"]["image"]["macro_auroc"]["value"] is not None
    report = (tmp_path / "out" / "report.md").read_text()
    assert "Malignant is MEL, BCC, SCC in the cohort and mel, bcc for the model." in report


def test_a_bundle_that_does_not_say_what_it_saw_is_refused_unless_allowed(
    tmp_path: Path, colours: Cohort
) -> None:
    write_bundle(tmp_path / "bundle")
    with pytest.raises(SeenGroups, match="does not say"):
        evaluate(tmp_path / "bundle", colours, tmp_path / "out")
    got = evaluate(tmp_path / "bundle", colours, tmp_path / "out", allow_seen=True)
    assert got["seen"]["groups"] is None
    assert "may include" in got["seen"]["mark"]


def test_of_other_labels_no_probe_and_no_gap_is_asked(tmp_path: Path, bundle: Path) -> None:
    """Two of the labels would be learned from, and malignancy asked of all images."""
    names: dict[str, str | None] = {"nv": "NEV", "mel": "mel", "bcc": "bcc"}
    cohort = make_cohort(
        tmp_path / "cohort",
        list(coloured(labels=names)),
        labels=("NEV", "mel", "bcc"),
        malignant_labels=("mel", "bcc"),
    )
    got = evaluate(bundle, cohort, tmp_path / "out", allow_seen=True)
    for side in ("image", "image and record"):
        assert "NEV" in got["frozen"][side]["reason"]
    assert "NEV" in got["missingness"]["indicators_alone"]["reason"]
    assert got["conditions"]["image"]["malignant_auroc"]["value"] is not None


def test_other_labels_leave_malignancy_and_melanoma(tmp_path: Path, bundle: Path) -> None:
    names: dict[str, str | None] = {"nv": "NEV", "mel": "MEL", "bcc": "AKIEC"}
    cohort = make_cohort(
        tmp_path / "cohort",
        list(coloured(patients=False, labels=names, bare=True)),
        labels=("NEV", "MEL", "AKIEC"),
        malignant_labels=("MEL", "AKIEC"),
        schema=FieldSchema(fields=()),
    )
    got = evaluate(bundle, cohort, tmp_path / "out", splits=("all",))
    image = got["conditions"]["image"]
    chances = fake_probabilities(cohort, image=True, record=False)
    raw = np.array(cohort.table()["label"].to_pylist())
    assert image["melanoma_auroc"]["value"] == pytest.approx(
        auroc(raw == "MEL", chances[:, 1]), abs=2e-3
    )
    rest = raw != "AKIEC"
    assert image["malignant_auroc_without_akiec"]["value"] == pytest.approx(
        auroc(raw[rest] == "MEL", chances[rest, 1:].sum(1)), abs=2e-3
    )
    assert image["macro_auroc"]["value"] is None
    assert "NEV" in image["macro_auroc"]["reason"]
    assert got["conditions"]["given"]["reason"].startswith("the cohort has no metadata field")
    assert got["patients"]["reason"] == "the cohort has no patient ids"
    assert got["differences"]["given - image"]["value"] is None
    assert got["missing_metadata"] == []
    assert (
        "None: the cohort's labels are not the model's"
        in (tmp_path / "out" / "report.md").read_text()
    )


def test_a_cohort_that_knows_neither_labels_nor_malignancy_still_has_a_report(
    tmp_path: Path, bundle: Path, anchor: Path
) -> None:
    fields = (
        Field(name="diameter_mm", level="lesion", kind="numeric", unit="mm"),
        Field(name="colour", level="lesion", kind="boolean"),
    )
    images = [
        LesionImage(
            **{
                **i.__dict__,
                "label": "other",
                "malignant": None,
                "record": {"diameter_mm": 500.0 if i.image_id == "i0-1-0" else 5.0, "colour": True},
            }
        )
        for i in list(coloured())[:32]
    ]
    schema = FieldSchema(fields=fields)
    cohort = make_cohort(
        tmp_path / "cohort", images, labels=("other",), malignant_labels=(), schema=schema
    )
    got = evaluate(bundle, cohort, tmp_path / "out", splits=("all",), against=anchor)
    given = got["conditions"]["given"]
    unknown = "the cohort does not say it of any of these images"
    assert given["malignant_auroc"] == {"value": None, "reason": unknown}
    assert given["sensitivity_at_95_specificity"] == {"value": None, "reason": unknown}
    assert given["melanoma_auroc"]["reason"] == "the cohort has no label mel or melanoma"
    assert given["labels"]["value"] is None
    assert given["brier"]["value"] is None
    assert "other" in got["against"]["reason"]
    assert got["patients"]["reason"].startswith("the cohort does not say which")
    assert got["missing_metadata"][0]["macro_auroc"]["value"] is None
    report = (tmp_path / "out" / "report.md").read_text()
    assert "- given - image: none, nothing to compare" in report
    assert "- `colour` is left out: the model does not know this field." in report
    assert "- `diameter_mm`: 1 values are not accepted" in report
    # What an answer rests on can be asked without knowing whether it is right.
    assert report.count(".png") == report.count("occlusion.png") == 1


def test_one_label_alone_has_no_auroc_and_no_sensitivity(tmp_path: Path, bundle: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", [i for i in coloured() if i.label == "nv"])
    image = evaluate(bundle, cohort, tmp_path / "out", splits=("all",))["conditions"]["image"]
    assert image["sensitivity_at_95_specificity"]["reason"] == "the rows hold only one side"
    assert image["macro_auroc"] == {"value": None, "reason": "the rows hold only one side"}
    assert image["labels"]["mel"]["recall"]["reason"] == "no image carries this label"
    assert image["balanced_accuracy"]["value"] is not None


def test_what_the_cohort_or_the_model_does_not_know_is_null_with_the_reason() -> None:
    def truth(names: list[str | None], labels: tuple[str, ...], malignant: list[bool]) -> Any:
        raw = Raw(names, np.full(len(names), -1), [f"g{i}" for i in range(len(names))])
        return find_truth(
            raw,
            own=("nv", "x"),
            labels=labels,
            malignant=np.array(malignant),
            prior=np.full(len(labels), 1 / len(labels), np.float32),
            samples=5,
            seed=0,
        )

    none = truth([None, None], ("nv", "x"), [False, False])
    assert none.labelled == "none of these images has a label"
    assert none.questions["malignant_auroc"] == "the model has no malignant label"
    assert none.questions["melanoma_auroc"] == "the model has no label mel or melanoma"
    known = truth(["nv", "x"], ("nv", "x", "melanoma"), [False, False, True])
    assert known.questions["malignant_auroc"].startswith("the cohort does not say")
    assert known.questions["melanoma_auroc"] == "the cohort has no label mel or melanoma"
    figures = headline(np.full((2, 3), 1 / 3, np.float32), known)
    assert figures["malignant_auroc"]["value"] is None
    assert figures["macro_auroc"]["value"] == 0.5


def test_splits_that_are_unknown_or_empty_are_refused(
    tmp_path: Path, bundle: Path, colours: Cohort
) -> None:
    with pytest.raises(CohortError, match="got 'tset'"):
        evaluate(bundle, colours, tmp_path / "out", splits=("tset",))
    with pytest.raises(CohortError, match="no split"):
        evaluate(bundle, colours, tmp_path / "out", splits=())


def test_a_catalogue_of_another_bundle_is_refused(
    tmp_path: Path, bundle: Path, colours: Cohort
) -> None:
    write_catalogue(tmp_path / "catalogue", [make_lesion("a")]).close()
    with pytest.raises(ForeignCatalogue):
        evaluate(bundle, colours, tmp_path / "out", catalogue=tmp_path / "catalogue")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.array(["nv", "mel", "x"])}, "expected probabilities of nv, mel, bcc"),
        ({"probabilities": np.zeros((2, 2))}, "finite probabilities of shape"),
        ({"probabilities": np.full((2, 3), np.nan)}, "finite probabilities of shape"),
        ({"image_id": np.array(["a", "a"])}, "each image_id once"),
    ],
)
def test_answers_to_compare_with_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    content: dict[str, Any] = {
        "image_id": np.array(["a", "b"]),
        "probabilities": np.zeros((2, 3)),
        "labels": np.array(LABELS),
    }
    np.savez(tmp_path / "other.npz", **{**content, **changes})
    with pytest.raises(TrainingError, match=message):
        read_anchor(tmp_path / "other.npz", LABELS)


def test_answers_to_other_images_are_refused(tmp_path: Path, bundle: Path, colours: Cohort) -> None:
    with pytest.raises(TrainingError, match=r"expected an \.npz"):
        read_anchor(tmp_path / "absent.npz", LABELS)
    path = tmp_path / "other.npz"
    np.savez(path, image_id=["zz"], probabilities=np.ones((1, 3)), labels=np.array(LABELS))
    with pytest.raises(TrainingError, match="share no labelled image"):
        evaluate(bundle, colours, tmp_path / "out", against=path)


def test_a_fitted_run_is_evaluated_like_a_bundle(
    tmp_path: Path, fitted: Path, cohort: Cohort
) -> None:
    stages: set[str] = set()
    got = evaluate(
        fitted, cohort, tmp_path / "out", report=lambda stage, done, total: stages.add(stage)
    )
    assert got["model"]["kind"] == "run"
    assert got["conditions"]["given"]["macro_auroc"]["value"] is not None
    assert got["conditions"]["extrapolated"] == {"value": None, "reason": "no catalogue"}
    reason = got["patients"]["sensitivity_in_top_15"]["alone"]["reason"]
    assert reason.startswith("no patient with more than 15")
    assert {"embed", "score"} <= stages
    frozen = got["frozen"]
    assert frozen["reference"]["images"] == len(load_rows(cohort, ["train"], ()))
    for side in ("image", "image and record"):
        assert frozen[side]["linear"]["balanced_accuracy"]["value"] is not None
        assert 0 <= frozen[side]["retrieval"]["recall_at_5"]["value"] <= 1
    pages = {"retrieval.png", "low_shot.png", "attention.png", "occlusion.png"}
    assert pages <= {path.name for path in (tmp_path / "out").iterdir()}
    report = (tmp_path / "out" / "report.md").read_text()
    value = frozen["image"]["retrieval"]["precision_at_5"]["value"]
    assert f"| retrieval: precision at 5 | {value:.3f}" in report
    with pytest.raises(SeenGroups):
        evaluate(fitted, cohort, tmp_path / "seen", splits=("train",))
    with pytest.raises(TrainingError, match="expected a bundle with the catalogue"):
        evaluate(fitted, cohort, tmp_path / "run", catalogue=tmp_path / "catalogue")


def test_pictures_that_train_holds_too_are_named(tmp_path: Path, bundle: Path) -> None:
    first = list(coloured())[: LESIONS + 1]
    second = [
        replace(i, image_id=f"again {i.image_id}", lesion_id=f"again {i.lesion_id}", patient_id="t")
        for i in first[:4]
    ]
    both = make_cohort(tmp_path / "cohort", [*first, *second])
    cohort = both.with_splits({"p0": "train", "t": "test"})
    got = evaluate(bundle, cohort, tmp_path / "out")["frozen"]
    assert got["reference"]["images"] == len(first)
    assert got["near_duplicates"]["images"] == len(second)
    for pair in got["near_duplicates"]["likest"]:
        assert pair["image"] == f"again {pair['train_image']}"
        assert pair["correlation"] == 1


def test_pictures_that_val_or_cal_holds_too_are_named_by_split(
    tmp_path: Path, bundle: Path
) -> None:
    first = list(coloured())[: LESIONS + 1]
    copies = [
        replace(i, image_id=f"{g} {i.image_id}", lesion_id=f"{g} {i.lesion_id}", patient_id=g)
        for g, count in (("v", 3), ("c", 5))
        for i in first[:count]
    ]
    both = make_cohort(tmp_path / "cohort", [*first, *copies])
    cohort = both.with_splits({"p0": "test", "v": "val", "c": "cal"})
    got = evaluate(bundle, cohort, tmp_path / "out")["near_duplicates"]
    assert {split: found["images"] for split, found in got.items()} == {"val": 3, "cal": 5}
    pair = got["val"]["likest"][0]
    assert (pair["val_image"], pair["correlation"]) == (f"v {pair['image']}", 1)
    report = (tmp_path / "out" / "report.md").read_text()
    assert "- 3 of these images show, to a correlation of 0.99 or more, what a val image" in report
    assert f"  - {pair['image']} and {pair['val_image']}: 1.000" in report
    # Where a split is evaluated itself, its own groups are no others.
    whole = evaluate(bundle, cohort, tmp_path / "whole", splits=("test", "val"))
    assert {split: found["images"] for split, found in whole["near_duplicates"].items()} == {
        "cal": 8
    }
    every = evaluate(bundle, cohort, tmp_path / "every", splits=("all",))
    assert every["near_duplicates"] == {}
    assert "no train, val or cal split" in (tmp_path / "every" / "report.md").read_text()


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_harm_by_neighbours_is_shown_whatever_weight_guesses_are_served_at(
    tmp_path: Path, colours: Cohort, weight: float
) -> None:
    calibration = make_calibration(extrapolation={"weight": weight})
    bundle = make_bundle(tmp_path / "bundle", calibration=calibration)
    bundle_id = json.loads((bundle / MANIFEST).read_text())["bundle_id"]
    # What looks like a naevus is large at all strangers: taken as given, it is a melanoma.
    lesions = [
        make_lesion(f"s{n}", RED, seed=900 + n, record={"diameter_mm": 30}) for n in range(9)
    ]
    write_catalogue(tmp_path / "catalogue", lesions, bundle_id=bundle_id).close()
    out = tmp_path / "out"
    got = evaluate(bundle, colours, out, splits=("all",), catalogue=tmp_path / "catalogue")
    harmed = got["harm"]["extrapolated"]["harmed"]["value"]
    assert harmed > 0.5 if weight else harmed == 0
    assert (out / "harm.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_of_harms_says_that_guesses_are_taken_as_given(colours: Cohort) -> None:
    rows = load_rows(colours, ["train", "val", "cal", "test"], LABELS)
    count = len(rows)
    answers = {
        name: Answers(np.tile(np.eye(3, dtype=np.float32)[k], (count, 1)), np.full(count, "x"))
        for k, name in enumerate(("image", "neighbours"))
    }
    truth = find_truth(
        Raw(["nv"] * count, np.zeros(count, np.int64), rows.group_id),
        own=LABELS,
        labels=LABELS,
        malignant=np.array([False, True, True]),
        prior=np.full(3, 1 / 3, np.float32),
        samples=5,
        seed=0,
    )
    guessed: list[Record] = [{"diameter_mm": 30.0}] * count
    squares = Squares(colours, rows, IMAGE_INPUT)
    page = harm_page(np.array([4, 2]), squares, answers, guessed, truth, weight=0.0)
    assert page.get_suptitle() == (
        "Right by the image, wrong with neighbours' metadata taken as if given\n"
        "(served answers move 0% of the way there)"
    )
    assert [axes.get_title() for axes in page.axes] == ["nv, with guesses mel\ndiameter_mm 30"] * 2


def test_a_folder_that_is_no_fitted_model_is_refused(
    tmp_path: Path, fitted: Path, cohort: Cohort
) -> None:
    with pytest.raises(TrainingError, match="got neither"):
        evaluate(tmp_path, cohort, tmp_path / "out")
    run = Path(shutil.copytree(fitted, tmp_path / "run"))
    (run / "calibration.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"calibration.json: Field required"):
        evaluate(run, cohort, tmp_path / "out")
    (run / "calibration.json").unlink()
    with pytest.raises(TrainingError, match="slimp fit"):
        evaluate(run, cohort, tmp_path / "out")
