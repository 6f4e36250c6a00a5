"""/risk: a patient's lesions beside each other."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from bundle.images import content_hash, decode_image
from index.catalogue import Catalogue, Exclusion
from index.lesions import CatalogueLesion
from service import context
from service.assessment import judge
from service.context import join_risks
from service.metadata import Known
from service.models import Models
from service.runtime import Runtime
from tests.fakes import (
    BLUE,
    CONTEXT_SLOPE,
    GREEN,
    RED,
    SCHEMA,
    Colour,
    FakeEncoders,
    colour_embedding,
    draw_image,
    make_calibration,
    make_lesion,
    make_manifest,
    write_catalogue,
)
from tests.service.asking import answer, ask, assert_error

REDS = [draw_image(RED, seed=seed) for seed in range(3)]
FLAT = draw_image(RED, grain=0)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_one_lesion_has_the_risk_that_it_has_alone(client: TestClient) -> None:
    """The context model adds nothing without context, and neither does the patient's risk."""
    said = answer(client, "/risk", REDS[0], extrapolate="false")
    (lesion,) = said["lesions"]
    alone = answer(client, "/classify", REDS[0], extrapolate="false")
    assert lesion["malignancy"] == alone["malignancy"]
    assert lesion["risk_in_context"] == pytest.approx(lesion["malignancy"], abs=1e-6)
    assert said["patient"]["risk"] == pytest.approx(lesion["risk_in_context"], abs=1e-12)
    assert said["patient"]["lesions_used"] == 1
    assert said["patient"]["context"] == "none"
    assert lesion["ugly_duckling"] == {
        "score": None,
        "rank": None,
        "basis": None,
        "reason": "fewer_than_three_lesions",
    }


def test_the_lesion_unlike_the_others_is_the_ugly_duckling(client: TestClient) -> None:
    said = answer(client, "/risk", *REDS, draw_image(BLUE), extrapolate="false")
    blue = said["lesions"][3]
    assert blue["ugly_duckling"]["rank"] == 1
    assert blue["ugly_duckling"]["score"] == 1
    assert blue["ugly_duckling"]["basis"] == "patient"
    assert sorted(one["ugly_duckling"]["rank"] for one in said["lesions"]) == [1, 2, 3, 4]
    assert said["patient"]["context"] == "enough"


def test_risk_in_context_is_that_of_the_arithmetic(client: TestClient) -> None:
    said = answer(client, "/risk", *REDS, draw_image(BLUE), extrapolate="false")
    blue = said["lesions"][3]
    mean = (3 * colour_embedding(RED) + colour_embedding(BLUE)) / 4
    away = float(np.linalg.norm(colour_embedding(BLUE) - mean))
    expected = logit(blue["malignancy"]) + CONTEXT_SLOPE * away
    assert logit(blue["risk_in_context"]) == pytest.approx(expected, abs=0.05)


def test_the_patients_risk_joins_the_lesions_risks(client: TestClient) -> None:
    said = answer(client, "/risk", *REDS, draw_image(BLUE))
    risks = [lesion["risk_in_context"] for lesion in said["lesions"]]
    expected = 1 - math.prod(1 - risk for risk in risks)
    assert said["patient"]["risk"] == pytest.approx(expected, abs=1e-9)
    assert said["patient"]["risk"] >= max(risks)


@pytest.mark.parametrize("risks", [[1.0], [0.0], [1.0, 1.0], [1e-18, 1e-18], [0.3, 1 - 1e-16]])
def test_joined_risk_is_a_probability_never_below_the_largest(risks: list[float]) -> None:
    assert max(risks) <= join_risks(risks) <= 1


