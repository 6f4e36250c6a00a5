import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from bundle.appearance import AppearanceModel
from bundle.calibration import CONDITIONS, Calibration, Condition
from bundle.errors import InvalidSettings, TrainingError
from bundle.fields import FieldSchema, Record
from bundle.images import ImageInput, decode_image, prepare_image
from bundle.novelty import NoveltyModel
from bundle.records import EncodedRecords
from cohort.cohort import Cohort
from cohort.splits import Split
from tests.training.squares import LABELS, SCHEMA, squares, tiny_config, write_cohort
from training.augment import Augment
from training.classifier import (
    ConditionRecords,
    FeatureBatch,
    feature_table,
    train_classifier,
    tuned_features,
)
from training.config import AugmentSettings
from training.data import Squares, fit_schema, load_rows
from training.encoders import load_encoders
from training.features import Modality, classify_rows, describe_rows, embed_rows, record_features
from training.fit import fit
from training.fitted import open_fitted
from training.heads import Classifier
from training.model import Slimp
from training.passes import Passes
from training.run import TOWERS, read_info, read_run_config
from training.sampler import PatientBatches
from training.trainer import pretrain


def calibration_of(run: Path) -> Calibration:
    return Calibration.model_validate_json((run / "calibration.json").read_bytes())


def with_settings(run: Path, out: Path, **sections: Any) -> Path:
    """Return a copy of the run that is to be fitted otherwise."""
    shutil.copytree(run, out)
    (out / "config.json").write_text(tiny_config(**sections).model_dump_json())
    return out


def test_a_fitted_run_holds_everything_that_export_reads(
    fitted: Path, pretrained: Path, cohort: Cohort
) -> None:
    assert {file.name for file in fitted.iterdir()} == {
        "config.json",
        "run.json",
        "metrics.jsonl",
        "towers.safetensors",
        "classifier.safetensors",
        "context.safetensors",
        "calibration.json",
        "novelty.npz",
        "appearance.npz",
    }
    info, before = read_info(fitted), read_info(pretrained)
    assert read_run_config(fitted) == read_run_config(pretrained)
    assert info.data == before.data
    assert info.labels == cohort.info.labels
    calibration = calibration_of(fitted)
    assert set(calibration.conditions) == set(CONDITIONS)
    # Of lesions: those that are photographed twice count once.
    rows = cohort.table().filter(cohort.table()["split"].to_numpy() == "train").to_pylist()
    by_lesion = Counter({row["lesion_id"]: row["label"] for row in rows}.values())
    shares = {label: n / by_lesion.total() for label, n in by_lesion.items()}
    assert calibration.prevalence == pytest.approx(shares)
    assert len(rows) > by_lesion.total()
    assert len(calibration.oddness_quantiles) == 101
    assert len(calibration.operating_points) == 2 * len(CONDITIONS)
    # One lesion of every patient is photographed twice, and counts once.
    cal = load_rows(cohort, ["cal"], LABELS)
    lesions = len(set(cal.lesion_id))
    assert lesions < len(cal)
    assert {c.lesions for c in calibration.conditions.values()} == {lesions}
    assert {c.conformal.lesions for c in calibration.conditions.values()} == {lesions}


def test_calibration_groups_are_not_in_train_and_both_are_seen(
    fitted: Path, pretrained: Path, cohort: Cohort
) -> None:
    train, cal, test = (
        set(load_rows(cohort, [split], LABELS).group_id) for split in ("train", "cal", "test")
    )
    assert not train & cal
    earlier, seen = read_info(fitted).seen
    assert (earlier,) == read_info(pretrained).seen
    assert earlier.overlap(train | cal | test) == train
    assert seen.overlap(train | cal | test) == train | cal


