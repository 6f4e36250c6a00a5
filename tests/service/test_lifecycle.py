"""Loading a real bundle and catalogue: when the service is ready, and why it is not."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from bundle.calibration import CONDITIONS
from bundle.errors import CorruptBundle, InvalidSettings
from bundle.golden import read_golden
from service import state
from service.app import create_app
from service.models import Models
from service.runtime import Runtime, load_runtime
from service.settings import Settings
from tests.fakes import (
    GREEN,
    RED,
    FakeEncoders,
    draw_image,
    golden_cases,
    make_calibration,
    make_lesion,
    make_manifest,
    write_bundle,
    write_catalogue,
)
from tests.service.asking import answer, ask, assert_error


def make_site(folder: Path, *, bundle_id: str | None = None, **bundle: Any) -> Settings:
    """Write a bundle and its catalogue, and return the settings that serve them."""
    written = write_bundle(folder / "bundle", **bundle)
    lesions = [make_lesion("red", RED), make_lesion("green", GREEN)]
    made_by = written.manifest.bundle_id if bundle_id is None else bundle_id
    write_catalogue(folder / "catalogue", lesions, bundle_id=made_by).close()
    return Settings(
        bundle=folder / "bundle", catalogue=folder / "catalogue", log_level="error", threads=1
    )


def wait_until_loaded(client: TestClient) -> int:
    """Return the status of /readyz once loading has ended."""
    for _ in range(400):
        response = client.get("/readyz")
        if response.status_code == 200 or response.json()["code"] != "loading":
            return int(response.status_code)
        time.sleep(0.02)
    raise AssertionError("still loading after 8 s")


def test_a_real_bundle_answers_as_the_fake_does(tmp_path: Path, client: TestClient) -> None:
    with TestClient(create_app(make_site(tmp_path))) as served:
        assert wait_until_loaded(served) == 200
        for path in ("/livez", "/v2/health/live", "/v2/health/ready"):
            assert served.get(path).status_code == 200
        images = [draw_image(RED, seed=seed) for seed in range(2)] + [draw_image(GREEN)]
        sent = {"extrapolate": "false"}
        real = answer(served, "/risk", *images, **sent)
        fake = answer(client, "/risk", *images, **sent)
        for one, other in zip(real["lesions"], fake["lesions"], strict=True):
            assert one["label"] == other["label"]
            for name in ("malignancy", "risk_in_context"):
                assert one[name] == pytest.approx(other[name], abs=1e-4)
        assert answer(served, "/similar", images[0])["hits"][0]["lesion_id"] == "red"
        record = {"age": 80, "diameter_mm": 9}
        assert answer(served, "/classify", images[0], metadata=record)["probabilities"][
            "mel"
        ] == pytest.approx(
            answer(client, "/classify", images[0], metadata=record)["probabilities"]["mel"],
            abs=1e-3,
        )


def test_a_bundle_without_context_and_novelty_is_served(tmp_path: Path) -> None:
    runtime = load_runtime(make_site(tmp_path, context=False, novelty=False))
    assert runtime.catalogue is not None
    with runtime.catalogue:
        assert not runtime.models.encoders.has_context
        assert runtime.models.novelty is None
        assert runtime.risk([draw_image(RED)]).patient.reason == "no_context_model"


@pytest.mark.parametrize(("max_batch", "measured"), [(0, True), (1, False)])
def test_runs_side_by_side_are_a_choice_where_the_site_made_none(
    tmp_path: Path, max_batch: int, measured: bool
) -> None:
    site = make_site(tmp_path, context=False, novelty=False)
    runtime = load_runtime(site.model_copy(update={"max_batch": max_batch, "threads": 2}))
    assert runtime.batched is not None
    assert (runtime.batched.batching.side_by_side_rate is not None) == measured
    runtime.close()


def test_until_it_is_loaded_the_service_lives_and_is_not_ready(
    monkeypatch: pytest.MonkeyPatch, make_runtime: Callable[..., Runtime]
) -> None:
    loaded: list[bool] = []

    def load_slowly(settings: Settings) -> Runtime:
        while not loaded:
            time.sleep(0.01)
        return make_runtime(catalogue=None)

    monkeypatch.setattr(state, "load_runtime", load_slowly)
    with TestClient(create_app(Settings(log_level="error"))) as client:
        assert client.get("/livez").json()["bundle_id"] is None
        assert_error(client.get("/readyz"), 503, "loading", "ask again")
        assert_error(client.get("/model"), 503, "loading")
        assert_error(ask(client, "/classify", draw_image(RED)), 503, "loading")
        assert "slimp_ready 0.0" in client.get("/metrics").text
        loaded.append(True)
        assert wait_until_loaded(client) == 200
        assert ask(client, "/classify", draw_image(RED)).status_code == 200


def assert_refused(settings: Settings, code: str, *reason: str) -> None:
    """Check that the site's operator is told why, and nobody else."""
    with TestClient(create_app(settings)) as client:
        assert wait_until_loaded(client) == 503
        detail = assert_error(client.get("/readyz"), 503, "load_failed", code, *reason)["detail"]
        assert client.get("/livez").status_code == 200
        response = ask(client, "/classify", draw_image(RED))
        told = assert_error(response, 503, "load_failed", code, "/readyz")
        assert detail not in told["detail"]


