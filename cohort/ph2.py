"""PH2: dermoscopic images of nevi and melanomas; no age, sex or patient ids."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bundle.errors import CohortError
from bundle.fields import Field, FieldSchema
from cohort.images import FolderImages, find_folders, inner_folder
from cohort.lines import Cells, DataSet, Line, require_columns, source_of_lines, wrong_length
from cohort.rows import DroppedRow, Source

FOLDER = "PH2Dataset"
TABLE_NAME = "PH2_dataset.txt"
IMAGE_FOLDER = "PH2 Dataset images"
LABEL_WORDS = {"0": "common nevus", "1": "atypical nevus", "2": "melanoma"}


def _words(name: str, meanings: dict[str, str]) -> Field:
    return Field(
        name=name,
        level="lesion",
        kind="categorical",
        categories=tuple(meanings.values()),
        category_aliases=meanings,
    )


TYPICAL = {"A": "absent", "T": "typical", "AT": "atypical"}
PRESENT = {"A": "absent", "P": "present"}
CRITERIA = {
    "Asymmetry": _words("asymmetry", {"0": "none", "1": "one axis", "2": "both axes"}),
    "Pigment Network": _words("pigment_network", {"T": "typical", "AT": "atypical"}),
    "Dots/Globules": _words("dots_and_globules", TYPICAL),
    "Streaks": _words("streaks", PRESENT),
    "Regression Areas": _words("regression_structures", PRESENT),
    "Blue-Whitish Veil": _words("blue_whitish_veil", PRESENT),
}
# The numbers that the column lists, each its own field.
COLOURS = {
    number: Field(name=f"colour_{colour}", level="lesion", kind="boolean")
    for number, colour in {
        "1": "white",
        "2": "red",
        "3": "light_brown",
        "4": "dark_brown",
        "5": "blue_gray",
        "6": "black",
    }.items()
}

PH2 = DataSet(
    name="ph2",
    schema=FieldSchema(fields=()),
    labels=tuple(LABEL_WORDS.values()),
    malignant_labels=("melanoma",),
    licence="research and education only, no redistribution",
    citation="Mendonça et al. (2013), doi:10.1109/EMBC.2013.6610779",
    notes=(
        "No patient ids: splits keep lesions, not patients, apart.",
        "No age, sex or site. The dermoscopic criteria are an expert's reading of the picture and "
        "are left out unless asked for.",
    ),
)


def ph2_source(path: Path, *, criteria: bool = False) -> Source:
    """Return PH2 as its archive unpacks into a folder. Malignant is melanoma, clinical diagnosis 2.

    Args:
        path: `PH2Dataset`, or the folder that holds it.
        criteria: also reads the dermoscopic criteria that an expert saw in the picture.

    Raises:
        CohortError: the table or the image folder is missing, or the table lacks a column.
    """
    root = inner_folder(path, FOLDER)
    (folder,) = find_folders(root, (IMAGE_FOLDER,))
    lines = [
        row if isinstance(row, DroppedRow) else _line(*row)
        for row in _read_table(root / TABLE_NAME)
    ]
    fields = (*CRITERIA.values(), *COLOURS.values()) if criteria else ()
    data_set = replace(PH2, schema=FieldSchema(fields=fields))
    return source_of_lines(data_set, lines, FolderImages(folder, ".bmp"))


def _read_table(path: Path) -> Iterator[tuple[int, Cells] | DroppedRow]:
    """Yield (line number, cells by column) until the legend, which no bar begins."""
    if not path.is_file():
        raise CohortError(f"{path}: expected the data set's table, got no such file")
    header: list[str] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.startswith(b"|"):
            break
        cells = _cells(line.decode("ascii", "replace"))
        if not header:
            header = cells
            names = ("Name", "Clinical Diagnosis", *CRITERIA, "Colors")
            require_columns(path, header, names)
        elif len(cells) == len(header):
            yield number, dict(zip(header, cells, strict=True))
        else:
            yield wrong_length(number, len(header))
    if not header:
        raise CohortError(f"{path}: line 1: expected a header between bars ||, got none")


def _cells(line: str) -> list[str]:
    """Return the cells; double bars stand around groups of them and single ones between them."""
    inner = line.strip().removeprefix("||").removesuffix("||")
    return [cell.strip() for group in inner.split("||") for cell in group.split("|")]


def _line(number: int, cells: Cells) -> Line:
    name, diagnosis = cells["Name"], cells["Clinical Diagnosis"]
    return Line(
        number=number,
        image_key=f"{name}/{name}_Dermoscopic_Image/{name}",
        image_id=name,
        lesion_id=name,
        patient_id=None,
        label=LABEL_WORDS.get(diagnosis, diagnosis),
        cells={
            **{field.name: cells[column] for column, field in CRITERIA.items()},
            **{field.name: str(number in cells["Colors"]) for number, field in COLOURS.items()},
        },
    )
