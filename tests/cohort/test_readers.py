"""Data sets by name."""

import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from bundle.errors import CohortError
from bundle.fields import FieldSchema
from cohort.derm7pt import DERM7PT
from cohort.ham10000 import HAM10000
from cohort.hiba import HIBA
from cohort.isic2019 import ISIC2019
from cohort.isic2020 import ISIC2020
from cohort.leaks import OFF_BY_DEFAULT, refuse_leaks
from cohort.milk10k import MILK10K
from cohort.ph2 import PH2
from cohort.readers import NAMES, READERS, open_source, parse_options
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


def test_options_are_read_from_texts() -> None:
    read = parse_options(["measured=False", "part=train", "criteria=true", "name=a=b"])
    assert read == {"measured": False, "part": "train", "criteria": True, "name": "a=b"}
    for text in ("measured", "=true"):
        with pytest.raises(CohortError, match="expected an option as NAME=VALUE"):
            parse_options([text])


def test_an_option_that_is_true_or_false_takes_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="measured: expected true or false, got 'no'"):
        open_source("slice3d", tmp_path, measured="no")


def test_options_reach_the_reader(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"fields\.toml"):
        open_source("table", tmp_path, schema=tmp_path / "fields.toml")


def test_every_data_set_stands_in_the_documents_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cohorts.md").read_text(encoding="utf-8")

    assert [name for name in NAMES if f"\n| `{name}` |" not in page] == []


@pytest.mark.parametrize(
    "schema",
    [data_set.schema for data_set in (DERM7PT, HAM10000, HIBA, ISIC2019, ISIC2020, MILK10K, PH2)],
)
def test_no_data_set_reads_a_refused_column_or_one_that_is_off_by_default(
    schema: FieldSchema,
) -> None:
    names = [name for field in schema.fields for name in (field.name, *field.aliases)]

    refuse_leaks(names)
    assert [n for n in names for off in OFF_BY_DEFAULT if fnmatchcase(n.casefold(), off)] == []


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
