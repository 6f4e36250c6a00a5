"""/classify: what is said of one lesion, and on what ground."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from bundle.calibration import CONDITIONS
from bundle.errors import CorruptBundle
from service.errors import InvalidRequest
from service.pictures import UNLIKE_TRAINING
from service.runtime import Runtime
from service.schemas import Assessment
from tests.fakes import (
    BLUE,
    GREEN,
    LABEL_SLOPE,
    LABELS,
    RED,
    WHITE,
    Colour,
    colour_embedding,
    draw_image,
    make_appearance,
    make_calibration,
)
from tests.service.asking import answer, ask, assert_error
from tests.service.conftest import SAME_COLOUR


def softmax(logits: list[float]) -> list[float]:
    raised = [np.exp(one) for one in logits]
    return [float(one / sum(raised)) for one in raised]


@pytest.mark.parametrize(("colour", "label"), [(RED, "nv"), (GREEN, "mel"), (BLUE, "bcc")])
def test_a_colour_is_classified_as_its_label(
    client: TestClient, colour: Colour, label: str
) -> None:
    said = answer(client, "/classify", draw_image(colour), extrapolate="false")
    assert said["status"] == "answered"
    assert said["label"] == label
    assert said["prediction_set"][0] == label
    assert said["quality"]["reasons"] == []


def test_probabilities_are_those_of_the_arithmetic(client: TestClient) -> None:
    said = answer(client, "/classify", draw_image(RED), extrapolate="false")
    expected = softmax([float(LABEL_SLOPE * x) for x in colour_embedding(RED)[:3]])
    assert [said["probabilities"][label] for label in LABELS] == pytest.approx(expected, abs=0.01)
    assert sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-12)
    malignant = said["probabilities"]["mel"] + said["probabilities"]["bcc"]
    assert said["malignancy"] == pytest.approx(malignant, abs=1e-12)


def test_a_high_age_raises_melanoma_under_any_of_its_names(client: TestClient) -> None:
    shares = [
        answer(client, "/classify", draw_image(RED), extrapolate="false", metadata=record)[
            "probabilities"
        ]["mel"]
        for record in ({"age_years": 20}, {"age_years": 90}, {"age": "90"}, {"AGE_APPROX": 90})
    ]
    assert shares[0] < shares[1] == shares[2] == shares[3]


def test_images_of_a_lesion_are_pooled_as_the_mean_of_their_embeddings(client: TestClient) -> None:
    both = answer(client, "/classify", draw_image(RED), draw_image(GREEN), extrapolate="false")
    mean = (colour_embedding(RED) + colour_embedding(GREEN)) / 2
    expected = softmax([float(LABEL_SLOPE * x) for x in mean[:3]])
    assert list(both["probabilities"].values()) == pytest.approx(expected, abs=0.01)


def test_a_poor_image_is_left_out_beside_a_good_one_and_said_so(client: TestClient) -> None:
    alone = answer(client, "/classify", draw_image(RED), extrapolate="false")
    beside = answer(
        client, "/classify", draw_image(GREEN, grain=0), draw_image(RED), extrapolate="false"
    )
    assert beside["probabilities"] == alone["probabilities"]
    assert [warning["code"] for warning in beside["warnings"]] == ["image_left_out"]
    assert "image 0" in beside["warnings"][0]["message"]
    assert beside["quality"]["reasons"] == []
    assert beside["quality"]["images"][0]["reasons"] == ["blurred", "no_contrast"]


@pytest.mark.parametrize(
    ("image", "reasons"),
    [
        (draw_image(RED, grain=0), ["blurred", "no_contrast"]),
        (draw_image(RED, size=16), ["too_small"]),
        (draw_image((3, 3, 3), grain=4), ["too_dark", "unlike_training_images"]),
        (draw_image(WHITE), ["unlike_training_images"]),
    ],
)
def test_nothing_is_said_of_a_lesion_that_cannot_be_assessed(
    client: TestClient, image: bytes, reasons: list[str]
) -> None:
    said = answer(client, "/classify", image, metadata={"sex": "male"})
    assert said["status"] == "not_assessable"
    assert set(reasons) <= set(said["quality"]["reasons"])
    for silent in ("label", "probabilities", "malignancy", "prediction_set"):
        assert said[silent] is None
    assert said["metadata"]["sex"]["source"] == "given"
    assert said["metadata"]["age_years"]["source"] == "missing"
    assert said["metadata"]["age_years"]["reason"] == "image_not_assessable"


def test_scores_of_several_images_are_means_over_those_that_count(client: TestClient) -> None:
    said = answer(client, "/classify", draw_image(RED), draw_image(RED, size=96))
    assert said["quality"]["scores"]["min_side_px"] == 80
    assert [image["scores"]["min_side_px"] for image in said["quality"]["images"]] == [64, 96]


# metadata: given, extrapolated, missing


def test_missing_fields_are_filled_from_similar_lesions_and_labelled(client: TestClient) -> None:
    said = answer(client, "/classify", draw_image(RED), metadata={"sex": "male"})
    site = said["metadata"]["anatom_site"]
    assert site["value"] == "back"
    assert site["source"] == "extrapolated"
    assert site["support"] == 1  # five lesions, but of one patient
    assert site["agreement"] == 1
    size = said["metadata"]["diameter_mm"]
    assert size["interval"][0] <= size["value"] <= size["interval"][1]
    assert said["metadata"]["sex"] == {
        "value": "male",
        "source": "given",
        "support": None,
        "agreement": None,
        "interval": None,
        "reason": None,
    }
    assert said["metadata"]["itch"]["source"] == "missing"
    assert said["metadata"]["itch"]["reason"] == "too_few_neighbours"


def test_extrapolation_can_be_switched_off(client: TestClient) -> None:
    said = answer(client, "/classify", draw_image(RED), extrapolate="false")
    assert {entry["source"] for entry in said["metadata"].values()} == {"missing"}
    assert {entry["reason"] for entry in said["metadata"].values()} == {"not_given"}


def test_a_known_image_is_not_told_its_own_patients_record(client: TestClient) -> None:
    """Every red lesion is of one patient: with it gone, nobody near is left to speak."""
    said = answer(client, "/classify", draw_image(RED, seed=103))
    assert said["metadata"]["anatom_site"]["source"] == "missing"
    assert said["metadata"]["anatom_site"]["reason"] == "neighbours_too_far"


def test_excluded_lesions_and_patients_do_not_speak(client: TestClient) -> None:
    others = answer(client, "/classify", draw_image(RED), exclude_lesion=["blue-0", "nowhere"])
    assert others["metadata"]["anatom_site"]["source"] == "extrapolated"
    # One lesion's patient does not speak by another of the lesions either.
    for nobody in ({"exclude_lesion": ["red-3"]}, {"exclude_patient": ["red", "blue"]}):
        said = answer(client, "/classify", draw_image(RED), **nobody)
        assert said["metadata"]["anatom_site"]["source"] == "missing"


@pytest.mark.parametrize("word", ["", "unknown", "UNK", None])
def test_a_value_that_says_missing_is_filled_like_one_that_was_not_sent(
    client: TestClient, word: str | None
) -> None:
    said = answer(client, "/classify", draw_image(RED), metadata={"anatom_site": word})
    assert said["metadata"]["anatom_site"]["source"] == "extrapolated"


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("given", [{}, {"age_years": 60}])
def test_guesses_move_an_answer_as_far_as_their_weight_says(
    make_runtime: Callable[..., Runtime], weight: float, given: dict[str, Any]
) -> None:
    trusted = SAME_COLOUR.model_copy(update={"weight": weight})
    runtime = make_runtime(calibration=make_calibration(extrapolation=trusted))
    image = draw_image(RED)
    guessed = runtime.classify([image], given)
    alone = runtime.classify([image], given, extrapolate=False)
    values = {name: entry.value for name, entry in guessed.metadata.items()}
    believed = runtime.classify([image], values, extrapolate=False)
    assert values["diameter_mm"] is not None
    assert log_shares(believed) != pytest.approx(log_shares(alone), abs=0.1)
    # Beside given values nobody measured what guesses add.
    moved = 0.0 if given else weight
    expected = (1 - moved) * log_shares(alone) + moved * log_shares(believed)
    shares = np.exp(expected) / np.exp(expected).sum()
    assert np.exp(log_shares(guessed)) == pytest.approx(shares, abs=1e-4)
    told = "guesses_not_used" in {warning.code for warning in guessed.warnings}
    assert told == (moved == 0)
    assert "guesses_not_used" not in {warning.code for warning in alone.warnings}


def log_shares(said: Assessment) -> npt.NDArray[np.float64]:
    assert said.probabilities is not None
    return np.log(list(said.probabilities.values()))


def test_zero_and_false_are_data(client: TestClient) -> None:
    record = {"diameter_mm": 0, "itch": False}
    said = answer(client, "/classify", draw_image(RED), metadata=record)
    assert said["metadata"]["diameter_mm"]["value"] == 0
    assert said["metadata"]["itch"]["value"] is False
    assert said["metadata"]["itch"]["source"] == "given"


def test_the_calibration_is_that_of_where_the_metadata_is_from(
    make_runtime: Callable[..., Runtime],
) -> None:
    """One temperature a condition: the colder, the surer."""
    fitted = make_calibration()
    temperatures = {"given": 0.5, "extrapolated": 1.0, "missing": 4.0}
    conditions = {
        name: fitted.conditions[name].model_copy(update={"temperature": temperatures[name]})
        for name in CONDITIONS
    }
    runtime = make_runtime(calibration=make_calibration(conditions=conditions))
    image = draw_image(RED)
    asked = {
        "given": runtime.classify([image], {"itch": False}, extrapolate=False),
        "extrapolated": runtime.classify([image]),
        "missing": runtime.classify([image], {"itch": "unknown"}, extrapolate=False),
    }
    shares = {}
    for name, said in asked.items():
        assert said.probabilities is not None
        shares[name] = said.probabilities["nv"]
    embedding = runtime.embed([image]).embedding
    logits = [LABEL_SLOPE * x for x in embedding[:3]]
    assert shares["given"] == pytest.approx(softmax([x / 0.5 for x in logits])[0], abs=1e-4)
    assert shares["missing"] == pytest.approx(softmax([x / 4.0 for x in logits])[0], abs=1e-4)
    assert shares["given"] > shares["extrapolated"] > shares["missing"]


def test_without_a_catalogue_missing_fields_stay_missing(
    make_runtime: Callable[..., Runtime],
) -> None:
    said = make_runtime(catalogue=None).classify([draw_image(RED)])
    assert said.status == "answered"
    assert {entry.reason for entry in said.metadata.values()} == {"no_catalogue"}


def test_neighbours_are_not_asked_when_nothing_is_missing(
    make_runtime: Callable[..., Runtime],
) -> None:
    record = {"anatom_site": "back", "diameter_mm": 3, "itch": True, "age": 40, "sex": "male"}
    said = make_runtime().classify([draw_image(RED)], record)
    assert {entry.source for entry in said.metadata.values()} == {"given"}


# the site's prevalence


def test_a_sites_prevalence_shifts_the_malignant_odds_and_not_the_set(
    make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime], client: TestClient
) -> None:
    trained, site = 0.2, 0.001
    with TestClient(make_app(make_runtime(prevalence=site))) as rare:
        shifted = answer(rare, "/classify", draw_image(GREEN), extrapolate="false")
    plain = answer(client, "/classify", draw_image(GREEN), extrapolate="false")
    odds = plain["malignancy"] / (1 - plain["malignancy"])
    expected = odds * (site / (1 - site)) / (trained / (1 - trained))
    found = shifted["malignancy"] / (1 - shifted["malignancy"])
    assert found == pytest.approx(expected, rel=1e-4)
    assert sum(shifted["probabilities"].values()) == pytest.approx(1)
    assert plain["label"] == "mel"
    assert shifted["label"] == "nv"
    assert shifted["prediction_set"] == plain["prediction_set"]
    assert [warning["code"] for warning in shifted["warnings"]] == ["prevalence_shifted"]


def test_a_bundle_without_novelty_says_that_it_cannot_tell(
    make_runtime: Callable[..., Runtime],
) -> None:
    said = make_runtime(novelty=None).classify([draw_image(WHITE)])
    assert said.status == "answered"
    assert "novelty" not in said.quality.scores
    assert [warning.code for warning in said.warnings] == ["novelty_unchecked"]


def test_a_picture_of_another_look_is_unlike_the_training_images_whatever_it_shows(
    make_runtime: Callable[..., Runtime],
) -> None:
    appearance = make_appearance()
    calibration = make_calibration(appearance_threshold=10.0)
    runtime = make_runtime(appearance=appearance, calibration=calibration)
    alike = runtime.classify([draw_image(RED)])
    assert alike.status == "answered"
    assert alike.quality.scores["appearance"] < 10
    said = runtime.classify([draw_image(GREEN)])
    assert said.quality.scores["novelty"] < calibration.novelty_threshold
    assert said.quality.scores["appearance"] > 10
    assert (said.status, said.quality.reasons) == ("not_assessable", (UNLIKE_TRAINING,))
    # What was seen before is judged alike, without being looked at again.
    again = runtime.classify([draw_image(GREEN)])
    assert again.quality == said.quality


@pytest.mark.parametrize("part", ["appearance", "calibration"])
def test_appearance_without_its_threshold_or_the_reverse_is_refused(
    part: str, make_runtime: Callable[..., Runtime]
) -> None:
    half = {
        "appearance": make_appearance(),
        "calibration": make_calibration(appearance_threshold=10.0),
    }
    with pytest.raises(CorruptBundle, match="or neither"):
        make_runtime(**{part: half[part]})


# what is refused


@pytest.mark.parametrize(
    ("metadata", "code", "said"),
    [
        ('{"agee_years": 5}', "unknown_field", "nearest is 'age_years'"),
        ('{"age_years": 500}', "out_of_range", "from 0 to 120 years"),
        ('{"age_years": -1}', "out_of_range", "got -1"),
        ('{"age_years": "old"}', "invalid_record", "expected a number"),
        ('{"sex": "femal"}', "unknown_category", "nearest is 'female'"),
        ('{"age": 5, "age_years": 6}', "invalid_record", "given twice"),
        ('{"age_years": 5, "age_years": 6}', "invalid_request", "every name once"),
        ('{"age_years": NaN}', "invalid_request", "no JSON number"),
        ("[1]", "invalid_request", "JSON object"),
        ("age=5", "invalid_request", "metadata: expected JSON"),
        ("[" * 60_000, "invalid_request", "metadata: expected JSON"),
        ('{"age_years": ' + "9" * 5000 + "}", "invalid_request", "metadata"),
    ],
)
def test_metadata_that_cannot_be_meant_is_refused(
    client: TestClient, metadata: str, code: str, said: str
) -> None:
    assert_error(ask(client, "/classify", draw_image(RED), metadata=metadata), 422, code, said)


def test_a_refused_field_is_named_for_programs(client: TestClient) -> None:
    response = ask(client, "/classify", draw_image(RED), metadata={"agee_years": 5})
    assert assert_error(response, 422, "unknown_field")["field"] == "agee_years"


def test_a_lesion_without_an_image_is_refused(make_runtime: Callable[..., Runtime]) -> None:
    with pytest.raises(InvalidRequest, match="at least one image"):
        make_runtime().classify([])
