"""ISIC 2019: dermoscopic images of HAM10000, BCN20000 and MSK; no patient ids."""

from pathlib import Path

from bundle.fields import FieldSchema
from cohort.images import find_folders, index_images
from cohort.isic import cells_by_field, labelled_lines, lesion_or_image, read_ground_truth
from cohort.lines import Cells, DataSet, Line, read_csv, source_of_lines
from cohort.rows import Source
from cohort.vocabulary import AGE_YEARS, GENERAL_SITES, SEX, adapted, site_field

TABLE_NAME = "ISIC_2019_Training_Metadata.csv"
TRUTH_NAME = "ISIC_2019_Training_GroundTruth.csv"
IMAGE_FOLDERS = ("ISIC_2019_Training_Input", "images")
FIELDS = {
    "age_approx": adapted(AGE_YEARS, level="lesion"),
    "sex": adapted(SEX, level="lesion"),
    "anatom_site_general": site_field(GENERAL_SITES),
}
# One-hot columns; a hot UNK reads as a missing label.
LABELS = ("AK", "BCC", "BKL", "DF", "MEL", "NV", "SCC", "VASC")
UNKNOWN = "UNK"

ISIC2019 = DataSet(
    name="isic2019",
    schema=FieldSchema(fields=tuple(FIELDS.values())),
    labels=LABELS,
    malignant_labels=("AK", "BCC", "MEL", "SCC"),
    licence="CC BY-NC",
    citation="Tschandl et al. (2018), doi:10.1038/sdata.2018.161; Codella et al. (2018), "
    "arXiv:1710.05006; Combalia et al. (2019), arXiv:1908.02288",
    notes=(
        "No patient ids: age and sex are lesion fields, and splits keep lesions, not patients, "
        "apart.",
        "AK (actinic keratosis) counts as malignant, as HAM10000's akiec does.",
        "It contains HAM10000 under the same lesion ids, and images of BCN20000.",
        "An image without a lesion id is a lesion of its own.",
    ),
)


def isic2019_source(path: Path) -> Source:
    """Return ISIC 2019's training part, as its archive and tables unpack into a folder.

    MEL, BCC, SCC and AK count as malignant: the challenge has no such column, and AK follows
    HAM10000's akiec.

    Raises:
        CohortError: a table or every image folder is missing, or a table lacks a column.
    """
    images = index_images(find_folders(path, IMAGE_FOLDERS))
    truth = read_ground_truth(path / TRUTH_NAME, "image", (*LABELS, UNKNOWN))
    rows = read_csv(path / TABLE_NAME, ("image", "lesion_id", *FIELDS))
    return source_of_lines(ISIC2019, labelled_lines(rows, truth, _line), images)


def _line(number: int, cells: Cells, label: str | None) -> Line:
    image_id = cells["image"]
    return Line(
        number=number,
        image_key=f"{image_id}.jpg",
        image_id=image_id,
        lesion_id=lesion_or_image(cells["lesion_id"], image_id),
        patient_id=None,
        label=label,
        cells=cells_by_field(cells, FIELDS),
    )
