"""PAD-UFES-20: clinical images from smartphones with patient history and lesion symptoms."""

from pathlib import Path

from bundle.fields import Field, FieldSchema, Level
from cohort.images import find_folders, index_images
from cohort.lines import DataSet, Line, read_csv, source_of_lines
from cohort.rows import DroppedRow, Source
from cohort.vocabulary import (
    AGE_YEARS,
    DIAMETER_MM,
    FITZPATRICK_SKIN_TYPE,
    SEX,
    site_field,
)

TABLE_NAME = "metadata.csv"
IMAGE_FOLDERS = ("imgs_part_1", "imgs_part_2", "imgs_part_3", "images")
# Published column to canonical field; the other fields carry their column's name.
COLUMNS = {
    "age": "age_years",
    "gender": "sex",
    "fitspatrick": "fitzpatrick_skin_type",
    "region": "anatom_site",
    "diameter_1": "diameter_mm",
    "diameter_2": "diameter_2_mm",
}
# Ids and label. `biopsed` is never read: it is true for all cancers.
OTHER_COLUMNS = ("patient_id", "lesion_id", "diagnostic", "img_id")

# Where the parents' families come from, as the table has it; Pomerania is kept beside Germany.
BACKGROUNDS = (
    "Austria",
    "Brazil",
    "Czech",
    "France",
    "Germany",
    "Israel",
    "Italy",
    "Netherlands",
    "Norway",
    "Poland",
    "Pomerania",
    "Portugal",
    "Spain",
)
SITES = (
    "abdomen",
    "arm",
    "back",
    "chest",
    "ear",
    "face",
    "foot",
    "forearm",
    "hand",
    "lip",
    "neck",
    "nose",
    "scalp",
    "thigh",
)


def _boolean(name: str, level: Level, description: str) -> Field:
    return Field(name=name, level=level, kind="boolean", description=description)


def _background(parent: str) -> Field:
    return Field(
        name=f"background_{parent}",
        level="patient",
        kind="categorical",
        categories=BACKGROUNDS,
        category_aliases={"Brasil": "Brazil"},
        description=f"Where the {parent}'s family comes from.",
    )


PAD_UFES_20 = DataSet(
    name="pad_ufes_20",
    schema=FieldSchema(
        fields=(
            AGE_YEARS,
            SEX,
            FITZPATRICK_SKIN_TYPE,
            _boolean("smoke", "patient", "Smokes."),
            _boolean("drink", "patient", "Drinks alcohol."),
            _background("father"),
            _background("mother"),
            _boolean("pesticide", "patient", "Works with pesticides."),
            _boolean("skin_cancer_history", "patient", "Skin cancer before, own or family."),
            _boolean("cancer_history", "patient", "Any cancer before, own or family."),
            _boolean("has_piped_water", "patient", "Piped water at home."),
            _boolean("has_sewage_system", "patient", "Sewage system at home."),
            site_field(SITES),
            DIAMETER_MM,
            Field(
                name="diameter_2_mm",
                level="lesion",
                kind="numeric",
                unit="mm",
                aliases=("diameter_2",),
                minimum=0,
                maximum=300,
                description="Diameter across the longest one.",
            ),
            _boolean("itch", "lesion", "The lesion itches."),
            _boolean("grew", "lesion", "The lesion has grown."),
            _boolean("hurt", "lesion", "The lesion hurts."),
            _boolean("changed", "lesion", "The lesion has changed."),
            _boolean("bleed", "lesion", "The lesion bleeds."),
            _boolean("elevation", "lesion", "The lesion is raised."),
        )
    ),
    labels=("ACK", "BCC", "MEL", "NEV", "SCC", "SEK"),
    malignant_labels=("BCC", "MEL", "SCC"),
    licence="CC BY 4.0",
    citation="Pacheco et al. (2020), doi:10.1016/j.dib.2020.106221; data doi:10.17632/zr7vgbcyr2.1",
    notes=(
        "ACK (actinic keratosis) counts as benign.",
        "Missing values tell the class: history and diameters are blank for most lesions that "
        "were not biopsied (ACK, NEV, SEK) and present for every cancer.",
        "A patient's age may differ from image to image: pictures were taken on several visits.",
    ),
)


def pad_ufes_20_source(path: Path) -> Source:
    """Return PAD-UFES-20 as its archives unpack into a folder.

    Lesion ids repeat across patients in the published table, so they are prefixed with the
    patient's.

    Raises:
        CohortError: the table or every image folder is missing, or the table lacks a column.
    """
    folders = find_folders(path, IMAGE_FOLDERS)
    canonical = set(COLUMNS.values())
    columns = COLUMNS | {n: n for n in PAD_UFES_20.schema.names if n not in canonical}
    lines = [
        row if isinstance(row, DroppedRow) else _line(*row, columns)
        for row in read_csv(path / TABLE_NAME, (*OTHER_COLUMNS, *columns))
    ]
    return source_of_lines(PAD_UFES_20, lines, index_images(folders))


def _line(number: int, cells: dict[str, str], columns: dict[str, str]) -> Line:
    return Line(
        number=number,
        image_key=cells["img_id"],
        image_id=cells["img_id"],
        lesion_id=f"{cells['patient_id']}_{cells['lesion_id']}",
        patient_id=cells["patient_id"],
        label=cells["diagnostic"],
        cells={field: cells[column] for column, field in columns.items()},
    )
