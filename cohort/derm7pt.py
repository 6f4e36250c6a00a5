"""Derm7pt: a clinical and a dermoscopic image of each case; no age and no patient ids."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bundle.errors import CohortError
from bundle.fields import Field, FieldSchema
from cohort.images import FolderImages, find_folders, inner_folder
from cohort.isic import cells_by_field
from cohort.lines import Cells, DataSet, Line, nearest, read_csv, source_of_lines
from cohort.rows import DroppedRow, Source
from cohort.vocabulary import SEX, adapted, site_field

FOLDER = "release_v0"
# The official parts, each a list of positions in meta.csv, the first case being 0.
PARTS = {
    "train": "train_indexes.csv",
    "valid": "valid_indexes.csv",
    "test": "test_indexes.csv",
}
# Columns with the path of each of a case's two images.
IMAGE_COLUMNS = ("clinic", "derm")
SITES = (
    "abdomen",
    "acral",
    "back",
    "buttocks",
    "chest",
    "genital",
    "head/neck",
    "lower extremity",
    "upper extremity",
)


def _words(name: str, *categories: str, description: str = "") -> Field:
    return Field(
        name=name,
        level="lesion",
        kind="categorical",
        categories=categories,
        description=description,
    )


# The lesion's elevation is not PAD-UFES-20's, which is a yes or no.
FIELDS = {
    "sex": adapted(SEX, level="lesion"),
    "location": site_field(SITES),
    "elevation": _words(
        "elevation_grade", "flat", "palpable", "nodular", description="How far it is raised."
    ),
}
CRITERIA = {
    field.name: field
    for field in (
        _words("pigment_network", "absent", "typical", "atypical"),
        _words("streaks", "absent", "regular", "irregular"),
        _words(
            "pigmentation",
            "absent",
            "diffuse regular",
            "localized regular",
            "diffuse irregular",
            "localized irregular",
        ),
        _words("regression_structures", "absent", "blue areas", "white areas", "combinations"),
        _words("dots_and_globules", "absent", "regular", "irregular"),
        _words("blue_whitish_veil", "absent", "present"),
        _words(
            "vascular_structures",
            "absent",
            "arborizing",
            "comma",
            "dotted",
            "hairpin",
            "linear irregular",
            "within regression",
            "wreath",
        ),
    )
}
# The authors' five classes and the diagnoses that each merges.
DIAGNOSES: dict[str, tuple[str, ...]] = {
    "BCC": ("basal cell carcinoma",),
    "MEL": (
        "melanoma",
        "melanoma (in situ)",
        "melanoma (less than 0.76 mm)",
        "melanoma (0.76 to 1.5 mm)",
        "melanoma (more than 1.5 mm)",
        "melanoma metastasis",
    ),
    "MISC": ("dermatofibroma", "lentigo", "melanosis", "miscellaneous", "vascular lesion"),
    "NEV": (
        "blue nevus",
        "clark nevus",
        "combined nevus",
        "congenital nevus",
        "dermal nevus",
        "recurrent nevus",
        "reed or spitz nevus",
    ),
    "SK": ("seborrheic keratosis",),
}
LABEL_OF = {word: label for label, words in DIAGNOSES.items() for word in words}

DERM7PT = DataSet(
    name="derm7pt",
    schema=FieldSchema(fields=tuple(FIELDS.values())),
    labels=tuple(DIAGNOSES),
    malignant_labels=("BCC", "MEL"),
    licence="research use (terms of derm.cs.sfu.ca)",
    citation="Kawahara et al. (2019), doi:10.1109/JBHI.2018.2824327",
    notes=(
        "No patient ids: sex is a lesion field, and splits keep lesions, not patients, apart.",
        "A case's clinical and dermoscopic image are two images of one lesion.",
        "The split is this cohort's own; an official part is read on its own by the option part.",
    ),
)


def derm7pt_source(path: Path, *, part: str | None = None, criteria: bool = False) -> Source:
    """Return Derm7pt as its archive unpacks into a folder.

    The labels are the authors' five merged classes; malignant are MEL and BCC.

    Args:
        path: `release_v0`, or the folder that holds it.
        part: an official part, "train", "valid" or "test"; None reads every case.
        criteria: also reads the seven-point criteria that experts saw in the picture.

    Raises:
        CohortError: a table or the image folder is missing, a table lacks a column, there is no
            such part, or its indexes are no positions of cases.
    """
    root = inner_folder(path, FOLDER)
    (folder,) = find_folders(root, ("images",))
    fields = {**FIELDS, **CRITERIA} if criteria else FIELDS
    table = root / "meta" / "meta.csv"
    rows = list(read_csv(table, ("case_num", "diagnosis", *IMAGE_COLUMNS, *fields)))
    chosen = set(range(len(rows))) if part is None else _read_part(root / "meta", part, len(rows))
    lines: list[Line | DroppedRow] = []
    for position, row in enumerate(rows):
        if isinstance(row, DroppedRow):
            lines.append(row)
        elif position in chosen:
            lines.extend(_case_lines(*row, fields))
        else:
            reason = f"not of the official part {part}"
            lines.extend(DroppedRow(line.row, reason) for line in _case_lines(*row, fields))
    data_set = replace(DERM7PT, schema=FieldSchema(fields=tuple(fields.values())))
    return source_of_lines(data_set, lines, FolderImages(folder))


def _read_part(folder: Path, part: str, num_cases: int) -> set[int]:
    if part not in PARTS:
        raise CohortError(f"unknown part {part!r}; {nearest(part, PARTS)} ({', '.join(PARTS)})")
    path = folder / PARTS[part]
    known = {f"{position}": position for position in range(num_cases)}
    chosen = set()
    for row in read_csv(path, ("indexes",)):
        raw = row.row if isinstance(row, DroppedRow) else row[1]["indexes"].strip()
        if raw not in known:
            raise CohortError(
                f"{path}: expected positions of the {num_cases} cases of meta.csv, from 0, "
                f"got {raw[:16]!r}: unpack the archive again"
            )
        chosen.add(known[raw])
    return chosen


def _case_lines(number: int, cells: Cells, fields: dict[str, Field]) -> Iterator[Line]:
    """Yield a line for each of the case's two images."""
    diagnosis = cells["diagnosis"]
    for column in IMAGE_COLUMNS:
        yield Line(
            number=number,
            image_key=cells[column],
            image_id=cells[column],
            lesion_id=cells["case_num"],
            patient_id=None,
            label=LABEL_OF.get(diagnosis.strip().casefold(), diagnosis),
            cells=cells_by_field(cells, fields),
        )
