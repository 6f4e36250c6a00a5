"""A short soak on loopback, and the judgement of the long one: `benchmarks/soak.py`."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.soak import MAY_GROW, Count, faults_of, growth, is_ready, run, served
from tests.fakes import BLUE, GREEN, RED, draw_image, make_lesion, write_bundle, write_catalogue

REQUESTS = 300
COLOURS = (RED, GREEN, BLUE)


@pytest.mark.slow
def test_file_handles_and_threads_stay_and_nothing_fails_under_mixed_requests(
    tmp_path: Path,
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    known = [make_lesion(f"known-{n}", COLOURS[n % 3], seed=n) for n in range(30)]
    catalogue = tmp_path / "catalogue"
    write_catalogue(catalogue, known, bundle_id=bundle.manifest.bundle_id).close()
    pictures = [draw_image(COLOURS[n % 3], seed=1000 + n) for n in range(REQUESTS)]
    with served(tmp_path / "bundle", catalogue, tmp_path) as (url, pid):
        figures, count = run(url, pid, REQUESTS, pictures, looks=40)
        assert is_ready(url)
    assert faults_of(count) == []
    assert count.statuses.total() == REQUESTS
    assert {name.split()[-1][0] for name in count.statuses} == {"2", "4"}
    for name in ("file_handles", "threads"):
        assert not growth(figures[name]).exceeds(MAY_GROW[name]), figures[name]


def test_a_figure_that_goes_on_rising_is_growth_and_one_that_has_risen_is_not() -> None:
    noise = np.random.default_rng(0).normal(0, 0.5, 120)
    place = np.linspace(0, 1, 120)
    rising, risen = 100 + 20 * place + noise, 100 + 20 * np.minimum(place, 0.4) + noise
    grown = growth(rising.tolist())
    assert grown.low < 10 < grown.high
    assert (grown.quarter, grown.half, grown.end) == pytest.approx((105, 110, 120), abs=1)
    assert grown.exceeds(8)
    assert not grown.exceeds(12)
    assert not growth(risen.tolist()).exceeds(1)
    assert not growth(rising[::-1].tolist()).exceeds(0)


def test_what_should_have_been_answered_otherwise_and_a_run_without_writes_are_faults() -> None:
    count = Count()
    count.statuses.update(["classify 200", "similar 503", "risk 422", "risk 422", "field 422"])
    assert faults_of(count) == [
        "similar 503, 1 times",
        "risk 422, 2 times",
        "0 of 0 lesions were added",
    ]
    count.statuses.update(["write 201", "write 422"])
    assert faults_of(count)[2:] == ["1 of 2 lesions were added"]
    count.statuses.update(["write 201"] * 8)
    assert faults_of(count) == ["similar 503, 1 times", "risk 422, 2 times"]