def test_the_order_of_the_lesions_does_not_matter(client: TestClient) -> None:
    images = [*REDS, draw_image(BLUE)]
    ahead = answer(client, "/risk", *images)["lesions"]
    behind = answer(client, "/risk", *images[::-1])["lesions"][::-1]
    for one, other in zip(ahead, behind, strict=True):
        assert one["risk_in_context"] == pytest.approx(other["risk_in_context"], abs=1e-5)
        assert one["ugly_duckling"]["score"] == pytest.approx(other["ugly_duckling"]["score"])


def test_lesions_name_their_images_and_records(client: TestClient) -> None:
    lesions = [
        {"id": "a", "images": [0, 2], "diameter_mm": 9},
        {"id": "b", "images": [1], "localization": "leg"},
    ]
    said = answer(client, "/risk", *REDS, lesions=lesions, patient={"age": 60})
    assert [one["id"] for one in said["lesions"]] == ["a", "b"]
    assert [image["index"] for image in said["lesions"][0]["quality"]["images"]] == [0, 2]
    first, second = (one["metadata"] for one in said["lesions"])
    assert first["diameter_mm"]["value"] == 9
    assert second["anatom_site"]["value"] == "lower extremity"
    assert first["age_years"] == second["age_years"]
    assert first["age_years"]["source"] == "given"


def test_each_image_is_a_lesion_named_by_its_position_without_a_list(client: TestClient) -> None:
    assert [one["id"] for one in answer(client, "/risk", *REDS)["lesions"]] == ["0", "1", "2"]


def test_a_patients_lesion_field_holds_for_lesions_that_do_not_give_their_own(
    client: TestClient,
) -> None:
    lesions = [{"id": "a", "images": [0]}, {"id": "b", "images": [1], "diameter_mm": 2}]
    said = answer(client, "/risk", *REDS[:2], lesions=lesions, patient={"diameter_mm": 7})
    assert [one["metadata"]["diameter_mm"]["value"] for one in said["lesions"]] == [7, 2]


def test_a_lesion_that_cannot_be_assessed_takes_no_part(client: TestClient) -> None:
    without = answer(client, "/risk", *REDS)
    beside = answer(client, "/risk", REDS[0], FLAT, REDS[1], REDS[2])
    poor = beside["lesions"].pop(1)
    assert poor["status"] == "not_assessable"
    assert poor["reason"] == poor["ugly_duckling"]["reason"] == "not_assessable"
    assert poor["malignancy"] is poor["risk_in_context"] is poor["label"] is None
    assert beside["patient"] == without["patient"]
    for one, other in zip(beside["lesions"], without["lesions"], strict=True):
        assert one["risk_in_context"] == other["risk_in_context"]


def test_nothing_is_said_of_a_patient_without_an_assessable_lesion(client: TestClient) -> None:
    said = answer(client, "/risk", FLAT)
    assert said["patient"] == {
        "risk": None,
        "lesions_used": 0,
        "lesions_from_catalogue": 0,
        "context": "none",
        "reason": "no_assessable_lesion",
    }


# the catalogue's lesions as context


def test_a_patients_catalogue_lesions_are_context(client: TestClient) -> None:
    said = answer(client, "/risk", draw_image(BLUE), patient_id="red")
    (blue,) = said["lesions"]
    assert said["patient"]["lesions_used"] == 6
    assert said["patient"]["lesions_from_catalogue"] == 5
    assert said["patient"]["context"] == "enough"
    assert blue["ugly_duckling"]["rank"] == 1
    assert blue["risk_in_context"] > blue["malignancy"]
    assert blue["metadata"]["age_years"]["value"] == 30
    assert blue["metadata"]["age_years"]["source"] == "given"


def test_what_the_caller_says_of_the_patient_wins(client: TestClient) -> None:
    said = answer(client, "/risk", REDS[0], patient_id="red", patient={"age": 31})
    assert said["lesions"][0]["metadata"]["age_years"]["value"] == 31


def test_a_submitted_image_is_not_its_own_context(client: TestClient) -> None:
    said = answer(client, "/risk", draw_image(RED, seed=101), patient_id="red")
    assert said["patient"]["lesions_from_catalogue"] == 4


