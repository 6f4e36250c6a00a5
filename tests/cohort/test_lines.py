"""Lines of a table: cells, labels and what cannot be read."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.errors import CohortError
from bundle.fields import Field, FieldSchema
from cohort.lines import (
    DataSet,
    Line,
    expectation,
    kind_of,
    nearest,
    read_csv,
    read_header,
    read_label,
    read_line,
    read_record,
    source_of_lines,
)
from cohort.rows import DroppedRow, LesionImage, UnreadableValue
from cohort.vocabulary import AGE_YEARS, SEX

FIELDS = (AGE_YEARS, SEX, Field(name="itch", level="lesion", kind="boolean"))
cells_of_text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6)


class MemoryImages:
    """Images in a dict; one key that cannot be read."""

    def __init__(self, images: dict[str, bytes]) -> None:
        self.images = images

    def has(self, key: str) -> bool:
        return key in self.images

    def read(self, key: str) -> bytes:
        if key == "locked":
            raise PermissionError(key)
        if key not in self.images:
            raise FileNotFoundError(key)
        return self.images[key]


def make_line(number: int, **changes: object) -> Line:
    content: dict[str, object] = {
        "number": number,
        "image_key": "a",
        "image_id": f"i{number}",
        "lesion_id": f"l{number}",
        "patient_id": None,
        "label": "NV",
        "cells": {"age_years": "40", "sex": "", "itch": "UNK"},
    }
    return Line(**{**content, **changes})  # type: ignore[arg-type]


def make_data_set() -> DataSet:
    return DataSet("small", FieldSchema(fields=FIELDS), ("mel", "nv"), ("mel",), "CC0", "none")


@given(st.lists(st.tuples(cells_of_text, cells_of_text), min_size=1, max_size=5))
def test_any_cells_that_csv_writes_read_back(tmp_path_factory, rows) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    text = io.StringIO()
    csv.writer(text).writerows([("a", "b"), *rows])
    path.write_text(text.getvalue(), encoding="utf-8", newline="")

    found = list(read_csv(path, ("a", "b")))

    assert [row[1] for row in found if not isinstance(row, DroppedRow)] == [
        {"a": a, "b": b} for a, b in rows
    ]


@given(st.dictionaries(st.sampled_from([f.name for f in FIELDS]), st.text(max_size=5), max_size=3))
def test_every_cell_is_a_value_missing_or_an_error(cells: dict[str, str]) -> None:
    record, errors = read_record(cells, FIELDS)

    assert set(record) | {e.field for e in errors} <= set(cells)
    assert not set(record) & {e.field for e in errors}
    assert None not in record.values()


def test_lines_carry_their_number_and_a_quoted_line_break_counts(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,b\n1,2\n"x\ny",3\n4,5\n')

    assert [row[0] for row in read_csv(path, ()) if not isinstance(row, DroppedRow)] == [2, 4, 5]


def test_a_line_with_too_many_or_too_few_cells_is_dropped_and_an_empty_one_is_no_row(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1\n1,2,3\n\n4,5\n")

    reason = "its cells are not as many as the 2 columns"
    assert list(read_csv(path, ())) == [
        DroppedRow("line 2", reason),
        DroppedRow("line 3", reason),
        (5, {"a": "4", "b": "5"}),
    ]


def test_tabs_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.tab"
    path.write_text('"a"\t"b"\n"1,5"\t2\n', encoding="utf-8-sig")

    assert list(read_csv(path, ("a",))) == [(2, {"a": "1,5", "b": "2"})]
    assert read_header(path) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a header"),
        (b"\n1,2\n", "expected a header"),
        (b"ab,c\n1,2\n", "no column 'a'; nearest is 'ab'"),
        (b"a,a\n1,2\n", "'a' stands twice"),
        (b"a,b\n\xff\xfe,2\n", "UTF-8"),
        (b'a,b\n"1"x,2\n', "CSV"),
    ],
)
def test_a_file_that_is_no_such_table_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)

    with pytest.raises(CohortError, match=message):
        list(read_csv(path, ("a",)))


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"t\.csv: expected the data set's table"):
        read_header(tmp_path / "t.csv")


def test_a_value_that_is_not_accepted_is_told_without_repeating_it() -> None:
    record, errors = read_record({"age_years": "Miller", "sex": "x", "itch": "yes"}, FIELDS)

    assert record == {"itch": True}
    assert errors == (
        UnreadableValue("age_years", "text of 6 characters", expectation(AGE_YEARS)),
        UnreadableValue("sex", "text of 1 characters", "expected one of female, male"),
    )


def test_an_expectation_names_bounds_and_unit() -> None:
    assert expectation(AGE_YEARS) == "expected a number from 0 years to 120 years"
    assert expectation(FIELDS[2]) == "expected true or false"
    bare = Field(name="x", level="lesion", kind="numeric", minimum=1)
    assert expectation(bare) == "expected a number from 1"


def test_a_kind_tells_a_number_from_text() -> None:
    assert kind_of("-4.5") == "number"
    assert kind_of("4,5") == "text of 3 characters"


def test_a_label_is_read_in_any_case() -> None:
    assert read_label(" MEL ", ("mel", "nv")) == ("mel", None)
    assert read_label(None, ("mel",)) == (None, None)
    assert read_label("unknown", ("mel",)) == (None, None)
    label, error = read_label("bcc", ("mel", "nv"))
    assert label is None
    assert error == UnreadableValue("label", "text of 3 characters", "expected one of mel, nv")


def test_a_line_becomes_a_lesion_image() -> None:
    found = read_line(make_line(7), make_data_set(), MemoryImages({"a": b"bytes"}))

    assert found == LesionImage(
        image_id="i7",
        lesion_id="l7",
        patient_id=None,
        image=b"bytes",
        label="nv",
        malignant=False,
        record={"age_years": 40.0},
        row="line 7 (i7)",
    )


def test_a_line_with_an_unknown_label_is_kept_unlabelled() -> None:
    found = read_line(make_line(7, label="x"), make_data_set(), MemoryImages({"a": b"bytes"}))

    assert isinstance(found, LesionImage)
    assert (found.label, found.malignant) == (None, None)
    assert [error.field for error in found.value_errors] == ["label"]


@pytest.mark.parametrize(
    ("key", "reason"),
    [("gone", "no image file"), ("locked", "the image file cannot be read")],
)
def test_a_line_without_its_image_is_dropped(key: str, reason: str) -> None:
    found = read_line(make_line(3, image_key=key), make_data_set(), MemoryImages({}))

    assert found == DroppedRow("line 3 (i3)", reason)


def test_groups_stand_together_and_dropped_lines_pass_through() -> None:
    lines: list[Line | DroppedRow] = [
        make_line(2, patient_id="b"),
        DroppedRow("line 3", "broken"),
        make_line(4, patient_id="a"),
        make_line(5, patient_id="b", image_key="gone"),
    ]
    source = source_of_lines(make_data_set(), lines, MemoryImages({"a": b"bytes"}))

    assert [(g.group_id, g.label) for g in source.groups()] == [("a", "nv"), ("b", "nv")]
    assert [r.row for r in source.rows()] == [
        "line 3",
        "line 4 (i4)",
        "line 2 (i2)",
        "line 5 (i5)",
    ]


def test_the_nearest_word_is_named_where_there_is_one() -> None:
    assert nearest("agee", ["sex", "age"]) == "nearest is 'age'"
    assert nearest("age", []) == "there is none at all"
