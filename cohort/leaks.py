"""Columns that give the label away, and are never inputs whoever asks for them.

A name is compared after lower-casing it and turning blanks and hyphens into underscores, so that
"Diagnosis Confirm-Type" is refused like `diagnosis_confirm_type`.
"""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from bundle.errors import LeakColumn

DIAGNOSIS = "it is the diagnosis or a part of it"
CONFIRMATION = "how a diagnosis was confirmed tells which one it was"
SITE = "it tells the clinic or device, and each has its own share of malignant lesions"
IDENTIFIER = "an identifier is not a measurement, and its presence alone may tell the label"
NETWORK = "it is the output of a network trained on these labels"

# Shell patterns over normalised names, each with the reason that the error gives.
LEAK_PATTERNS: dict[str, str] = {
    "target": DIAGNOSIS,
    "malignant": DIAGNOSIS,
    "benign": DIAGNOSIS,
    "benign_malignant": DIAGNOSIS,
    "melanocytic": DIAGNOSIS,
    "label": DIAGNOSIS,
    "class": DIAGNOSIS,
    "dx": DIAGNOSIS,
    "diagnostic": DIAGNOSIS,
    "*diagnosis*": DIAGNOSIS,
    "iddx_*": DIAGNOSIS,
    "mel_*": "it is measured on melanomas only",
    "dx_type": CONFIRMATION,
    "diagnosis_confirm_type": CONFIRMATION,
    "concomitant_biopsy": CONFIRMATION,
    "biopsed": "every cancer was biopsied and most benign lesions were not",
    "biopsied": "every cancer was biopsied and most benign lesions were not",
    "management": "what was done follows from the diagnosis",
    "seven_point_score": "a rule that diagnoses melanoma",
    "level_of_diagnostic_difficulty": "it was judged by who knew the diagnosis",
    "dataset": SITE,
    "attribution": SITE,
    "copyright_license": SITE,
    "image_type": SITE,
    "image_manipulation": SITE,
    "tbp_tile_type": SITE,
    "lesion_id": IDENTIFIER,
    "patient_id": IDENTIFIER,
    "image_id": IDENTIFIER,
    "isic_id": IDENTIFIER,
    "img_id": IDENTIFIER,
    "tbp_lv_dnn_lesion_confidence": NETWORK,
}

# Not refused, but read only when asked for by name; shell patterns like those above. What experts
# read off a picture is a label in its data set, and their diagnosis rests on it.
EXPERT_READING = "what an expert read off the picture on the way to a diagnosis"
OFF_BY_DEFAULT: dict[str, str] = {
    "tbp_lv_nevi_confidence": "a network's output",
    "tbp_lv_x": "a position in the scanner",
    "tbp_lv_y": "a position in the scanner",
    "tbp_lv_z": "a position in the scanner",
    "monet_*": "what a network sees in the picture",
    "dermoscopic_type": "a property of the picture, which dermoscopic ones alone have",
    "asymmetry": EXPERT_READING,
    "blue_whitish_veil": EXPERT_READING,
    "colour_*": EXPERT_READING,
    "dots_and_globules": EXPERT_READING,
    "pigment_network": EXPERT_READING,
    "pigmentation": EXPERT_READING,
    "regression_structures": EXPERT_READING,
    "streaks": EXPERT_READING,
    "vascular_structures": EXPERT_READING,
}


def leak_reason(name: str) -> str | None:
    """Return why a column may not be an input, or None where it may."""
    plain = re.sub(r"[\s\-.]+", "_", name.strip().casefold())
    exact = LEAK_PATTERNS.get(plain)
    if exact is not None:
        return exact
    found = (why for pattern, why in LEAK_PATTERNS.items() if fnmatchcase(plain, pattern))
    return next(found, None)


def refuse_leaks(names: Iterable[str]) -> None:
    """Do nothing if every name may be an input.

    Raises:
        LeakColumn: some may not; the message names each with its reason.
    """
    refused = {name: why for name in names if (why := leak_reason(name)) is not None}
    if refused:
        listed = "; ".join(f"{name!r}: {why}" for name, why in refused.items())
        raise LeakColumn(f"expected columns that may be inputs, got {listed}. Remove them")
