import itertools

import numpy as np
import pytest
import torch

from training.config import FitSettings
from training.context import (
    MAX_LESIONS,
    RANK_WEIGHT,
    LesionTable,
    context_loss,
    fit_scale,
    train_context,
)
from training.features import RecordFeatures
from training.heads import Classifier, ContextModel, against_others, gap_to_others

DIM = 6
LESIONS = 5


def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(DIM, 3, hidden=8, dropout=0.2).eval()


def context_model() -> ContextModel:
    torch.manual_seed(1)
    return ContextModel(DIM, width=8, dropout=0.2).eval()


def lesions(count: int = LESIONS, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return one patient's lesions as the context model takes them."""
    random = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(1, count, DIM, generator=random),
        "lesion_record": torch.randn(1, count, DIM, generator=random),
        "lesion_present": torch.rand(1, count, generator=random) < 0.7,
        "malignancy_logit": torch.randn(1, count, generator=random),
        "mask": torch.ones(1, count, dtype=torch.bool),
        "patient_record": torch.randn(1, DIM, generator=random),
        "patient_present": torch.ones(1, dtype=torch.bool),
    }


def of_lesions(batch: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in batch if not name.startswith("patient")]


@pytest.mark.parametrize("flags", list(itertools.product([True, False], repeat=3)))
def test_a_modality_that_is_absent_has_no_say(flags: tuple[bool, bool, bool]) -> None:
    model = classifier()
    features = [torch.randn(4, DIM) for _ in flags]
    others = [
        f if there else torch.randn(4, DIM) * 9 for f, there in zip(features, flags, strict=True)
    ]
    present = [torch.full((4,), there) for there in flags]
    assert torch.equal(model(*features, *present), model(*others, *present))
    for number, there in enumerate(flags):
        if there:
            moved = list(features)
            moved[number] = torch.randn(4, DIM)
            assert not torch.allclose(model(*moved, *present), model(*features, *present))


def test_what_records_add_neither_trains_nor_changes_what_the_image_says_alone() -> None:
    model = classifier()
    image, lesion, patient = (torch.randn(4, DIM, requires_grad=True) for _ in range(3))
    yes, no = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)
    alone = model.of_image(image)
    torch.testing.assert_close(model(image, lesion, patient, yes, no, no), alone)
    assert not torch.allclose(model(image, lesion, patient, yes, yes, no), alone)
    model(image, lesion, patient, yes, yes, yes).sum().backward()
    of_image = (model.norms[0], model.image_vote, model.image_hidden)
    assert all(p.grad is None for part in of_image for p in part.parameters())
    # Nor the tower behind the image's features, which is tuned with the classifier.
    assert image.grad is None
    assert lesion.grad is not None
    assert patient.grad is not None
    assert all(p.grad is not None for p in [*model.joint.parameters(), *model.votes.parameters()])


def test_nothing_that_is_there_says_nothing() -> None:
    model, no = classifier(), torch.zeros(4, dtype=torch.bool)
    image, lesion, patient = torch.randn(3, 4, DIM)
    assert not model(image, lesion, patient, no, no, no).any()


def test_one_lesion_keeps_its_own_log_odds_whatever_the_scale() -> None:
    model, alone = context_model(), lesions(1)
    model.gain.fill_(3)
    model.offset.fill_(2)
    assert torch.equal(model(**alone), alone["malignancy_logit"])


def test_others_lesions_move_the_answer() -> None:
    model, batch = context_model(), lesions()
    assert not torch.allclose(model(**batch), batch["malignancy_logit"], atol=1e-3)


def test_the_order_of_the_lesions_only_orders_the_answers() -> None:
    model, batch = context_model(), lesions()
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = {k: v[:, order] if k in of_lesions(batch) else v for k, v in batch.items()}
    torch.testing.assert_close(model(**shuffled), model(**batch)[:, order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 2, LESIONS])
def test_lesions_outside_the_mask_do_not_matter(count: int) -> None:
    model, batch, noise = context_model(), lesions(count), lesions(3, seed=5)
    padded = {
        k: torch.cat([v, 50 * noise[k] if v.is_floating_point() else noise[k]], 1)
        if k in of_lesions(batch)
        else v
        for k, v in batch.items()
    }
    padded["mask"][:, count:] = False
    answers = model(**padded)[:, :count]
    torch.testing.assert_close(answers, model(**batch), atol=1e-5, rtol=0)


def test_records_that_are_absent_do_not_matter() -> None:
    model, batch = context_model(), lesions()
    batch["lesion_present"][:], batch["patient_present"][:] = False, False
    other = {**batch, "lesion_record": batch["lesion_record"] + 9}
    other["patient_record"] = batch["patient_record"] - 9
    assert torch.equal(model(**batch), model(**other))


def test_a_gap_is_to_the_mean_of_the_others_that_are_there() -> None:
    there = torch.tensor([True, True, True, False]).view(1, 4, 1)
    values = torch.where(there, torch.randn(1, 4, 2), 0)
    gap = gap_to_others(values, there)
    for i in range(3):
        others = [values[0, j] for j in range(3) if j != i]
        torch.testing.assert_close(gap[0, i], values[0, i] - torch.stack(others).mean(0))
    assert not gap[0, 3].any()
    assert not gap_to_others(values[:, :1], there[:, :1]).any()


def test_the_size_of_a_gap_is_told_against_the_patients_usual_one() -> None:
    there = torch.ones(1, 5, 1, dtype=torch.bool)
    values = torch.tensor([0.0, 0.0, 0.0, 0.0, 10.0]).view(1, 5, 1)
    _, gap, size, unusual = against_others(values, there)
    torch.testing.assert_close(size, gap.abs(), atol=1e-3, rtol=0)
    assert unusual.argmax() == 4
    torch.testing.assert_close(unusual, torch.log(size / size.mean() + 1e-3), atol=1e-3, rtol=0)


