"""Records: what the questionnaire and the measuring software say, with errors and gaps.

Missingness follows chance and the clinic. The clinic is drawn without a look at anything else, so
a gap says nothing about the label.
"""

import math

import numpy as np

from bundle.fields import Record
from cohort.synthetic.appearance import Appearance
from cohort.synthetic.colour import lab
from cohort.synthetic.lesions import LABELS, Lesion
from cohort.synthetic.phenotype import SUN_LEVELS, Patient
from cohort.synthetic.settings import SyntheticSettings
from cohort.vocabulary import SKIN_TYPES

# Chance of each symptom by label: nevus, keratosis, vascular lesion, carcinoma, melanoma.
SYMPTOM_SHARES = {
    "changed_recently": (0.12, 0.12, 0.08, 0.33, 0.42),
    "itch": (0.05, 0.50, 0.04, 0.18, 0.15),
    "bleed": (0.03, 0.05, 0.15, 0.36, 0.08),
    "elevation": (0.16, 0.92, 0.60, 0.75, 0.25),
}
QUESTIONNAIRE = (
    "fitzpatrick_skin_type",
    "family_history_melanoma",
    "personal_history_skin_cancer",
    "sun_exposure",
    "naevus_count",
)
# How much more or less often a value is missing in each clinic.
CLINIC_FACTORS = (0.4, 1.0, 1.6)


def patient_record(
    patient: Patient, rng: np.random.Generator, settings: SyntheticSettings
) -> Record:
    """Return the patient-level record, without the values that are missing."""
    record: Record = {
        "age_years": float(patient.age_years),
        "sex": patient.sex,
        "fitzpatrick_skin_type": SKIN_TYPES[patient.skin_type],
        "family_history_melanoma": patient.family_history,
        "personal_history_skin_cancer": patient.personal_history,
        "sun_exposure": SUN_LEVELS[patient.sun],
        "naevus_count": float(round(patient.naevus_count * math.exp(0.15 * rng.normal()))),
    }
    blank = rng.random() < settings.blank_questionnaire_share
    share = settings.missing_share * CLINIC_FACTORS[patient.clinic]
    dropped = {name for name in QUESTIONNAIRE if rng.random() < share or blank}
    dropped |= {name for name in ("age_years", "sex") if rng.random() < 0.25 * share}
    return {name: value for name, value in record.items() if name not in dropped}


def lesion_record(
    patient: Patient,
    lesion: Lesion,
    look: Appearance,
    rng: np.random.Generator,
    settings: SyntheticSettings,
) -> Record:
    """Return the lesion-level record, without the values that are missing."""
    record: Record = {"anatom_site": lesion.anatom_site}
    record |= _measure(lesion, look, rng)
    record |= _ask(lesion, rng, settings)
    draws = rng.random(len(record))
    share = settings.missing_share * CLINIC_FACTORS[patient.clinic]
    return {
        name: value
        for (name, value), draw in zip(record.items(), draws, strict=True)
        if draw >= share
    }


def _measure(lesion: Lesion, look: Appearance, rng: np.random.Generator) -> Record:
    lesion_density = look.skin + look.pigment + look.blood
    skin, inside = lab(255.0 * np.exp(-np.stack([look.skin, lesion_density])))
    contrast = float(np.linalg.norm(inside - skin))
    noise = rng.standard_normal(7)
    eccentricity = math.sqrt(1.0 - look.axis_ratio**2) + 0.08 * noise[5]
    return {
        "diameter_mm": round(lesion.diameter_mm * math.exp(0.08 * noise[0]), 2),
        "lesion_lightness": _clip(inside[0] + 3.0 * noise[1], 0.0, 100.0),
        "skin_lightness": _clip(skin[0] + 2.0 * noise[2], 0.0, 100.0),
        "lesion_contrast": _clip(0.5 * contrast + 2.0 * noise[3], 0.0, 100.0),
        "colour_variation": _clip(9.0 * look.variegation * math.exp(0.3 * noise[4]), 0.0, 50.0),
        "eccentricity": _clip(eccentricity, 0.0, 1.0),
        "border_irregularity": _clip(40.0 * look.border * math.exp(0.3 * noise[6]), 0.0, 10.0),
    }


def _clip(value: float, low: float, high: float) -> float:
    return round(min(max(float(value), low), high), 3)


def _ask(lesion: Lesion, rng: np.random.Generator, settings: SyntheticSettings) -> Record:
    column = LABELS.index(lesion.label)
    answers: Record = {}
    for name, shares in SYMPTOM_SHARES.items():
        base = math.log(shares[0] / (1.0 - shares[0]))
        own = math.log(shares[column] / (1.0 - shares[column]))
        odds = base + settings.symptom_strength * (own - base)
        answers[name] = bool(rng.random() < 1.0 / (1.0 + math.exp(-odds)))
    return answers
