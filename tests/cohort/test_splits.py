"""Splits by group."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.errors import CohortError
from cohort.rows import Group
from cohort.splits import FRACTIONS, SPLITS, assign_splits

some_groups = st.lists(
    st.builds(
        Group,
        st.text(min_size=1, max_size=3),
        st.none() | st.sampled_from(["mel", "nv", "bcc"]),
    ),
    max_size=60,
)


def many(label: str, count: int) -> list[Group]:
    return [Group(f"{label}-{number}", label) for number in range(count)]


@given(some_groups, st.integers())
def test_every_group_is_on_exactly_one_side(groups: list[Group], seed: int) -> None:
    splits = assign_splits(groups, seed=seed)

    assert set(splits) == {group.group_id for group in groups}
    assert set(splits.values()) <= set(SPLITS)
    sides = {s: {g for g, side in splits.items() if side == s} for s in SPLITS}
    assert sum(len(side) for side in sides.values()) == len(set().union(*sides.values()))


@given(some_groups, st.integers(), st.randoms())
def test_the_order_and_repetition_of_the_input_do_not_matter(
    groups: list[Group], seed: int, shuffler: random.Random
) -> None:
    shuffled = groups + groups[:3]
    shuffler.shuffle(shuffled)

    assert assign_splits(shuffled, seed=seed) == assign_splits(groups, seed=seed)


@given(st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 60), max_size=12))
def test_every_stratum_and_the_whole_are_close_to_their_shares(sizes: dict[str, int]) -> None:
    groups = [group for label, count in sizes.items() for group in many(label, count)]
    splits = assign_splits(groups, seed=0)

    for label, count in sizes.items():
        found = Counter(splits[f"{label}-{number}"] for number in range(count))
        for split in SPLITS:
            assert abs(found[split] - count * FRACTIONS[split]) < 1 + 1e-9
    total = Counter(splits.values())
    for split in SPLITS:
        assert abs(total[split] - len(groups) * FRACTIONS[split]) < 2


@given(st.integers(10, 200), st.integers(0, 200), st.integers())
def test_a_label_of_ten_groups_reaches_every_split(rare: int, common: int, seed: int) -> None:
    splits = assign_splits([*many("mel", rare), *many("nv", common + rare)], seed=seed)

    assert {splits[f"mel-{number}"] for number in range(rare)} == set(SPLITS)


def test_many_labels_of_one_group_fill_the_splits_by_their_shares() -> None:
    groups = [Group(f"g{number}", f"label-{number:03d}") for number in range(100)]

    assert Counter(assign_splits(groups, seed=3).values()) == {
        "train": 60,
        "val": 10,
        "cal": 12,
        "test": 18,
    }


def test_a_group_counts_for_its_rarest_label() -> None:
    both = [Group(f"mel-{number}", "nv") for number in range(10)]
    groups = [*many("nv", 100), *many("mel", 10), *both]

    splits = assign_splits(groups, seed=0)

    carriers = Counter(splits[f"mel-{number}"] for number in range(10))
    assert carriers["train"] == 6
    assert set(carriers) == set(SPLITS)


def test_another_seed_gives_another_split() -> None:
    groups = many("nv", 50)

    assert assign_splits(groups, seed=0) != assign_splits(groups, seed=1)


def test_unlabelled_groups_are_split_as_well() -> None:
    groups = [Group(f"g{number}", None) for number in range(50)]

    assert Counter(assign_splits(groups, seed=0).values())["train"] == 30


def test_a_split_of_no_share_gets_no_group() -> None:
    shares = {"train": 0.5, "val": 0.0, "cal": 0.0, "test": 0.5}

    splits = assign_splits(many("nv", 7), seed=0, fractions=shares)  # type: ignore[arg-type]

    assert set(splits.values()) == {"train", "test"}


@pytest.mark.parametrize(
    "shares",
    [
        {"train": 1.0},
        {"train": 0.5, "val": 0.5, "cal": 0.5, "test": 0.5},
        {"train": 1.2, "val": -0.2, "cal": 0.0, "test": 0.0},
    ],
)
def test_shares_that_are_none_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(CohortError, match="sum to 1"):
        assign_splits([], seed=0, fractions=shares)  # type: ignore[arg-type]
