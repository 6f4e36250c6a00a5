"""MILK10k in its published layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import CohortError
from cohort.leaks import refuse_leaks
from cohort.milk10k import MILK10K, milk10k_source
from cohort.rows import LesionImage
from cohort.store import prepare

TRUTH_HEADER = "lesion_id,AKIEC,BCC,BEN_OTH,BKL,DF,INF,MAL_OTH,MEL,NV,SCCKA,VASC"
HEADER = (
    "lesion_id,image_type,isic_id,attribution,copyright_license,image_manipulation,age_approx,sex,"
    "skin_tone_class,site,MONET_ulceration_crust,MONET_hair,MONET_vasculature_vessels,"
    "MONET_erythema,MONET_pigmented,MONET_gel_water_drop_fluid_dermoscopy_liquid,"
    "MONET_skin_markings_pen_ink_purple_pen"
)
MELANOMA = "0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0,0.0,0.0"
INFLAMED = "0.0,0.0,0.0,0.0,0.0,1.0,0.0,0.0,0.0,0.0,0.0"
SCORES = "0.0152,0.1134,0.0829,0.4221,0.7313,0.2038,0.0417"
CLINICAL = (
    "IL_0000652,clinical: close-up,ISIC_4671410,MILK study team,CC-BY-NC,,55,female,4,"
    f"head_neck_face,{SCORES}"
)
DERMOSCOPIC = (
    "IL_0000652,dermoscopic,ISIC_3852047,MILK study team,CC-BY-NC,instrument only,55,female,4,"
    f"head_neck_face,{SCORES}"
)
BLANK = "IL_0003176,dermoscopic,ISIC_5671217,MILK study team,CC-BY-NC,,,,2.0,,,,,,,,"

Build = Callable[..., Path]


@pytest.fixture
def build(lay_out: Callable[..., Path]) -> Build:
    """Return a function that lays out the folder from labels by lesion and lines of metadata."""

    def write(
        truth: dict[str, str],
        *lines: str,
        header: str = HEADER,
        truth_header: str = TRUTH_HEADER,
        folder: str = "MILK10k_Training_Input",
    ) -> Path:
        tables = {
            "MILK10k_Training_GroundTruth.csv": "\n".join(
                [truth_header, *(f"{lesion},{cells}" for lesion, cells in truth.items())]
            ),
            "MILK10k_Training_Metadata.csv": "\n".join([header, *lines]),
            "MILK10k_Training_Supplement.csv": "isic_id,diagnosis_full\nISIC_4671410,Melanoma",
        }
        cells = [line.split(",") for line in lines]
        return lay_out(tables, [f"{folder}/{cell[0]}/{cell[2]}.jpg" for cell in cells])

    return write


def images_of(root: Path, **options: Any) -> list[LesionImage]:
    return [r for r in milk10k_source(root, **options).rows() if isinstance(r, LesionImage)]


@pytest.mark.parametrize(
    "folder", ["MILK10k_Training_Input", "MILK10k_Training_Input/MILK10k_Training_Input"]
)
def test_the_two_rows_of_a_lesion_are_two_images_of_it(folder: str, build: Build) -> None:
    root = build({"IL_0000652": MELANOMA}, CLINICAL, DERMOSCOPIC, folder=folder)
    first, second = images_of(root)

    assert (first.image_id, second.image_id) == ("ISIC_4671410", "ISIC_3852047")
    assert first.image != second.image
    for row in (first, second):
        assert (row.lesion_id, row.patient_id, row.group_id) == ("IL_0000652", None, "IL_0000652")
        assert (row.label, row.malignant) == ("MEL", True)
        assert row.value_errors == ()
        assert row.record == {
            "age_years": 55.0,
            "sex": "female",
            "skin_tone_class": "4",
            "anatom_site": "head/neck",
        }


def test_both_images_of_a_lesion_stand_in_one_split(build: Build, tmp_path: Path) -> None:
    root = build({"IL_0000652": MELANOMA}, CLINICAL, DERMOSCOPIC)
    counts = prepare(milk10k_source(root), tmp_path / "out").counts

    assert (counts.images, counts.lesions, counts.patients) == (2, 1, None)
    assert sorted(split.images for split in counts.splits.values()) == [0, 0, 0, 2]


def test_what_a_network_sees_is_read_only_when_asked_for(build: Build) -> None:
    root = build({"IL_0000652": MELANOMA}, CLINICAL)
    (row,) = images_of(root, monet=True)

    assert not any("monet" in name for name in milk10k_source(root).schema.names)
    assert sum("monet" in name for name in row.record) == 7
    assert row.record["monet_gel_water_drop_fluid_dermoscopy_liquid"] == 0.2038
    refuse_leaks(milk10k_source(root, monet=True).schema.names)


def test_blank_cells_are_missing_and_inflammation_is_benign(build: Build) -> None:
    (row,) = images_of(build({"IL_0003176": INFLAMED}, BLANK), monet=True)

    assert row.record == {"skin_tone_class": "2"}
    assert row.value_errors == ()
    assert (row.label, row.malignant) == ("INF", False)


def test_the_malignant_labels_are_the_cancers_and_akiec() -> None:
    assert TRUTH_HEADER.split(",")[1:] == list(MILK10K.labels)
    assert MILK10K.malignant_labels == ("AKIEC", "BCC", "MAL_OTH", "MEL", "SCCKA")
    assert {field.level for field in MILK10K.schema.fields} == {"lesion"}


def test_the_licence_is_what_the_rows_say(build: Build) -> None:
    lines = (CLINICAL, DERMOSCOPIC.replace("CC-BY-NC", "CC-0"))

    assert milk10k_source(build({}, *lines)).licence == "CC-0, CC-BY-NC"


def test_every_row_of_both_tables_is_accounted_for(build: Build, tmp_path: Path) -> None:
    root = build({"IL_0000652": MELANOMA, "IL_9": MELANOMA}, CLINICAL, DERMOSCOPIC, BLANK)
    (root / "MILK10k_Training_Input" / "IL_0000652" / "ISIC_3852047.jpg").unlink()
    info = prepare(milk10k_source(root), tmp_path / "out")

    assert (info.counts.images, info.counts.unlabelled) == (2, 1)
    assert {entry.row for entry in info.dropped} == {
        "line 3 (ISIC_3852047)",
        "MILK10k_Training_GroundTruth.csv (IL_9)",
    }


@pytest.mark.parametrize("name", ["lesion_id", "isic_id", "skin_tone_class", "site"])
def test_a_table_without_a_column_is_refused(name: str, build: Build) -> None:
    root = build({}, CLINICAL, header=HEADER.replace(name, "other"))

    with pytest.raises(CohortError, match=f"Metadata.csv: line 1: no column '{name}'"):
        milk10k_source(root)


def test_a_ground_truth_of_another_set_is_refused(build: Build) -> None:
    root = build({}, CLINICAL, truth_header=TRUTH_HEADER.replace("SCCKA", "SCC"))

    with pytest.raises(CohortError, match="no column 'SCCKA'; nearest is 'SCC'"):
        milk10k_source(root)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="MILK10k_Training_Input: unpack the images here"):
        milk10k_source(tmp_path)
