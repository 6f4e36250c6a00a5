"""Every objective on the same squares: it trains what it may, and its loss is its definition."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from bundle.errors import InvalidSettings, TrainingError
from bundle.fields import FieldSchema
from cohort.cohort import Cohort
from tests.training.squares import LABELS, SCHEMA, squares, tiny_config, write_cohort
from training.batch import Batch, encode_at_once, same_whole_records
from training.config import read_config
from training.data import fit_schema, load_rows
from training.losses import nt_xent, pairwise_sigmoid
from training.model import Slimp
from training.objectives.masked_images import MaskedImages
from training.objectives.supervised import Supervised
from training.record_batches import RecordBatches
from training.run import load_towers
from training.trainer import pretrain

NAMES = ("nested", "lesion", "patient", "flat", "simclr", "clip", "siglip", "mae", "supervised")
WITHOUT_RECORDS = ("simclr", "mae")


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


def model_and_batch(cohort: Cohort, **objective: Any) -> tuple[Slimp, Batch]:
    """Return towers and a batch in float64, without column dropout."""
    config = tiny_config(objective={"column_dropout": 0.0, **objective})
    rows = load_rows(cohort, ["train"], LABELS)
    schema = fit_schema(cohort.schema, rows)
    model = Slimp(config, schema, labels=len(LABELS)).double()
    batch = RecordBatches(rows, schema, config.objective).batch(torch.arange(20))
    batch["pixels"], batch["second_pixels"] = torch.randn(2, 20, 3, 16, 16)
    return model, {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_trains_the_towers_it_reads_and_no_other(
    cohort: Cohort, tmp_path: Path, name: str
) -> None:
    seen: list[dict[str, float]] = []
    config = tiny_config(objective={"name": name}, optimiser={"epochs": 3})
    info = pretrain(cohort, config, tmp_path / "run", report=lambda s, t, m: seen.append(m))
    assert info.objective == name
    losses = [m["loss"] for m in seen]
    assert all(math.isfinite(loss) for loss in losses)
    torch.manual_seed(config.seed)
    found = load_towers(tmp_path / "run")
    model, batch = model_and_batch(cohort, name=name)
    torch.autograd.backward([term.loss for term in model(batch).values()])
    for level, tower in (("lesion", model.lesion), ("patient", model.patient)):
        is_read = name not in (*WITHOUT_RECORDS, "lesion" if level == "patient" else "")
        assert tower is not None
        gradients = [p.grad for p in tower.parameters()]
        assert any(g is not None and g.any() for g in gradients) == is_read
    assert any(p.grad is not None and p.grad.any() for p in model.image.parameters())
    assert found.embedding_dim == 16


@pytest.mark.parametrize("name", ["simclr", "mae", "supervised", "flat", "siglip"])
def test_a_baselines_loss_falls(cohort: Cohort, tmp_path: Path, name: str) -> None:
    seen: list[dict[str, float]] = []
    config = tiny_config(
        objective={"name": name, "column_dropout": 0.0},
        optimiser={"epochs": 12},
        augment={"min_crop": 1.0},
    )
    pretrain(cohort, config, tmp_path / "run", report=lambda s, t, m: seen.append(m))
    first, last = (sum(m["loss"] for m in part) for part in (seen[:4], seen[-4:]))
    assert last < 0.95 * first


def test_a_weight_of_zero_leaves_the_term_out(cohort: Cohort) -> None:
    terms = {name: set(model_and_batch(cohort, name=name)[0].weights) for name in NAMES[:3]}
    assert terms["nested"] == {"lesion", "patient"}
    model, batch = model_and_batch(cohort, name="lesion")
    assert set(model(batch)) == {"lesion"}
    model, batch = model_and_batch(cohort, name="patient")
    assert set(model(batch)) == {"patient"}
    assert model.weights == {"lesion": 0.0, "patient": 1.0}


def test_image_self_supervision_beside_the_nested_loss_counts_by_its_weight(
    cohort: Cohort, tmp_path: Path
) -> None:
    seen: list[dict[str, float]] = []
    config = tiny_config(objective={"image_weight": 0.3}, optimiser={"epochs": 1})
    info = pretrain(cohort, config, tmp_path / "run", report=lambda s, t, m: seen.append(m))
    assert info.objective == "nested + 0.3 image"
    for m in seen:
        nested = (m["lesion_loss"] + m["patient_loss"]) / 2
        assert m["loss"] == pytest.approx(nested + 0.3 * m["image_loss"], rel=1e-5)


def test_near_twins_share_a_target_the_more_the_wider_they_may_lie(cohort: Cohort) -> None:
    losses = []
    for width in (0.0, 1e-6, 5.0):
        torch.manual_seed(0)
        model, batch = model_and_batch(cohort, soft_width=width)
        terms = model(batch)
        losses.append([terms[name].loss.item() for name in ("lesion", "patient")])
    hard, narrow, wide = losses
    assert narrow == pytest.approx(hard, rel=1e-9)
    assert all(abs(a - b) > 1e-3 for a, b in zip(wide, hard, strict=True))


def test_nt_xent_equals_a_double_loop_over_both_views() -> None:
    first, second = normalize(torch.randn(2, 6, 4, dtype=torch.double), dim=2)
    excluded = torch.zeros(6, 6, dtype=torch.bool)
    excluded[1, 2] = excluded[2, 1] = True
    rows = [*first, *second]
    total, negatives = 0.0, 0
    for i in range(12):
        partner = (i + 6) % 12
        others = [j for j in range(12) if j not in (i, partner) and not excluded[i % 6, j % 6]]
        others = [j for j in others if j % 6 != i % 6]
        scores = [7.0 * float(rows[i] @ rows[j]) for j in (partner, *others)]
        total += math.log(sum(map(math.exp, scores))) - scores[0]
        negatives += len(others)
    term = nt_xent(first, second, 7.0, excluded=excluded)
    assert term.loss.item() == pytest.approx(total / 12, rel=1e-9)
    assert term.negatives == pytest.approx(negatives / 12)


def test_the_sigmoid_loss_equals_a_double_loop_over_pairs() -> None:
    first, second = normalize(torch.randn(2, 5, 4, dtype=torch.double), dim=2)
    total = 0.0
    for i in range(5):
        for j in range(5):
            logit = 3.0 * float(first[i] @ second[j]) - 2.0
            total += math.log(1 + math.exp(-logit if i == j else logit))
    term = pairwise_sigmoid(first, second, torch.tensor(3.0), torch.tensor(-2.0))
    assert term.loss.item() == pytest.approx(total / 5, rel=1e-9)


@pytest.mark.parametrize("pairs", [0, 1])
def test_too_few_rows_give_a_zero_that_has_a_gradient(pairs: int) -> None:
    rows = torch.ones(pairs, 3, requires_grad=True)
    one = torch.ones((), requires_grad=True)
    views = nt_xent(rows, rows, 1.0, excluded=torch.zeros(pairs, pairs, dtype=torch.bool))
    for term in (views, pairwise_sigmoid(rows, rows, one, one)):
        torch.autograd.backward(term.loss)
        assert (term.loss.item(), term.negatives, term.accuracy) == (0, 0, 0)


def test_whole_records_are_alike_where_both_levels_are(cohort: Cohort) -> None:
    _, batch = model_and_batch(cohort)
    lesion, patient = (same_whole_records(batch, [level]) for level in ("lesion", "patient"))
    assert torch.equal(same_whole_records(batch, ["lesion", "patient"]), lesion & patient)
    of_patient = batch["slot"][:, 0]
    assert patient[of_patient[:, None] == of_patient[None]].all()


def test_flat_and_clip_differ_in_their_masks_alone(cohort: Cohort) -> None:
    losses, negatives = [], []
    for name in ("flat", "clip"):
        torch.manual_seed(0)
        model, batch = model_and_batch(cohort, name=name)
        batch["lesion_values"][:], batch["raw_lesion_values"][:] = 0, 0
        term = model(batch)[name]
        losses.append(term.loss.item())
        negatives.append(term.figures["negatives"])
    assert negatives[1] == 19
    assert negatives[0] < 18
    assert losses[0] < losses[1]


def test_mae_cuts_patches_where_the_tower_does_and_judges_hidden_ones_alone(
    cohort: Cohort,
) -> None:
    model, batch = model_and_batch(cohort, name="mae", masked_share=0.5)
    objective = model.objective
    assert isinstance(objective, MaskedImages)
    pixels = torch.arange(3 * 16 * 16, dtype=torch.double).reshape(1, 3, 16, 16)
    expected = [pixels[0, :, y : y + 8, x : x + 8] for y in (0, 8) for x in (0, 8)]
    for patch, cut in zip(objective.patches(pixels)[0], expected, strict=True):
        assert torch.equal(patch, cut.permute(1, 2, 0).flatten())
    with torch.no_grad():
        for parameter in objective.decoder.parameters():
            parameter.zero_()
    # A decoder that says 0 everywhere errs by the variance of a standardised patch.
    assert model(batch)["mae"].loss.item() == pytest.approx(191 / 192, rel=1e-4)


def test_all_shown_tokens_give_the_features_of_the_whole_image(cohort: Cohort) -> None:
    model, batch = model_and_batch(cohort)
    tokens = model.image.encode_tokens(model.image.embed_patches(batch["pixels"]))
    torch.testing.assert_close(tokens[:, 0], encode_at_once(model.image, batch["pixels"]))


def test_supervision_weighs_labels_alike_and_leaves_unlabelled_images_out(cohort: Cohort) -> None:
    model, batch = model_and_batch(cohort, name="supervised")
    objective = model.objective
    assert isinstance(objective, Supervised)
    objective.balance(torch.tensor([0, 0, 0, 1, 2, 2, -1]))
    assert (objective.weight * torch.tensor([3, 1, 2])).tolist() == pytest.approx([2, 2, 2])
    model.eval()
    labelled = model(batch)["supervised"].loss
    batch["label"][3:] = -1
    batch["pixels"][3:] = 0
    assert model(batch)["supervised"].loss != labelled
    batch["label"][:] = -1
    nothing = model(batch)["supervised"]
    torch.autograd.backward(nothing.loss)
    assert nothing.loss.item() == 0


def test_objectives_without_their_data_are_refused(tmp_path: Path, lesion_cohort: Cohort) -> None:
    config = tiny_config(objective={"name": "patient"})
    with pytest.raises(TrainingError, match="no patients with ids and fields"):
        pretrain(lesion_cohort, config, tmp_path / "patient")
    images = list(squares(patients=4))
    for image in images:
        for name in ("diameter_mm", "itch", "anatom_site"):
            image.record.pop(name, None)
    schema = FieldSchema(fields=SCHEMA.at("patient"))
    cohort = write_cohort(tmp_path / "cohort", images, schema=schema)
    with pytest.raises(TrainingError, match="expected a lesion-level field"):
        pretrain(cohort, tiny_config(objective={"name": "lesion"}), tmp_path / "lesion")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[objective]\nname = "mae"\n[batch]\nchunk = 4', "objective.name mae needs whole patches"),
        ('[objective]\nname = "mae"\n[image]\nstem = "convolutional"', "whole patches"),
        ('[objective]\nname = "simclr"\nimage_weight = 1', "image_weight adds nothing to simclr"),
        ('[objective]\nname = "clip"\nsoft_width = 1', "soft_width is no setting of clip"),
        ('[objective]\nname = "dino"', "objective.name"),
    ],
)
def test_settings_that_contradict_the_objective_are_refused(
    tmp_path: Path, text: str, reason: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(InvalidSettings, match=reason):
        read_config(file)
