"""HIBA (Hospital Italiano de Buenos Aires): dermoscopic and clinical images with patient ids.

Reads ISIC's export of the collection in both of its forms: the older has the diagnosis as one text,
the newer as ISIC's hierarchy `diagnosis_1` to `diagnosis_3`.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from isic_metadata.fields import AnatomSiteEnum, AnatomSiteSpecialEnum, DermoscopicTypeEnum

from bundle.errors import CohortError
from bundle.fields import Field, FieldSchema, is_missing
from cohort.images import find_folders, index_images
from cohort.isic import cells_by_field, lesion_or_image, patient_or_none
from cohort.lines import DataSet, Line, find_table, read_csv, read_header, source_of_lines
from cohort.rows import DroppedRow, LesionImage, Source
from cohort.vocabulary import AGE_YEARS, FITZPATRICK_SKIN_TYPE, GENERAL_SITES, SEX, site_field

TABLE_NAMES = ("metadata.csv", "images/metadata.csv")
IMAGE_FOLDERS = ("images",)
IDS = ("isic_id", "lesion_id", "patient_id")


def _words(name: str, categories: tuple[str, ...], description: str) -> Field:
    return Field(
        name=name,
        level="lesion",
        kind="categorical",
        categories=categories,
        description=description,
    )


def _history(name: str, description: str) -> Field:
    return Field(name=name, level="patient", kind="boolean", description=description)


PATIENT_FIELDS = {
    "age_approx": AGE_YEARS,
    "sex": SEX,
    "fitzpatrick_skin_type": FITZPATRICK_SKIN_TYPE,
    "family_hx_mm": _history("family_hx_mm", "Melanoma in the family."),
    "personal_hx_mm": _history("personal_hx_mm", "Melanoma before."),
}
SITES = ("anogenital region", "head/neck", "lower extremity", "trunk", "upper extremity")
SECOND_SITES = tuple(
    sorted(site.value.split(":")[1] for site in AnatomSiteEnum if site.value.count(":") == 1)
)
NEWER_FIELDS = {
    **PATIENT_FIELDS,
    "anatom_site_1": site_field(SITES),
    "anatom_site_2": _words("anatom_site_2", SECOND_SITES, "Site within the first."),
    "anatom_site_special": _words(
        "anatom_site_special",
        tuple(sorted(site.value for site in AnatomSiteSpecialEnum)),
        "Acral, nail, oral or genital skin.",
    ),
}
OLDER_FIELDS = {**PATIENT_FIELDS, "anatom_site_general": site_field(GENERAL_SITES)}
DERMOSCOPIC_TYPE = _words(
    "dermoscopic_type",
    tuple(sorted(kind.value for kind in DermoscopicTypeEnum)),
    "How the dermoscope lights and touches the skin.",
)

# Label, and the other words of either form that mean it. One of the hierarchy's second level stands
# for all below it that are not named.
DIAGNOSES: dict[str, tuple[str, ...]] = {
    "actinic keratosis": ("solar or actinic keratosis",),
    "basal cell carcinoma": (),
    "dermatofibroma": (),
    "lichenoid keratosis": ("lichen planus like keratosis",),
    "melanoma": (
        "melanoma in situ",
        "melanoma invasive",
        "melanoma metastasis",
        "melanoma, nos",
        "malignant melanocytic proliferations (melanoma)",
    ),
    "nevus": ("benign melanocytic proliferations",),
    "seborrheic keratosis": (),
    "solar lentigo": (),
    "squamous cell carcinoma": (
        "squamous cell carcinoma in situ",
        "squamous cell carcinoma, invasive",
        "squamous cell carcinoma, nos",
        "malignant epidermal proliferations",
    ),
    "vascular lesion": ("vascular", "benign soft tissue proliferations - vascular"),
}
LABEL_OF = {word: label for label, words in DIAGNOSES.items() for word in (label, *words)}

HIBA = DataSet(
    name="hiba",
    schema=FieldSchema(fields=tuple(NEWER_FIELDS.values())),
    labels=tuple(DIAGNOSES),
    malignant_labels=("basal cell carcinoma", "melanoma", "squamous cell carcinoma"),
    licence="CC BY",
    citation="Ricci Lara et al. (2023), doi:10.1038/s41597-023-02630-0; data doi:10.34970/587329",
    notes=(
        "Malignant is what diagnosis_1 says (newer export), or benign_malignant (older) where it "
        "is there; else melanoma, basal and squamous cell carcinoma.",
        "Dermoscopic and clinical images stand side by side, also of one lesion.",
    ),
)


def hiba_source(path: Path, *, dermoscopic_type: bool = False) -> Source:
    """Return HIBA as ISIC's archive exports the collection.

    Malignant is what the data set's own column says: `diagnosis_1` of the newer export, where
    actinic keratosis is indeterminate, so that its malignancy is not known; `benign_malignant` of
    the older where it is there. Without one, melanoma, basal and squamous cell carcinoma are.
    An exact copy of another patient's picture is dropped.

    Args:
        path: the folder with the metadata and the images.
        dermoscopic_type: also reads a property of the picture, which clinical images lack.

    Raises:
        CohortError: the table or every image folder is missing, or the table has neither form.
    """
    table = find_table(path, TABLE_NAMES)
    images = index_images(find_folders(path, IMAGE_FOLDERS))
    fields, diagnoses, malignancy = _form_of(table, read_header(table))
    if dermoscopic_type:
        fields = {**fields, "dermoscopic_type": DERMOSCOPIC_TYPE}

    def make_line(number: int, cells: dict[str, str]) -> Line:
        image_id = cells["isic_id"]
        return Line(
            number=number,
            image_key=f"{image_id}.jpg",
            image_id=image_id,
            lesion_id=lesion_or_image(cells["lesion_id"], image_id),
            patient_id=patient_or_none(cells["patient_id"]),
            label=_label([cells[name] for name in diagnoses]),
            cells=cells_by_field(cells, fields),
            malignancy=cells.get(malignancy),
        )

    lines = [
        row if isinstance(row, DroppedRow) else make_line(*row)
        for row in read_csv(table, (*IDS, *diagnoses, *fields))
    ]
    data_set = replace(HIBA, schema=FieldSchema(fields=tuple(fields.values())))
    source = source_of_lines(data_set, lines, images)
    return replace(source, rows=lambda: _without_copies(source.rows))


def _form_of(path: Path, header: list[str]) -> tuple[dict[str, Field], tuple[str, ...], str]:
    """Return the fields by column, the diagnoses finest first, and the malignancy's column."""
    if "diagnosis_1" in header:
        return dict(NEWER_FIELDS), ("diagnosis_3", "diagnosis_2"), "diagnosis_1"
    if "diagnosis" in header:
        # Of this form not every export has all columns.
        there = {column: field for column, field in OLDER_FIELDS.items() if column in header}
        needed = {"fitzpatrick_skin_type": FITZPATRICK_SKIN_TYPE}
        return {**there, **needed}, ("diagnosis",), "benign_malignant"
    raise CohortError(
        f"{path}: line 1: expected a column diagnosis (older export) or diagnosis_1 to "
        "diagnosis_3 (newer), got neither: export the collection again"
    )


def _label(words: list[str]) -> str:
    """Return the label that the finest known word means, else the finest word as it stands."""
    given = [word for word in words if not is_missing(word)]
    known = (LABEL_OF.get(word.strip().casefold()) for word in given)
    return next((label for label in known if label is not None), given[0] if given else "")


def _without_copies(
    rows: Callable[[], Iterator[LesionImage | DroppedRow]],
) -> Iterator[LesionImage | DroppedRow]:
    """Yield the rows, a picture that another patient's row has had as a dropped row."""
    owner: dict[bytes, str] = {}
    for row in rows():
        if isinstance(row, LesionImage):
            digest = hashlib.sha256(row.image).digest()
            if owner.setdefault(digest, row.group_id) != row.group_id:
                yield DroppedRow(row.row, "the same picture stands under another patient")
                continue
        yield row
