import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from training.losses import alike_rows, identical_rows, info_nce


def slow_info_nce(
    first: torch.Tensor,
    second: torch.Tensor,
    scale: float,
    excluded: torch.Tensor,
    valid: torch.Tensor,
) -> tuple[float, float]:
    """Return loss and mean negatives, pair by pair as the definition reads."""
    anchors = [i for i in range(len(first)) if valid[i]]
    total, negatives = 0.0, 0
    for here, there, hidden in ((first, second, excluded), (second, first, excluded.T)):
        for i in anchors:
            others = [j for j in anchors if j == i or not hidden[i, j]]
            scores = [scale * float(here[i] @ there[j]) for j in others]
            own = scale * float(here[i] @ there[i])
            total += math.log(sum(math.exp(s) for s in scores)) - own
            negatives += len(others) - 1
    return total / len(anchors) / 2, negatives / len(anchors) / 2


def random_pairs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    first, second = (
        normalize(torch.randn(count, 5, generator=random, dtype=torch.double), dim=1)
        for _ in range(2)
    )
    return first, second, torch.rand(count, count, generator=random)


@pytest.mark.parametrize(("count", "seed"), [(7, 0), (7, 1), (11, 2), (11, 3)])
def test_info_nce_equals_a_double_loop_over_pairs(count: int, seed: int) -> None:
    first, second, chance = random_pairs(count, seed)
    excluded = chance < 0.3
    valid = torch.arange(count) % 5 != 3
    term = info_nce(first, second, torch.tensor(4.0), excluded=excluded, valid=valid)
    loss, negatives = slow_info_nce(first, second, 4.0, excluded, valid)
    assert term.loss.item() == pytest.approx(loss, rel=1e-5)
    assert term.negatives == pytest.approx(negatives)


@pytest.mark.parametrize("count", [2, 7, 11])
def test_pairs_that_cannot_be_told_apart_cost_the_logarithm_of_their_number(count: int) -> None:
    same = normalize(torch.ones(count, 3), dim=1)
    nothing = torch.zeros(count, count, dtype=torch.bool)
    everyone = torch.ones(count, dtype=torch.bool)
    term = info_nce(same, same, torch.tensor(10.0), excluded=nothing, valid=everyone)
    assert term.loss.item() == pytest.approx(math.log(count), rel=1e-6)
    assert term.negatives == count - 1


def equicorrelated(count: int, correlation: float) -> torch.Tensor:
    """Return (count, count) unit rows, every two of them with this inner product."""
    gram = torch.full((count, count), correlation, dtype=torch.double).fill_diagonal_(1)
    rows: torch.Tensor = torch.linalg.cholesky(gram)
    return rows


def info_nce_of_all(first: torch.Tensor, second: torch.Tensor, scale: float) -> float:
    """Return the loss where every pair takes part and none is excluded."""
    count = len(first)
    nothing = torch.zeros(count, count, dtype=torch.bool)
    everyone = torch.ones(count, dtype=torch.bool)
    term = info_nce(first, second, torch.tensor(scale), excluded=nothing, valid=everyone)
    return term.loss.item()


@pytest.mark.parametrize(
    ("count", "correlation", "scale", "loss"),
    [(6, 0.4, 3, 0.6023985), (6, 0.4, 14, None), (5, -0.2, 2, None), (11, 0.9, 3, None)],
)
def test_equally_correlated_pairs_cost_their_closed_form(
    count: int, correlation: float, scale: float, loss: float | None
) -> None:
    rows = equicorrelated(count, correlation)
    expected = math.log(1 + (count - 1) * math.exp(scale * (correlation - 1)))
    assert info_nce_of_all(rows, rows, scale) == pytest.approx(expected, rel=1e-9)
    if loss is not None:
        assert expected == pytest.approx(loss, abs=5e-8)


@pytest.mark.parametrize("scale", [3.0, 8.0])
def test_a_partner_that_everyone_resembles_costs_each_direction_its_own(scale: float) -> None:
    """All of the first side resemble the second side's row 0, and nobody else's partner."""
    count, own, hub = 6, 0.7, 0.3
    similar = torch.eye(count, dtype=torch.double) * own
    similar[1:, 0] = hub
    # Axes of its own make each of the second rows a unit, and leave the products as they are.
    rest = (1 - similar.square().sum(0)).sqrt().diag()
    first = torch.eye(count, 2 * count, dtype=torch.double)
    second = torch.cat([similar.T, rest], dim=1)

    partner, others, resembling = math.exp(scale * own), count - 1, math.exp(scale * hub)
    to_second = math.log(partner + others) + others * math.log(partner + resembling + others - 1)
    to_first = math.log(partner + others * resembling) + others * math.log(partner + others)
    to_second, to_first = (total / count - scale * own for total in (to_second, to_first))
    expected = (to_second + to_first) / 2
    assert abs(to_second - to_first) > 0.01 * expected
    assert info_nce_of_all(first, second, scale) == pytest.approx(expected, rel=1e-9)
    assert info_nce_of_all(second, first, scale) == pytest.approx(expected, rel=1e-9)


def test_orthogonal_partners_at_a_large_scale_cost_nothing() -> None:
    axes = torch.eye(7)
    term = info_nce(
        axes,
        axes,
        torch.tensor(100.0),
        excluded=torch.zeros(7, 7, dtype=torch.bool),
        valid=torch.ones(7, dtype=torch.bool),
    )
    assert term.loss.item() == pytest.approx(0, abs=1e-6)
    assert term.accuracy == 1


