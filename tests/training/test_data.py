from collections.abc import Sequence

import numpy as np
import pytest
import torch

from bundle.fields import Level
from bundle.images import ImageInput, decode_image, prepare_image, resize_image, standardise
from bundle.records import encode_records, fit_fields
from cohort.cohort import Cohort
from tests.training.squares import LABELS, tiny_config
from training.augment import Augment
from training.config import AugmentSettings
from training.data import Squares, fit_schema, image_loader, in_order, load_rows

SPEC = ImageInput(size_px=16, resize_px=16)
LEVELS: tuple[Level, ...] = ("lesion", "patient")


def test_rows_hold_the_splits_they_were_asked_for(cohort: Cohort) -> None:
    train, both = (load_rows(cohort, s, LABELS) for s in (["train"], ["train", "cal"]))
    counts = cohort.info.counts.splits
    assert len(train) == counts["train"].images
    assert len(both) == counts["train"].images + counts["cal"].images
    assert set(both.split) == {"train", "cal"}
    table = cohort.table("train")
    assert train.image_id == table["image_id"].to_pylist()
    assert [LABELS[i] for i in train.label] == table["label"].to_pylist()
    assert train.malignant.tolist() == [int(m) for m in table["malignant"].to_pylist()]
    for numbers, ids in ((train.lesion, train.lesion_id), (train.patient, train.group_id)):
        assert [[a == b for b in numbers] for a in numbers] == [[a == b for b in ids] for a in ids]


def test_a_label_outside_the_vocabulary_is_no_label(cohort: Cohort) -> None:
    rows = load_rows(cohort, ["train"], ("mel",))
    assert set(rows.label.tolist()) == {0, -1}


def test_without_patient_ids_a_lesion_is_its_own_group(lesion_cohort: Cohort) -> None:
    rows = load_rows(lesion_cohort, ["train"], LABELS)
    assert rows.group_id == rows.lesion_id
    assert np.array_equal(rows.patient, rows.lesion)


def test_rows_are_taken_by_position_or_by_mask(cohort: Cohort) -> None:
    rows = load_rows(cohort, ["train"], LABELS)
    some = rows.take([3, 1])
    assert some.image_id == [rows.image_id[3], rows.image_id[1]]
    assert some.records == [rows.records[3], rows.records[1]]
    for none in (rows.take([]), rows.take(np.zeros(len(rows), np.bool_)), rows.take([]).take([])):
        assert (len(none), none.records) == (0, [])
    mel = rows.label == 1
    assert rows.take(mel).position.tolist() == rows.position[mel].tolist()


def test_fields_are_standardised_on_the_rows_given(cohort: Cohort) -> None:
    rows = load_rows(cohort, ["train"], LABELS)
    schema = fit_schema(cohort.schema, rows)
    ages = [r["age_years"] for r in rows.records]
    assert schema.resolve("age_years").mean == np.mean(np.asarray(ages, np.float64))
    values = rows.encode(schema, "patient").values[:, 0]
    assert abs(float(values.mean())) < 1e-5