def test_the_patients_own_lesions_do_not_fill_its_gaps(client: TestClient) -> None:
    said = answer(client, "/risk", REDS[0], patient_id="red")
    assert said["lesions"][0]["metadata"]["anatom_site"]["reason"] == "neighbours_too_far"


def test_lesions_of_one_request_do_not_fill_each_others_gaps(
    make_runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its pictures are one patient's, named or not."""
    runtime = make_runtime()
    assert runtime.catalogue is not None
    left_out: list[frozenset[str]] = []
    search = Catalogue.search

    def noting(self: Catalogue, *given: Any, exclude: Exclusion, **named: Any) -> Any:
        left_out.append(exclude.contents)
        assert exclude.with_kin
        return search(self, *given, exclude=exclude, **named)

    monkeypatch.setattr(Catalogue, "search", noting)
    runtime.risk(REDS)
    hashes = frozenset(content_hash(decode_image(picture)) for picture in REDS)
    assert left_out == [hashes] * 3


def test_a_patient_that_is_not_there_is_not_found_and_not_repeated(client: TestClient) -> None:
    content = assert_error(
        ask(client, "/risk", REDS[0], patient_id="J. Doe"), 404, "unknown_lesion"
    )
    assert "Doe" not in str(content)


def test_a_record_on_which_the_catalogue_disagrees_stays_missing_and_is_said(
    tmp_path_factory: pytest.TempPathFactory, make_runtime: Callable[..., Runtime]
) -> None:
    lesions = [
        make_lesion(str(age), patient_id="p", record={"age_years": age, "sex": "male"}, seed=age)
        for age in (40, 50)
    ] + [make_lesion("bare", patient_id="p", record={})]
    with write_catalogue(tmp_path_factory.mktemp("two") / "c", lesions) as catalogue:
        runtime = make_runtime(catalogue=catalogue)
        said = runtime.risk([REDS[0]], patient_id="p")
        told = runtime.risk([REDS[0]], patient={"age": 45}, patient_id="p")
    assert [(w.field, w.code) for w in said.warnings] == [("age_years", "conflicting_record")]
    assert said.lesions[0].metadata["age_years"].source == "missing"
    assert said.lesions[0].metadata["sex"].value == "male"
    assert told.warnings == ()


def test_what_the_caller_says_against_the_whole_catalogue_is_asked_about(
    client: TestClient,
) -> None:
    """The plainest sign of a patient id that was mistyped; an age changes by itself."""
    told = answer(client, "/risk", REDS[0], patient_id="red", patient={"sex": "male", "age": 31})
    assert [w["field"] for w in told["warnings"] if w["code"] == "conflicting_record"] == ["sex"]
    assert told["lesions"][0]["metadata"]["sex"]["value"] == "male"


def test_what_the_catalogue_knows_of_the_patient_is_said_to_be_from_there(
    client: TestClient,
) -> None:
    said = answer(client, "/risk", REDS[0], patient_id="red", patient={"age": 31})
    entries = said["lesions"][0]["metadata"]
    assert (entries["sex"]["source"], entries["sex"]["reason"]) == ("given", "from_catalogue")
    assert (entries["age_years"]["source"], entries["age_years"]["reason"]) == ("given", None)


def test_lesion_fields_of_the_request_are_not_those_of_stored_lesions(
    make_runtime: Callable[..., Runtime], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = [make_lesion(f"b{n}", patient_id="p", record={}, seed=50 + n) for n in range(3)]
    seen: list[Known] = []

    def note(models: Models, embeddings: Any, metadata: Sequence[Known]) -> Any:
        seen.extend(metadata)
        return judge(models, embeddings, metadata)

    monkeypatch.setattr(context, "judge", note)
    with write_catalogue(tmp_path / "c", bare) as catalogue:
        runtime = make_runtime(catalogue=catalogue)
        runtime.risk([REDS[0]], patient={"anatom_site": "back", "sex": "male"}, patient_id="p")
    own, *stored = (known.record for known in seen)
    assert own == {"anatom_site": "back", "sex": "male"}
    assert stored == [{"sex": "male"}] * 3


def test_one_picture_is_not_counted_as_several_lesions(client: TestClient) -> None:
    twice = ask(client, "/risk", REDS[0], REDS[1], REDS[0])
    assert_error(twice, 422, "invalid_request", "'0' and '2' hold the same picture")
    lesions = [{"id": "a", "images": [0, 2]}, {"id": "b", "images": [1]}]
    assert ask(client, "/risk", REDS[0], REDS[1], REDS[0], lesions=lesions).status_code == 200


def test_neighbours_make_no_two_people_of_one_patient(
    make_runtime: Callable[..., Runtime], tmp_path: Path
) -> None:
    def people(name: str, colour: Colour, **record: Any) -> list[CatalogueLesion]:
        return [
            make_lesion(
                f"{name}{n}",
                colour,
                seed=n,
                patient_id=f"{name}{n}",
                record={**record, "age_years": record["age_years"] + n},
            )
            for n in range(5)
        ]

    lesions = people("r", RED, sex="male", age_years=40.0, anatom_site="back")
    lesions += people("b", BLUE, sex="female", age_years=41.0, anatom_site="scalp")
    with write_catalogue(tmp_path / "c", lesions) as catalogue:
        runtime = make_runtime(catalogue=catalogue)
        apart = [runtime.classify([draw_image(colour)]) for colour in (RED, BLUE)]
        joined = runtime.risk([draw_image(RED), draw_image(BLUE)]).lesions
    assert [one.metadata["sex"].value for one in apart] == ["male", "female"]
    assert {one.metadata["sex"].reason for one in joined} == {"neighbours_disagree"}
    ages = {one.metadata["age_years"].value for one in apart}
    (age,) = {one.metadata["age_years"].value for one in joined}
    assert len(ages) == 2
    assert age == pytest.approx(np.median([float(value or 0) for value in ages]))
    # Where the lesions are is not the patient's: each has its own.
    assert [one.metadata["anatom_site"].value for one in joined] == ["back", "scalp"]


def test_the_context_model_sees_no_more_lesions_than_it_may(
    make_runtime: Callable[..., Runtime],
) -> None:
    said = make_runtime(max_context_lesions=2).risk([REDS[0]], patient_id="green")
    codes = [warning.code for warning in said.warnings]
    assert codes == ["guesses_not_used", "context_shortened"]
    assert said.patient.lesions_used == 6


# other bundles and sites


def test_without_a_context_model_there_is_no_risk_and_the_reason_is_given(
    make_runtime: Callable[..., Runtime],
) -> None:
    said = make_runtime(encoders=FakeEncoders(has_context=False)).risk([*REDS, draw_image(BLUE)])
    assert said.patient.risk is None
    assert said.patient.reason == "no_context_model"
    assert [warning.code for warning in said.warnings] == ["no_context_model"]
    for lesion in said.lesions:
        assert lesion.risk_in_context is None
        assert lesion.reason == "no_context_model"
        assert lesion.malignancy is not None
    assert said.lesions[3].ugly_duckling.rank == 1


def test_oddness_is_a_percentile_among_the_reference_where_there_is_one(
    make_runtime: Callable[..., Runtime],
) -> None:
    calibration = make_calibration(oddness_quantiles=(0.0, 0.1, 0.2, 0.9, 1.5))
    said = make_runtime(calibration=calibration).risk([*REDS, draw_image(BLUE)])
    duckling = said.lesions[3].ugly_duckling
    assert duckling.basis == "reference"
    assert duckling.score == pytest.approx(0.6)


def test_a_sites_prevalence_shifts_every_risk(
    make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime], client: TestClient
) -> None:
    images = [*REDS, draw_image(BLUE)]
    with TestClient(make_app(make_runtime(prevalence=0.01))) as rare:
        shifted = answer(rare, "/risk", *images)
    factor = math.log(0.01 / 0.99) - math.log(0.2 / 0.8)
    for one, other in zip(
        answer(client, "/risk", *images)["lesions"], shifted["lesions"], strict=True
    ):
        for name in ("malignancy", "risk_in_context"):
            assert logit(other[name]) == pytest.approx(logit(one[name]) + factor, abs=1e-3)


def test_patients_in_the_lesions_own_schema_are_understood(
    make_runtime: Callable[..., Runtime],
) -> None:
    """Without patient ids, age and sex are lesion fields, and may still be said of the patient."""
    fields = [field.model_copy(update={"level": "lesion"}) for field in SCHEMA.fields]
    schema = SCHEMA.model_copy(update={"fields": tuple(fields)})
    manifest = make_manifest(record_schema=schema.model_dump(mode="json"))
    runtime = make_runtime(manifest=manifest, encoders=FakeEncoders(schema=schema), catalogue=None)
    said = runtime.risk([REDS[0]], patient={"age": 45})
    assert said.lesions[0].metadata["age_years"].value == 45


# what is refused


@pytest.mark.parametrize(
    ("lesions", "said"),
    [
        ([{"id": "a", "images": [0]}], "image 1 belongs to no lesion"),
        ([{"id": "a", "images": [0, 1]}, {"id": "a", "images": [2]}], "'a' is used twice"),
        ([{"id": "a", "images": [0, 1, 1, 2]}], "image 1 is listed twice"),
        ([{"id": "a", "images": [0, 1, 2, 3]}], "from 0 to 2, got 3"),
        ([{"id": "a", "images": [-1, 0, 1, 2]}], "from 0 to 2, got -1"),
        ([{"id": "a", "images": []}], "lesions.0.images"),
        ([{"id": "a", "images": ["0"]}], "lesions.0.images.0"),
        ([{"id": "", "images": [0]}], "lesions.0.id"),
        ([{"images": [0]}], "lesions.0.id"),
        ([], "lesions"),
        ({"id": "a"}, "lesions"),
        ("[", "expected JSON"),
    ],
)
def test_lesions_that_do_not_share_out_the_images_are_refused(
    client: TestClient, lesions: Any, said: str
) -> None:
    response = ask(client, "/risk", *REDS, lesions=lesions)
    assert assert_error(response, 422, "invalid_request", said)["field"] == "lesions"


def test_a_patients_field_in_a_lesion_is_refused_with_where_it_belongs(client: TestClient) -> None:
    lesions = [{"id": "a", "images": [0], "age": 5}]
    response = ask(client, "/risk", REDS[0], lesions=lesions)
    assert_error(response, 422, "invalid_record", "'patient'", "age_years")


def test_a_lesions_unknown_field_is_refused(client: TestClient) -> None:
    lesions = [{"id": "a", "images": [0], "sizee": 5}]
    assert_error(ask(client, "/risk", REDS[0], lesions=lesions), 422, "unknown_field", "'sizee'")


def test_a_patient_of_the_catalogue_needs_a_catalogue(
    make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime]
) -> None:
    with TestClient(make_app(make_runtime(catalogue=None))) as client:
        response = ask(client, "/risk", REDS[0], patient_id="red")
        assert_error(response, 503, "catalogue_error", "operator")


def test_ranks_of_equally_odd_lesions_are_all_different(
    make_runtime: Callable[..., Runtime],
) -> None:
    models = make_runtime().models
    rows = np.stack([colour_embedding(GREEN)] * 3)
    group = context.Group(rows, judge(models, rows, [Known.given({})] * 3), 3, {})
    assert [one.rank for one in context.ugly_ducklings(models, group)] == [1, 2, 3]
