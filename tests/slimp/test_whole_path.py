"""One's own table through every verb, as a user types them, to a CSV of answers."""

import csv
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bundle.store import open_bundle
from cohort.cohort import Cohort
from index.catalogue import Catalogue
from tests.training.squares import LABELS, SCHEMA, TINY, squares
from training.run import read_info, read_run_config
from training.trainer import Trainer

# The crash comes after the checkpoint at step 5 and before the next one.
CRASH_AT_STEP = 8
COHORT_TOML = """
[cohort]
name = "squares"
image_column = "photo"
lesion_column = "spot"
patient_column = "person"
label_column = "outcome"
labels = ["nv", "mel", "bcc"]
malignant_labels = ["mel", "bcc"]
licence = "CC0-1.0"
image_folder = "images"
"""


@dataclass(frozen=True)
class Site:
    """A folder in which the verbs ran, and how each ended."""

    folder: Path
    ended: dict[str, Any]

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def rows(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


def write_table(folder: Path) -> None:
    """Write the squares as a researcher's own data: a CSV, images, `fields.toml`."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for image in squares():
        name = f"{image.image_id.replace(' ', '-')}.png"
        (folder / "images" / name).write_bytes(image.image)
        ids = {"photo": name, "spot": image.lesion_id, "person": image.patient_id}
        rows.append({**ids, "outcome": image.label, **image.record})
    write_csv(folder / "lesions.csv", ["photo", "spot", "person", "outcome", *SCHEMA.names], rows)
    keys = ("name", "level", "kind", "unit", "categories")
    tables = [COHORT_TOML]
    for field in SCHEMA.model_dump(mode="json")["fields"]:
        given = {key: field[key] for key in keys if field[key]}
        tables.append("[[fields]]\n" + as_toml(given))
    (folder / "fields.toml").write_text("\n".join(tables))


def write_csv(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def as_toml(table: dict[str, Any]) -> str:
    """Return plain keys, then sections; JSON writes such values as TOML does."""
    sections = {key: value for key, value in table.items() if isinstance(value, dict)}
    lines = [f"{k} = {json.dumps(v)}" for k, v in table.items() if k not in sections]
    lines += [f"\n[{name}]\n{as_toml(section)}" for name, section in sections.items()]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def site(slimp: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Run every verb once; a verb that fails stops the rest."""
    at = tmp_path_factory.mktemp("site")
    write_table(at / "data")
    (at / "tiny.toml").write_text(as_toml(TINY))
    site = Site(at, {})

    def step(name: str, *arguments: object) -> None:
        site.ended[name] = slimp(*arguments)
        assert site.ended[name].code == 0, site.ended[name]

    train = ("train", at / "cohort", "--config", at / "tiny.toml", "--out")
    schema = ("--schema", at / "data/fields.toml")
    step("prepare", "prepare", "table", at / "data", *schema, "--out", at / "cohort")
    step("train", *train, at / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", crash_at(CRASH_AT_STEP))
        site.ended["crash"] = slimp(*train, at / "resumed")
    step("resume", *train, at / "resumed", "--resume")
    step("adapt", "adapt", at / "run", at / "cohort", "--out", at / "adapted")
    step("fit", "fit", at / "adapted", at / "cohort", "--out", at / "fitted")
    step("evaluate", "evaluate", at / "fitted", at / "cohort", "--out", at / "figures")
    step("export", "export", at / "fitted", "--out", at / "bundle")
    step("index", "index", at / "bundle", at / "cohort", "--out", at / "catalogue")
    write_csv(
        at / "metadata.csv",
        ["image", *SCHEMA.names],
        [{**row, "image": row["photo"]} for row in site.rows("data/lesions.csv")],
    )
    given = ("--metadata", at / "metadata.csv")
    step("predict", "predict", at / "bundle", at / "data/images", *given, "--out", at / "given.csv")
    return site


def crash_at(step: int) -> Callable[..., Any]:
    """Return a training step that fails as a full disk does, at this step."""
    real, taken = Trainer._step, iter(range(1, step + 1))

    def crashing(trainer: Trainer, images: Any) -> dict[str, float]:
        if next(taken) == step:
            raise OSError(28, os.strerror(28))
        return real(trainer, images)

    return crashing


def test_prepare_keeps_every_image_and_no_patient_is_in_two_splits(site: Site) -> None:
    cohort = Cohort.open(site / "cohort")
    table = cohort.table().to_pydict()
    assert sorted(table["image_id"]) == sorted(r["photo"] for r in site.rows("data/lesions.csv"))
    homes = set(zip(table["patient_id"], table["split"], strict=True))
    assert len(homes) == len({patient for patient, _ in homes}) == 20
    assert {split for _, split in homes} == {"train", "val", "cal", "test"}
    assert site.ended["prepare"].last_line.startswith(
        f"{site / 'cohort'}: 100 rows read, 100 images of 80 lesions, 0 rows dropped"
    )


def test_train_writes_the_run_that_its_configuration_asks_for(site: Site) -> None:
    info, config = read_info(site / "run"), read_run_config(site / "run")
    assert info.objective == "nested"
    assert (info.embedding_dim, config.optimiser.epochs) == (16, 6)
    steps = [json.loads(x) for x in (site / "run/metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["loss"] < steps[0]["loss"]
    # 12 patients are in the train split: one batch of 8 leaves 7 other patients as negatives.
    assert "few negatives: 7 a patient" in site.ended["train"].out


def test_a_training_that_crashed_is_resumed_to_the_same_encoders(site: Site) -> None:
    crash = site.ended["crash"]
    assert (crash.code, crash.err) == (1, "slimp: [Errno 28] No space left on device\n")
    same = ("towers.safetensors", "config.json")
    for name in same:
        assert (site / f"resumed/{name}").read_bytes() == (site / f"run/{name}").read_bytes()


def test_adapt_and_fit_remember_every_group_that_was_seen(site: Site) -> None:
    assert [len(read_info(site / run).seen) for run in ("run", "adapted", "fitted")] == [1, 2, 3]
    assert site.ended["adapt"].last_line.startswith(f"{site / 'adapted'}: nested run, ")
    assert site.ended["fit"].last_line == f"{site / 'fitted'}: fitted"


def test_evaluate_measures_the_held_out_patients_and_shows_the_report(site: Site) -> None:
    metrics = json.loads((site / "figures/metrics.json").read_text())
    assert metrics["seen"] == {
        "groups": 0,
        "mark": None,
        "images_left_out": 0,
        "unseen_images_elsewhere": None,
    }
    assert (site / "figures/report.md").read_text() in site.ended["evaluate"].out
    cohort = Cohort.open(site / "cohort").table().to_pydict()
    test = {i for i, s in zip(cohort["image_id"], cohort["split"], strict=True) if s == "test"}
    assert {row["image_id"] for row in site.rows("figures/predictions.csv")} == test


def test_evaluate_refuses_groups_that_training_saw(
    site: Site, slimp: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "figures"
    ended = slimp("evaluate", site / "bundle", site / "cohort", "--split", "all", "--out", out)
    assert ended.code == 1
    assert ended.err.startswith("slimp: expected groups that training did not see: ")
    assert ended.err.count("\n") == 1
    assert not out.exists()


def test_export_writes_a_bundle_that_opens_and_says_how_alike_it_answers(site: Site) -> None:
    manifest = open_bundle(site / "bundle").manifest
    assert manifest.labels == LABELS
    assert manifest.parity
    assert site.ended["export"].last_line == (
        f"{site / 'bundle'}: bundle {manifest.bundle_id[:12]}, "
        f"{len(manifest.parity)} parity cases, fp32 is served"
    )


def test_index_holds_the_train_lesions_and_no_other(site: Site) -> None:
    manifest = open_bundle(site / "bundle").manifest
    table = Cohort.open(site / "cohort").table().to_pydict()
    lesions = zip(table["lesion_id"], table["split"], strict=True)
    train = {lesion for lesion, split in lesions if split == "train"}
    with Catalogue.open(
        site / "catalogue", bundle_id=manifest.bundle_id, variant=manifest.variant
    ) as catalogue:
        assert len(catalogue) == len(train)
        assert {catalogue.lesion(lesion).lesion_id for lesion in train} == train
    assert f"{len(train)} lesions" in site.ended["index"].last_line


def test_predict_answers_as_evaluate_did_through_torch(site: Site) -> None:
    predicted = {Path(row["file"]).name: row for row in site.rows("given.csv")}
    assert len(predicted) == 100
    assert site.ended["predict"].last_line == (
        f"{site / 'given.csv'}: 100 answered, 0 refused (see `error`)"
    )
    compared = 0
    for row in site.rows("figures/predictions.csv"):
        answer = predicted[row["image_id"]]
        if answer["status"] == "answered":
            compared += 1
            for label in LABELS:
                said, measured = float(answer[f"p_{label}"]), float(row[f"given_{label}"])
                assert said == pytest.approx(measured, abs=1e-3)
    assert compared > 0
