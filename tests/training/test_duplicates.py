"""The same picture is found again however it was stored, and another one is not."""

import io

import numpy as np
import pytest
from PIL import Image

from bundle.images import ImageInput
from cohort.cohort import Cohort
from training.data import Squares, load_rows
from training.duplicates import SIDE, find_near_duplicates, thumbnails


class Pictures(Squares):
    """Squares that are given."""

    def __init__(self, pictures: np.ndarray) -> None:
        self.pictures = pictures
        self.spec = ImageInput(size_px=pictures.shape[1], resize_px=pictures.shape[1])

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, indices: list[int]) -> np.ndarray:
        return self.pictures[indices]


def scenes(count: int, seed: int) -> np.ndarray:
    """Return (N, 64, 64, 3) uint8 smooth pictures."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((64, 64))) for c in coarse])


def as_jpeg(picture: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


def test_a_picture_is_found_compressed_turned_and_mirrored() -> None:
    known = scenes(20, 0)
    asked = np.stack(
        [
            as_jpeg(known[3]),
            np.rot90(known[7], 3),
            np.rot90(known[11], 1)[:, ::-1],
            scenes(1, 1)[0],
        ]
    )
    found = find_near_duplicates(thumbnails(Pictures(asked)), thumbnails(Pictures(known)))
    assert {(pair.query, pair.reference) for pair in found} == {(0, 3), (1, 7), (2, 11)}
    assert [p.correlation for p in found] == sorted((p.correlation for p in found), reverse=True)


def test_correlations_do_not_depend_on_how_many_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    known, asked = (thumbnails(Pictures(scenes(9, seed))) for seed in (0, 1))
    whole = find_near_duplicates(asked, known, like=-1)
    monkeypatch.setattr("training.duplicates.CHUNK", 20)
    parts = find_near_duplicates(asked, known, like=-1)
    assert [(p.query, p.reference) for p in parts] == [(p.query, p.reference) for p in whole]
    slow = [
        max(
            float(np.corrcoef(np.rot90(one, k)[:, ::flip].ravel(), other.ravel())[0, 1])
            for k in range(4)
            for flip in (1, -1)
            for other in known
        )
        for one in asked
    ]
    for pair in whole:
        assert pair.correlation == pytest.approx(slow[pair.query], abs=1e-4)


def test_a_blank_picture_is_like_nothing() -> None:
    blank = np.full((1, 64, 64, 3), 128, np.uint8)
    small = thumbnails(Pictures(blank))
    assert small.shape == (1, SIDE, SIDE)
    assert not find_near_duplicates(small, small)
    assert not find_near_duplicates(small, np.zeros((0, SIDE, SIDE), np.float32))


def test_a_cohorts_pictures_are_read(cohort: Cohort) -> None:
    rows = load_rows(cohort, ["test"], cohort.info.labels)
    small = thumbnails(Squares(cohort, rows, ImageInput(size_px=32, resize_px=32)))
    found = find_near_duplicates(small, small)
    assert {pair.query for pair in found} == set(range(len(rows)))
