"""Settings: declared once, unknown keys refused, documented by the declaration."""

from pathlib import Path

import pytest

from bundle.errors import InvalidSettings
from service.settings import Settings, read_settings, settings_table

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_documentation_is_made_from_the_declarations() -> None:
    assert DOCS.read_text() == settings_table(), "run python -m service.settings > docs/settings.md"


def test_every_setting_says_what_it_means_and_numbers_their_unit_and_bounds() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if field.annotation in (int, float) and name != "port":
            assert isinstance(field.json_schema_extra, dict)
            assert field.json_schema_extra["unit"], name
            assert field.metadata, name


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMP_PORT", "9000")
    monkeypatch.setenv("SLIMP_PREVALENCE", "0.001")
    settings = read_settings(environ={"SLIMP_PORT": "9000", "SLIMP_REAL_DATA": "x", "PATH": "y"})
    assert settings.port == 9000
    assert settings.prevalence == 0.001


def test_what_is_said_outright_is_stronger_than_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLIMP_PORT", "9000")
    assert read_settings({"port": 7000, "host": None}, environ={}).port == 7000
    assert read_settings({"port": None}, environ={}).port == 9000


def test_an_unknown_key_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidSettings, match=r"SLIMP_BUNDEL: .*nearest is SLIMP_BUNDLE"):
        read_settings(environ={"SLIMP_BUNDEL": "/x"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 0),
        ("port", "http"),
        ("prevalence", 0),
        ("prevalence", 1),
        ("max_concurrency", 0),
        ("max_images", 1000),
        ("request_timeout_s", 0),
        ("log_level", "loud"),
        ("nosuch", 1),
    ],
)
def test_a_value_outside_its_bounds_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidSettings, match=f"SLIMP_{name.upper()}"):
        read_settings({name: value}, environ={})


def test_the_context_model_must_hold_what_one_request_may_send() -> None:
    with pytest.raises(InvalidSettings, match="max_context_lesions"):
        read_settings({"max_context_lesions": 8}, environ={})


@pytest.mark.parametrize(
    ("threads", "workers", "each"), [(0, 1, 6), (0, 4, 1), (0, 2, 3), (0, 9, 1), (5, 4, 5)]
)
def test_workers_share_the_processors(
    threads: int, workers: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.settings.available_cpus", lambda: 6)
    assert Settings(threads=threads, workers=workers).threads_each == each
