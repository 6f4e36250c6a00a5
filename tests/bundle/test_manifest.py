"""What a bundle says of itself, and the id that names it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import CorruptBundle, UnsupportedVersion
from bundle.manifest import (
    FORMAT_VERSION,
    RESEARCH_USE,
    Manifest,
    check_manifest,
    identify,
    parse_manifest,
)
from tests.fakes import SCHEMA, make_manifest


def stored(**changes: Any) -> dict[str, Any]:
    """Return a manifest's JSON content with the id that names it."""
    content = make_manifest().model_dump(mode="json")
    content |= changes
    return {**content, "bundle_id": identify(content)}


def parse(content: object) -> Manifest:
    return parse_manifest(json.dumps(content).encode())


def test_a_manifest_comes_back_as_it_was_written() -> None:
    content = stored(metrics={"auroc": {"melanoma": 0.1 + 0.2, "note": "ünïcödé", "none": None}})
    manifest = parse(content)
    assert manifest.model_dump(mode="json") == content
    assert manifest.format_version == FORMAT_VERSION
    assert manifest.intended_use == RESEARCH_USE


def test_the_id_is_the_hash_of_the_sorted_content_without_id_and_time() -> None:
    content = {"b": 1, "a": "ü", "bundle_id": "x", "created_at": "y"}
    assert identify(content) == hashlib.sha256(b'{"a":"\\u00fc","b":1}').hexdigest()


def test_the_id_names_every_value_but_itself_and_the_time() -> None:
    content = stored()
    own = content["bundle_id"]
    assert identify({**content, "created_at": "later", "bundle_id": "0"}) == own
    assert identify(dict(reversed(content.items()))) == own
    others = {
        identify({**content, key: "changed"})
        for key in content
        if key not in ("created_at", "bundle_id")
    }
    assert own not in others
    assert len(others) == len(content) - 2


@pytest.mark.parametrize(
    "change",
    [
        {"embedding_dim": 5},
        {"intended_use": "diagnosis"},
        {"metrics": {"auroc": 1.0}},
        {"files": {"a": {"sha256": "0" * 64, "bytes": 1}}},
    ],
)
def test_a_changed_value_no_longer_fits_the_id(change: dict[str, Any]) -> None:
    with pytest.raises(CorruptBundle, match=r"^manifest\.json was changed: its bundle_id does not"):
        parse({**stored(), **change})


@pytest.mark.parametrize("version", [3, 99, 2.5, 1e9])
def test_a_newer_version_is_refused_before_anything_else_is_read(version: float) -> None:
    with pytest.raises(UnsupportedVersion) as caught:
        parse({"format_version": version, "made_of": "things this software does not know"})
    assert str(caught.value) == (
        f"this software reads bundle format 2, the bundle has format {version}: upgrade slimp"
    )


@pytest.mark.parametrize("version", [0, -1, "2", [1]])
def test_what_is_no_version_is_refused(version: object) -> None:
    with pytest.raises(CorruptBundle, match=r"manifest\.json: format_version: Input should be"):
        parse(stored(format_version=version))


@pytest.mark.parametrize("content", [{}, [], 5, "text", None, {"format_version": None}])
def test_a_manifest_without_a_version_is_refused(content: object) -> None:
    with pytest.raises(
        CorruptBundle, match=r"^manifest\.json: expected an object with a format_ver"
    ):
        parse(content)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"a":1}x'], ids=range(5)
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptBundle, match=r"manifest\.json is not JSON"):
        parse_manifest(data)


def test_an_unknown_key_is_refused_by_name() -> None:
    with pytest.raises(CorruptBundle, match=r"manifest\.json: entry_point: Extra inputs are not"):
        parse(stored(entry_point="os.system"))


def test_an_unknown_key_further_down_is_refused_with_its_place() -> None:
    content = stored()
    content["image_input"]["gamma"] = 2
    with pytest.raises(CorruptBundle, match=r"manifest\.json: image_input\.gamma: Extra inputs"):
        parse({**content, "bundle_id": identify(content)})


REQUIRED = sorted(name for name, field in Manifest.model_fields.items() if field.is_required())


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_value_is_refused_by_name(key: str) -> None:
    content = stored()
    del content[key]
    with pytest.raises(CorruptBundle, match=rf"manifest\.json: {key}: Field required"):
        parse(content)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"embedding_dim": 0}, "embedding_dim: Input should be greater than 0"),
        ({"labels": []}, "labels: expected one or more, each once"),
        ({"labels": ["nv", "nv"], "malignant_labels": []}, "labels: expected one or more"),
        ({"malignant_labels": ["nv", "scc"]}, "malignant_labels: 'scc' is not among the labels"),
        ({"run_config_sha256": "A" * 64}, "run_config_sha256: String should match"),
        ({"run_config_sha256": "a" * 63}, "run_config_sha256: String should match"),
        ({"run_config_sha256": "a" * 64 + "\n"}, "run_config_sha256: String should match"),
        ({"files": {"a": {"sha256": "0" * 64, "bytes": -1}}}, "files.a.bytes: Input should be"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(CorruptBundle, match=reason):
        parse(stored(**change))


def test_a_problem_of_the_whole_is_told_without_a_place() -> None:
    with pytest.raises(CorruptBundle, match=r"^manifest\.json: Value error, labels: expected one"):
        parse(stored(labels=[]))


def test_a_field_that_was_never_fitted_cannot_be_served() -> None:
    schema = SCHEMA.model_dump(mode="json")
    for field in schema["fields"]:
        field["mean"] = field["std"] = None
    with pytest.raises(CorruptBundle, match="record_schema: diameter_mm has no fitted mean and st"):
        parse(stored(record_schema=schema))


def test_a_bundle_may_have_no_malignant_label_and_a_label_may_be_the_only_one() -> None:
    assert parse(stored(malignant_labels=[], labels=["nv"])).malignant_labels == ()


def test_a_file_may_be_empty() -> None:
    entry = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}
    assert parse(stored(files={"NOTE": entry})).files["NOTE"].bytes == 0


def test_checking_alone_does_not_ask_for_the_id() -> None:
    assert check_manifest({**stored(), "bundle_id": "0" * 64}).bundle_id == "0" * 64


def test_a_manifest_written_by_format_1_is_still_read() -> None:
    golden = Path(__file__).parent / "golden_manifest.json"
    manifest = parse_manifest(golden.read_bytes())
    assert manifest.bundle_id == "971026c9976db32ef4985087c0040ac95fe0433c5086d34d5f584effe736b070"
    assert manifest.labels == ("nv", "mel", "bcc")
    assert manifest.record_schema == SCHEMA
    assert manifest.files["golden.npz"].bytes == 2048