def test_neither_fitting_nor_encoding_makes_records(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record of 40 fields takes kilobytes, and a cohort may have 400,000."""
    monkeypatch.setattr(Cohort, "records", None)
    rows = load_rows(cohort, ["train"], LABELS).take(np.arange(9))
    schema = fit_schema(cohort.schema, rows)
    assert [rows.encode(schema, level).values.shape for level in LEVELS] == [
        (9, 3),
        (9, 2),
    ]


def test_rows_are_encoded_as_their_records_are(cohort: Cohort) -> None:
    rows = load_rows(cohort, ["cal"], LABELS).take([4, 0, 2])
    schema = fit_schema(cohort.schema, rows)
    assert schema.fields == fit_fields(cohort.schema.fields, rows.records)
    for level in LEVELS:
        encoded = rows.encode(schema, level)
        expected = encode_records(rows.records, schema.at(level))
        assert np.array_equal(encoded.values, expected.values)
        assert np.array_equal(encoded.present, expected.present)


def test_a_batch_of_pixels_is_what_its_rows_show(cohort: Cohort) -> None:
    rows = load_rows(cohort, ["cal"], LABELS)
    batch = next(iter(image_loader(Squares(cohort, rows, SPEC), batches=[[4, 0]])))
    assert batch["index"].tolist() == [4, 0]
    assert batch["pixels"].dtype == torch.uint8
    for row, pixels in zip((4, 0), batch["pixels"], strict=True):
        (data,) = cohort.images([int(rows.position[row])])
        assert np.array_equal(pixels, resize_image(decode_image(data), SPEC))
    data_set = Squares(cohort, rows, SPEC)
    assert len(data_set) == len(rows)
    assert torch.equal(data_set[4]["pixels"], batch["pixels"][0])


class CountedReads(Cohort):
    """Remembers which rows' files were read."""

    def images(self, rows: Sequence[int]) -> list[bytes]:
        self.read = [*getattr(self, "read", []), *rows]
        return super().images(rows)


@pytest.mark.parametrize(("side", "kept"), [(16, 20), (256, 5)])
def test_squares_are_decoded_once_while_they_fit(cohort: Cohort, side: int, kept: int) -> None:
    counted = CountedReads.open(cohort.path)
    rows = load_rows(counted, ["test"], LABELS)
    spec = ImageInput(size_px=side, resize_px=side)
    plain, keeping = Squares(cohort, rows, spec), Squares(counted, rows, spec, keep_mib=1)
    everything = list(range(len(rows)))
    for order in ([3, 0], everything, everything[::-1], [7, 7]):
        assert np.array_equal(keeping.read(order), plain.read(order))
    assert len(rows) == 20
    decoded = np.bincount(np.searchsorted(rows.position, counted.read), minlength=20)
    assert (decoded == 1).sum() == kept
    assert keeping.read([]).shape == (0, side, side, 3)


def test_workers_keep_no_squares() -> None:
    assert tiny_config().batch.kept_mib > 0
    assert tiny_config(batch={"workers": 2}).batch.kept_mib == 0


def test_a_loaders_iterator_leaves_the_global_random_numbers_alone(cohort: Cohort) -> None:
    """Otherwise a run resumed within an epoch draws other numbers than an uninterrupted one."""
    rows = load_rows(cohort, ["cal"], LABELS)
    before = torch.get_rng_state()
    list(image_loader(Squares(cohort, rows, SPEC), batches=[[0]]))
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_in_order_cover_every_row_once() -> None:
    assert list(in_order(7, 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(in_order(0, 3)) == []


def test_augmentation_that_changes_nothing_is_the_preparation_of_serving(cohort: Cohort) -> None:
    still = AugmentSettings(min_crop=1, flip=False, brightness=0, contrast=0, saturation=0, hue=0)
    augment = Augment(still, SPEC)
    augment.steps = torch.nn.Sequential(*list(augment.steps)[1:])  # the crop also moves the ratio
    picture = decode_image(cohort.images([0])[0])
    pixels = torch.from_numpy(resize_image(picture, SPEC).copy())[None]
    np.testing.assert_allclose(augment(pixels)[0], prepare_image(picture, SPEC), atol=1e-5)


def test_augmentation_changes_pictures_without_leaving_their_shape() -> None:
    torch.manual_seed(0)
    config = tiny_config(augment={"rotate_degrees": 30, "brightness": 0.2, "hue": 0.02})
    augment = Augment(config.augment, SPEC)
    pixels = torch.randint(0, 256, (3, 20, 20, 3), dtype=torch.uint8)
    first, second = augment(pixels), augment(pixels)
    assert first.shape == (3, 3, 16, 16)
    assert first.dtype == torch.float32
    assert torch.isfinite(first).all()
    assert not torch.equal(first, second)


def test_quarter_turns_are_exact_and_equally_frequent() -> None:
    torch.manual_seed(0)
    still = {"min_crop": 1.0, "flip": False, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    config = tiny_config(augment={**still, "hue": 0.0, "quarter_turns": True})
    augment = Augment(config.augment, SPEC)
    augment.steps = torch.nn.Sequential(*list(augment.steps)[1:])  # the crop also moves the ratio
    pixels = torch.randint(0, 256, (400, 16, 16, 3), dtype=torch.uint8)
    plain = torch.from_numpy(standardise(pixels.numpy(), SPEC))
    turned, of_turn = augment(pixels), torch.zeros(4)
    for quarters in range(4):
        same = torch.isclose(turned, plain.rot90(quarters, (2, 3)), atol=1e-4).flatten(1).all(1)
        of_turn[quarters] = same.float().mean()
    assert of_turn.sum() == 1
    assert ((of_turn > 0.15) & (of_turn < 0.35)).all()
