"""ISIC 2019 in its published layout."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bundle.errors import CohortError
from cohort.isic2019 import ISIC2019, isic2019_source
from cohort.rows import LesionImage
from cohort.store import prepare

TRUTH_HEADER = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
NEVUS = "0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0"
KERATOSIS = "0.0,0.0,0.0,1.0,0.0,0.0,0.0,0.0,0.0"
UNKNOWN = "0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0"
HEADER = "image,age_approx,anatom_site_general,lesion_id,sex"
FIRST = "ISIC_0000000,55.0,anterior torso,,female"
SECOND = "ISIC_0024307,45.0,posterior torso,HAM_0000550,male"
THIRD = "ISIC_0053459,,,BCN_0001728,"

Build = Callable[..., Path]


@pytest.fixture
def build(lay_out: Callable[..., Path]) -> Build:
    """Return a function that lays out the folder from labels by image and lines of metadata."""

    def write(
        truth: dict[str, str],
        *lines: str,
        header: str = HEADER,
        truth_header: str = TRUTH_HEADER,
        folder: str = "ISIC_2019_Training_Input",
    ) -> Path:
        tables = {
            "ISIC_2019_Training_GroundTruth.csv": "\n".join(
                [truth_header, *(f"{image},{cells}" for image, cells in truth.items())]
            ),
            "ISIC_2019_Training_Metadata.csv": "\n".join([header, *lines]),
        }
        return lay_out(tables, [f"{folder}/{line.split(',')[0]}.jpg" for line in lines])

    return write


def images_of(root: Path) -> list[LesionImage]:
    return [row for row in isic2019_source(root).rows() if isinstance(row, LesionImage)]


def test_a_line_is_read_with_its_one_hot_label(build: Build) -> None:
    (row,) = images_of(build({"ISIC_0024307": NEVUS}, SECOND))

    assert (row.image_id, row.lesion_id, row.patient_id) == ("ISIC_0024307", "HAM_0000550", None)
    assert (row.label, row.malignant) == ("NV", False)
    assert row.record == {"age_years": 45.0, "sex": "male", "anatom_site": "posterior torso"}
    assert row.value_errors == ()


def test_columns_are_read_by_name_in_any_order(build: Build) -> None:
    root = build(
        {"ISIC_0024307": NEVUS},
        "ISIC_0024307,male,HAM_0000550,posterior torso,45.0",
        header="image,sex,lesion_id,anatom_site_general,age_approx",
    )

    assert images_of(root)[0].record["anatom_site"] == "posterior torso"


def test_blank_cells_are_missing_and_an_image_without_lesion_id_is_its_own(build: Build) -> None:
    rows = images_of(build({"ISIC_0000000": NEVUS, "ISIC_0053459": NEVUS}, FIRST, THIRD))
    by_image = {row.image_id: row for row in rows}

    assert by_image["ISIC_0000000"].lesion_id == "ISIC_0000000"
    assert by_image["ISIC_0053459"].lesion_id == "BCN_0001728"
    assert by_image["ISIC_0053459"].record == {}


def test_actinic_keratosis_is_malignant_and_an_unknown_is_without_label(build: Build) -> None:
    rows = images_of(build({"ISIC_0000000": KERATOSIS, "ISIC_0024307": UNKNOWN}, FIRST, SECOND))
    labels = {row.image_id: (row.label, row.malignant, row.value_errors) for row in rows}

    assert labels == {"ISIC_0000000": ("AK", True, ()), "ISIC_0024307": (None, None, ())}
    assert ISIC2019.malignant_labels == ("AK", "BCC", "MEL", "SCC")


def test_age_and_sex_are_fields_of_the_lesion() -> None:
    assert {field.level for field in ISIC2019.schema.fields} == {"lesion"}


@pytest.mark.parametrize("cells", [NEVUS.replace("0.0", "1.0", 1), NEVUS.replace("1.0", "0.0")])
def test_two_classes_or_none_are_listed_as_an_unreadable_label(cells: str, build: Build) -> None:
    (row,) = images_of(build({"ISIC_0024307": cells}, SECOND))

    assert (row.label, row.malignant) == (None, None)
    assert [error.field for error in row.value_errors] == ["label"]


def test_every_row_of_both_tables_is_accounted_for(build: Build, tmp_path: Path) -> None:
    truth = {"ISIC_0024307": NEVUS, "ISIC_0000001": NEVUS}
    root = build(truth, FIRST, SECOND, THIRD, "ISIC_0000002,30.0")
    (root / "ISIC_2019_Training_Input" / "ISIC_0053459.jpg").unlink()
    info = prepare(isic2019_source(root), tmp_path / "out")

    assert (info.counts.images, info.counts.unlabelled, info.counts.dropped) == (2, 1, 3)
    assert {(entry.row, entry.reason) for entry in info.dropped} == {
        ("line 4 (ISIC_0053459)", "no image file"),
        ("line 5", "its cells are not as many as the 5 columns"),
        (
            "ISIC_2019_Training_GroundTruth.csv (ISIC_0000001)",
            "it has a label and no line of metadata",
        ),
    }


@pytest.mark.parametrize("name", HEADER.split(","))
def test_a_table_without_a_column_is_refused(name: str, build: Build) -> None:
    root = build({}, SECOND, header=HEADER.replace(name, "other"))

    with pytest.raises(CohortError, match=f"Metadata.csv: line 1: no column '{name}'; nearest is"):
        isic2019_source(root)


@pytest.mark.parametrize("name", TRUTH_HEADER.split(","))
def test_a_ground_truth_without_a_column_is_refused(name: str, build: Build) -> None:
    root = build({}, SECOND, truth_header=TRUTH_HEADER.replace(name, "other"))

    with pytest.raises(CohortError, match=f"GroundTruth.csv: line 1: no column '{name}'"):
        isic2019_source(root)


def test_a_broken_ground_truth_is_refused(build: Build) -> None:
    with pytest.raises(CohortError, match="line 2: expected 0 or 1 under 'MEL', got 'NV'"):
        isic2019_source(build({"ISIC_0024307": NEVUS.replace("0.0", "NV", 1)}, SECOND))
    with pytest.raises(CohortError, match=r"line 2: its cells .* download the file again"):
        isic2019_source(build({"ISIC_0024307": "1.0"}, SECOND))
    with pytest.raises(CohortError, match="line 3: ISIC_0024307 has two labels"):
        isic2019_source(build({"ISIC_0024307": f"{NEVUS}\nISIC_0024307,{NEVUS}"}, SECOND))


def test_a_folder_without_images_or_tables_is_refused(build: Build) -> None:
    root = build({"ISIC_0024307": NEVUS}, SECOND, folder="images")
    assert len(images_of(root)) == 1
    (root / "ISIC_2019_Training_Metadata.csv").unlink()
    with pytest.raises(CohortError, match=r"Metadata\.csv: expected the data set's table"):
        isic2019_source(root)
    (root / "images").rename(root / "pictures")
    with pytest.raises(CohortError, match="ISIC_2019_Training_Input or images: unpack the images"):
        isic2019_source(root)
