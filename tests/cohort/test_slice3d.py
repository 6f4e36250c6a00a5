"""SLICE-3D in the layouts of Kaggle and of ISIC."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from bundle.errors import CohortError
from cohort import slice3d
from cohort.cohort import Cohort
from cohort.leaks import OFF_BY_DEFAULT, leak_reason
from cohort.rows import DroppedRow, LesionImage
from cohort.slice3d import slice3d_source
from cohort.slice3d_fields import CLINICAL, columns_of
from cohort.store import prepare

# The columns of the published test table, in order; the train table adds the others.
TEST_HEADER = (
    "isic_id patient_id age_approx sex anatom_site_general clin_size_long_diam_mm image_type "
    "tbp_tile_type tbp_lv_A tbp_lv_Aext tbp_lv_B tbp_lv_Bext tbp_lv_C tbp_lv_Cext tbp_lv_H "
    "tbp_lv_Hext tbp_lv_L tbp_lv_Lext tbp_lv_areaMM2 tbp_lv_area_perim_ratio tbp_lv_color_std_mean "
    "tbp_lv_deltaA tbp_lv_deltaB tbp_lv_deltaL tbp_lv_deltaLB tbp_lv_deltaLBnorm "
    "tbp_lv_eccentricity tbp_lv_location tbp_lv_location_simple tbp_lv_minorAxisMM "
    "tbp_lv_nevi_confidence tbp_lv_norm_border tbp_lv_norm_color tbp_lv_perimeterMM "
    "tbp_lv_radial_color_std_max tbp_lv_stdL tbp_lv_stdLExt tbp_lv_symm_2axis "
    "tbp_lv_symm_2axis_angle tbp_lv_x tbp_lv_y tbp_lv_z attribution copyright_license"
)
TRAIN_ONLY_HEADER = (
    "lesion_id iddx_full iddx_1 iddx_2 iddx_3 iddx_4 iddx_5 mel_mitotic_index mel_thick_mm "
    "tbp_lv_dnn_lesion_confidence"
)
TEST_COLUMNS, TRAIN_ONLY = TEST_HEADER.split(), TRAIN_ONLY_HEADER.split()
TRAIN_COLUMNS = ["isic_id", "target", *TEST_COLUMNS[1:], *TRAIN_ONLY]


def make_line(number: int, **changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = dict.fromkeys(TEST_COLUMNS, "1.5")
    content |= {
        "isic_id": f"ISIC_{number:07d}",
        "patient_id": f"IP_{number % 4}",
        "age_approx": "65.0",
        "sex": "male",
        "anatom_site_general": "posterior torso",
        "clin_size_long_diam_mm": "3.16",
        "tbp_lv_eccentricity": "0.5",
        "tbp_lv_location": "Torso Back Top Third",
        "tbp_lv_location_simple": "Torso Back",
        "tbp_lv_nevi_confidence": "8.052259e-13",
        "attribution": "A clinic, with a comma",
        "copyright_license": "CC-BY",
    }
    return content | changes


def make_train_line(number: int, **changes: Any) -> dict[str, Any]:
    leaks = dict.fromkeys(TRAIN_ONLY, "leak")
    return make_line(number, target=str(int(number == 0)), **leaks) | changes


Layout = Callable[..., Path]


@pytest.fixture
def kaggle(tmp_path: Path, write_csv: Any, make_image: Any) -> Layout:
    """Return a function that lays out Kaggle's files, tiles in one HDF5 file or in a folder."""

    def lay_out(
        lines: list[dict[str, Any]],
        *,
        part: str = "train",
        columns: list[str] | None = None,
        folder: str | None = None,
    ) -> Path:
        default = TRAIN_COLUMNS if part == "train" else TEST_COLUMNS
        write_csv(tmp_path / f"{part}-metadata.csv", columns or default, lines)
        if folder is not None:
            (tmp_path / folder).mkdir(parents=True)
            for line in lines:
                (tmp_path / folder / f"{line['isic_id']}.jpg").write_bytes(make_image())
            return tmp_path
        with h5py.File(tmp_path / f"{part}-image.hdf5", "w") as file:
            for line in lines:
                file[line["isic_id"]] = np.array(make_image())
        return tmp_path

    return lay_out


@pytest.fixture
def isic(tmp_path: Path, write_csv: Any, make_image: Any) -> Layout:
    """Return a function that lays out ISIC's files as they unpack."""

    def lay_out(
        lines: list[dict[str, Any]],
        truth: dict[str, str],
        *,
        prefix: str = "ISIC_2024_Training",
        column: str = "malignant",
    ) -> Path:
        folder = tmp_path / f"{prefix}_Input"
        write_csv(folder / "metadata.csv", TEST_COLUMNS, lines)
        for line in lines:
            (folder / f"{line['isic_id']}.jpg").write_bytes(make_image())
        rows = [{"isic_id": key, column: value} for key, value in truth.items()]
        write_csv(tmp_path / f"{prefix}_GroundTruth.csv", ["isic_id", column], rows)
        (tmp_path / f"{prefix}_Supplement.csv").write_text("not even, a table\n1\n")
        return tmp_path

    return lay_out