def test_a_catalogue_of_another_bundle_is_refused(tmp_path: Path) -> None:
    settings = make_site(tmp_path, bundle_id="cd" * 32)
    assert_refused(settings, "foreign_catalogue", "cdcdcdcd", "index the cohort again")


def test_a_changed_bundle_is_refused(tmp_path: Path) -> None:
    settings = make_site(tmp_path)
    graph = tmp_path / "bundle" / "classifier.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x00")
    assert_refused(settings, "corrupt_bundle", "classifier.onnx")


def test_a_bundle_that_answers_otherwise_than_when_it_was_packed_is_refused(
    tmp_path: Path,
) -> None:
    case = golden_cases()["classifier"]
    wrong = {"classifier": {**case, "output": case["output"] + 0.1}}
    assert_refused(make_site(tmp_path, golden=wrong), "parity_error", "classifier differs")


def test_a_prevalence_that_the_bundle_cannot_be_shifted_to_is_refused(tmp_path: Path) -> None:
    benign = make_calibration(prevalence={"nv": 1.0, "mel": 0.0, "bcc": 0.0})
    settings = make_site(tmp_path, calibration=benign)
    shifted = settings.model_copy(update={"prevalence": 0.1})
    assert_refused(shifted, "invalid_settings", "SLIMP_PREVALENCE", "expected unset")


def test_folders_that_are_not_named_or_not_there_are_refused(tmp_path: Path) -> None:
    assert_refused(Settings(log_level="error"), "invalid_settings", "SLIMP_BUNDLE")
    missing = Settings(log_level="error", bundle=tmp_path / "no", catalogue=tmp_path / "no")
    assert_refused(missing, "corrupt_bundle", "manifest.json")
    with pytest.raises(InvalidSettings, match="SLIMP_CATALOGUE"):
        load_runtime(Settings(bundle=tmp_path))


def test_a_load_that_fails_in_a_way_nobody_foresaw_is_not_ready_and_says_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(settings: Settings) -> Runtime:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(state, "load_runtime", fail)
    with TestClient(create_app(Settings(log_level="error"))) as client:
        assert wait_until_loaded(client) == 503
        response = client.get("/readyz")
        assert_error(response, 503, "load_failed", "internal_error", "ZeroDivisionError")
        assert "secret" not in response.text


def test_a_bundle_that_is_not_calibrated_for_every_condition_is_refused() -> None:
    fitted = make_calibration()
    for name in CONDITIONS:
        some = {key: value for key, value in fitted.conditions.items() if key != name}
        with pytest.raises(CorruptBundle, match=name):
            Models(make_manifest(), make_calibration(conditions=some), FakeEncoders(), None)


def test_the_service_closes_the_catalogue_that_it_opened_and_no_other(
    tmp_path: Path, make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime]
) -> None:
    app = create_app(make_site(tmp_path))
    with TestClient(app) as client:
        wait_until_loaded(client)
    assert app.state.service.bundle_id is None
    runtime = make_runtime()
    with TestClient(make_app(runtime)):
        pass
    assert runtime.similar([draw_image(RED)], k=1).hits


def test_golden_vectors_of_the_fake_are_those_that_the_graphs_give(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    assert set(read_golden(bundle.read("golden.npz"))) == set(golden_cases())
