import numpy as np
import numpy.typing as npt
import pytest

from bundle.calibration import Extrapolation
from bundle.encoder import unit_norm
from cohort.cohort import Cohort
from index.extrapolation import extrapolate
from index.lesions import Hit
from tests.training.squares import LABELS
from training import neighbours
from training.config import FitSettings
from training.data import Rows, fit_schema, load_rows
from training.neighbours import Neighbours, fit_extrapolation

DIM = 4


@pytest.fixture(scope="module")
def rows(cohort: Cohort) -> Rows:
    return load_rows(cohort, ["train"], LABELS).take(np.arange(23))


def embeddings_of(rows: Rows) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 1, (len(rows), DIM)).astype(np.float32)


def test_neighbours_are_those_of_a_search_lesion_by_lesion(rows: Rows) -> None:
    embeddings = embeddings_of(rows)
    reference = Neighbours(rows, embeddings)
    lesion_ids = list(dict.fromkeys(rows.lesion_id))
    assert sorted(reference.rows.lesion_id) == sorted(lesion_ids)
    scores, nearest = reference.search(rows, embeddings, 7)
    assert scores.shape == nearest.shape == (23, 7)
    means = {
        lesion: embeddings[[i for i, own in enumerate(rows.lesion_id) if own == lesion]].mean(0)
        for lesion in lesion_ids
    }
    group = dict(zip(rows.lesion_id, rows.group_id, strict=True))
    units = unit_norm(embeddings)
    for row in range(len(rows)):
        others = [lesion for lesion in lesion_ids if group[lesion] != rows.group_id[row]]
        known = {k: float(units[row] @ means[k] / np.linalg.norm(means[k])) for k in others}
        seven = sorted(known, key=lambda k: known[k], reverse=True)[:7]
        best: dict[str, float] = {}
        for lesion in seven:
            best.setdefault(group[lesion], known[lesion])
        heard = np.isfinite(scores[row])
        assert heard.tolist() == [True] * len(best) + [False] * (7 - len(best))
        np.testing.assert_allclose(scores[row][heard], list(best.values()), atol=1e-5)
        for score, place in zip(scores[row][heard], nearest[row], strict=False):
            assert known[reference.rows.lesion_id[place]] == pytest.approx(score, abs=1e-5)


def test_no_more_neighbours_come_than_there_are_lesions(rows: Rows) -> None:
    embeddings = embeddings_of(rows)
    scores, _ = Neighbours(rows, embeddings).search(rows, embeddings, 1000)
    assert scores.shape[1] == len(set(rows.lesion_id))
    assert np.isfinite(scores).sum(1).tolist() == [len(set(rows.group_id)) - 1] * len(rows)


def test_what_is_found_does_not_depend_on_how_many_rows_are_compared_at_once(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = embeddings_of(rows)
    reference = Neighbours(rows, embeddings)
    scores, nearest = reference.search(rows, embeddings, 4)
    monkeypatch.setattr(neighbours, "BLOCK", 3)
    found, places = reference.search(rows, embeddings, 4)
    np.testing.assert_allclose(found, scores, rtol=1e-5)
    np.testing.assert_array_equal(places, nearest)


def test_extrapolated_records_come_from_other_patients_alone(cohort: Cohort, rows: Rows) -> None:
    """One patient's rows have a site that no other row has: nobody's own site is guessed."""
    schema = fit_schema(cohort.schema, rows)
    first = rows.group_id[0]
    for record, group in zip(rows.records, rows.group_id, strict=True):
        record["anatom_site"] = "scalp" if group == first else "back"
    settings = Extrapolation(neighbours=5, min_similarity=-1, min_support=1, min_agreement=0.5)
    embeddings = np.ones((len(rows), DIM), np.float32)
    reference = Neighbours(rows, embeddings)
    records = reference.extrapolated(rows, embeddings, schema, settings)
    assert len(records) == len(rows)
    own = [r for r, g in zip(records, rows.group_id, strict=True) if g == first]
    assert {r["anatom_site"] for r in own} == {"back"}
    assert all(set(r) == set(schema.names) for r in records)


def test_training_and_service_ask_the_same_neighbours(cohort: Cohort, rows: Rows) -> None:
    """Hits as a catalogue gives them, several a patient, say what training's search says."""
    schema = fit_schema(cohort.schema, rows)
    settings = Extrapolation(neighbours=9, min_similarity=-1, min_agreement=0.3)
    embeddings = embeddings_of(rows)
    reference = Neighbours(rows, embeddings)
    records = reference.extrapolated(rows, embeddings, schema, settings)
    similarities = unit_norm(embeddings) @ reference.directions.T
    for row, record in enumerate(records):
        hits = [
            Hit(
                lesion_id=reference.rows.lesion_id[place],
                score=float(similarities[row, place]),
                label=None,
                malignant=None,
                record=reference.rows.records[place],
                source="squares",
                patient_id=reference.rows.group_id[place],
                has_thumbnail=False,
            )
            for place in np.argsort(-similarities[row])
            if reference.rows.group_id[place] != rows.group_id[row]
        ]
        answers = extrapolate(hits, schema.fields, settings)
        for name, answer in answers.items():
            assert record[name] == pytest.approx(answer.value, abs=1e-4)


def test_neighbours_that_are_too_few_leave_a_field_open(cohort: Cohort, rows: Rows) -> None:
    one = rows.take(np.array(rows.group_id) == rows.group_id[0])
    embeddings = embeddings_of(one)
    schema = fit_schema(cohort.schema, rows)
    records = Neighbours(one, embeddings).extrapolated(one, embeddings, schema, Extrapolation())
    assert {value for record in records for value in record.values()} == {None}


def test_the_farthest_calibration_lesions_get_no_answer() -> None:
    scores = np.sort(np.random.default_rng(0).random((100, 15)), axis=1)[:, ::-1].astype(np.float32)
    settings = fit_extrapolation(scores, FitSettings(neighbours_too_far=0.05))
    assert (settings.neighbours, settings.min_support) == (15, 3)
    answered = (scores >= settings.min_similarity).sum(1) >= 3
    assert answered.mean() == 0.95
    few = fit_extrapolation(scores[:, :2], FitSettings())
    assert few.min_similarity == pytest.approx(np.quantile(scores[:, 1], 0.02))
    patients = scores.copy()
    patients[:30, 2:] = -np.inf
    some = fit_extrapolation(patients, FitSettings(neighbours_too_far=0.05))
    assert (
        some.min_similarity
        == fit_extrapolation(scores[30:], FitSettings(neighbours_too_far=0.05)).min_similarity
    )
    assert fit_extrapolation(patients[:30], FitSettings()).min_similarity == -1
    alone = fit_extrapolation(np.full((4, 3), -1.000001, np.float32), FitSettings())
    assert alone.min_similarity == -1