def test_a_run_that_saw_calibration_groups_is_refused(
    fitted: Path, pretrained: Path, cohort: Cohort, tmp_path: Path
) -> None:
    swapped: dict[Split, Split] = {"train": "cal", "cal": "train", "val": "val", "test": "test"}
    other = cohort.with_splits(
        {g: swapped[s] for s in swapped for g in load_rows(cohort, [s], LABELS).group_id}
    )
    trained = len(set(load_rows(cohort, ["train"], LABELS).group_id))
    with pytest.raises(TrainingError, match=f"got {trained} of its {trained} patients"):
        fit(pretrained, other, tmp_path / "out")
    # What calibrated a run must not calibrate what goes on from it.
    with pytest.raises(TrainingError, match="give a run from before `slimp fit`"):
        fit(fitted, cohort, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_classifier_tells_the_colours_of_unseen_patients(fitted: Path, cohort: Cohort) -> None:
    info, encoders = read_info(fitted), load_encoders(fitted)
    rows = load_rows(cohort, ["test"], LABELS)
    spec = read_run_config(fitted).image.input
    done: list[int] = []
    features = embed_rows(
        encoders, Squares(cohort, rows, spec), batch=7, report=lambda i, total: done.append(i)
    )
    assert done == [7, 14, 20]
    one = prepare_image(decode_image(cohort.images([int(rows.position[9])])[0]), spec)
    alone = encoders.embed_images(one[None])[0]
    np.testing.assert_allclose(features[9], alone, atol=1e-5)
    records = record_features(encoders, rows.records, info.record_schema)
    calibration = calibration_of(fitted)
    views: tuple[tuple[Modality, Condition], ...] = (("both", "given"), ("image", "missing"))
    for modality, condition in views:
        logits = classify_rows(encoders, features, records, modality)
        decided = calibration.probabilities(logits, condition).argmax(1)
        assert (decided == rows.label).mean() >= 0.85
    blind = classify_rows(encoders, features * 0, records, "record")
    again = classify_rows(encoders, features, records, "record")
    assert np.array_equal(blind, again)


def test_features_are_centred_on_the_train_split(fitted: Path, cohort: Cohort) -> None:
    rows = load_rows(cohort, ["train"], LABELS)
    spec = read_run_config(fitted).image.input
    features = embed_rows(load_encoders(fitted), Squares(cohort, rows, spec))
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-5)
    novelty = NoveltyModel.from_bytes((fitted / "novelty.npz").read_bytes())
    np.testing.assert_allclose(novelty.centre, 0, atol=1e-5)
    assert np.median(novelty.score(features)) < calibration_of(fitted).novelty_threshold


def test_so_many_calibration_images_as_asked_are_unlike_the_training_images(
    pretrained: Path, fitted: Path, cohort: Cohort, tmp_path: Path
) -> None:
    run = with_settings(pretrained, tmp_path / "run", fit={"epochs": 1, "novel_share": 0.25})
    fit(run, cohort, tmp_path / "fitted")
    rows = load_rows(cohort, ["cal"], LABELS)
    squares = Squares(cohort, rows, read_run_config(fitted).image.input)
    described = describe_rows(cohort, rows)

    def unlike(fitted: Path) -> list[npt.NDArray[np.bool_]]:
        novelty = NoveltyModel.from_bytes((fitted / "novelty.npz").read_bytes())
        appearance = AppearanceModel.from_bytes((fitted / "appearance.npz").read_bytes())
        calibration = calibration_of(fitted)
        assert calibration.appearance_threshold is not None
        return [
            novelty.score(embed_rows(load_encoders(fitted), squares))
            > calibration.novelty_threshold,
            appearance.score(described) > calibration.appearance_threshold,
        ]

    found = unlike(tmp_path / "fitted")
    assert np.any(found, axis=0).mean() == pytest.approx(0.25, abs=1 / len(rows))
    assert all(each.any() for each in found)
    assert np.any(unlike(fitted), axis=0).sum() <= 1