def test_a_record_unlike_the_others_moves_the_answer() -> None:
    model, batch = context_model(), lesions()
    batch["lesion_present"][:] = True
    odd = {**batch, "lesion_record": batch["lesion_record"].clone()}
    odd["lesion_record"][0, 0] *= -5
    moved = (model(**odd) - model(**batch)).abs()
    assert (moved > 1e-4).all()


def test_the_context_loss_is_cross_entropy_and_the_rank_of_the_malignant() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.3, -0.2, 7.0]])
    malignant = torch.tensor([[True, False, True], [False, False, False]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    each = [
        -float(torch.nn.functional.logsigmoid(logit if bad else -logit))
        for row, bads, inside in zip(logits, malignant, mask, strict=True)
        for logit, bad, there in zip(row, bads, inside, strict=True)
        if there
    ]
    shares = logits[0].softmax(0)
    ranking = -float((shares[0].log() + shares[2].log()) / 2)
    expected = np.mean(each) + RANK_WEIGHT * ranking
    alike = torch.ones(2, 3)
    assert float(context_loss(logits, malignant, mask, alike)) == pytest.approx(expected, rel=1e-5)
    healthy = context_loss(logits[1:], malignant[1:], mask[1:], alike[1:])
    assert float(healthy) == pytest.approx(np.mean(each[3:]), rel=1e-5)
    weight = torch.tensor([[2.0, 1.0, 0.5], [1.0, 3.0, 9.0]])
    counts = (2.0, 1.0, 0.5, 1.0, 3.0)
    unlike = np.mean([c * e for c, e in zip(counts, each, strict=True)])
    first = -float(2.0 * shares[0].log() + 0.5 * shares[2].log()) / 2.5
    weighted = context_loss(logits, malignant, mask, weight)
    assert float(weighted) == pytest.approx(unlike + RANK_WEIGHT * first, rel=1e-5)


def table_of(patients: int, each: int, seed: int = 0) -> LesionTable:
    """Return patients whose one odd-looking lesion is malignant."""
    rng = np.random.default_rng(seed)
    count = patients * each
    malignant = np.arange(count) % each == 0
    image = rng.normal(0, 0.3, (count, DIM)).astype(np.float32)
    image += np.repeat(rng.normal(0, 2, (patients, DIM)), each, axis=0).astype(np.float32)
    image[malignant, 0] += 3
    records = RecordFeatures(
        lesion=np.zeros((count, DIM), np.float32),
        patient=np.zeros((count, DIM), np.float32),
        lesion_present=np.ones(count, np.bool_),
        patient_present=np.ones(count, np.bool_),
    )
    odds = np.zeros(count, np.float32)
    patient = np.repeat(np.arange(patients), each)
    return LesionTable(image, records, odds, odds, malignant, patient)


def test_training_learns_that_the_odd_lesion_is_the_malignant_one() -> None:
    torch.manual_seed(0)
    model, table = ContextModel(DIM, width=8, dropout=0.0), table_of(16, 4)
    steps: list[tuple[int, int]] = []
    settings = FitSettings(context_epochs=60, learning_rate=1e-2)
    alike = np.ones(len(table.image), np.float32)
    train_context(model, table, alike, settings, seed=0, report=lambda *at: steps.append(at))
    assert not model.training
    assert steps[-1] == (60, 60)
    own = table.patients()[0]
    batch = {**lesions(len(own)), "image": torch.from_numpy(table.image[own])[None]}
    batch["malignancy_logit"][:] = 0
    batch["lesion_record"][:], batch["lesion_present"][:] = 0, True
    batch["patient_record"][:] = 0
    assert int(model(**batch).argmax()) == int(table.malignant[own].argmax())


def test_a_patient_with_very_many_lesions_is_shown_in_part() -> None:
    torch.manual_seed(0)
    shown: list[int] = []

    class Watched(ContextModel):
        def forward(
            self, image: torch.Tensor, *rest: torch.Tensor, **more: torch.Tensor
        ) -> torch.Tensor:
            shown.append(image.shape[1])
            return super().forward(image, *rest, **more)

    train_context(
        Watched(DIM, width=8, dropout=0.0),
        table_of(2, MAX_LESIONS + 6),
        np.ones(2 * (MAX_LESIONS + 6), np.float32),
        FitSettings(context_epochs=6),
        seed=0,
    )
    assert max(shown) == MAX_LESIONS


def test_the_scale_recovers_a_gain_and_an_offset_that_were_planted() -> None:
    rng = np.random.default_rng(0)
    alone, correction = rng.normal(0, 1, (2, 4000)).astype(np.float32)
    truth = 1 / (1 + np.exp(-(alone + 2.0 * correction - 0.7)))
    model = context_model()
    fit_scale(model, alone + correction, alone, rng.random(4000) < truth)
    assert float(model.gain) == pytest.approx(2.0, abs=0.25)
    assert float(model.offset) == pytest.approx(-0.7, abs=0.15)


def test_without_lesions_in_company_there_is_nothing_to_scale() -> None:
    model, none = context_model(), np.zeros(0, np.float32)
    fit_scale(model, none, none, np.zeros(0, np.bool_))
    assert (float(model.gain), float(model.offset)) == (1.0, 0.0)


def test_lesions_are_in_company_where_their_patient_has_others() -> None:
    lone, several = table_of(1, 1), table_of(2, 3)
    assert lone.in_company.tolist() == [False]
    assert several.in_company.tolist() == [True] * 6
