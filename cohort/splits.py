"""Splits that never cut a group: a patient where there is one, else a lesion."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Literal, get_args

from bundle.errors import CohortError
from cohort.rows import Group

Split = Literal["train", "val", "cal", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# train: encoders and heads. val: the choice among them. cal: temperatures, conformal quantiles and
# thresholds, which need groups that neither training nor choice saw. test: the figures.
FRACTIONS: Mapping[Split, float] = MappingProxyType(
    {"train": 0.60, "val": 0.10, "cal": 0.12, "test": 0.18}
)


def assign_splits(
    groups: Iterable[Group], *, seed: int, fractions: Mapping[Split, float] = FRACTIONS
) -> dict[str, Split]:
    """Return the split of every group, the same for the same groups in any order.

    Groups are stratified by their rarest label (the one that fewest groups carry). Each stratum
    gives every split its share rounded down, and the groups left over go to the splits that are
    furthest below their share over all strata so far, at most one each. So each stratum is within
    one group of its shares, the whole stays close to them however many strata are small, and a
    stratum of 10 groups reaches every split.

    Args:
        groups: each group once or more, with one of its labels each time; None is unlabelled.
        seed: orders the groups of a stratum by the SHA-256 of seed and group id.
        fractions: share of each split; exactly the four splits, none negative, sum 1.

    Raises:
        CohortError: the fractions are not shares of the four splits.
    """
    shares = _check_fractions(fractions)
    debts = dict.fromkeys(SPLITS, Fraction(0))
    assigned: dict[str, Split] = {}
    for stratum in _strata(groups):
        counts = _divide(len(stratum), shares, debts)
        ordered = iter(sorted(stratum, key=lambda group_id: _rank(seed, group_id)))
        for split in SPLITS:
            for _ in range(counts[split]):
                assigned[next(ordered)] = split
    return assigned


def _check_fractions(fractions: Mapping[Split, float]) -> dict[Split, Fraction]:
    # Fractions of the decimal text: 0.1 of 10 groups is 1 group, not 0.9999.
    shares = {split: Fraction(str(share)) for split, share in fractions.items()}
    if set(shares) != set(SPLITS) or min(shares.values()) < 0 or sum(shares.values()) != 1:
        raise CohortError(
            f"expected shares of {', '.join(SPLITS)} that sum to 1, got {dict(fractions)}"
        )
    return shares


def _strata(groups: Iterable[Group]) -> list[list[str]]:
    """Return the group ids of every stratum, rarest label first, unlabelled last."""
    labels_of: defaultdict[str, set[str]] = defaultdict(set)
    for group in groups:
        labels_of[group.group_id].update(() if group.label is None else (group.label,))
    carriers = Counter(label for labels in labels_of.values() for label in labels)
    strata: defaultdict[tuple[bool, int, str], list[str]] = defaultdict(list)
    for group_id, labels in labels_of.items():
        count, label = min(((carriers[label], label) for label in labels), default=(0, ""))
        strata[not labels, count, label].append(group_id)
    return [strata[key] for key in sorted(strata)]


def _divide(
    size: int, shares: Mapping[Split, Fraction], debts: dict[Split, Fraction]
) -> dict[Split, int]:
    """Return how many of a stratum's groups go to each split; `debts` is brought up to date."""
    counts = {split: int(size * shares[split]) for split in SPLITS}
    for split in SPLITS:
        debts[split] += size * shares[split] - counts[split]
    left_over = size - sum(counts.values())
    open_splits = [split for split in SPLITS if shares[split] > 0]
    for split in sorted(open_splits, key=lambda split: -debts[split])[:left_over]:
        counts[split] += 1
        debts[split] -= 1
    return counts


def _rank(seed: int, group_id: str) -> tuple[str, str]:
    return hashlib.sha256(f"{seed}:{group_id}".encode()).hexdigest(), group_id
