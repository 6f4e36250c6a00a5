"""What each lesion of a patient is: label, place in look space, own structure, site."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohort.synthetic.phenotype import LOOK_AXES, PATTERNS, VISIBLE_AXES, Patient
from cohort.synthetic.settings import SyntheticSettings

LABELS = (
    "nevus",
    "seborrheic_keratosis",
    "vascular_lesion",
    "basal_cell_carcinoma",
    "melanoma",
)
MALIGNANT_LABELS = ("basal_cell_carcinoma", "melanoma")

SITES = (
    "anterior torso",
    "posterior torso",
    "upper extremity",
    "lower extremity",
    "head/neck",
)
SITE_SHARES = {
    "nevus": (0.24, 0.32, 0.19, 0.19, 0.06),
    "seborrheic_keratosis": (0.29, 0.37, 0.06, 0.05, 0.23),
    "vascular_lesion": (0.45, 0.25, 0.15, 0.07, 0.08),
    "basal_cell_carcinoma": (0.07, 0.12, 0.11, 0.04, 0.66),
    "melanoma": (0.08, 0.30, 0.20, 0.34, 0.08),
}

# Relative weight of each axis in the spread of one patient's naevi.
WITHIN = np.array([0.8, 0.8, 0.8, 1.1, 1.1, 1.5, 1.2, 1.2])

# Where the other labels lie: darkness, redness, coolness, size, structure, elongation, border,
# variegation. Melanoma and carcinoma: the mean of the draw, times their cue.
KERATOSIS = np.array([0.3, -0.3, -0.6, 0.9, 0.2, 0.2, 0.2, 0.5])
KERATOSIS_ALIKE = np.array([0.6, 0.1, 0.3, 0.9, 0.1, 0.4, 0.9, 1.1])
VASCULAR = np.array([-0.3, 1.5, 0.0, -0.9, -1.0, -0.3, 0.1, -0.2])
CARCINOMA = np.array([-0.7, 0.9, -0.2, 0.4, -0.5, 0.1, 0.4, 0.3])
MELANOMA = np.array([0.3, 0.1, 0.3, 0.4, 0.1, 0.3, 0.7, 0.9])
LOOK_LIMIT = 2.6


@dataclass(frozen=True)
class Lesion:
    """One lesion, before it is drawn or recorded.

    Attributes:
        index: position among the patient's lesions.
        label: one of `LABELS`.
        look: (8,) float64 along `phenotype.LOOK_AXES`; 0 is the population's mean naevus.
        pattern: index into `phenotype.PATTERNS`.
        structure: 0 to 1, how plainly the label's own structure shows (veil, vessels, dots).
        anatom_site: one of `SITES`.
    """

    index: int
    label: str
    look: NDArray[np.float64]
    pattern: int
    structure: float
    anatom_site: str

    @property
    def malignant(self) -> bool:
        return self.label in MALIGNANT_LABELS

    @property
    def diameter_mm(self) -> float:
        return float(np.clip(3.9 * math.exp(0.29 * self.look[3]), 1.5, 9.5))


def draw_lesions(
    patient: Patient, rng: np.random.Generator, settings: SyntheticSettings, difficulty: float
) -> Iterator[Lesion]:
    """Yield the patient's lesions, the malignant ones at random positions."""
    malignant_positions = set(
        rng.choice(patient.lesions, size=patient.malignant_lesions, replace=False).tolist()
    )
    for index in range(patient.lesions):
        malignant = index in malignant_positions
        label = _malignant_label(patient, rng) if malignant else _benign_label(patient, rng)
        look, structure = _draw_look(label, patient, rng, settings, difficulty)
        yield Lesion(
            index=index,
            label=label,
            look=np.clip(look, -LOOK_LIMIT, LOOK_LIMIT),
            pattern=_draw_pattern(label, patient, rng),
            structure=float(np.clip(structure, 0.0, 1.0)),
            anatom_site=_draw_site(label, patient, rng, settings),
        )


