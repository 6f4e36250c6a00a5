"""The ugly duckling: how unlike a patient's other lesions one lesion looks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.oddness import oddness, percentile


def oddness_slowly(directions: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> list[float]:
    out = []
    for i, own in enumerate(directions):
        distances = sorted(
            1 - sum(float(a) * float(b) for a, b in zip(own, other, strict=True))
            for j, other in enumerate(directions)
            if j != i
        )
        middle = len(distances) // 2
        odd = len(distances) % 2
        out.append(distances[middle] if odd else (distances[middle - 1] + distances[middle]) / 2)
    return out


@pytest.mark.parametrize("lesions", [2, 3, 8, 11])
def test_oddness_agrees_with_the_slow_oracle(lesions: int) -> None:
    rows = np.random.default_rng(lesions).normal(size=(lesions, 7)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scores = oddness(rows)
    assert scores.shape == (lesions,)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, oddness_slowly(rows), atol=1e-5)


def test_the_odd_one_scores_high_and_does_not_make_the_others_look_odd() -> None:
    directions = np.asarray([[1, 0], [1, 0], [-1, 0], [1, 0]], np.float32)
    np.testing.assert_array_equal(oddness(directions), [0, 0, 2, 0])


def test_a_percentile_is_the_share_below_with_ties_counted_half() -> None:
    reference = [0.1, 0.2, 0.2, 0.4]
    assert percentile(0.0, reference) == 0
    assert percentile(0.1, reference) == 1 / 8
    assert percentile(0.2, reference) == 1 / 2
    assert percentile(0.3, reference) == 3 / 4
    assert percentile(0.5, reference) == 1


@given(st.lists(st.floats(0, 2), min_size=1, max_size=20), st.floats(0, 2), st.floats(0, 2))
def test_a_percentile_lies_in_0_to_1_and_rises(
    reference: list[float], low: float, high: float
) -> None:
    low, high = sorted((low, high))
    assert 0 <= percentile(low, reference) <= percentile(high, reference) <= 1
