"""From a place in look space to amounts of pigment, blood and structure: what a picture shows."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohort.synthetic.colour import BLOOD, melanin, skin_density
from cohort.synthetic.lesions import Lesion
from cohort.synthetic.phenotype import Patient


@dataclass(frozen=True)
class Appearance:
    """Amounts that the renderer draws and that the measured fields read.

    Attributes:
        skin: (3,) optical density of the patient's skin.
        pigment: (3,) density that the lesion's mean melanin adds.
        blood: (3,) density that its mean redness adds.
        radius_mm: half the diameter.
        axis_ratio: short over long axis, in (0, 1].
        border: relative amplitude of the outline's waves.
        variegation: relative spread of pigment inside the lesion.
        structure: relative amplitude of the naevus pattern.
    """

    skin: NDArray[np.float64]
    pigment: NDArray[np.float64]
    blood: NDArray[np.float64]
    radius_mm: float
    axis_ratio: float
    border: float
    variegation: float
    structure: float


def appearance(patient: Patient, lesion: Lesion) -> Appearance:
    """Return what the lesion looks like on this patient's skin."""
    darkness, redness, coolness, _, structure, elongation, border, variegation = (
        lesion.look.tolist()
    )
    amount = 0.48 * math.exp(0.42 * darkness)
    blood = 0.13 * math.exp(0.7 * redness)
    if lesion.label == "vascular_lesion":
        amount, blood = 0.12 * amount, 0.55 + 0.6 * blood
    elif lesion.label == "basal_cell_carcinoma":
        amount, blood = amount * (1.0 - 0.5 * lesion.structure), blood + 0.15 * lesion.structure
    return Appearance(
        skin=skin_density(patient.skin_type, patient.skin_shade),
        pigment=amount * melanin(coolness),
        blood=blood * BLOOD,
        radius_mm=lesion.diameter_mm / 2.0,
        axis_ratio=1.0 - 0.5 / (1.0 + math.exp(0.7 - 0.9 * elongation)),
        border=min(0.055 * math.exp(0.55 * border), 0.25),
        variegation=min(0.13 * math.exp(0.5 * variegation), 0.5),
        structure=0.42 / (1.0 + math.exp(0.4 - 1.1 * structure)),
    )
