"""The effects that the synthetic cohort is said to have are there, and no others by accident."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import chi2_contingency

from cohort.rows import Source
from cohort.synthetic import DEMO_SETTINGS, SyntheticSettings, synthetic_source
from cohort.synthetic.appearance import appearance
from cohort.synthetic.colour import lab
from cohort.synthetic.contact_sheet import contact_sheet, main
from cohort.synthetic.fields import SCHEMA
from cohort.synthetic.lesions import Lesion
from cohort.synthetic.phenotype import LOADINGS, VISIBLE_AXES, Patient
from cohort.synthetic.records import lesion_record, patient_record
from cohort.synthetic.source import SyntheticCohort
from cohort.synthetic.texture import dots, smooth_noise

PATIENTS = 250

Counts = Counter[tuple[bool, str]]


@pytest.fixture(scope="module")
def people() -> list[tuple[Patient, list[Lesion]]]:
    cohort = SyntheticCohort(11, 48, 1.0, SyntheticSettings())
    return [cohort.patient(index) for index in range(PATIENTS)]


def naevi(lesions: list[Lesion]) -> NDArray[np.float64]:
    return np.array([lesion.look for lesion in lesions if lesion.label == "nevus"])


def test_naevi_of_one_patient_are_alike_and_patients_differ(
    people: list[tuple[Patient, list[Lesion]]],
) -> None:
    looks = [naevi(lesions) for _, lesions in people]
    within = np.sqrt(np.mean([look.var(axis=0) for look in looks if len(look) > 5], axis=0))
    between = np.std([look.mean(axis=0) for look in looks if len(look) > 5], axis=0)
    assert (between[VISIBLE_AXES] > 3.0 * within[VISIBLE_AXES]).all()


def test_malignant_lesions_lie_far_outside_their_patients_spread(
    people: list[tuple[Patient, list[Lesion]]],
) -> None:
    ratios = []
    for _, lesions in people:
        own = naevi(lesions)[:, VISIBLE_AXES]
        if len(own) < 5:
            continue
        centre = np.median(own, axis=0)
        spread = np.median(np.linalg.norm(own - centre, axis=1))
        ratios += [
            np.linalg.norm(lesion.look[VISIBLE_AXES] - centre) / spread
            for lesion in lesions
            if lesion.malignant
        ]
    assert len(ratios) > 80
    assert np.percentile(ratios, 5) > 4.0


def test_malignant_lesions_overlap_with_other_patients_naevi(
    people: list[tuple[Patient, list[Lesion]]],
) -> None:
    population = np.vstack([naevi(lesions) for _, lesions in people])[:, VISIBLE_AXES]
    radius = np.percentile(np.linalg.norm(population, axis=1), 99)
    malignant = np.array(
        [
            lesion.look[VISIBLE_AXES]
            for _, lesions in people
            for lesion in lesions
            if lesion.malignant
        ]
    )
    assert (np.linalg.norm(malignant, axis=1) < radius).mean() > 0.85


def test_malignant_lesions_deviate_in_every_direction(
    people: list[tuple[Patient, list[Lesion]]],
) -> None:
    offsets = np.array(
        [
            lesion.look - patient.signature
            for patient, lesions in people
            for lesion in lesions
            if lesion.malignant
        ]
    )[:, VISIBLE_AXES]
    up = (offsets > 0).mean(axis=0)
    assert ((up > 0.25) & (up < 0.75)).all()


def test_the_record_explains_a_part_of_the_signature() -> None:
    explained = (LOADINGS**2).sum(axis=1)
    assert ((explained > 0.1) & (explained < 0.6)).all()


def test_signatures_have_about_unit_variance(people: list[tuple[Patient, list[Lesion]]]) -> None:
    spread = np.std([patient.signature for patient, _ in people], axis=0)
    assert np.allclose(spread, 1.0, atol=0.15)


def test_a_gap_says_nothing_about_the_label(people: list[tuple[Patient, list[Lesion]]]) -> None:
    # Records are drawn without pictures, so that thousands of them are affordable.
    settings = SyntheticSettings()
    present: dict[str, Counts] = {field.name: Counter() for field in SCHEMA.fields}
    for patient, lesions in people:
        rng = np.random.default_rng((12, patient.index))
        shared = patient_record(patient, rng, settings)
        has_malignant = str(any(lesion.malignant for lesion in lesions))
        for field in SCHEMA.at("patient"):
            present[field.name][field.name in shared, has_malignant] += 1
        for lesion in lesions:
            own = lesion_record(patient, lesion, appearance(patient, lesion), rng, settings)
            for field in SCHEMA.at("lesion"):
                present[field.name][field.name in own, lesion.label] += 1
    p_values = {name: _independence(counts) for name, counts in present.items()}
    assert min(p_values.values()) > 0.05 / len(p_values), p_values


def test_the_independence_test_sees_a_gap_that_depends_on_the_label() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(["nevus", "melanoma"], size=6000, p=[0.98, 0.02])
    present = rng.random(6000) > np.where(labels == "melanoma", 0.35, 0.1)
    counts = Counter(zip(present.tolist(), labels.tolist(), strict=True))
    assert _independence(counts) < 0.05 / len(SCHEMA.fields)


def _independence(counts: Counts) -> float:
    labels = sorted({label for _, label in counts})
    table = [[counts[there, label] for label in labels] for there in (False, True)]
    assert min(map(sum, table)) > 0
    return float(chi2_contingency(table).pvalue)


def test_more_difficulty_means_weaker_cues_of_the_label() -> None:
    def shown(difficulty: float) -> float:
        cohort = SyntheticCohort(1, 48, difficulty, SyntheticSettings())
        lesions = [lesion for index in range(50) for lesion in cohort.patient(index)[1]]
        return float(np.mean([lesion.structure for lesion in lesions if lesion.malignant]))

    assert shown(2.0) < 0.7 * shown(1.0)


def test_a_cohort_may_have_no_malignant_patient() -> None:
    cohort = SyntheticCohort(1, 48, 1.0, SyntheticSettings(malignant_patient_share=0.0))
    assert not any(lesion.malignant for index in range(40) for lesion in cohort.patient(index)[1])


def test_lab_of_white_grey_and_red_is_as_tables_give_it() -> None:
    values = lab(np.array([[255, 255, 255], [119, 119, 119], [255, 0, 0]]))
    expected = [[100.0, 0.0, 0.0], [50.0, 0.0, 0.0], [53.2, 80.1, 67.2]]
    assert np.allclose(values, expected, atol=0.3)


def test_dots_equal_the_slow_sum() -> None:
    rng = np.random.default_rng(2)
    centres, radii, weights = rng.uniform(-1, 1, (3, 2)), rng.uniform(0.1, 0.4, 3), rng.random(3)
    drawn = dots(11, centres, radii, weights)
    for row in range(11):
        for column in range(11):
            place = (np.array([column, row]) + 0.5) / 11 * 2.0 - 1.0
            squares = ((place - centres) ** 2).sum(axis=1) / radii**2
            assert drawn[row, column] == pytest.approx((weights * np.exp(-squares / 2)).sum(), 1e-4)


def test_smooth_noise_has_about_unit_spread_and_no_jumps() -> None:
    noise = np.stack([smooth_noise(np.random.default_rng(i), 64, 5) for i in range(40)])
    assert 0.8 < float(noise.std()) < 1.2
    assert float(np.abs(np.diff(noise, axis=1)).max()) < 1.2


def test_a_contact_sheet_frames_malignant_lesions(tmp_path: Path) -> None:
    source: Source = synthetic_source(
        patients=3, seed=0, image_px=32, settings=SyntheticSettings(malignant_patient_share=0.99)
    )
    contact_sheet(source, tmp_path / "sheet.png", patients=3, lesions=4, tile_px=40)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * 44 + 4, 3 * 44 + 4)
        colours = {colour for _, colour in sheet.getcolors(maxcolors=10**6) or []}
    assert {(255, 0, 0), (255, 0, 255)} & colours


def test_the_command_writes_a_sheet_of_the_demo(tmp_path: Path) -> None:
    main(out=tmp_path / "demo.png", patients=1, lesions=2, image_px=32, seed=DEMO_SETTINGS["seed"])
    assert (tmp_path / "demo.png").stat().st_size > 1000
