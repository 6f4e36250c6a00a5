"""Data sets by name."""

import subprocess
import sys
from pathlib import Path

import pytest

from bundle.errors import CohortError
from cohort.readers import NAMES, READERS, open_source
from cohort.rows import LesionImage
from cohort.store import prepare


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="unknown data set 'ham1000'; nearest is 'ham10000'"):
        open_source("ham1000", tmp_path)


@pytest.mark.parametrize("name", READERS)
def test_a_data_set_that_is_read_needs_a_path_that_exists(name: str, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="expected the path of its files, got None"):
        open_source(name)
    with pytest.raises(CohortError, match="absent"):
        open_source(name, tmp_path / "absent")


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="unknown option 'measure'; nearest is 'measured'"):
        open_source("slice3d", tmp_path, measure=False)
    with pytest.raises(CohortError, match="unknown option 'seed'; it has no options"):
        open_source("ham10000", tmp_path, seed=1)
    with pytest.raises(CohortError, match="unknown option 'sed'; nearest is 'seed'"):
        open_source("synthetic", patients=2, sed=1)


def test_options_reach_the_reader(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"fields\.toml"):
        open_source("table", tmp_path, schema=tmp_path / "fields.toml")


def test_the_synthetic_cohort_is_drawn_and_takes_no_path(tmp_path: Path) -> None:
    source = open_source("synthetic", patients=2, seed=0, image_px=32)
    row = next(iter(source.rows()))

    assert "synthetic" in NAMES
    assert isinstance(row, LesionImage)
    with pytest.raises(CohortError, match="drawn, not read"):
        open_source("synthetic", tmp_path, patients=2, seed=0)


def test_a_synthetic_cohort_is_prepared_like_any_other(tmp_path: Path) -> None:
    info = prepare(open_source("synthetic", patients=6, seed=0, image_px=32), tmp_path / "out")

    assert info.counts.patients == 6
    assert info.counts.dropped == 0


def test_the_room_is_light_to_import() -> None:
    code = (
        "import cohort, sys; "
        "print([m for m in ('torch', 'pyarrow', 'h5py', 'isic_metadata') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)

    assert done.stdout.strip() == b"[]"


def test_reading_and_preparing_need_no_torch() -> None:
    code = (
        "import cohort.readers, cohort.cohort, cohort.store, sys; "
        "print([m for m in ('torch', 'cohort.synthetic') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)

    assert done.stdout.strip() == b"[]"
