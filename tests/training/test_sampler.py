import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.sampler import PatientBatches

PATIENTS = st.lists(st.integers(0, 6), min_size=1, max_size=30)
SIZES = st.integers(1, 5)


def sampler_of(
    patient: list[int], patients: int = 3, lesions: int = 2, seed: int = 0
) -> PatientBatches:
    numbers: npt.NDArray[np.int64] = np.array(patient, np.int64)
    return PatientBatches(numbers, patients=patients, lesions=lesions, seed=seed)


@settings(max_examples=60, deadline=None)
@given(PATIENTS, SIZES, SIZES, st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_shows_every_row_once_in_batches_of_distinct_patients(
    patient: list[int], patients: int, lesions: int, seed: int, epoch: int
) -> None:
    sampler = sampler_of(patient, patients, lesions, seed)
    sampler.start(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(len(patient)))
    for batch in batches:
        shown = [patient[row] for row in batch]
        runs = [p for i, p in enumerate(shown) if i == 0 or shown[i - 1] != p]
        assert len(runs) == len(set(shown)) <= patients  # a patient's rows lie together
        assert max(shown.count(p) for p in shown) <= lesions


@settings(max_examples=30, deadline=None)
@given(PATIENTS, st.integers(0, 20))
def test_a_start_after_some_batches_goes_on_as_the_whole_epoch_does(
    patient: list[int], skip: int
) -> None:
    sampler = sampler_of(patient)
    sampler.start(2)
    whole = list(sampler)
    sampler.start(2, skip)
    assert list(sampler) == whole[skip:]


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    patient = [i // 4 for i in range(40)]

    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = sampler_of(patient, seed=seed)
        sampler.start(epoch)
        return list(sampler)

    used = sampler_of(patient)
    for epoch in range(3):
        used.start(epoch)
        assert list(used) == order(0, epoch)
    np.random.default_rng().random()
    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


@settings(max_examples=60, deadline=None)
@given(PATIENTS, SIZES, SIZES, st.integers(1, 3))
def test_the_shares_of_a_batch_make_it_up_by_whole_patients(
    patient: list[int], patients: int, lesions: int, parts: int
) -> None:
    numbers: npt.NDArray[np.int64] = np.array(patient, np.int64)
    whole = list(sampler_of(patient, patients, lesions))
    enough = [b for b in whole if len({patient[row] for row in b}) >= parts]
    shares = [
        list(PatientBatches(numbers, patients=patients, lesions=lesions, seed=0, share=(i, parts)))
        for i in range(parts)
    ]
    assert [len(share) for share in shares] == [len(enough)] * parts
    for batch, *own in zip(enough, *shares, strict=True):
        assert sorted(row for part in own for row in part) == sorted(batch)
        groups = [{patient[row] for row in part} for part in own]
        assert all(groups)
        assert sum(map(len, groups)) == len(set.union(*groups))


@pytest.mark.parametrize("positive_share", [None, 0.25])
def test_a_patient_with_very_many_images_has_company_in_every_batch(
    positive_share: float | None,
) -> None:
    """100 pieces of one patient and 200 of forty others, who would fill 38 batches of eight."""
    patient = np.repeat(np.arange(41), [200, *[10] * 40])
    batches = PatientBatches(
        patient,
        patients=8,
        lesions=2,
        seed=0,
        positive=patient > 30,
        positive_share=positive_share,
    )
    others = patient <= 30 if positive_share else np.ones(len(patient), np.bool_)
    shown = [row for batch in batches for row in batch if others[row]]
    assert sorted(shown) == np.flatnonzero(others).tolist()
    found = [patient[batch] for batch in batches]
    assert min(len(np.unique(own)) for own in found) >= 2
    assert max(np.bincount(own).max() for own in found) <= 2
    assert max(len(np.unique(own)) for own in found) <= 8


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_favoured_patients_have_their_share_of_every_full_batch(share: float) -> None:
    patient = np.repeat(np.arange(40), 5)
    positive = patient % 10 == 0
    batches = PatientBatches(
        patient, patients=8, lesions=3, seed=0, positive=positive, positive_share=share
    )
    seen: list[int] = []
    for batch in batches:
        patients = np.unique(patient[batch])
        favoured = (patients % 10 == 0).sum()
        assert favoured == min(4, round(share * 8))
        assert len(patients) <= 8
        seen.extend(row for row in batch if not positive[row])
    assert sorted(seen) == sorted(np.flatnonzero(~positive))
