"""The synthetic cohort as a source: the same bytes for the same seed, read as a stream."""

import dataclasses
import io
import tracemalloc
from collections import Counter
from itertools import groupby, islice

import numpy as np
import pytest
from PIL import Image

from bundle.errors import InvalidSettings
from cohort.rows import DroppedRow, LesionImage, Source
from cohort.synthetic import DEMO_SETTINGS, SLICE3D_LIKE, SyntheticSettings, synthetic_source
from cohort.synthetic.phenotype import draw_patient
from cohort.synthetic.source import SyntheticCohort

SMALL = SyntheticSettings(lesions_floor=5, lesions_tail_median=1.0, lesions_max=12)


def images_of(source: Source, count: int | None = None) -> list[LesionImage]:
    return [row for row in islice(source.rows(), count) if isinstance(row, LesionImage)]


@pytest.fixture(scope="module")
def source() -> Source:
    return synthetic_source(patients=12, seed=3, image_px=48, settings=SMALL)


@pytest.fixture(scope="module")
def images(source: Source) -> list[LesionImage]:
    return images_of(source)


def test_the_same_seed_gives_the_same_bytes(source: Source, images: list[LesionImage]) -> None:
    assert images_of(source) == images


def test_another_seed_gives_other_pictures(images: list[LesionImage]) -> None:
    other = images_of(synthetic_source(patients=12, seed=4, image_px=48, settings=SMALL))
    assert {image.image for image in other}.isdisjoint(image.image for image in images)


def test_a_patient_alone_equals_the_patient_in_the_stream(images: list[LesionImage]) -> None:
    cohort = SyntheticCohort(3, 48, 1.0, SMALL)
    alone = list(cohort.images_of(7))
    assert alone == [image for image in images if image.patient_id == "SYN_P000007"]
    assert alone


def test_a_larger_cohort_begins_with_the_smaller_one(images: list[LesionImage]) -> None:
    larger = synthetic_source(patients=50, seed=3, image_px=48, settings=SMALL)
    assert images_of(larger, len(images)) == images


def test_groups_agree_with_rows(source: Source, images: list[LesionImage]) -> None:
    assert [(g.group_id, g.label) for g in source.groups()] == [
        (image.group_id, image.label) for image in images
    ]


def test_rows_of_one_patient_come_together_and_ids_are_unique(images: list[LesionImage]) -> None:
    assert len([patient for patient, _ in groupby(i.patient_id for i in images)]) == 12
    assert len({image.image_id for image in images}) == len(images)


def test_no_row_is_dropped(source: Source) -> None:
    assert not any(isinstance(row, DroppedRow) for row in source.rows())


def test_every_record_is_as_its_schema_reads_it(source: Source, images: list[LesionImage]) -> None:
    for image in images:
        assert source.schema.parse(image.record) == image.record
        assert None not in image.record.values()


def test_patient_fields_are_the_same_on_all_lesions_of_a_patient(
    source: Source, images: list[LesionImage]
) -> None:
    names = [field.name for field in source.schema.at("patient")]
    for _, lesions in groupby(images, key=lambda image: image.patient_id):
        assert len({tuple(lesion.record.get(name) for name in names) for lesion in lesions}) == 1


def test_malignant_follows_from_the_label(source: Source, images: list[LesionImage]) -> None:
    for image in images:
        assert image.label in source.labels
        assert image.malignant == (image.label in source.malignant_labels)


@pytest.mark.parametrize("image_px", [48, 65, 224])
def test_pictures_have_the_size_asked_for(image_px: int) -> None:
    one = images_of(synthetic_source(patients=1, seed=0, image_px=image_px, settings=SMALL), 2)
    for image in one:
        with Image.open(io.BytesIO(image.image)) as picture:
            assert picture.size == (image_px, image_px)
            assert picture.mode == "RGB"
            assert np.asarray(picture).std() > 3.0


def test_labels_and_records_do_not_depend_on_the_picture_size(images: list[LesionImage]) -> None:
    other = images_of(synthetic_source(patients=12, seed=3, image_px=32, settings=SMALL))
    assert [(i.label, i.record) for i in other] == [(i.label, i.record) for i in images]


def test_the_demo_has_enough_patients_to_rank_and_few_enough_pictures() -> None:
    demo = synthetic_source(**DEMO_SETTINGS)
    lesions: Counter[str] = Counter()
    malignant: Counter[str] = Counter()
    for group in demo.groups():
        lesions[group.group_id] += 1
        malignant[group.group_id] += group.label in demo.malignant_labels
    ranked = [p for p in lesions if lesions[p] >= 15 and malignant[p] > 0]
    assert len(ranked) / 4 >= 42  # a quarter is held out for testing
    assert lesions.total() <= 6000
    assert 0.01 <= malignant.total() / lesions.total() <= 0.035


def test_lesion_counts_have_a_long_tail() -> None:
    counts = np.array(
        [
            draw_patient(index, np.random.default_rng(index), SyntheticSettings()).lesions
            for index in range(2000)
        ]
    )
    deviations = counts - counts.mean()
    assert (deviations**3).mean() / counts.std() ** 3 > 1.0
    assert counts.min() >= 3
    assert np.percentile(counts, 99) > 1.8 * np.median(counts)
    assert counts.max() <= 60


def test_memory_does_not_grow_with_the_patients_read() -> None:
    many = dataclasses.replace(SMALL, lesions_floor=12)
    rows = synthetic_source(patients=10**9, seed=5, image_px=32, settings=many).rows()
    for _ in islice(rows, 40):  # caches and first patient
        pass
    tracemalloc.start()
    for _ in islice(rows, 40):
        pass
    _, first = tracemalloc.get_traced_memory()
    for _ in islice(rows, 120):
        pass
    _, later = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert later < 1.5 * first
    assert later < 2_000_000


def test_a_cohort_like_slice3d_has_hundreds_of_lesions_a_patient() -> None:
    cohort = SyntheticCohort(0, 32, 1.0, SLICE3D_LIKE)
    counts = [len(list(cohort.groups_of(index))) for index in range(12)]
    assert 200 < float(np.mean(counts)) < 700


@pytest.mark.parametrize(
    "change", [{"patients": 0}, {"seed": -1}, {"difficulty": 0.0}, {"image_px": 16}]
)
def test_arguments_outside_their_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InvalidSettings, match="expected"):
        synthetic_source(**{"patients": 1, "seed": 0, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [{"missing_share": 1.0}, {"alike_share": -0.1}, {"lesions_floor": 3}]
)
def test_settings_outside_their_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InvalidSettings, match="expected"):
        SyntheticSettings(**change)  # type: ignore[arg-type]