def test_fitting_changes_neither_the_image_tower_nor_the_run_it_reads(
    fitted: Path, pretrained: Path
) -> None:
    before, after = load_file(pretrained / TOWERS), load_file(fitted / TOWERS)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "image.centre" in changed
    others = changed - {"image.centre", "image.basis"}
    assert {name.split(".")[0] for name in others} == {"lesion", "patient"}


def test_context_of_one_lesion_is_its_own_log_odds(fitted: Path) -> None:
    encoders = load_encoders(fitted)
    assert encoders.has_context
    rng = np.random.default_rng(0)
    image, record = rng.normal(0, 1, (2, 3, 16)).astype(np.float32)
    odds = np.array([-1.0, 0.5, 2.0], np.float32)

    def answers(count: int) -> np.typing.NDArray[np.float32]:
        return encoders.context(
            image[:count],
            record[:count],
            lesion_present=np.ones(count, np.bool_),
            malignancy_logit=odds[:count],
            patient_record=record[0],
            patient_present=True,
        )

    assert np.array_equal(answers(1), odds[:1])
    assert answers(3).shape == (3,)


@pytest.fixture(scope="module")
def without_patients(
    lesion_cohort: Cohort, pretrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run fitted, with its image tower tuned, on squares without patient ids."""
    folder = tmp_path_factory.mktemp("tuned")
    settings = {"tune_image": True, "tune_epochs": 2, "tune_batch": 16}
    run = with_settings(
        pretrained, folder / "run", fit=settings, image={"frozen_blocks": 0}, precision="fp32"
    )
    fit(run, lesion_cohort, folder / "fitted")
    return folder / "fitted"


def test_without_patient_ids_there_is_no_context_model(
    without_patients: Path, lesion_cohort: Cohort
) -> None:
    encoders = load_encoders(without_patients)
    assert not encoders.has_context
    assert not (without_patients / "context.safetensors").exists()
    assert calibration_of(without_patients).oddness_quantiles == ()
    with pytest.raises(RuntimeError, match="no context model"):
        encoders.context(
            np.zeros((1, 16), np.float32),
            np.zeros((1, 16), np.float32),
            lesion_present=np.ones(1, np.bool_),
            malignancy_logit=np.zeros(1, np.float32),
            patient_record=np.zeros(16, np.float32),
            patient_present=False,
        )


def test_tuning_changes_the_image_tower(without_patients: Path, pretrained: Path) -> None:
    before, after = load_file(pretrained / TOWERS), load_file(without_patients / TOWERS)
    changed = {n.split(".")[1] for n in before if not torch.equal(before[n], after[n])}
    assert "backbone" in changed


class PowerCut(Exception):
    """Ends a fine-tuning between two passes."""


def test_a_fine_tuning_that_was_cut_off_ends_as_it_would_have(
    without_patients: Path,
    lesion_cohort: Cohort,
    cohort: Cohort,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, out = without_patients.parent / "run", tmp_path / "fitted"
    save = Passes.save

    def save_and_stop(self: Passes, passes: int, *rest: Any) -> None:
        save(self, passes, *rest)
        raise PowerCut

    with pytest.raises(TrainingError, match="nothing to resume"):
        fit(run, lesion_cohort, out, resume=True)
    monkeypatch.setattr(Passes, "save", save_and_stop)
    with pytest.raises(PowerCut):
        fit(run, lesion_cohort, out)
    monkeypatch.setattr(Passes, "save", save)
    assert not out.exists()
    with pytest.raises(TrainingError, match="left by an interruption: go on with --resume"):
        fit(run, lesion_cohort, out)
    with pytest.raises(TrainingError, match="another run, cohort or configuration"):
        fit(run, cohort, out, resume=True)
    steps: list[int] = []
    fit(
        run,
        lesion_cohort,
        out,
        resume=True,
        report=lambda stage, done, *_: steps.append(done) if stage == "fine-tune" else None,
    )
    # The second of two passes alone.
    assert steps[0] == steps[-1] // 2 + 1
    for name in (TOWERS, "classifier.safetensors"):
        found, expected = load_file(out / name), load_file(without_patients / name)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert calibration_of(out) == calibration_of(without_patients)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fitted"]


def test_pictures_may_be_augmented_otherwise_while_fine_tuning(
    without_patients: Path, lesion_cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[AugmentSettings] = []

    class Noted(Augment):
        def __init__(self, settings: AugmentSettings, spec: ImageInput) -> None:
            super().__init__(settings, spec)
            used.append(settings)

    monkeypatch.setattr("training.fit.Augment", Noted)
    settings = {"tune_image": True, "tune_epochs": 1, "augment": {"min_crop": 0.9}}
    run = with_settings(without_patients.parent / "run", tmp_path / "run", fit=settings)
    fit(run, lesion_cohort, tmp_path / "fitted")
    assert [settings.min_crop for settings in used] == [0.9]


def test_pictures_may_be_read_at_another_size_from_fitting_on(
    pretrained: Path, cohort: Cohort, tmp_path: Path
) -> None:
    before = read_run_config(pretrained).image
    size = before.size_px + before.patch_px
    tuned = {"epochs": 1, "tune_image": True, "tune_epochs": 1, "tune_batch": 16, "size_px": size}
    run = with_settings(pretrained, tmp_path / "run", fit=tuned)
    fit(run, cohort, tmp_path / "fitted")
    after = read_run_config(tmp_path / "fitted")
    assert after.image.size_px == size
    assert after.image.resize_px == round(before.resize_px * size / before.size_px)
    assert after.fitted() == after
    spec = open_fitted(tmp_path / "fitted").image_input
    rows = load_rows(cohort, ["test"], LABELS)
    features = embed_rows(load_encoders(tmp_path / "fitted"), Squares(cohort, rows, spec))
    assert spec.size_px == size
    assert features.shape == (len(rows), 16)
    odd = with_settings(pretrained, tmp_path / "odd", fit={"size_px": size + 1})
    with pytest.raises(InvalidSettings, match="expected multiples of the patch side"):
        fit(odd, cohort, tmp_path / "out")


def test_a_folder_that_is_taken_is_not_fitted_into(
    pretrained: Path, fitted: Path, cohort: Cohort
) -> None:
    with pytest.raises(TrainingError, match="exists: name another folder"):
        fit(pretrained, cohort, fitted)


def test_a_label_that_a_split_lacks_is_named(pretrained: Path, tmp_path: Path) -> None:
    """One patient carries the only "bcc": whatever the seed, train or cal has none."""
    images = [i for i in squares() if i.label != "bcc" or i.patient_id == "patient 2"]
    cohort = write_cohort(tmp_path / "cohort", images)
    with pytest.raises(TrainingError, match=r"the (train|cal) split has no lesion labelled bcc"):
        fit(pretrained, cohort, tmp_path / "fitted")
    assert not (tmp_path / "fitted").exists()


def test_another_cohort_is_added_to_the_data_and_lone_lesions_have_no_oddness(
    pretrained: Path, tmp_path: Path
) -> None:
    """Patients with fewer lesions than `MIN_LESIONS` say nothing of how odd a lesion is."""
    images = [
        dataclasses.replace(image, patient_id=f"other {image.patient_id}")
        for image in squares(patients=24, benign=1)
        if " 0 1" not in image.image_id
    ]
    cohort = write_cohort(tmp_path / "cohort", images, name="other squares")
    stages: list[tuple[str, int, int]] = []
    info = fit(pretrained, cohort, tmp_path / "fitted", report=lambda *at: stages.append(at))
    assert [source.name for source in info.data] == ["squares", "other squares"]
    assert calibration_of(tmp_path / "fitted").oddness_quantiles == ()
    assert {s for s, _, _ in stages} == {"embed train", "embed cal", "classifier", "context"}
    assert all(0 < done <= total for _, done, total in stages)


def test_a_run_without_patient_fields_fits(tmp_path: Path) -> None:
    images = list(squares(patients=20))
    for image in images:
        for name in ("age_years", "sex"):
            image.record.pop(name, None)
    schema = FieldSchema(fields=SCHEMA.at("lesion"))
    cohort = write_cohort(tmp_path / "cohort", images, schema=schema)
    pretrain(cohort, tiny_config(optimiser={"epochs": 1}), tmp_path / "run")
    fit(tmp_path / "run", cohort, tmp_path / "fitted")
    encoders = load_encoders(tmp_path / "fitted")
    features = record_features(
        encoders, [{"itch": True}], read_info(tmp_path / "run").record_schema
    )
    assert not features.patient.any()
    assert features.patient_present.tolist() == [False]


def test_the_same_run_fits_to_the_same_weights(
    pretrained: Path, fitted: Path, cohort: Cohort, tmp_path: Path
) -> None:
    fit(pretrained, cohort, tmp_path / "fitted")
    for name in ("classifier", "context"):
        first, second = (
            load_file(run / f"{name}.safetensors") for run in (fitted, tmp_path / "fitted")
        )
        assert all(torch.equal(first[key], second[key]) for key in first)
    texts = [
        json.loads((run / "calibration.json").read_text()) for run in (fitted, tmp_path / "fitted")
    ]
    assert texts[0] == texts[1]


def test_training_rows_show_every_condition(cohort: Cohort) -> None:
    rows = load_rows(cohort, ["train"], LABELS)
    schema = fit_schema(cohort.schema, rows)
    guess: Record = {"diameter_mm": 99.0, "sex": "male"}
    table = ConditionRecords.of(rows, [guess] * len(rows), schema, balance_missing=False)
    index = np.tile(np.arange(len(rows)), 40)
    both = table.draw(index, np.random.default_rng(0))
    drawn, show = both.records, both.show_image
    assert (both.weight == 1).all()
    lesion, patient = drawn["lesion"], drawn["patient"]
    guessed = lesion.values[:, 0] == table.extrapolated["lesion"].values[0, 0]
    missing = ~(lesion.present.any(1) | patient.present.any(1))
    complete = lesion.present.all(1) & patient.present.all(1)
    assert (guessed & lesion.present[:, 0]).mean() == pytest.approx(0.3, abs=0.03)
    assert missing.mean() < 0.1
    assert complete.mean() > 0.15
    assert (~lesion.present[guessed & ~missing][:, 1:]).all()
    assert (~show).mean() == pytest.approx(0.7 * 0.25, abs=0.02)
    own = lesion.present[:, 1] & ~guessed
    given = table.given["lesion"].rows(index)
    assert np.array_equal(lesion.values[own, 1], given.values[own, 1])


def test_a_table_of_features_is_shuffled_and_complete() -> None:
    embeddings = np.arange(14, dtype=np.float32).reshape(7, 2)
    batches = feature_table(embeddings, 3, seed=0)
    for number in range(2):
        parts = list(batches(number))
        index = torch.cat([part.index for part in parts])
        assert sorted(index.tolist()) == list(range(7))
        assert index.tolist() != list(range(7))
        assert [len(part.index) for part in parts] == [3, 3, 1]
        for part in parts:
            assert not part.is_mixed
            assert np.array_equal(part.features.numpy(), embeddings[part.index.numpy()])


class Pixels(nn.Module):
    """Stands for the towers: the features of a picture are its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def image(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1) * self.weight


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_pictures_are_mixed_in_pairs_in_half_of_the_batches(mixup: float) -> None:
    torch.manual_seed(0)
    pictures = torch.rand(12, 3, 2, 2)
    batches = PatientBatches(np.arange(12), patients=6, lesions=1, seed=0)
    rows: Any = [{"pixels": one, "index": number} for number, one in enumerate(pictures)]
    towers: Any = Pixels()
    epoch = tuned_features(
        towers, DataLoader(rows, 6), nn.Identity(), batches, precision="fp32", mixup=mixup
    )
    seen = [batch for number in range(100) for batch in epoch(number)]
    own, other = (
        torch.stack([pictures[getattr(batch, name)].flatten(1) for batch in seen])
        for name in ("index", "other")
    )
    share = torch.tensor([batch.share for batch in seen]).view(-1, 1, 1)
    features = torch.stack([batch.features for batch in seen])
    torch.testing.assert_close(features, share * own + (1 - share) * other)
    mixed = [batch for batch in seen if batch.is_mixed]
    assert len(mixed) / len(seen) == pytest.approx(0.5 if mixup else 0.0, abs=0.1)
    assert all(0.5 <= batch.share < 1 for batch in mixed)
    assert all(sorted(batch.other.tolist()) == sorted(batch.index.tolist()) for batch in mixed)


def test_a_mixed_picture_teaches_both_its_labels_and_no_record(cohort: Cohort) -> None:
    rows = load_rows(cohort, ["train"], LABELS)
    schema, config = fit_schema(cohort.schema, rows), tiny_config(fit={"epochs": 40})
    torch.manual_seed(0)
    towers = Slimp(config, schema)
    classifier = Classifier(towers.embedding_dim, len(LABELS), hidden=8, dropout=0.0)
    before = {k: v.clone() for k, v in [*towers.named_parameters(), *classifier.named_parameters()]}
    first, second = (int(np.flatnonzero(rows.label == label)[0]) for label in (0, 1))
    features = torch.randn(1, towers.embedding_dim)
    batch = FeatureBatch(features, torch.tensor([first]), torch.tensor([second]), share=0.7)
    train_classifier(
        towers,
        classifier,
        lambda _: iter([batch]),
        rows,
        ConditionRecords.of(rows, [{}] * len(rows), schema),
        config.fit.model_copy(update={"weight_decay": 0.0}),
        tune=False,
        steps_per_epoch=1,
        seed=0,
    )
    after = dict([*towers.named_parameters(), *classifier.named_parameters()])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("image_vote", "image_hidden", "norms.0")) for name in changed)
    counts = np.bincount(rows.label, minlength=len(LABELS))
    with torch.no_grad():
        logits = classifier.of_image(features) + torch.tensor(np.log(counts / counts.sum()))
    said = logits.softmax(1)[0]
    assert said[0] == pytest.approx(0.7, abs=0.1)
    assert said[1] == pytest.approx(0.3, abs=0.1)


