"""The cohort as a source: patients one after the other, each from random streams of its own."""

from collections.abc import Iterator

import numpy as np

from bundle.errors import InvalidSettings
from cohort.rows import Group, LesionImage, Source
from cohort.synthetic.appearance import appearance
from cohort.synthetic.fields import SCHEMA
from cohort.synthetic.lesions import LABELS, MALIGNANT_LABELS, Lesion, draw_lesions
from cohort.synthetic.phenotype import Patient, draw_patient
from cohort.synthetic.records import lesion_record, patient_record
from cohort.synthetic.render import render
from cohort.synthetic.settings import SyntheticSettings

IMAGE_PX_RANGE = (32, 512)


def synthetic_source(
    *,
    patients: int,
    seed: int,
    image_px: int = 64,
    difficulty: float = 1.0,
    settings: SyntheticSettings | None = None,
) -> Source:
    """Return the synthetic cohort as a source; nothing is drawn before it is read.

    Args:
        patients: how many patients, at least 1.
        seed: 0 or more; the same arguments give the same bytes.
        image_px: side of each picture, 32 to 512. Labels and records do not depend on it.
        difficulty: above 0; above 1 weakens what a label looks like whatever the patient, and
            spreads a patient's naevi.
        settings: the other parameters; None takes the defaults.

    Raises:
        InvalidSettings: an argument is outside its range.
    """
    if patients < 1 or seed < 0 or difficulty <= 0.0:
        raise InvalidSettings(
            "expected patients >= 1, seed >= 0 and difficulty > 0, got "
            f"patients={patients}, seed={seed}, difficulty={difficulty:g}"
        )
    low, high = IMAGE_PX_RANGE
    if not low <= image_px <= high:
        raise InvalidSettings(f"image_px: expected {low} to {high}, got {image_px}")
    cohort = SyntheticCohort(seed, image_px, difficulty, settings or SyntheticSettings())

    def groups() -> Iterator[Group]:
        for index in range(patients):
            yield from cohort.groups_of(index)

    def rows() -> Iterator[LesionImage]:
        for index in range(patients):
            yield from cohort.images_of(index)

    return Source(
        name="synthetic",
        schema=SCHEMA,
        labels=LABELS,
        malignant_labels=MALIGNANT_LABELS,
        licence="CC0-1.0",
        citation="Generated; no patient and no photograph is behind it.",
        groups=groups,
        rows=rows,
        notes=(f"synthetic: seed {seed}, {patients} patients, difficulty {difficulty:g}",),
    )


class SyntheticCohort:
    """Makes any patient of a cohort alone, in any order.

    A patient has four random streams (who they are, their lesions, records, pixels), so that
    records are the same at every picture size and labels come without drawing a picture.
    """

    def __init__(
        self, seed: int, image_px: int, difficulty: float, settings: SyntheticSettings
    ) -> None:
        self.seed = seed
        self.image_px = image_px
        self.difficulty = difficulty
        self.settings = settings

    def _streams(self, index: int) -> list[np.random.Generator]:
        children = np.random.SeedSequence((self.seed, index)).spawn(4)
        return [np.random.Generator(np.random.PCG64(child)) for child in children]

    def patient(self, index: int) -> tuple[Patient, list[Lesion]]:
        """Return the patient at this position and what their lesions are."""
        person, lesions, _, _ = self._streams(index)
        patient = draw_patient(index, person, self.settings)
        return patient, list(draw_lesions(patient, lesions, self.settings, self.difficulty))

    def groups_of(self, index: int) -> Iterator[Group]:
        """Yield the patient's id once per lesion, with its label."""
        patient, lesions = self.patient(index)
        for lesion in lesions:
            yield Group(group_id=patient.patient_id, label=lesion.label)

    def images_of(self, index: int) -> Iterator[LesionImage]:
        """Yield one picture of each of the patient's lesions."""
        patient, lesions = self.patient(index)
        _, _, records, pixels = self._streams(index)
        shared = patient_record(patient, records, self.settings)
        for lesion in lesions:
            look = appearance(patient, lesion)
            own = lesion_record(patient, lesion, look, records, self.settings)
            lesion_id = f"{patient.patient_id}_L{lesion.index:04d}"
            yield LesionImage(
                image_id=lesion_id,
                lesion_id=lesion_id,
                patient_id=patient.patient_id,
                image=render(patient, lesion, look, pixels, self.image_px, self.settings),
                label=lesion.label,
                malignant=lesion.malignant,
                record={**shared, **own},
            )
