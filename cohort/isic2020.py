"""ISIC 2020 (SIIM): dermoscopic images, about sixteen lesions a patient."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bundle.errors import CohortError
from bundle.fields import FieldSchema
from cohort.images import Images, find_folders, index_images
from cohort.isic import cells_by_field, lesion_or_image, patient_or_none
from cohort.lines import Cells, DataSet, Line, find_table, read_csv, source_of_lines
from cohort.rows import DroppedRow, Source
from cohort.vocabulary import AGE_YEARS, SEX, site_field

# ISIC's second version, which adds lesion ids, its first, and Kaggle's copy of the first.
TABLE_NAMES = (
    "ISIC_2020_Training_GroundTruth_v2.csv",
    "ISIC_2020_Training_GroundTruth.csv",
    "train.csv",
)
DUPLICATES_NAME = "ISIC_2020_Training_Duplicates.csv"
IMAGE_FOLDERS = (
    "train",
    "ISIC_2020_Training_JPEG",
    "ISIC_2020_Training_JPEG/train",
    "jpeg/train",
    "images",
)
SITES = (
    "head/neck",
    "lower extremity",
    "oral/genital",
    "palms/soles",
    "trunk",
    "upper extremity",
)
FIELDS = {
    "age_approx": AGE_YEARS,
    "sex": SEX,
    "anatom_site_general_challenge": site_field(SITES),
}
# Every malignant lesion of the set is a melanoma, so that it carries the name.
LABEL_WORDS = {"benign": "benign", "malignant": "melanoma"}

ISIC2020 = DataSet(
    name="isic2020",
    schema=FieldSchema(fields=tuple(FIELDS.values())),
    labels=("benign", "melanoma"),
    malignant_labels=("melanoma",),
    licence="CC BY-NC 4.0",
    citation="Rotemberg et al. (2021), doi:10.1038/s41597-021-00815-z; data doi:10.34970/2020-ds01",
    notes=(
        "The label is the column benign_malignant; each malignant lesion is a melanoma.",
        "An image without a lesion id is a lesion of its own; the first version of the table has "
        "none.",
    ),
)
KEPT_DUPLICATES = (
    f"{DUPLICATES_NAME} was not there: pictures that stand twice are kept, and may stand in two "
    "splits."
)


def isic2020_source(path: Path) -> Source:
    """Return ISIC 2020's training part, with either version of its table.

    Malignant is what the column `benign_malignant` says; all of it is melanoma. The second picture
    of each pair in the published list of duplicates is dropped where the first can be read.

    Raises:
        CohortError: the table or every image folder is missing, or a table lacks a column.
    """
    table = find_table(path, TABLE_NAMES)
    images = index_images(find_folders(path, IMAGE_FOLDERS))
    required = ("image_name", "patient_id", "benign_malignant", *FIELDS)
    lines = [
        row if isinstance(row, DroppedRow) else _line(*row) for row in read_csv(table, required)
    ]
    duplicates = path / DUPLICATES_NAME
    if not duplicates.is_file():
        data_set = replace(ISIC2020, notes=(*ISIC2020.notes, KEPT_DUPLICATES))
        return source_of_lines(data_set, lines, images)
    return source_of_lines(
        ISIC2020, _without_copies(lines, _read_copies(duplicates), images), images
    )


def _line(number: int, cells: Cells) -> Line:
    image_id = cells["image_name"]
    raw = cells["benign_malignant"]
    return Line(
        number=number,
        image_key=f"{image_id}.jpg",
        image_id=image_id,
        lesion_id=lesion_or_image(cells.get("lesion_id", ""), image_id),
        patient_id=patient_or_none(cells["patient_id"]),
        label=LABEL_WORDS.get(raw.strip().casefold(), raw),
        cells=cells_by_field(cells, FIELDS),
    )


def _read_copies(path: Path) -> dict[str, str]:
    """Return the original of every picture that the list calls a copy; never in a circle."""
    originals: dict[str, str] = {}
    for row in read_csv(path, ("image_name_1", "image_name_2")):
        if isinstance(row, DroppedRow):
            raise CohortError(f"{path}: {row.row}: {row.reason}: download the file again")
        first, second = row[1]["image_name_1"], row[1]["image_name_2"]
        if second not in (first, *_originals_of(first, originals)):
            originals[second] = first
    return originals


def _originals_of(name: str, originals: Mapping[str, str]) -> list[str]:
    found = []
    while (name := originals.get(name, "")) != "":
        found.append(name)
    return found


def _without_copies(
    lines: list[Line | DroppedRow], originals: Mapping[str, str], images: Images
) -> list[Line | DroppedRow]:
    readable = {x.image_id for x in lines if isinstance(x, Line) and images.has(x.image_key)}

    def keep_or_drop(line: Line | DroppedRow) -> Line | DroppedRow:
        if isinstance(line, DroppedRow):
            return line
        if readable.isdisjoint(_originals_of(line.image_id, originals)):
            return line
        return DroppedRow(line.row, "a duplicate of another picture, by the published list")

    return [keep_or_drop(line) for line in lines]
