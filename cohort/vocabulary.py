"""Canonical fields that several data sets share, and the spellings that mean the same.

Vocabulary and rules are ISIC's where ISIC has them (isic-metadata); sites finer than ISIC's
general ones keep the word their data set uses, and know which general site they lie in.
"""

from collections.abc import Callable
from typing import Any

from isic_metadata.fields import (
    Age,
    AnatomSiteGeneralEnum,
    ClinSizeLongDiamMm,
    FitzpatrickSkinType,
)

from bundle.errors import InvalidRecord
from bundle.fields import Field, Level, Value

SKIN_TYPES = tuple(kind.value for kind in FitzpatrickSkinType)
GENERAL_SITES = tuple(sorted(site.value for site in AnatomSiteGeneralEnum))

AGE_YEARS = Field(
    name="age_years",
    level="patient",
    kind="numeric",
    unit="years",
    aliases=("age", "age_approx"),
    minimum=0,
    maximum=120,
    description="Age when the picture was taken.",
)
SEX = Field(
    name="sex",
    level="patient",
    kind="categorical",
    categories=("female", "male"),
    aliases=("gender",),
    category_aliases={"f": "female", "m": "male"},
)
DIAMETER_MM = Field(
    name="diameter_mm",
    level="lesion",
    kind="numeric",
    unit="mm",
    aliases=("clin_size_long_diam_mm", "diameter_1"),
    minimum=0,
    maximum=300,
    description="Longest diameter.",
)
FITZPATRICK_SKIN_TYPE = Field(
    name="fitzpatrick_skin_type",
    level="patient",
    kind="categorical",
    categories=SKIN_TYPES,
    aliases=("fitzpatrick", "fitspatrick"),
    category_aliases={
        spelling: kind
        for number, kind in enumerate(SKIN_TYPES, start=1)
        for spelling in (f"{number}", f"{number}.0")
    },
)

# A site to the next larger one. `site_field` uses it to read a finer word than a cohort knows.
SITE_LIES_IN = {
    "scalp": "head/neck",
    "face": "head/neck",
    "ear": "head/neck",
    "neck": "head/neck",
    "nose": "face",
    "lip": "face",
    "chest": "anterior torso",
    "abdomen": "anterior torso",
    "back": "posterior torso",
    "anterior torso": "trunk",
    "lateral torso": "trunk",
    "posterior torso": "trunk",
    "arm": "upper extremity",
    "forearm": "upper extremity",
    "hand": "upper extremity",
    "thigh": "lower extremity",
    "foot": "lower extremity",
    "buttocks": "lower extremity",
    "palms/soles": "acral",
    "genital": "anogenital region",
    "anogenital region": "oral/genital",
}
# What data sets call the column.
SITE_COLUMNS = (
    "anatom_site_1",
    "anatom_site_general",
    "anatom_site_general_challenge",
    "localization",
    "location",
    "region",
    "site",
)
# Other spellings of one site.
SITE_SPELLINGS = {
    "head and neck": "head/neck",
    "head & neck": "head/neck",
    "head neck": "head/neck",
    "head_neck_face": "head/neck",
    "torso": "trunk",
    "torso back": "posterior torso",
    "torso front": "anterior torso",
    "upper_extremity": "upper extremity",
    "upper limb": "upper extremity",
    "upper limbs": "upper extremity",
    "lower_extremity": "lower extremity",
    "lower limb": "lower extremity",
    "lower limbs": "lower extremity",
    "leg": "lower extremity",
    "genital areas": "genital",
    "genitals": "genital",
}


def site_field(categories: tuple[str, ...], *, level: Level = "lesion") -> Field:
    """Return a cohort's `anatom_site`, reading finer words and other spellings as its categories.

    Args:
        categories: the sites that the cohort has, spelled canonically.
        level: a site is a lesion's unless said otherwise.
    """
    aliases = {}
    for word in (*SITE_LIES_IN, *SITE_SPELLINGS):
        site: str | None = SITE_SPELLINGS.get(word, word)
        while site is not None and site not in categories:
            site = SITE_LIES_IN.get(site)
        if site is not None and word not in categories:
            aliases[word] = site
    return Field(
        name="anatom_site",
        level=level,
        kind="categorical",
        categories=categories,
        aliases=SITE_COLUMNS,
        category_aliases=aliases,
    )


def adapted(field: Field, **changes: Any) -> Field:
    """Return the field with some of its attributes changed, checked again."""
    return Field(**{**field.model_dump(), **changes})


# ISIC's rules for raw values, by canonical name: "85+" is 85 years, "2 cm" is 20 mm.
RAW_RULES: dict[str, Callable[[str], Any]] = {
    "age_years": Age.handle_85plus,
    "diameter_mm": ClinSizeLongDiamMm.parse_measurement_str,
}


def read_value(field: Field, raw: str) -> Value:
    """Return the checked value of one cell of a table, or None where it says missing.

    Raises:
        InvalidRecord: the field does not accept it.
    """
    rule = RAW_RULES.get(field.name)
    if rule is None:
        return field.parse(raw)
    try:
        return field.parse(rule(raw.strip().lower()))
    except ValueError:
        raise InvalidRecord(
            f"{field.name}: expected a number with or without its unit, got {raw!r}",
            field=field.name,
        ) from None
