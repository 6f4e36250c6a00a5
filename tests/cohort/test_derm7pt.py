"""Derm7pt in its published layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import CohortError
from cohort.derm7pt import DERM7PT, DIAGNOSES, derm7pt_source
from cohort.leaks import leak_reason
from cohort.rows import DroppedRow, LesionImage
from cohort.store import prepare

HEADER = (
    "case_num,diagnosis,seven_point_score,pigment_network,streaks,pigmentation,"
    "regression_structures,dots_and_globules,blue_whitish_veil,vascular_structures,"
    "level_of_diagnostic_difficulty,elevation,location,sex,management,clinic,derm,case_id,notes"
)
CARCINOMA = (
    "1,basal cell carcinoma,0,absent,absent,absent,absent,absent,absent,arborizing,medium,nodular,"
    "abdomen,female,excision,NEL/Nel026.jpg,NEL/NEL025.JPG,,"
)
NEVUS = (
    "2,clark nevus,3,atypical,irregular,diffuse irregular,absent,irregular,absent,absent,low,"
    "palpable,lower limbs,male,clinical follow up,FAL/Fal095.jpg,FAL/Fal094.jpg,R028,"
)
MELANOMA = (
    "3,melanoma (less than 0.76 mm),6,atypical,irregular,localized irregular,combinations,"
    "irregular,present,linear irregular,high,flat,head neck,female,excision,"
    'GAL/Gal012.jpg,GAL/Gal011.jpg,,"seen, and followed"'
)
CASES = (CARCINOMA, NEVUS, MELANOMA)

Build = Callable[..., Path]


@pytest.fixture
def build(lay_out: Callable[..., Path]) -> Build:
    """Return a function that lays out the folder that holds release_v0."""

    def write(*lines: str, header: str = HEADER, **indexes: str) -> Path:
        parts = {"train": "2", "valid": "0", "test": "1"} | indexes
        tables = {
            f"release_v0/meta/{part}_indexes.csv": "\n".join(["indexes", *positions.split()])
            for part, positions in parts.items()
        }
        names = [line.split(",")[column] for line in lines for column in (15, 16) if "," in line]
        return lay_out(
            {**tables, "release_v0/meta/meta.csv": "\n".join([header, *lines])},
            [f"release_v0/images/{name}" for name in names],
        )

    return write


def read(root: Path, **options: Any) -> dict[str, LesionImage]:
    rows = derm7pt_source(root, **options).rows()
    return {row.image_id: row for row in rows if isinstance(row, LesionImage)}


def test_a_case_is_one_lesion_with_two_images(build: Build) -> None:
    root = build(CARCINOMA)
    rows = read(root)

    assert read(root / "release_v0") == rows
    assert list(rows) == ["NEL/Nel026.jpg", "NEL/NEL025.JPG"]
    assert len({row.image for row in rows.values()}) == 2
    for row in rows.values():
        assert (row.lesion_id, row.patient_id, row.row[:6]) == ("1", None, "line 2")
        assert (row.label, row.malignant, row.value_errors) == ("BCC", True, ())
        assert row.record == {
            "sex": "female",
            "anatom_site": "abdomen",
            "elevation_grade": "nodular",
        }


def test_every_diagnosis_is_read_as_the_class_that_merges_it(build: Build) -> None:
    words = [(word, label) for label, merged in DIAGNOSES.items() for word in merged]
    lines = [
        CARCINOMA.replace("1,basal cell carcinoma", f"{n},{word}", 1).replace("NEL/", f"{n}/")
        for n, (word, _) in enumerate(words)
    ]
    rows = read(build(*lines)).values()

    assert len(words) == 20
    assert {int(row.lesion_id): row.label for row in rows} == {
        n: label for n, (_, label) in enumerate(words)
    }
    assert {row.label for row in rows if row.malignant} == {"BCC", "MEL"}


def test_sites_are_read_under_canonical_names(build: Build) -> None:
    words = {
        "back": "back",
        "lower limbs": "lower extremity",
        "upper limbs": "upper extremity",
        "head neck": "head/neck",
        "genital areas": "genital",
        "buttocks": "buttocks",
        "acral": "acral",
        "chest": "chest",
        "abdomen": "abdomen",
    }
    lines = [
        CARCINOMA.replace("1,", f"{site},", 1)
        .replace(",abdomen,", f",{site},")
        .replace("NEL/", f"{site}/")
        for site in words
    ]
    rows = read(build(*lines)).values()

    assert {row.lesion_id: row.record["anatom_site"] for row in rows} == words


def test_the_criteria_are_read_when_asked_for(build: Build) -> None:
    rows = read(build(*CASES), criteria=True)
    criteria = {
        "pigment_network": "atypical",
        "streaks": "irregular",
        "pigmentation": "localized irregular",
        "regression_structures": "combinations",
        "dots_and_globules": "irregular",
        "blue_whitish_veil": "present",
        "vascular_structures": "linear irregular",
    }

    assert criteria.items() <= rows["GAL/Gal012.jpg"].record.items()
    assert all(row.value_errors == () for row in rows.values())
    assert not criteria.keys() & set(DERM7PT.schema.names)


def test_score_difficulty_management_and_diagnosis_are_refused_as_inputs() -> None:
    refused = {name for name in HEADER.split(",") if leak_reason(name) is not None}

    assert refused == {
        "diagnosis",
        "level_of_diagnostic_difficulty",
        "management",
        "seven_point_score",
    }


@pytest.mark.parametrize(("part", "lesion"), [("train", "3"), ("valid", "1"), ("test", "2")])
def test_an_official_part_is_the_cases_at_its_positions_from_0(
    part: str, lesion: str, build: Build, tmp_path: Path
) -> None:
    info = prepare(derm7pt_source(build(*CASES), part=part), tmp_path / "out")

    assert (info.counts.rows_read, info.counts.images, info.counts.lesions) == (6, 2, 1)
    assert info.dropped_by_reason == {f"not of the official part {part}": 4}
    assert {row.lesion_id for row in read(build(*CASES), part=part).values()} == {lesion}


def test_all_cases_are_read_and_lesions_stay_whole_without_a_part(
    build: Build, tmp_path: Path
) -> None:
    counts = prepare(derm7pt_source(build(*CASES)), tmp_path / "out").counts

    assert (counts.images, counts.lesions, counts.patients, counts.dropped) == (6, 3, None, 0)
    assert all(split.images == 2 * split.lesions for split in counts.splits.values())


def test_a_broken_line_keeps_its_position_and_is_dropped(build: Build) -> None:
    root = build(CARCINOMA, "2", MELANOMA)
    rows = list(derm7pt_source(root, part="train").rows())

    assert {row.lesion_id for row in rows if isinstance(row, LesionImage)} == {"3"}
    assert sum(isinstance(row, DroppedRow) for row in rows) == 3


def test_an_image_outside_the_folder_or_missing_is_dropped(build: Build) -> None:
    root = build(CARCINOMA, NEVUS)
    table = root / "release_v0/meta/meta.csv"
    line = NEVUS.replace("FAL/Fal095.jpg", "").replace("FAL/Fal094.jpg", "../meta/meta.csv")
    table.write_text(table.read_text().replace(NEVUS, line))
    rows = list(derm7pt_source(root).rows())

    assert [row.reason for row in rows if isinstance(row, DroppedRow)] == ["no image file"] * 2


@pytest.mark.parametrize("positions", ["3", "-1", "0.5", "first", "0,1"])
def test_indexes_that_are_no_positions_are_refused(positions: str, build: Build) -> None:
    root = build(*CASES, test=positions)

    with pytest.raises(CohortError, match=r"test_indexes\.csv: expected positions of the 3 cases"):
        derm7pt_source(root, part="test")


def test_an_unknown_part_is_refused_with_the_nearest(build: Build) -> None:
    with pytest.raises(CohortError, match="unknown part 'val'; nearest is 'valid'"):
        derm7pt_source(build(*CASES), part="val")


@pytest.mark.parametrize("name", ["case_num", "diagnosis", "elevation", "clinic", "derm"])
def test_a_table_without_a_column_is_refused(name: str, build: Build) -> None:
    root = build(*CASES, header=HEADER.replace(f"{name},", "other,"))

    with pytest.raises(CohortError, match=rf"meta\.csv: line 1: no column '{name}'"):
        derm7pt_source(root)


def test_a_folder_without_images_tables_or_indexes_is_refused(build: Build, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="expected a folder images: unpack"):
        derm7pt_source(tmp_path)
    root = build(*CASES)
    (root / "release_v0/meta/test_indexes.csv").write_text("index\n1\n")
    with pytest.raises(CohortError, match="no column 'indexes'; nearest is 'index'"):
        derm7pt_source(root, part="test")
    (root / "release_v0/meta/meta.csv").unlink()
    with pytest.raises(CohortError, match=r"meta\.csv: expected the data set's table"):
        derm7pt_source(root)