def test_a_pair_without_a_negative_costs_nothing_and_the_diagonal_is_ignored() -> None:
    first, second, _ = random_pairs(7, 0)
    term = info_nce(
        first,
        second,
        torch.tensor(4.0),
        excluded=torch.ones(7, 7, dtype=torch.bool),
        valid=torch.ones(7, dtype=torch.bool),
    )
    assert term.loss.item() == 0
    assert term.negatives == 0


def test_an_excluded_pair_changes_nothing() -> None:
    """Only row 2 of the first side and row 3 of the second are negatives of each other."""
    first, second, _ = random_pairs(7, 4)
    first.requires_grad_(True)
    excluded = torch.ones(7, 7, dtype=torch.bool)
    excluded[2, 3] = False
    term = info_nce(
        first,
        second,
        torch.tensor(4.0),
        excluded=excluded,
        valid=torch.ones(7, dtype=torch.bool),
    )
    term.loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
    assert first.grad is not None
    touched = first.grad.abs().sum(1) > 0
    assert touched.tolist() == [False, False, True, True, False, False, False]


def test_a_pair_that_takes_no_part_changes_nothing() -> None:
    first, second, chance = random_pairs(7, 5)
    valid = torch.tensor([True, True, False, True, True, False, True])
    excluded = chance < 0.2
    whole = info_nce(first, second, torch.tensor(4.0), excluded=excluded, valid=valid)
    changed = torch.where(valid[:, None], first, -first.flip(1))
    again = info_nce(changed, second, torch.tensor(4.0), excluded=excluded, valid=valid)
    kept = info_nce(
        first[valid],
        second[valid],
        torch.tensor(4.0),
        excluded=excluded[valid][:, valid],
        valid=torch.ones(5, dtype=torch.bool),
    )
    assert whole == again == kept


@pytest.mark.parametrize("anchors", [0, 1])
def test_a_batch_without_two_valid_pairs_gives_a_zero_that_has_a_gradient(anchors: int) -> None:
    first, second, _ = random_pairs(7, 6)
    first.requires_grad_(True)
    term = info_nce(
        first,
        second,
        torch.tensor(4.0),
        excluded=torch.zeros(7, 7, dtype=torch.bool),
        valid=torch.arange(7) < anchors,
    )
    term.loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
    assert term.loss.item() == 0
    assert (term.negatives, term.accuracy) == (0, 0)
    assert first.grad is not None
    assert not first.grad.any()


@pytest.mark.parametrize(("rows", "columns"), [(11, 2), (7, 3), (3, 1)])
def test_identical_rows_agree_with_a_comparison_field_by_field(rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    values = torch.from_numpy(rng.integers(0, 2, (rows, columns)).astype(np.float32))
    present = torch.from_numpy(rng.random((rows, columns)) < 0.6)
    records = [
        [float(v) if p else None for v, p in zip(row, there, strict=True)]
        for row, there in zip(values.tolist(), present.tolist(), strict=True)
    ]
    expected = [[one == other for other in records] for one in records]
    assert identical_rows(values, present).tolist() == expected


def test_a_missing_value_is_not_a_real_zero() -> None:
    same = identical_rows(torch.zeros(2, 1), torch.tensor([[True], [False]]))
    assert same.tolist() == [[True, False], [False, True]]


def slow_soft_info_nce(
    first: torch.Tensor,
    second: torch.Tensor,
    scale: float,
    excluded: torch.Tensor,
    alike: torch.Tensor,
) -> float:
    """Return the loss under shared targets, pair by pair."""
    count, total = len(first), 0.0
    for here, there, hidden in ((first, second, excluded), (second, first, excluded.T)):
        for i in range(count):
            others = [j for j in range(count) if j == i or not hidden[i, j]]
            scores = {j: scale * float(here[i] @ there[j]) for j in others}
            whole = math.log(sum(math.exp(s) for s in scores.values()))
            shares = {j: 1.0 if j == i else float(alike[i, j]) for j in others}
            for j in others:
                total -= shares[j] / sum(shares.values()) * (scores[j] - whole)
    return total / count / 2


@pytest.mark.parametrize(("count", "seed"), [(7, 0), (11, 1)])
def test_shared_targets_equal_a_double_loop_over_pairs(count: int, seed: int) -> None:
    first, second, chance = random_pairs(count, seed)
    excluded, everyone = chance < 0.3, torch.ones(count, dtype=torch.bool)
    alike = (chance + chance.T) / 2
    term = info_nce(
        first, second, torch.tensor(4.0), excluded=excluded, valid=everyone, alike=alike
    )
    assert term.loss.item() == pytest.approx(
        slow_soft_info_nce(first, second, 4.0, excluded, alike), rel=1e-6
    )


def test_targets_that_nobody_shares_are_the_hard_ones() -> None:
    first, second, chance = random_pairs(7, 3)
    options = {"excluded": chance < 0.3, "valid": torch.arange(7) % 5 != 3}
    hard = info_nce(first, second, torch.tensor(4.0), **options)
    soft = info_nce(first, second, torch.tensor(4.0), **options, alike=torch.zeros(7, 7))
    assert soft.loss.item() == pytest.approx(hard.loss.item(), rel=1e-6)


def test_records_are_alike_by_their_numbers_where_categories_and_gaps_agree() -> None:
    values = torch.tensor([[0.0, 2.0], [0.5, 2.0], [0.5, 1.0], [9.0, 2.0], [7.0, 2.0]])
    present = torch.tensor([[True, True]] * 3 + [[False, True]] * 2)
    alike = alike_rows(values, present, torch.tensor([True, False]), width=0.5)
    near = math.exp(-0.5)
    expected = [
        [1, near, 0, 0, 0],
        [near, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 1, 1],
    ]
    torch.testing.assert_close(alike, torch.tensor(expected))