def images_of(root: Path, **options: Any) -> list[LesionImage]:
    rows = list(slice3d_source(root, **options).rows())
    assert not [row for row in rows if isinstance(row, DroppedRow)]
    return [row for row in rows if isinstance(row, LesionImage)]


@pytest.mark.parametrize("folder", [None, "train-image", "train-image/image"])
def test_the_train_files_of_kaggle_are_read(
    folder: str | None, kaggle: Layout, make_image: Any
) -> None:
    rows = images_of(kaggle([make_train_line(n) for n in range(9)], folder=folder))

    assert [row.patient_id for row in rows] == sorted(f"IP_{n % 4}" for n in range(9))
    assert {row.image for row in rows} == {make_image()}
    by_id = {row.image_id: row for row in rows}
    assert (by_id["ISIC_0000000"].label, by_id["ISIC_0000000"].malignant) == ("malignant", True)
    assert (by_id["ISIC_0000001"].label, by_id["ISIC_0000001"].malignant) == ("benign", False)
    assert by_id["ISIC_0000001"].row == "line 3 (ISIC_0000001)"


def test_a_tile_is_its_own_lesion_and_the_published_id_is_not_read(kaggle: Layout) -> None:
    (row,) = images_of(kaggle([make_train_line(1, lesion_id="IL_7")]))

    assert row.lesion_id == row.image_id == "ISIC_0000001"


def test_a_record_holds_canonical_names_of_both_levels(kaggle: Layout) -> None:
    source = slice3d_source(kaggle([make_train_line(0)]))
    (row,) = source.rows()

    assert isinstance(row, LesionImage)
    assert row.value_errors == ()
    assert [field.name for field in source.schema.at("patient")] == ["age_years", "sex"]
    assert row.record["age_years"] == 65.0
    assert row.record["anatom_site"] == "posterior torso"
    assert row.record["diameter_mm"] == 3.16
    assert row.record["tbp_lv_area_mm2"] == 1.5
    assert row.record["tbp_lv_location"] == "Torso Back Top Third"
    assert source.schema.resolve("tbp_lv_areaMM2").unit == "mm2"
    assert source.schema.resolve("tbp_lv_A").name == "tbp_lv_a"


def test_blank_and_unknown_cells_are_missing(kaggle: Layout) -> None:
    line = make_train_line(
        0, age_approx="", sex="", anatom_site_general="", tbp_lv_location="Unknown"
    )
    (row,) = images_of(kaggle([line]))

    assert row.value_errors == ()
    assert not {"age_years", "sex", "anatom_site", "tbp_lv_location"} & set(row.record)


@pytest.mark.parametrize("column", ["malignant", "target"])
@pytest.mark.parametrize(
    ("prefix", "licence"),
    [
        ("ISIC_2024_Training", "CC BY-NC 4.0"),
        ("ISIC_2024_Permissive_Training", "CC BY 4.0"),
    ],
)
def test_the_files_of_isic_are_joined_with_their_ground_truth(
    prefix: str, licence: str, column: str, isic: Layout
) -> None:
    truth = {"ISIC_0000001": "1.0", "ISIC_0000000": "0"}
    source = slice3d_source(isic([make_line(0), make_line(1)], truth, prefix=prefix, column=column))

    labels = {r.image_id: r.label for r in source.rows() if isinstance(r, LesionImage)}
    assert labels == {"ISIC_0000000": "benign", "ISIC_0000001": "malignant"}
    assert source.licence == licence
    assert source.notes == ()


def test_tiles_outside_the_ground_truth_are_unlabelled_and_counted(isic: Layout) -> None:
    source = slice3d_source(isic([make_line(0), make_line(1)], {"ISIC_0000001": "1", "X": "0"}))

    labels = [r.label for r in source.rows() if isinstance(r, LesionImage)]
    assert labels == [None, "malignant"]
    assert source.notes == (
        "1 tiles are not in the ground truth: unlabelled.",
        "1 tiles of the ground truth have no metadata.",
    )


def test_the_test_files_have_no_labels(kaggle: Layout) -> None:
    source = slice3d_source(kaggle([make_line(0)], part="test"))
    (row,) = source.rows()

    assert isinstance(row, LesionImage)
    assert (source.labels, row.label, row.malignant) == ((), None, None)


def test_the_train_files_win_where_both_are_there(kaggle: Layout) -> None:
    kaggle([make_line(5)], part="test")

    assert [row.image_id for row in images_of(kaggle([make_train_line(1)]))] == ["ISIC_0000001"]


def test_measurements_can_be_left_out(kaggle: Layout) -> None:
    source = slice3d_source(kaggle([make_train_line(0)]), measured=False)

    assert source.schema.names == ("age_years", "sex", "anatom_site", "diameter_mm")


