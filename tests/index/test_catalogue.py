"""What goes into a catalogue comes out; what may not go in is refused whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.errors import (
    CatalogueError,
    DimensionMismatch,
    InferenceError,
    InvalidRecord,
    OutOfRange,
    UnknownField,
    UnknownLesion,
)
from index.catalogue import Catalogue, CatalogueLesion
from tests.fakes import SCHEMA

MakeLesion = Callable[..., CatalogueLesion]
MakeCatalogue = Callable[..., Catalogue]


def test_a_lesion_is_read_back_as_it_was_added(
    make_catalogue: MakeCatalogue, make_lesion: MakeLesion
) -> None:
    added = make_lesion(3, content_hashes=("f" * 64, "0" * 64, "f" * 64))
    stored = make_catalogue([make_lesion(1), added, make_lesion(2)]).lesion("lesion-003")
    np.testing.assert_array_equal(stored.embedding, added.embedding)
    assert stored.embedding.dtype == np.float32
    for name in ("lesion_id", "patient_id", "record", "label", "malignant", "source"):
        assert getattr(stored, name) == getattr(added, name)
    assert stored.content_hashes == added.content_hashes
    assert stored.has_thumbnail
    assert list(stored.record) == [name for name in SCHEMA.names if name in stored.record]
    assert stored.record["itch"] is False


def test_missing_values_stay_missing_and_zero_and_false_stay_data(
    make_catalogue: MakeCatalogue, make_lesion: MakeLesion
) -> None:
    record = {"diameter_mm": 0.0, "itch": False, "sex": None}
    blank: dict[str, Any] = {"patient_id": None, "label": None, "malignant": None}
    catalogue = make_catalogue([make_lesion(2, record=record, content_hashes=(), **blank)])
    stored = catalogue.lesion("lesion-002")
    assert stored.record == {"diameter_mm": 0.0, "itch": False}
    assert (stored.patient_id, stored.label, stored.malignant) == (None, None, None)
    assert (stored.content_hashes, stored.has_thumbnail) == ((), False)
    (hit,) = catalogue.search(stored.embedding[None], k=1)[0]
    assert (hit.record, hit.malignant) == ({"diameter_mm": 0.0, "itch": False}, None)


def test_hits_show_what_is_known_of_the_lesion(
    make_catalogue: MakeCatalogue, make_lesion: MakeLesion
) -> None:
    added = make_lesion(7)
    catalogue = make_catalogue([make_lesion(n) for n in range(12)])
    hit = catalogue.search(added.embedding[None], k=3)[0][0]
    assert hit.score == pytest.approx(1.0)
    for name in ("lesion_id", "patient_id", "record", "label", "malignant", "source"):
        assert getattr(hit, name) == getattr(added, name)
    assert hit.has_thumbnail


def test_a_patients_lesions_come_in_order_of_their_ids(
    make_catalogue: MakeCatalogue, make_lesion: MakeLesion
) -> None:
    catalogue = make_catalogue([make_lesion(n) for n in (5, 3, 4, 1)])
    found = catalogue.lesions_of_patient("patient-1")
    assert [lesion.lesion_id for lesion in found] == ["lesion-003", "lesion-004", "lesion-005"]


def test_a_thumbnail_is_given_as_it_was_added_and_its_absence_is_told(
    make_catalogue: MakeCatalogue, make_lesion: MakeLesion
) -> None:
    catalogue = make_catalogue([make_lesion(1), make_lesion(2)])
    assert catalogue.thumbnail("lesion-001") == b"jpeg 1"
    with pytest.raises(UnknownLesion, match="no thumbnail"):
        catalogue.thumbnail("lesion-002")
    with pytest.raises(UnknownLesion, match="expected a lesion of the catalogue"):
        catalogue.thumbnail("lesion-009")


def test_unknown_ids_are_told_and_a_patients_id_is_not_repeated(
    make_catalogue: MakeCatalogue, make_lesion: MakeLesion
) -> None:
    catalogue = make_catalogue([make_lesion(1)])
    with pytest.raises(UnknownLesion, match="lesion-404"):
        catalogue.lesion("lesion-404")
    with pytest.raises(UnknownLesion) as caught:
        catalogue.lesions_of_patient("Jane Doe")
    assert "Jane" not in str(caught.value)


def test_each_addition_is_one_revision_and_an_empty_one_is_none(
    make_catalogue: MakeCatalogue, make_lesion: MakeLesion
) -> None:
    catalogue = make_catalogue()
    assert (catalogue.revision, len(catalogue)) == (0, 0)
    catalogue.add([make_lesion(1), make_lesion(2)])
    catalogue.add([])
    catalogue.add([make_lesion(3)])
    assert (catalogue.revision, len(catalogue)) == (2, 3)


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"lesion_id": "lesion-001"}, CatalogueError, "'lesion-001'"),
        ({"lesion_id": "lesion-008"}, CatalogueError, "'lesion-008' twice"),
        ({"embedding": np.ones(5, np.float32)}, DimensionMismatch, "lesion-009.*(6,).*(5,)"),
        ({"embedding": np.ones((1, 6), np.float32)}, DimensionMismatch, "(1, 6)"),
        ({"embedding": np.zeros(6, np.float32)}, InferenceError, "length 0"),
        ({"embedding": np.full(6, np.nan, np.float32)}, InferenceError, "not finite"),
        ({"record": {"sexx": "male"}}, UnknownField, "sexx"),
        ({"record": {"age": 4.0}}, InvalidRecord, "canonical"),
        ({"record": {"sex": "Male"}}, InvalidRecord, "canonical"),
        ({"record": {"age_years": 400.0}}, OutOfRange, "age_years"),
    ],
)
def test_an_addition_with_one_unacceptable_lesion_changes_nothing(
    make_catalogue: MakeCatalogue,
    make_lesion: MakeLesion,
    changes: dict[str, Any],
    error: type[Exception],
    told: str,
) -> None:
    catalogue = make_catalogue([make_lesion(1)])
    with pytest.raises(error) as caught:
        catalogue.add([make_lesion(8), make_lesion(9, **changes)])
    for part in told.split(".*"):
        assert part in str(caught.value)
    assert (catalogue.revision, len(catalogue)) == (1, 1)
    with pytest.raises(UnknownLesion):
        catalogue.lesion("lesion-008")
    catalogue.add([make_lesion(8)])
    assert len(catalogue) == 2


def test_a_taken_folder_is_not_overwritten(
    make_catalogue: MakeCatalogue, tmp_path: Path, make_lesion: MakeLesion
) -> None:
    make_catalogue([make_lesion(1)])
    with pytest.raises(CatalogueError, match="exists"):
        make_catalogue()
    (tmp_path / "file").write_text("")
    with pytest.raises(CatalogueError, match="exists"):
        make_catalogue(name="file")
