"""MILK10k: one clinical close-up and one dermoscopic image of each lesion; no patient ids."""

from dataclasses import replace
from pathlib import Path

from bundle.fields import Field, FieldSchema
from cohort.images import FolderImages, find_folders, inner_folder
from cohort.isic import cells_by_field, labelled_lines, read_ground_truth
from cohort.lines import Cells, DataSet, Line, read_csv, source_of_lines
from cohort.rows import Source
from cohort.vocabulary import AGE_YEARS, SEX, adapted, site_field

TABLE_NAME = "MILK10k_Training_Metadata.csv"
TRUTH_NAME = "MILK10k_Training_GroundTruth.csv"
IMAGE_FOLDER = "MILK10k_Training_Input"
SITES = (
    "foot",
    "genital",
    "hand",
    "head/neck",
    "lower extremity",
    "trunk",
    "upper extremity",
)
TONES = tuple("012345")
FIELDS = {
    "age_approx": adapted(AGE_YEARS, level="lesion"),
    "sex": adapted(SEX, level="lesion"),
    "skin_tone_class": Field(
        name="skin_tone_class",
        level="lesion",
        kind="categorical",
        categories=TONES,
        category_aliases={f"{tone}.0": tone for tone in TONES},
        description="From 0, very dark, to 5, very light.",
    ),
    "site": site_field(SITES),
}
MONET_COLUMNS = (
    "MONET_ulceration_crust",
    "MONET_hair",
    "MONET_vasculature_vessels",
    "MONET_erythema",
    "MONET_pigmented",
    "MONET_gel_water_drop_fluid_dermoscopy_liquid",
    "MONET_skin_markings_pen_ink_purple_pen",
)
MONET_FIELDS = {
    column: Field(
        name=column.lower(),
        level="lesion",
        kind="numeric",
        description="How much of it the network MONET sees in the picture.",
    )
    for column in MONET_COLUMNS
}

MILK10K = DataSet(
    name="milk10k",
    schema=FieldSchema(fields=tuple(FIELDS.values())),
    labels=(
        "AKIEC",
        "BCC",
        "BEN_OTH",
        "BKL",
        "DF",
        "INF",
        "MAL_OTH",
        "MEL",
        "NV",
        "SCCKA",
        "VASC",
    ),
    malignant_labels=("AKIEC", "BCC", "MAL_OTH", "MEL", "SCCKA"),
    licence="",
    citation="MILK study team (2025), MILK10k, ISIC Archive",
    notes=(
        "No patient ids: age, sex and skin tone are lesion fields, and splits keep lesions, not "
        "patients, apart.",
        "AKIEC (actinic keratosis and intraepithelial carcinoma) counts as malignant, as in "
        "HAM10000; SCCKA is squamous cell carcinoma with keratoacanthoma.",
    ),
)


def milk10k_source(path: Path, *, monet: bool = False) -> Source:
    """Return MILK10k's training part, as its archive and tables unpack into a folder.

    Malignant are AKIEC (as HAM10000's akiec), BCC, MAL_OTH, MEL and SCCKA: the data set has no such
    column. The licence is what the rows of the metadata say.

    Args:
        path: the folder with the images' folder and both tables.
        monet: also reads what a network sees in each picture.

    Raises:
        CohortError: a table or the image folder is missing, or a table lacks a column.
    """
    (folder,) = find_folders(path, (IMAGE_FOLDER,))
    fields = {**FIELDS, **MONET_FIELDS} if monet else FIELDS
    licences: set[str] = set()

    def make_line(number: int, cells: Cells, label: str | None) -> Line:
        lesion_id, image_id = cells["lesion_id"], cells["isic_id"]
        licences.add(cells["copyright_license"])
        return Line(
            number=number,
            image_key=f"{lesion_id}/{image_id}",
            image_id=image_id,
            lesion_id=lesion_id,
            patient_id=None,
            label=label,
            cells=cells_by_field(cells, fields),
        )

    truth = read_ground_truth(path / TRUTH_NAME, "lesion_id", MILK10K.labels)
    rows = read_csv(path / TABLE_NAME, ("lesion_id", "isic_id", "copyright_license", *fields))
    lines = labelled_lines(rows, truth, make_line)
    data_set = replace(
        MILK10K,
        schema=FieldSchema(fields=tuple(fields.values())),
        licence=", ".join(sorted(licences)),
    )
    return source_of_lines(data_set, lines, FolderImages(inner_folder(folder, folder.name), ".jpg"))
