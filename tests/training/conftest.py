"""One cohort, one pre-trained run and one fitted run for all tests of the room; none changes them.

A test that writes into a run copies it first.
"""

from pathlib import Path

import pytest

from cohort.cohort import Cohort
from tests.one_thread import one_thread as one_thread
from tests.training.squares import squares, tiny_config, write_cohort
from training.fit import fit
from training.trainer import pretrain


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("squares") / "cohort")


@pytest.fixture(scope="session")
def lesion_cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """The same squares without patient ids."""
    images = list(squares(with_ids=False))
    return write_cohort(tmp_path_factory.mktemp("squares") / "lesions", images)


@pytest.fixture(scope="session")
def pretrained(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "pretrained"
    pretrain(cohort, tiny_config(), run)
    return run


@pytest.fixture(scope="session")
def fitted(pretrained: Path, cohort: Cohort) -> Path:
    run = pretrained.parent / "fitted"
    fit(pretrained, cohort, run)
    return run
