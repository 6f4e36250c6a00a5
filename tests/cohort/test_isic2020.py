"""ISIC 2020 in its published layouts."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bundle.errors import CohortError
from cohort.isic2020 import ISIC2020, isic2020_source
from cohort.rows import DroppedRow, LesionImage
from cohort.store import prepare

FIRST_TABLE = "ISIC_2020_Training_GroundTruth.csv"
SECOND_TABLE = "ISIC_2020_Training_GroundTruth_v2.csv"
DUPLICATES = "ISIC_2020_Training_Duplicates.csv"
HEADER = (
    "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,"
    "benign_malignant,target"
)
SECOND_HEADER = HEADER.replace("patient_id,", "patient_id,lesion_id,")
BENIGN = "ISIC_2637011,IP_7279968,male,45.0,head/neck,unknown,benign,0"
MELANOMA = "ISIC_0149568,IP_0962375,female,55.0,upper extremity,melanoma,malignant,1"
BLANK = "ISIC_0052212,IP_2842074,,,,nevus,benign,0"
TORSO = "ISIC_0015719,IP_3075186,female,45.0,torso,unknown,benign,0"

Build = Callable[..., Path]


@pytest.fixture
def build(lay_out: Callable[..., Path]) -> Build:
    """Return a function that lays out the folder."""

    def write(
        *lines: str,
        table: str = FIRST_TABLE,
        header: str = HEADER,
        pairs: Sequence[str] | None = (),
        folder: str = "train",
    ) -> Path:
        tables = {table: "\n".join([header, *lines])}
        if pairs is not None:
            tables[DUPLICATES] = "\n".join(["image_name_1,image_name_2", *pairs])
        return lay_out(tables, [f"{folder}/{line.split(',')[0]}.jpg" for line in lines])

    return write


def read(root: Path) -> dict[str, LesionImage]:
    rows = isic2020_source(root).rows()
    return {row.image_id: row for row in rows if isinstance(row, LesionImage)}


def test_a_line_of_the_first_version_is_a_lesion_of_its_own(build: Build) -> None:
    row = read(build(MELANOMA))["ISIC_0149568"]

    assert (row.patient_id, row.lesion_id) == ("IP_0962375", "ISIC_0149568")
    assert (row.label, row.malignant) == ("melanoma", True)
    assert row.record == {"age_years": 55.0, "sex": "female", "anatom_site": "upper extremity"}
    assert row.value_errors == ()


def test_the_second_version_has_lesion_ids_and_goes_before_the_first(build: Build) -> None:
    root = build(MELANOMA)
    line = MELANOMA.replace("IP_0962375,", "IP_0962375,IL_6842813,")
    blank = BENIGN.replace("IP_7279968,", "IP_7279968,,")
    rows = read(build(line, blank, table=SECOND_TABLE, header=SECOND_HEADER))

    assert (root / FIRST_TABLE).is_file()
    assert rows["ISIC_0149568"].lesion_id == "IL_6842813"
    assert rows["ISIC_2637011"].lesion_id == "ISIC_2637011"


def test_missing_fields_are_absent_and_the_torso_is_the_trunk(build: Build) -> None:
    rows = read(build(BLANK, TORSO, BENIGN.replace("IP_7279968", "")))

    assert rows["ISIC_0052212"].record == {}
    assert rows["ISIC_0052212"].value_errors == ()
    assert (rows["ISIC_0052212"].label, rows["ISIC_0052212"].malignant) == ("benign", False)
    assert rows["ISIC_0015719"].record["anatom_site"] == "trunk"
    assert rows["ISIC_2637011"].patient_id is None


def test_an_odd_label_is_listed(build: Build) -> None:
    row = read(build(BENIGN.replace("benign", "odd")))["ISIC_2637011"]

    assert (row.label, row.malignant) == (None, None)
    assert [error.field for error in row.value_errors] == ["label"]


def test_levels_are_those_of_patients_and_lesions() -> None:
    levels = {field.name: field.level for field in ISIC2020.schema.fields}

    assert levels == {"age_years": "patient", "sex": "patient", "anatom_site": "lesion"}


def test_the_second_of_a_pair_of_duplicates_is_dropped_by_name(
    build: Build, tmp_path: Path
) -> None:
    pairs = ["ISIC_2637011,ISIC_0015719", "ISIC_9999999,ISIC_0052212"]
    source = isic2020_source(build(BENIGN, TORSO, BLANK, pairs=pairs))
    info = prepare(source, tmp_path / "out")

    assert {group.group_id for group in source.groups()} == {"IP_7279968", "IP_2842074"}
    assert (info.counts.rows_read, info.counts.images) == (3, 2)
    (entry,) = info.dropped
    assert entry.row == "line 3 (ISIC_0015719)"
    assert entry.reason == "a duplicate of another picture, by the published list"


@pytest.mark.parametrize(
    ("pairs", "kept"),
    [
        (["a,b", "b,c"], {"a"}),
        (["b,c", "a,b"], {"a"}),
        (["a,b", "b,a"], {"a", "c"}),
        (["a,b", "b,c", "c,a"], {"a"}),
        (["a,a"], {"a", "b", "c"}),
        (["x,a", "a,b"], {"a", "c"}),
        (["a,x", "x,b"], {"a", "c"}),
    ],
)
def test_one_of_the_same_pictures_always_stays(
    pairs: list[str], kept: set[str], build: Build
) -> None:
    lines = [BENIGN.replace("ISIC_2637011", name) for name in "abc"]

    assert set(read(build(*lines, pairs=pairs))) == kept


def test_a_duplicate_of_an_unreadable_picture_stays(build: Build) -> None:
    root = build(BENIGN, TORSO, pairs=["ISIC_2637011,ISIC_0015719"])
    (root / "train" / "ISIC_2637011.jpg").unlink()

    assert set(read(root)) == {"ISIC_0015719"}


def test_without_the_list_of_duplicates_the_cohort_says_so(build: Build) -> None:
    without = isic2020_source(build(BENIGN, pairs=None))

    assert any(DUPLICATES in note for note in without.notes)
    assert not any(DUPLICATES in note for note in isic2020_source(build(BENIGN)).notes)


@pytest.mark.parametrize(
    ("table", "folder"),
    [
        ("train.csv", "jpeg/train"),
        (FIRST_TABLE, "ISIC_2020_Training_JPEG/train"),
        (SECOND_TABLE, "images"),
    ],
)
def test_other_places_of_table_and_images_are_found(table: str, folder: str, build: Build) -> None:
    assert len(read(build(BENIGN, table=table, folder=folder))) == 1


def test_a_line_that_is_broken_is_dropped(build: Build) -> None:
    source = isic2020_source(build(BENIGN, "ISIC_0015719,IP_3075186"))
    dropped = [row for row in source.rows() if isinstance(row, DroppedRow)]

    assert [row.row for row in dropped] == ["line 3"]


@pytest.mark.parametrize(
    "name", ["image_name", "patient_id", "sex", "age_approx", "benign_malignant"]
)
def test_a_table_without_a_column_is_refused(name: str, build: Build) -> None:
    root = build(BENIGN, header=HEADER.replace(name, "other"))

    with pytest.raises(CohortError, match=f"GroundTruth.csv: line 1: no column '{name}'"):
        isic2020_source(root)


def test_a_folder_without_table_or_images_or_with_a_broken_list_is_refused(build: Build) -> None:
    with pytest.raises(CohortError, match=f"{DUPLICATES}: line 2: .* download the file again"):
        isic2020_source(build(BENIGN, pairs=["ISIC_2637011"]))
    root = build(BENIGN)
    (root / FIRST_TABLE).rename(root / "other.csv")
    with pytest.raises(CohortError, match=f"expected {SECOND_TABLE} or .* got no such file"):
        isic2020_source(root)
    (root / "other.csv").rename(root / FIRST_TABLE)
    (root / "train").rename(root / "pictures")
    with pytest.raises(CohortError, match="unpack the images"):
        isic2020_source(root)
