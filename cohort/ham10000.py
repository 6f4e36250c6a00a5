"""HAM10000: dermatoscopic images with age, sex and site; no patient ids.

Reads the folder that the archives unpack to, with the table of Dataverse (8 columns) or of its
copies (7 columns), comma- or tab-separated.
"""

from pathlib import Path

from bundle.fields import FieldSchema
from cohort.images import find_folders, index_images
from cohort.lines import DataSet, Line, find_table, read_csv, source_of_lines
from cohort.rows import DroppedRow, Source
from cohort.vocabulary import AGE_YEARS, SEX, adapted, site_field

TABLE_NAMES = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")
IMAGE_FOLDERS = ("HAM10000_images_part_1", "HAM10000_images_part_2", "images")
COLUMNS = {"age": "age_years", "sex": "sex", "localization": "anatom_site"}

SITES = (
    "abdomen",
    "acral",
    "back",
    "chest",
    "ear",
    "face",
    "foot",
    "genital",
    "hand",
    "lower extremity",
    "neck",
    "scalp",
    "trunk",
    "upper extremity",
)

# Without patient ids nothing tells which lesions share a patient, so that age and sex describe the
# lesion. An age of 0 is kept: the table leaves unknown ages blank, rounds the known to 5 years, and
# has no more lesions at 0 than at the ages beside it.
HAM10000 = DataSet(
    name="ham10000",
    schema=FieldSchema(
        fields=(adapted(AGE_YEARS, level="lesion"), adapted(SEX, level="lesion"), site_field(SITES))
    ),
    labels=("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"),
    malignant_labels=("akiec", "bcc", "mel"),
    licence="CC BY-NC 4.0",
    citation="Tschandl, Rosendahl, Kittler (2018), doi:10.1038/sdata.2018.161; "
    "data doi:10.7910/DVN/DBW86T",
    notes=(
        "No patient ids: age and sex are lesion fields, and splits keep lesions, not patients, "
        "apart.",
        "akiec (actinic keratosis and intraepithelial carcinoma) counts as malignant.",
    ),
)


def ham10000_source(path: Path) -> Source:
    """Return HAM10000 as its archives unpack into a folder.

    Raises:
        CohortError: the table or every image folder is missing, or the table lacks a column.
    """
    table = find_table(path, TABLE_NAMES)
    folders = find_folders(path, IMAGE_FOLDERS)
    lines = [
        row if isinstance(row, DroppedRow) else _line(*row)
        for row in read_csv(table, ("lesion_id", "image_id", "dx", *COLUMNS))
    ]
    return source_of_lines(HAM10000, lines, index_images(folders))


def _line(number: int, cells: dict[str, str]) -> Line:
    image_id = cells["image_id"]
    return Line(
        number=number,
        image_key=f"{image_id}.jpg",
        image_id=image_id,
        lesion_id=cells["lesion_id"],
        patient_id=None,
        label=cells["dx"],
        cells={field: cells[column] for column, field in COLUMNS.items()},
    )
