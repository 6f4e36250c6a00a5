"""A handful of the kills of `benchmarks/kill_writes.py`: `make torture` does 300."""

import random
from pathlib import Path

import pytest

from benchmarks.kill_writes import (
    OWN_FIELDS,
    SHARED,
    Books,
    Fault,
    kill_under_writes,
    settle,
    two_services,
)

KILLS = 3
# Which of its writes a writer has got through by then is chance, on a busy machine above all.
MOST_KILLS = 12


@pytest.mark.slow
def test_no_acknowledged_write_is_lost_and_none_comes_back_when_services_are_killed(
    tmp_path: Path,
) -> None:
    books = Books()
    with two_services(tmp_path) as site:
        kill_under_writes(site, books, random.Random(0), KILLS, both_every=KILLS)
        assert books.kills == KILLS
        rng = random.Random(1)
        while set(books.shared) != set(OWN_FIELDS) and books.kills < MOST_KILLS:
            kill_under_writes(site, books, rng, 1, both_every=KILLS)
        assert books.present
        assert books.gone
        assert set(books.shared) == set(OWN_FIELDS)
        assert books.unanswered > 0
        # The books would show it.
        books.shared["label"] = "another"
        with pytest.raises(Fault, match=f"{SHARED} lost its label 'another'"):
            settle(site, books)
