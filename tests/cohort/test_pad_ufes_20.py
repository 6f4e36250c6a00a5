"""PAD-UFES-20 in its published layout."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from bundle.errors import CohortError
from cohort.pad_ufes_20 import PAD_UFES_20, pad_ufes_20_source
from cohort.rows import DroppedRow, LesionImage
from cohort.store import prepare

# Header and lines as the data set prints them.
HEADER = (
    "patient_id,lesion_id,smoke,drink,background_father,background_mother,age,pesticide,gender,"
    "skin_cancer_history,cancer_history,has_piped_water,has_sewage_system,fitspatrick,region,"
    "diameter_1,diameter_2,diagnostic,itch,grew,hurt,changed,bleed,elevation,img_id,biopsed"
)
FULL = (
    "PAT_46,881,False,False,POMERANIA,BRASIL,55,False,FEMALE,True,True,True,True,3.0,NECK,6.0,"
    "5.0,BCC,True,True,False,True,True,True,PAT_46_881_14.png,True"
)
BLANK = (
    "PAT_1516,1765,,,,,8,,,,,,,,ARM,,,NEV,False,False,False,False,False,False,"
    "PAT_1516_1765_530.png,False"
)
UNKNOWN = (
    "PAT_771,881,False,False,UNK,ATLANTIS,55,False,MALE,True,True,True,True,2.0,NOSE,6.0,5.0,"
    "BCC,True,UNK,False,UNK,False,True,PAT_771_1491_390.png,True"
)

Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path, make_image: Callable[..., bytes]) -> Build:
    """Return a function that lays out the folder and returns it."""

    def lay_out(*lines: str, folder: str = "imgs_part_1", header: str = HEADER) -> Path:
        root = tmp_path / "pad"
        (root / folder).mkdir(parents=True)
        (root / "metadata.csv").write_text("\n".join([header, *lines]) + "\n")
        for cells in csv.DictReader([header, *lines]):
            (root / folder / cells["img_id"]).write_bytes(make_image(kind="PNG"))
        return root

    return lay_out


def read(root: Path) -> dict[str, LesionImage]:
    rows = pad_ufes_20_source(root).rows()
    return {row.image_id: row for row in rows if isinstance(row, LesionImage)}


def test_a_full_line_is_read_under_canonical_names(build: Build) -> None:
    row = read(build(FULL))["PAT_46_881_14.png"]

    assert (row.patient_id, row.lesion_id) == ("PAT_46", "PAT_46_881")
    assert (row.label, row.malignant) == ("BCC", True)
    assert row.value_errors == ()
    assert row.record == {
        "age_years": 55.0,
        "sex": "female",
        "fitzpatrick_skin_type": "III",
        "smoke": False,
        "drink": False,
        "background_father": "Pomerania",
        "background_mother": "Brazil",
        "pesticide": False,
        "skin_cancer_history": True,
        "cancer_history": True,
        "has_piped_water": True,
        "has_sewage_system": True,
        "anatom_site": "neck",
        "diameter_mm": 6.0,
        "diameter_2_mm": 5.0,
        "itch": True,
        "grew": True,
        "hurt": False,
        "changed": True,
        "bleed": True,
        "elevation": True,
    }


def test_blank_cells_are_missing_and_false_is_a_value(build: Build) -> None:
    row = read(build(BLANK))["PAT_1516_1765_530.png"]

    assert set(row.record) == {
        "age_years",
        "anatom_site",
        *("itch", "grew", "hurt", "changed", "bleed", "elevation"),
    }
    assert row.record["itch"] is False
    assert (row.label, row.malignant) == ("NEV", False)


def test_unk_is_missing_and_an_unknown_background_is_listed(build: Build) -> None:
    row = read(build(UNKNOWN))["PAT_771_1491_390.png"]

    assert not {"grew", "changed", "background_father", "background_mother"} & set(row.record)
    assert [error.field for error in row.value_errors] == ["background_mother"]


def test_one_lesion_id_in_two_patients_is_two_lesions(build: Build, tmp_path: Path) -> None:
    info = prepare(pad_ufes_20_source(build(FULL, UNKNOWN)), tmp_path / "out")

    assert (info.counts.lesions, info.counts.patients) == (2, 2)


@pytest.mark.parametrize(
    "folder", ["imgs_part_1", "imgs_part_2", "imgs_part_3", "images", "imgs_part_3/imgs_part_3"]
)
def test_images_are_found_in_each_part(folder: str, build: Build) -> None:
    assert len(read(build(FULL, folder=folder))) == 1


def test_a_line_without_an_image_is_dropped_and_leaves_no_group(build: Build) -> None:
    root = build(FULL, BLANK)
    (root / "imgs_part_1" / "PAT_46_881_14.png").unlink()
    source = pad_ufes_20_source(root)

    assert [group.group_id for group in source.groups()] == ["PAT_1516"]
    dropped = [row for row in source.rows() if isinstance(row, DroppedRow)]
    assert dropped == [DroppedRow("line 2 (PAT_46_881_14.png)", "no image file")]


def test_levels_are_those_of_patients_and_lesions() -> None:
    lesion = {field.name for field in PAD_UFES_20.schema.at("lesion")}

    assert lesion == {
        "anatom_site",
        "diameter_mm",
        "diameter_2_mm",
        *("itch", "grew", "hurt", "changed", "bleed", "elevation"),
    }
    assert "biopsed" not in PAD_UFES_20.schema.names
    assert PAD_UFES_20.malignant_labels == ("BCC", "MEL", "SCC")


def test_a_folder_without_images_table_or_column_is_refused(tmp_path: Path, build: Build) -> None:
    with pytest.raises(CohortError, match="unpack the images"):
        pad_ufes_20_source(tmp_path)
    root = build(header=HEADER.replace("fitspatrick", "skin"))
    with pytest.raises(CohortError, match="no column 'fitspatrick'"):
        pad_ufes_20_source(root)
    (root / "metadata.csv").unlink()
    with pytest.raises(CohortError, match=r"metadata\.csv"):
        pad_ufes_20_source(root)
