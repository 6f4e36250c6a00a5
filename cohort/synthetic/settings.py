"""Every parameter of the synthetic cohort, and the demo's frozen choice of them."""

from dataclasses import dataclass
from typing import TypedDict

from bundle.errors import InvalidSettings


@dataclass(frozen=True)
class SyntheticSettings:
    """The generator's parameters. Look space: 8 axes, each of unit spread between patients.

    Attributes:
        malignant_patient_share: share of patients with at least one malignant lesion, at average
            risk factors (about 0.25 is like SLICE-3D).
        second_malignant_share: share of those who have a second one.
        few_lesions_share: share of patients with 3 lesions up to one less than the floor.
        lesions_floor: lesions of every other patient, to which the long tail is added.
        lesions_tail_median: median of the lognormal tail, in lesions.
        lesions_tail_sigma: spread of the tail's logarithm.
        lesions_max: no patient has more lesions than this.
        within_spread: spread of a patient's benign naevi about the patient's signature, in units
            of the spread between patients.
        duckling_distance: a malignant lesion lies at least this far from its patient's signature
            over the five most visible axes.
        melanoma_cue: factor on what all melanomas share whatever the patient (border, colours).
        carcinoma_cue: the same for basal cell carcinoma.
        alike_share: share of keratoses that look like a melanoma, and of carcinomas that look
            like a pink naevus: only the records tell them apart.
        symptom_strength: factor on the log odds by which symptoms and sites follow the label.
        blank_questionnaire_share: share of patients without any answer to the questionnaire.
        missing_share: mean share of missing values in the other fields.
        field_of_view_mm: side of the square picture.
        jpeg_quality: of the encoded picture.
    """

    malignant_patient_share: float = 0.54
    second_malignant_share: float = 0.06
    few_lesions_share: float = 0.06
    lesions_floor: int = 15
    lesions_tail_median: float = 1.6
    lesions_tail_sigma: float = 1.1
    lesions_max: int = 60
    within_spread: float = 0.2
    duckling_distance: float = 3.4
    melanoma_cue: float = 0.55
    carcinoma_cue: float = 0.65
    alike_share: float = 0.5
    symptom_strength: float = 1.0
    blank_questionnaire_share: float = 0.1
    missing_share: float = 0.1
    field_of_view_mm: float = 12.0
    jpeg_quality: int = 92

    def __post_init__(self) -> None:
        for name in (
            "malignant_patient_share",
            "second_malignant_share",
            "few_lesions_share",
            "alike_share",
            "blank_questionnaire_share",
            "missing_share",
        ):
            if not 0.0 <= (share := float(getattr(self, name))) < 1.0:
                raise InvalidSettings(f"{name}: expected a share in [0, 1), got {share:g}")
        if not 4 <= self.lesions_floor <= self.lesions_max:
            raise InvalidSettings(
                "lesions_floor: expected 4 up to lesions_max "
                f"({self.lesions_max}), got {self.lesions_floor}"
            )


class SourceArguments(TypedDict):
    """Arguments of `synthetic_source`."""

    patients: int
    seed: int
    image_px: int
    difficulty: float
    settings: SyntheticSettings


DEMO_SETTINGS: SourceArguments = {
    "patients": 340,
    "seed": 2024,
    "image_px": 64,
    "difficulty": 1.0,
    "settings": SyntheticSettings(),
}

SLICE3D_LIKE = SyntheticSettings(
    malignant_patient_share=0.25,
    few_lesions_share=0.05,
    lesions_tail_median=230.0,
    lesions_tail_sigma=1.0,
    lesions_max=2500,
)
