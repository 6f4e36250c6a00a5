"""SLICE-3D (ISIC 2024): lesion tiles cut from 3D body photographs, hundreds a patient.

Reads Kaggle's layout (train or test) and ISIC's (full or permissive). Each tile is its own lesion:
the published lesion ids stand on every malignant tile and on few benign ones, and are not read.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from bundle.errors import CohortError
from bundle.fields import Field, FieldSchema, is_missing
from cohort.images import FolderImages, Hdf5Images, Images
from cohort.leaks import refuse_leaks
from cohort.lines import (
    DataSet,
    Line,
    make_source,
    read_csv,
    read_header,
    read_label,
    read_line,
    require_columns,
    wrong_length,
)
from cohort.rows import DroppedRow, Group, LesionImage, Source
from cohort.slice3d_fields import columns_of

LABELS = ("benign", "malignant")
# The label column's name: Kaggle's, then ISIC's.
LABEL_COLUMNS = ("target", "malignant")
LABEL_WORDS = {"0": "benign", "0.0": "benign", "1": "malignant", "1.0": "malignant"}
ISIC_PREFIXES = ("ISIC_2024_Training", "ISIC_2024_Permissive_Training")
LICENCES = {"ISIC_2024_Permissive_Training": "CC BY 4.0"}
CITATION = (
    "Kurtansky et al. (2024), doi:10.1038/s41597-024-03743-w; data doi:10.34970/2024-slice-3d"
)
# Lines turned from columns to cells at a time.
BATCH_LINES = 1_000


@dataclass(frozen=True)
class Layout:
    """The files of one published form.

    Attributes:
        table: the metadata, one line a tile.
        truth: the file with the label column; None where the table is, or may not be, labelled.
        labelled: whether there are labels at all.
        images: the tiles.
        licence: of this form.
    """

    table: Path
    truth: Path | None
    labelled: bool
    images: Images
    licence: str


@dataclass(frozen=True)
class Metadata:
    """The table, read.

    Attributes:
        lines: a `pyarrow.Table` of text columns, and `number`, the line in the file.
        label_column: None where the labels are elsewhere or nowhere.
        dropped: lines whose cells do not fit the header.
    """

    lines: Any
    label_column: str | None
    dropped: tuple[DroppedRow, ...]


def slice3d_source(
    path: Path, *, measured: bool = True, nevi_confidence: bool = False, position: bool = False
) -> Source:
    """Return SLICE-3D as published by Kaggle or by ISIC.

    Where a folder holds Kaggle's train and test files, the train files are read.

    Args:
        path: the folder with the metadata and the images.
        measured: reads the scanner's measurements, which are computed from the picture.
        nevi_confidence: also reads a network's nevus score.
        position: also reads the lesion's position in the scanner.

    Raises:
        CohortError: no known layout is here, or its table lacks a column.
    """
    layout = _find_layout(path)
    fields = columns_of(measured=measured, nevi_confidence=nevi_confidence, position=position)
    refuse_leaks(fields)
    metadata = _read_table(layout, fields)
    truth, notes = _read_truth(layout, metadata.lines)
    data_set = DataSet(
        name="slice3d",
        schema=FieldSchema(fields=tuple(fields.values())),
        labels=LABELS if layout.labelled else (),
        malignant_labels=("malignant",) if layout.labelled else (),
        licence=layout.licence,
        citation=CITATION,
        notes=notes,
    )

    def lines(columns: dict[str, Field]) -> Iterator[Line]:
        return _lines(metadata, truth, columns)

    def groups() -> Iterator[Group]:
        for line in lines({}):
            if layout.images.has(line.image_key):
                yield Group(line.group_id, read_label(line.label, data_set.labels)[0])

    def rows() -> Iterator[LesionImage | DroppedRow]:
        yield from metadata.dropped
        for line in lines(fields):
            yield read_line(line, data_set, layout.images)

    return make_source(data_set, groups, rows)


def _find_layout(path: Path) -> Layout:
    if (path / "train-metadata.csv").is_file():
        table = path / "train-metadata.csv"
        return Layout(table, None, True, _kaggle_images(path, "train"), "CC BY-NC 4.0")
    for prefix in ISIC_PREFIXES:
        folder = path / f"{prefix}_Input"
        if folder.is_dir():
            truth = path / f"{prefix}_GroundTruth.csv"
            licence = LICENCES.get(prefix, "CC BY-NC 4.0")
            images = FolderImages(folder, ".jpg")
            return Layout(folder / "metadata.csv", truth, True, images, licence)
    if (path / "test-metadata.csv").is_file():
        table = path / "test-metadata.csv"
        return Layout(table, None, False, _kaggle_images(path, "test"), "CC BY-NC 4.0")
    raise CohortError(
        f"{path}: expected train-metadata.csv or test-metadata.csv (Kaggle) or a folder "
        f"{' or '.join(f'{prefix}_Input' for prefix in ISIC_PREFIXES)} (ISIC, unpacked)"
    )


def _kaggle_images(path: Path, part: str) -> Images:
    for folder in (path / f"{part}-image" / "image", path / f"{part}-image"):
        if folder.is_dir():
            return FolderImages(folder, ".jpg")
    file = path / f"{part}-image.hdf5"
    if file.is_file():
        return Hdf5Images(file)
    raise CohortError(f"{path}: expected the tiles in {part}-image.hdf5 or {part}-image/")


def _read_table(layout: Layout, fields: Iterable[str]) -> Metadata:
    """Return the metadata as text columns, each line with its number in the file."""
    header = read_header(layout.table)
    inside = layout.labelled and layout.truth is None
    label_column = _label_column(layout.table, header) if inside else None
    wanted = ["isic_id", "patient_id", *fields]
    require_columns(layout.table, header, wanted)
    if label_column is not None:
        wanted.append(label_column)
    broken: list[int] = []

    def skip(row: Any) -> str:
        broken.append(row.number)
        return "skip"

    try:
        lines = pacsv.read_csv(
            layout.table,
            # Arrow tells a broken line's number only to a single thread.
            read_options=pacsv.ReadOptions(use_threads=False),
            parse_options=pacsv.ParseOptions(invalid_row_handler=skip),
            convert_options=pacsv.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(wanted, pa.string()),
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise CohortError(f"{layout.table}: expected a CSV file in UTF-8: {error}") from None
    numbers = np.setdiff1d(np.arange(2, lines.num_rows + len(broken) + 2), broken)
    dropped = tuple(wrong_length(number, len(header)) for number in broken)
    return Metadata(lines.append_column("number", pa.array(numbers)), label_column, dropped)


def _label_column(path: Path, header: list[str]) -> str:
    found = next((name for name in LABEL_COLUMNS if name in header), None)
    if found is None:
        raise CohortError(f"{path}: expected a column {' or '.join(LABEL_COLUMNS)}, got neither")
    return found


def _read_truth(layout: Layout, table: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the label cell of every tile that the ground truth names, and notes on the join."""
    if layout.truth is None:
        return {}, ()
    truth: dict[str, str] = {}
    column: str | None = None
    for row in read_csv(layout.truth, ("isic_id",)):
        if isinstance(row, DroppedRow):
            raise CohortError(f"{layout.truth}: {row.row}: {row.reason}")
        cells = row[1]
        column = column or _label_column(layout.truth, list(cells))
        if truth.setdefault(cells["isic_id"], cells[column]) != cells[column]:
            raise CohortError(f"{layout.truth}: {cells['isic_id']} has two labels")
    known = pc.is_in(table["isic_id"], value_set=pa.array(list(truth), pa.string()))
    matched = int(pc.sum(known).as_py() or 0)
    notes = []
    if matched < table.num_rows:
        notes.append(f"{table.num_rows - matched} tiles are not in the ground truth: unlabelled.")
    if matched < len(truth):
        notes.append(f"{len(truth) - matched} tiles of the ground truth have no metadata.")
    return truth, tuple(notes)


def _lines(metadata: Metadata, truth: dict[str, str], columns: dict[str, Field]) -> Iterator[Line]:
    """Yield the lines with the cells of these columns, each patient's together."""
    label_column = metadata.label_column
    label_columns = [] if label_column is None else [label_column]
    table = metadata.lines.select(["number", "isic_id", "patient_id", *label_columns, *columns])
    # Positions are sorted, not columns: the table is several hundred MB in full.
    order = pc.sort_indices(table, [("patient_id", "ascending"), ("number", "ascending")])
    names = {column: field.name for column, field in columns.items()}
    for start in range(0, len(order), BATCH_LINES):
        for cells in table.take(order.slice(start, BATCH_LINES)).to_pylist():
            isic_id, patient_id = cells["isic_id"], cells["patient_id"]
            raw = truth.get(isic_id) if label_column is None else cells[label_column]
            yield Line(
                number=cells["number"],
                image_key=isic_id,
                image_id=isic_id,
                lesion_id=isic_id,
                patient_id=None if is_missing(patient_id) else patient_id,
                label=None if raw is None else LABEL_WORDS.get(raw.strip(), raw),
                cells={name: cells[column] for column, name in names.items()},
            )