def test_the_images_answer_is_to_the_bit_that_of_a_twin_without_records(cohort: Cohort) -> None:
    rows = load_rows(cohort, ["train"], LABELS)
    schema, config = fit_schema(cohort.schema, rows), tiny_config(fit={"epochs": 3})
    told = ConditionRecords.of(rows, [{}] * len(rows), schema)
    nothing = {
        level: EncodedRecords(own.values, np.zeros_like(own.present))
        for level, own in told.given.items()
    }
    untold = dataclasses.replace(told, given=nothing, balance=None)

    def trained(records: ConditionRecords) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        towers = Slimp(config, schema)
        classifier = Classifier(towers.embedding_dim, len(LABELS), hidden=8, dropout=0.5)
        features = torch.randn(len(rows), towers.embedding_dim)
        train_classifier(
            towers,
            classifier,
            feature_table(features.numpy(), 8, seed=0),
            rows,
            records,
            config.fit,
            tune=False,
            steps_per_epoch=-(-len(rows) // 8),
            seed=0,
        )
        return classifier.state_dict()

    known, unknown = trained(told), trained(untold)
    alike = {name for name in known if torch.equal(known[name], unknown[name])}
    of_image = {n for n in known if n.startswith(("image_vote", "image_hidden", "norms.0"))}
    assert of_image
    assert of_image <= alike
    assert any(name.startswith("joint") for name in known.keys() - alike)