def _benign_label(patient: Patient, rng: np.random.Generator) -> str:
    keratosis = 0.17 / (1.0 + math.exp(-(patient.age_years - 58.0) / 4.5))
    vascular = 0.02 + 0.05 / (1.0 + math.exp(-(patient.age_years - 45.0) / 12.0))
    draw = rng.random()
    if draw < keratosis:
        return "seborrheic_keratosis"
    return "vascular_lesion" if draw < keratosis + vascular else "nevus"


def _malignant_label(patient: Patient, rng: np.random.Generator) -> str:
    score = -0.3 + 0.1 * (patient.age_years - 57.0) + 1.2 * (patient.sun - 1.0)
    score -= 0.5 * (patient.skin_type - 2.0)
    return "basal_cell_carcinoma" if rng.random() < 1.0 / (1.0 + math.exp(-score)) else "melanoma"


def _draw_site(
    label: str, patient: Patient, rng: np.random.Generator, settings: SyntheticSettings
) -> str:
    shares = np.array(SITE_SHARES["nevus"])
    ratio = np.array(SITE_SHARES[label]) / shares
    shares = shares * ratio**settings.symptom_strength
    if label == "melanoma":  # back in men, legs in women
        shares[1 if patient.sex == "male" else 3] *= 2.0
    return SITES[int(rng.choice(len(SITES), p=shares / shares.sum()))]


def _draw_pattern(label: str, patient: Patient, rng: np.random.Generator) -> int:
    own = label == "nevus" and rng.random() < 0.9
    return patient.pattern if own else int(rng.integers(len(PATTERNS)))


def _draw_look(
    label: str,
    patient: Patient,
    rng: np.random.Generator,
    settings: SyntheticSettings,
    difficulty: float,
) -> tuple[NDArray[np.float64], float]:
    """Return the place in look space and how plainly the label's own structure shows."""
    alike = rng.random() < settings.alike_share
    shown = float(rng.uniform(0.0, 0.25) if alike else rng.uniform(0.3, 0.9)) / difficulty
    noise = rng.standard_normal(len(LOOK_AXES))
    if label == "nevus":
        return patient.signature + settings.within_spread * difficulty * WITHIN * noise, 0.0
    if label == "seborrheic_keratosis":
        template = KERATOSIS_ALIKE if alike else KERATOSIS
        return template + 0.5 * patient.signature + 0.5 * noise, shown
    if label == "vascular_lesion":
        return VASCULAR + 0.3 * patient.signature + 0.4 * noise, float(rng.uniform(0.6, 1.0))
    if label == "basal_cell_carcinoma":
        mean = CARCINOMA * settings.carcinoma_cue / difficulty
        shown *= settings.carcinoma_cue
    else:
        mean = MELANOMA * settings.melanoma_cue / difficulty
        shown *= settings.melanoma_cue
    return _draw_duckling(mean, patient, rng, settings), shown


def _draw_duckling(
    mean: NDArray[np.float64],
    patient: Patient,
    rng: np.random.Generator,
    settings: SyntheticSettings,
) -> NDArray[np.float64]:
    """Return a look drawn as any other patient's naevus might be, but far from this patient's.

    Draws from the population, shifted by the label's cue, until one is far enough; the farthest
    of 64 draws where none is.
    """
    draws = mean + 0.9 * rng.standard_normal((64, len(LOOK_AXES)))
    draws = np.clip(draws, -LOOK_LIMIT, LOOK_LIMIT)
    signature = np.clip(patient.signature, -LOOK_LIMIT, LOOK_LIMIT)
    distances = np.linalg.norm((draws - signature)[:, VISIBLE_AXES], axis=1)
    far = np.flatnonzero(distances >= settings.duckling_distance)
    return np.asarray(draws[far[0] if far.size else int(distances.argmax())])
