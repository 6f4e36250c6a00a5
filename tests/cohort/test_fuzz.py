"""A researcher's description, table and cohort, damaged at random: read, or refused."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.errors import CohortError
from cohort.cohort import Cohort
from cohort.info import COHORT_JSON
from cohort.lines import read_csv
from cohort.rows import DroppedRow, LesionImage, Source
from cohort.store import prepare
from cohort.table import read_description
from tests.cohort.test_table import COHORT, FIELDS
from tests.fuzzing import damaged, damaged_json, fuzzed

MakeSource = Callable[..., Source]

# What a field is where its description does not say.
LEFT_OUT: dict[str, object] = {
    **dict.fromkeys(("unit", "minimum", "maximum", "mean", "std")),
    "categories": [],
    "aliases": [],
    "category_aliases": {},
    "description": "",
}
TABLE = b'file,lesion,outcome\r\n1.png,L1,nevus\r\n2.png,"L,2",melanoma\r\n'


@fuzzed
@given(damaged((COHORT + FIELDS).encode()))
def test_a_damaged_description_of_a_table_is_read_or_refused(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "fields.toml"
    path.write_bytes(content)
    with contextlib.suppress(CohortError):
        assert read_description(path).cohort.name


@fuzzed
@given(damaged(TABLE))
def test_a_damaged_table_is_read_line_by_line_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with contextlib.suppress(CohortError):
        for line in read_csv(path, ["file", "lesion", "outcome"]):
            assert isinstance(line, DroppedRow) or {"file", "lesion", "outcome"} <= set(line[1])


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory,
    make_source: MakeSource,
    make_row: Callable[..., LesionImage],
) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "cohort"
    prepare(make_source([make_row(number) for number in range(6)]), out)
    return out


@fuzzed
@given(st.data())
def test_an_altered_cohort_is_opened_as_it_says_or_refused(
    prepared: Path, tmp_path: Path, data: st.DataObject
) -> None:
    folder = Path(shutil.copytree(prepared, tmp_path / "cohort", dirs_exist_ok=True))
    content = data.draw(damaged_json((prepared / COHORT_JSON).read_bytes()))
    (folder / COHORT_JSON).write_bytes(content)
    with contextlib.suppress(CohortError):
        read = Cohort.open(folder).info.model_dump(mode="json")
        said = json.loads(content)
        fields = [{**LEFT_OUT, **field} for field in said["fields"]]
        assert read == {"format_version": 1, **said, "fields": fields}
