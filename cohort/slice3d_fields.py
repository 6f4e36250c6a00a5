"""SLICE-3D's fields: what a clinician notes, and what the body scanner's software measures."""

from collections.abc import Iterator

from bundle.fields import Field
from cohort.vocabulary import AGE_YEARS, DIAMETER_MM, SEX, site_field

# ISIC's words for general sites, those that the data set has.
SITES = ("anterior torso", "head/neck", "lower extremity", "posterior torso", "upper extremity")
SIMPLE_LOCATIONS = (
    "Head & Neck",
    "Left Arm",
    "Left Leg",
    "Right Arm",
    "Right Leg",
    "Torso Back",
    "Torso Front",
)
LOCATIONS = (
    "Head & Neck",
    "Left Arm",
    "Left Arm - Lower",
    "Left Arm - Upper",
    "Left Leg",
    "Left Leg - Lower",
    "Left Leg - Upper",
    "Right Arm",
    "Right Arm - Lower",
    "Right Arm - Upper",
    "Right Leg",
    "Right Leg - Lower",
    "Right Leg - Upper",
    "Torso Back",
    "Torso Back Bottom Third",
    "Torso Back Middle Third",
    "Torso Back Top Third",
    "Torso Front",
    "Torso Front Bottom Half",
    "Torso Front Top Half",
)

CLINICAL = {
    "age_approx": AGE_YEARS,
    "sex": SEX,
    "anatom_site_general": site_field(SITES),
    "clin_size_long_diam_mm": DIAMETER_MM,
}

# Column: canonical name, unit, lowest possible value, meaning. CIELAB channels have no unit.
_MEASURED_NUMBERS: dict[str, tuple[str, str | None, float | None, str]] = {
    "tbp_lv_A": ("tbp_lv_a", None, None, "CIELAB A inside the lesion."),
    "tbp_lv_Aext": ("tbp_lv_aext", None, None, "CIELAB A outside."),
    "tbp_lv_B": ("tbp_lv_b", None, None, "CIELAB B inside."),
    "tbp_lv_Bext": ("tbp_lv_bext", None, None, "CIELAB B outside."),
    "tbp_lv_C": ("tbp_lv_c", None, None, "Chroma inside."),
    "tbp_lv_Cext": ("tbp_lv_cext", None, None, "Chroma outside."),
    "tbp_lv_H": ("tbp_lv_h", None, None, "Hue inside."),
    "tbp_lv_Hext": ("tbp_lv_hext", None, None, "Hue outside."),
    "tbp_lv_L": ("tbp_lv_l", None, None, "CIELAB L inside."),
    "tbp_lv_Lext": ("tbp_lv_lext", None, None, "CIELAB L outside."),
    "tbp_lv_areaMM2": ("tbp_lv_area_mm2", "mm2", 0, "Area."),
    "tbp_lv_area_perim_ratio": ("tbp_lv_area_perim_ratio", None, 0, "Border jaggedness."),
    "tbp_lv_color_std_mean": ("tbp_lv_color_std_mean", None, 0, "Colour irregularity."),
    "tbp_lv_deltaA": ("tbp_lv_delta_a", None, None, "A inside against outside."),
    "tbp_lv_deltaB": ("tbp_lv_delta_b", None, None, "B inside against outside."),
    "tbp_lv_deltaL": ("tbp_lv_delta_l", None, None, "L inside against outside."),
    "tbp_lv_deltaLB": ("tbp_lv_delta_lb", None, None, "L and B inside against outside."),
    "tbp_lv_deltaLBnorm": ("tbp_lv_delta_lb_norm", None, None, "Contrast, typically 5.5 to 25."),
    "tbp_lv_eccentricity": ("tbp_lv_eccentricity", None, 0, "Eccentricity, 0 is round."),
    "tbp_lv_minorAxisMM": ("tbp_lv_minor_axis_mm", "mm", 0, "Smallest diameter."),
    "tbp_lv_norm_border": ("tbp_lv_norm_border", None, None, "Border irregularity, 0 to 10."),
    "tbp_lv_norm_color": ("tbp_lv_norm_color", None, None, "Colour variation, 0 to 10."),
    "tbp_lv_perimeterMM": ("tbp_lv_perimeter_mm", "mm", 0, "Perimeter."),
    "tbp_lv_radial_color_std_max": (
        "tbp_lv_radial_color_std_max",
        None,
        None,
        "Colour asymmetry, 0 to 10.",
    ),
    "tbp_lv_stdL": ("tbp_lv_std_l", None, 0, "Deviation of L inside."),
    "tbp_lv_stdLExt": ("tbp_lv_std_lext", None, 0, "Deviation of L outside."),
    "tbp_lv_symm_2axis": ("tbp_lv_symm_2axis", None, None, "Border asymmetry, 0 to 10."),
    "tbp_lv_symm_2axis_angle": (
        "tbp_lv_symm_2axis_angle",
        "degrees",
        None,
        "Angle of the border's symmetry axis.",
    ),
}
_MEASURED_WORDS = {
    "tbp_lv_location": LOCATIONS,
    "tbp_lv_location_simple": SIMPLE_LOCATIONS,
}


def columns_of(*, measured: bool, nevi_confidence: bool, position: bool) -> dict[str, Field]:
    """Return the field of every column that is read, in schema order.

    Args:
        measured: the scanner's measurements; they are computed from the picture.
        nevi_confidence: a network's score, 0 to 100.
        position: where in the scanner the lesion was, in its own coordinates.
    """
    columns = dict(CLINICAL)
    if measured:
        columns.update(_measured())
    if nevi_confidence:
        name = "tbp_lv_nevi_confidence"
        columns[name] = _number(name, name, None, 0, "A network's nevus score, 0 to 100.")
    if position:
        for axis in "xyz":
            name = f"tbp_lv_{axis}"
            columns[name] = _number(name, name, None, None, f"Position in the scanner, {axis}.")
    return columns


def _measured() -> Iterator[tuple[str, Field]]:
    for column, (name, unit, minimum, meaning) in _MEASURED_NUMBERS.items():
        yield column, _number(column, name, unit, minimum, meaning)
    for column, words in _MEASURED_WORDS.items():
        yield column, Field(name=column, level="lesion", kind="categorical", categories=words)


def _number(column: str, name: str, unit: str | None, minimum: float | None, meaning: str) -> Field:
    return Field(
        name=name,
        level="lesion",
        kind="numeric",
        unit=unit,
        # Names are compared without case, so that only another spelling needs an alias.
        aliases=() if column.casefold() == name else (column,),
        minimum=minimum,
        description=meaning,
    )
