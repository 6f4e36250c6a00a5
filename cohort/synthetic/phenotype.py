"""A patient: what a record may say of them, and the hidden signature that their naevi share."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohort.synthetic.settings import SyntheticSettings

LOOK_AXES = (
    "darkness",
    "redness",
    "coolness",
    "size",
    "structure",
    "elongation",
    "border",
    "variegation",
)
VISIBLE_AXES = slice(0, 5)

# Fitzpatrick types I to VI.
SKIN_TYPE_SHARES = (0.13, 0.22, 0.24, 0.19, 0.13, 0.09)
SUN_LEVELS = ("low", "moderate", "high")
SUN_SHARES = (0.35, 0.4, 0.25)
PATTERNS = ("reticular", "globular", "homogeneous", "targetoid")
CLINICS = 3

# How the signature follows the record. Columns: skin type, sun, age, naevus count, family history,
# each standardised; what they leave unexplained is drawn, so that every axis has unit variance.
LOADINGS = np.array(
    [
        [0.60, 0.20, 0.00, 0.00, 0.25],  # darkness
        [-0.50, 0.30, 0.35, 0.00, 0.00],  # redness
        [0.40, 0.00, -0.35, -0.30, 0.00],  # coolness
        [0.00, 0.00, 0.00, 0.45, 0.50],  # size
        [0.00, 0.55, -0.40, 0.00, 0.00],  # structure
        [0.00, 0.25, 0.00, 0.30, 0.00],  # elongation
        [0.00, 0.00, 0.00, 0.45, 0.40],  # border
        [0.00, 0.45, 0.00, 0.00, 0.45],  # variegation
    ]
)
RESIDUAL = np.sqrt(1.0 - (LOADINGS**2).sum(axis=1))


@dataclass(frozen=True)
class Patient:
    """One patient.

    Attributes:
        index: position in the cohort.
        age_years: 18 to 92, whole years.
        sex: "male" or "female".
        skin_type: Fitzpatrick type, 0 (I) to 5 (VI).
        sun: 0 (low) to 2 (high).
        naevus_count: on the whole body, of which the cohort's lesions are a part.
        family_history: of melanoma.
        personal_history: of skin cancer.
        clinic: 0 to 2; decides how completely records are filled, and nothing else.
        signature: (8,) float64 along `LOOK_AXES`, unit variance between patients.
        pattern: index into `PATTERNS`, the one most of the patient's naevi have.
        skin_shade: shift of the skin's optical density, about 0.
        camera: (3,) float64, gain of each channel, about 1.
        lesions: how many lesions the cohort holds.
        malignant_lesions: how many of them are malignant.
    """

    index: int
    age_years: int
    sex: str
    skin_type: int
    sun: int
    naevus_count: int
    family_history: bool
    personal_history: bool
    clinic: int
    signature: NDArray[np.float64]
    pattern: int
    skin_shade: float
    camera: NDArray[np.float64]
    lesions: int
    malignant_lesions: int

    @property
    def patient_id(self) -> str:
        return f"SYN_P{self.index:06d}"


def draw_patient(index: int, rng: np.random.Generator, settings: SyntheticSettings) -> Patient:
    """Return the patient that this generator makes."""
    age_years = int(np.clip(round(rng.normal(54.0, 16.0)), 18, 92))
    sex = "male" if rng.random() < 0.5 else "female"
    skin_type = int(rng.choice(6, p=SKIN_TYPE_SHARES))
    sun = int(rng.choice(3, p=SUN_SHARES))
    family_history = bool(rng.random() < 0.2)
    count_score = float(np.clip(rng.normal(), -2.5, 2.5))
    covariates = np.array(
        [
            (skin_type - 2.24) / 1.47,
            (sun - 0.9) / 0.77,
            (age_years - 54.0) / 16.0,
            count_score,
            (float(family_history) - 0.2) / 0.4,
        ]
    )
    lesions = _draw_lesion_count(rng, count_score, settings)
    risk = float(covariates @ np.array([-0.25, 0.25, 0.3, 0.2, 0.2]))
    share = settings.malignant_patient_share
    log_odds = math.log(share / (1.0 - share)) if share > 0.0 else -math.inf
    malignant = int(rng.random() < 1.0 / (1.0 + math.exp(-min(log_odds + risk, 30.0))))
    malignant += int(malignant == 1 and rng.random() < settings.second_malignant_share)
    history_odds = 0.05 + 0.12 * (risk > 0.3) + 0.12 * (malignant > 0)
    return Patient(
        index=index,
        age_years=age_years,
        sex=sex,
        skin_type=skin_type,
        sun=sun,
        naevus_count=max(lesions, round(22.0 * math.exp(0.75 * count_score))),
        family_history=family_history,
        personal_history=bool(rng.random() < history_odds),
        clinic=int(rng.integers(CLINICS)),
        signature=LOADINGS @ covariates + RESIDUAL * rng.standard_normal(len(LOOK_AXES)),
        pattern=_draw_pattern(rng, covariates),
        skin_shade=float(rng.normal(0.0, 0.05)),
        camera=1.0 + rng.normal(0.0, 0.015, 3),
        lesions=lesions,
        malignant_lesions=malignant,
    )


def _draw_lesion_count(
    rng: np.random.Generator, count_score: float, settings: SyntheticSettings
) -> int:
    if rng.random() < settings.few_lesions_share:
        return int(rng.integers(3, settings.lesions_floor))
    score = 0.6 * count_score + 0.8 * rng.normal()
    tail = settings.lesions_tail_median * math.exp(settings.lesions_tail_sigma * score)
    return min(settings.lesions_floor + int(tail), settings.lesions_max)


def _draw_pattern(rng: np.random.Generator, covariates: NDArray[np.float64]) -> int:
    skin, sun, age, _, family = covariates
    scores = np.array([0.8 * sun, -1.0 * age, 0.6 * age - 0.6 * skin, 0.9 * skin + 0.3 * family])
    shares = np.exp(scores - scores.max())
    return int(rng.choice(len(PATTERNS), p=shares / shares.sum()))
