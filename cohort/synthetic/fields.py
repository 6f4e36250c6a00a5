"""The synthetic cohort's field schema: SLICE-3D-like, at lesion and patient level."""

from bundle.fields import Field, FieldSchema
from cohort.synthetic.lesions import SITES
from cohort.synthetic.phenotype import SUN_LEVELS
from cohort.vocabulary import (
    AGE_YEARS,
    DIAMETER_MM,
    FITZPATRICK_SKIN_TYPE,
    SEX,
    adapted,
    site_field,
)

PATIENT_FIELDS = (
    AGE_YEARS,
    adapted(SEX, description="Sex in the patient's file."),
    adapted(
        FITZPATRICK_SKIN_TYPE,
        description="Fitzpatrick skin type, I (always burns) to VI (never burns).",
    ),
    Field(
        name="family_history_melanoma",
        level="patient",
        kind="boolean",
        description="Whether a first-degree relative had a melanoma.",
    ),
    Field(
        name="personal_history_skin_cancer",
        level="patient",
        kind="boolean",
        description="Whether the patient had a skin cancer before.",
    ),
    Field(
        name="sun_exposure",
        level="patient",
        kind="categorical",
        categories=SUN_LEVELS,
        description="Sun exposure over the patient's life, as the patient tells it.",
    ),
    Field(
        name="naevus_count",
        level="patient",
        kind="numeric",
        unit="naevi",
        minimum=0,
        maximum=5000,
        description="Number of naevi on the whole body, estimated.",
    ),
)


def _measured(
    name: str, alias: str, unit: str | None, low: float, high: float, description: str
) -> Field:
    return Field(
        name=name,
        level="lesion",
        kind="numeric",
        unit=unit,
        minimum=low,
        maximum=high,
        aliases=(alias,),
        description=f"{description} Measured by the camera's software, with error.",
    )


def _asked(name: str, description: str) -> Field:
    return Field(name=name, level="lesion", kind="boolean", description=description)


LESION_FIELDS = (
    adapted(site_field(SITES), description="Where on the body the lesion lies."),
    DIAMETER_MM,
    _measured("lesion_lightness", "tbp_lv_L", "CIE L*", 0, 100, "Mean lightness in the lesion."),
    _measured("skin_lightness", "tbp_lv_Lext", "CIE L*", 0, 100, "Mean lightness around it."),
    _measured(
        "lesion_contrast", "tbp_lv_deltaLBnorm", "CIELAB", 0, 100, "Contrast to the skin around it."
    ),
    _measured(
        "colour_variation", "tbp_lv_color_std_mean", "CIELAB", 0, 50, "Spread of colour inside it."
    ),
    _measured(
        "eccentricity", "tbp_lv_eccentricity", None, 0, 1, "0 is a circle, towards 1 a line."
    ),
    _measured(
        "border_irregularity", "tbp_lv_norm_border", None, 0, 10, "0 is smooth, 10 most jagged."
    ),
    _asked("changed_recently", "Whether the patient saw it change in the last months."),
    _asked("itch", "Whether it itches."),
    _asked("bleed", "Whether it bled."),
    _asked("elevation", "Whether it is raised to the touch."),
)

SCHEMA = FieldSchema(fields=PATIENT_FIELDS + LESION_FIELDS)
