"""PH2 in its published layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import CohortError
from cohort.cohort import Cohort
from cohort.ph2 import PH2, ph2_source
from cohort.rows import DroppedRow, LesionImage
from cohort.store import prepare

HEADER = (
    "||   Name || Histological Diagnosis || Clinical Diagnosis || Asymmetry | Pigment Network | "
    "Dots/Globules | Streaks | Regression Areas | Blue-Whitish Veil ||           Colors ||"
)
COMMON = (
    "|| IMD003 ||                        ||                  0 ||         0 |               T |"
    "             A |       A |                A |                 A ||                4 ||"
)
ATYPICAL = (
    "|| IMD004 ||        Atypical nevus  ||                  1 ||         1 |              AT |"
    "             T |       A |                A |                 A ||             3  4 ||"
)
MELANOMA = (
    "|| IMD058 ||              Melanoma  ||                  2 ||         2 |              AT |"
    "            AT |       P |                P |                 P ||       1  4  5  6 ||"
)
LEGEND = """
Legends for Clinical Diagnosis:
   0 - Common Nevus;
   1 - Atypical Nevus;
   2 - Melanoma.

|| IMD999 || a line after the legend is none of the table's ||
"""

Build = Callable[..., Path]


@pytest.fixture
def build(lay_out: Callable[..., Path]) -> Build:
    """Return a function that lays out the folder that holds PH2Dataset."""

    def write(*lines: str, header: str = HEADER) -> Path:
        names = [line.split("||")[1].strip() for line in lines if "IMD" in line]
        folder = "PH2Dataset/PH2 Dataset images"
        return lay_out(
            {"PH2Dataset/PH2_dataset.txt": "\r\n".join([header, *lines, LEGEND])},
            [
                path
                for name in names
                for path in (
                    f"{folder}/{name}/{name}_Dermoscopic_Image/{name}.bmp",
                    f"{folder}/{name}/{name}_lesion/{name}_lesion.bmp",
                )
            ],
        )

    return write


def read(root: Path, **options: Any) -> dict[str, LesionImage]:
    rows = ph2_source(root, **options).rows()
    return {row.image_id: row for row in rows if isinstance(row, LesionImage)}


def test_the_lines_before_the_legend_are_read(build: Build) -> None:
    root = build(COMMON, ATYPICAL, MELANOMA)
    rows = read(root)

    assert list(ph2_source(root / "PH2Dataset").rows()) == list(rows.values())
    assert {name: (row.label, row.malignant) for name, row in rows.items()} == {
        "IMD003": ("common nevus", False),
        "IMD004": ("atypical nevus", False),
        "IMD058": ("melanoma", True),
    }
    for name, row in rows.items():
        assert (row.lesion_id, row.patient_id, row.record) == (name, None, {})
        assert row.image.startswith(b"BM")
        assert row.value_errors == ()


def test_a_table_without_its_legend_is_read_to_its_end(build: Build) -> None:
    root = build(COMMON)
    table = root / "PH2Dataset" / "PH2_dataset.txt"
    table.write_text("\n".join([HEADER, COMMON]))

    assert list(read(root)) == ["IMD003"]


def test_there_is_no_metadata_by_default() -> None:
    assert PH2.schema.names == ()


def test_what_an_expert_saw_is_read_when_asked_for(build: Build) -> None:
    rows = read(build(COMMON, MELANOMA), criteria=True)

    assert rows["IMD058"].record == {
        "asymmetry": "both axes",
        "pigment_network": "atypical",
        "dots_and_globules": "atypical",
        "streaks": "present",
        "regression_structures": "present",
        "blue_whitish_veil": "present",
        "colour_white": True,
        "colour_red": False,
        "colour_light_brown": False,
        "colour_dark_brown": True,
        "colour_blue_gray": True,
        "colour_black": True,
    }
    assert rows["IMD003"].record["asymmetry"] == "none"
    assert rows["IMD003"].record["dots_and_globules"] == "absent"


def test_a_cohort_without_fields_is_prepared_and_read_back(build: Build, tmp_path: Path) -> None:
    info = prepare(ph2_source(build(COMMON, ATYPICAL, MELANOMA)), tmp_path / "out")
    cohort = Cohort.open(tmp_path / "out")

    assert (info.counts.rows_read, info.counts.images, info.counts.patients) == (3, 3, None)
    assert cohort.records([0, 1, 2]) == [{}, {}, {}]


def test_a_broken_line_an_odd_label_and_a_missing_image_are_listed(build: Build) -> None:
    odd = COMMON.replace("                  0 ||", "                  7 ||", 1)
    root = build(odd, ATYPICAL, "|| IMD005 || too short ||")
    (root / "PH2Dataset/PH2 Dataset images/IMD004/IMD004_Dermoscopic_Image/IMD004.bmp").unlink()
    rows = list(ph2_source(root).rows())

    assert [row.row for row in rows if isinstance(row, DroppedRow)] == [
        "line 4",
        "line 3 (IMD004)",
    ]
    (kept,) = (row for row in rows if isinstance(row, LesionImage))
    assert (kept.label, [error.field for error in kept.value_errors]) == (None, ["label"])


@pytest.mark.parametrize("name", ["Name", "Clinical Diagnosis", "Streaks", "Colors"])
def test_a_table_without_a_column_is_refused(name: str, build: Build) -> None:
    root = build(COMMON, header=HEADER.replace(name, "Other"))

    with pytest.raises(CohortError, match=rf"PH2_dataset\.txt: line 1: no column '{name}'"):
        ph2_source(root)


def test_a_folder_without_images_table_or_header_is_refused(build: Build, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="PH2 Dataset images: unpack the images here"):
        ph2_source(tmp_path)
    root = build(COMMON, header="Name,Clinical Diagnosis")
    with pytest.raises(CohortError, match="line 1: expected a header between bars"):
        ph2_source(root)
    (root / "PH2Dataset" / "PH2_dataset.txt").unlink()
    with pytest.raises(CohortError, match=r"PH2_dataset\.txt: expected the data set's table"):
        ph2_source(root)