def test_columns_off_by_default_are_read_when_asked_for(kaggle: Layout) -> None:
    root = kaggle([make_train_line(0)])
    plain = set(slice3d_source(root).schema.names)
    (row,) = images_of(root, nevi_confidence=True, position=True)

    off = {name for name in OFF_BY_DEFAULT if name.startswith("tbp_lv_")}
    assert not plain & off
    assert off <= set(row.record)


def test_every_column_but_leaks_labels_and_shortcuts_is_a_field() -> None:
    read = columns_of(measured=True, nevi_confidence=True, position=True)

    left_out = set(TRAIN_COLUMNS) - set(read)
    assert all(leak_reason(name) for name in left_out)
    assert not [name for name in read if leak_reason(name)]
    assert set(CLINICAL) <= set(read)


def test_a_label_that_is_none_is_listed(kaggle: Layout) -> None:
    (row,) = images_of(kaggle([make_train_line(0, target="7")]))

    assert row.label is None
    assert [error.field for error in row.value_errors] == ["label"]


def test_a_tile_without_a_patient_is_its_own_group(kaggle: Layout) -> None:
    rows = images_of(kaggle([make_train_line(0, patient_id=""), make_train_line(1)]))

    assert {row.group_id for row in rows} == {"ISIC_0000000", "IP_1"}


def test_every_line_is_accounted_for_and_patients_lie_together(
    kaggle: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice3d, "BATCH_LINES", 7)
    root = kaggle([make_train_line(n) for n in range(40)])
    table = root / "train-metadata.csv"
    text = table.read_text().splitlines()
    text.insert(4, "ISIC_9999999,0,too,short")
    table.write_text("\n".join(text) + "\n")
    with h5py.File(root / "train-image.hdf5", "a") as file:
        del file["ISIC_0000010"]

    info = prepare(slice3d_source(root), tmp_path / "out")

    assert (info.counts.rows_read, info.counts.images, info.counts.dropped) == (41, 39, 2)
    # Line 5 is the broken one, so that the eleventh tile stands in line 13.
    assert {entry.row for entry in info.dropped} == {"line 5", "line 13 (ISIC_0000010)"}
    patients = Cohort.open(tmp_path / "out").table()["patient_id"].to_pylist()
    assert patients == sorted(patients)


@pytest.mark.parametrize("content", [b"", b"isic_id,patient_id\n\xff,1\n"])
def test_a_table_that_is_none_is_refused(content: bytes, kaggle: Layout) -> None:
    root = kaggle([make_train_line(0)])
    (root / "train-metadata.csv").write_bytes(content)

    with pytest.raises(CohortError, match=r"train-metadata\.csv"):
        slice3d_source(root)


def test_text_that_is_not_utf8_in_the_table_is_refused(kaggle: Layout) -> None:
    # The last of many lines, so that the header alone reads well.
    lines = [make_train_line(n) for n in range(200)] + [make_train_line(200, sex="SEX")]
    root = kaggle(lines)
    table = root / "train-metadata.csv"
    table.write_bytes(table.read_bytes().replace(b"SEX", b"\xff\xff"))

    with pytest.raises(CohortError, match="UTF-8"):
        slice3d_source(root)


def test_a_folder_of_no_known_layout_is_refused(tmp_path: Path, kaggle: Layout) -> None:
    with pytest.raises(CohortError, match="ISIC_2024_Permissive_Training_Input"):
        slice3d_source(tmp_path)
    root = kaggle([make_train_line(0)])
    (root / "train-image.hdf5").unlink()
    with pytest.raises(CohortError, match=r"train-image\.hdf5"):
        slice3d_source(root)


def test_a_train_table_without_a_label_is_refused(kaggle: Layout) -> None:
    with pytest.raises(CohortError, match="expected a column target or malignant"):
        slice3d_source(kaggle([make_line(0)], columns=TEST_COLUMNS))


def test_a_table_without_a_field_is_refused(kaggle: Layout) -> None:
    columns = [name for name in TRAIN_COLUMNS if name != "tbp_lv_A"]
    line = {k: v for k, v in make_train_line(0).items() if k != "tbp_lv_A"}
    with pytest.raises(CohortError, match="no column 'tbp_lv_A'"):
        slice3d_source(kaggle([line], columns=columns))


def test_a_missing_or_contradicting_ground_truth_is_refused(isic: Layout) -> None:
    root = isic([make_line(0)], {"ISIC_0000000": "1"})
    truth = root / "ISIC_2024_Training_GroundTruth.csv"
    for content, message in [
        ("isic_id,malignant\nA,1\nA,0\n", "A has two labels"),
        ("isic_id,malignant\nA\n", "line 2"),
        ("isic_id,other\nA,1\n", "expected a column target or malignant"),
    ]:
        truth.write_text(content)
        with pytest.raises(CohortError, match=message):
            slice3d_source(root)
    truth.unlink()
    with pytest.raises(CohortError, match=r"GroundTruth\.csv"):
        slice3d_source(root)
