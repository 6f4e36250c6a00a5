"""A bundle's files, and what a caller sends, damaged at random: read, or refused by our error.

`test_untrusted.py`, `test_arrays.py` and `test_images.py` try what was thought of.
"""

import contextlib
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bundle.appearance import AppearanceModel
from bundle.errors import BundleError, CorruptBundle, InvalidImage, InvalidRecord
from bundle.fields import FieldSchema
from bundle.golden import read_golden, write_golden
from bundle.images import decode_image
from bundle.manifest import check_manifest, identify, parse_manifest
from bundle.novelty import NoveltyModel
from bundle.records import encode_records
from bundle.store import _parse_calibration
from tests.fakes import (
    RED,
    SCHEMA,
    draw_image,
    golden_cases,
    make_appearance,
    make_calibration,
    make_manifest,
    make_novelty,
)
from tests.fuzzing import ANY_JSON, altered, damaged, fuzzed

MANIFEST = make_manifest()
MANIFEST_JSON = MANIFEST.model_dump(mode="json")
CALIBRATION_JSON = make_calibration().model_dump(mode="json")
NOVELTY = make_novelty().to_bytes()
APPEARANCE = make_appearance().to_bytes()
GOLDEN = write_golden(golden_cases())
PICTURES = [draw_image(RED, size=24, file_format=kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]


@fuzzed
@given(altered(MANIFEST_JSON))
def test_an_altered_manifest_is_read_as_it_says_or_refused(content: Any) -> None:
    if isinstance(content, dict):
        content = {**content, "bundle_id": identify(content)}
    with contextlib.suppress(BundleError):
        read = parse_manifest(json.dumps(content).encode())
        assert read == check_manifest(content)


@fuzzed
@given(damaged(json.dumps(MANIFEST_JSON).encode()))
def test_damaged_bytes_are_no_manifest(data: bytes) -> None:
    with contextlib.suppress(BundleError):
        assert parse_manifest(data).bundle_id == MANIFEST.bundle_id


@fuzzed
@given(altered(CALIBRATION_JSON).map(lambda content: json.dumps(content).encode()))
def test_an_altered_calibration_fits_the_bundle_or_is_refused(data: bytes) -> None:
    with contextlib.suppress(CorruptBundle):
        read = _parse_calibration(data, MANIFEST)
        assert set(read.prevalence) == set(MANIFEST.labels)


@fuzzed
@given(damaged(json.dumps(CALIBRATION_JSON).encode()))
def test_a_damaged_calibration_fits_the_bundle_or_is_refused(data: bytes) -> None:
    with contextlib.suppress(CorruptBundle):
        read = _parse_calibration(data, MANIFEST)
        assert set(read.prevalence) == set(MANIFEST.labels)


@fuzzed
@given(damaged(NOVELTY))
def test_a_damaged_novelty_model_scores_or_is_refused(data: bytes) -> None:
    with contextlib.suppress(CorruptBundle):
        model = NoveltyModel.from_bytes(data)
        assert np.isfinite(model.components).all()
        assert (model.scales > 0).all()


@fuzzed
@given(damaged(APPEARANCE))
def test_a_damaged_appearance_model_scores_or_is_refused(data: bytes) -> None:
    with contextlib.suppress(CorruptBundle):
        model = AppearanceModel.from_bytes(data)
        assert np.isfinite(model.means).all()
        assert (model.scale > 0).all()


@fuzzed
@given(damaged(GOLDEN))
def test_damaged_golden_vectors_are_finite_or_refused(data: bytes) -> None:
    with contextlib.suppress(CorruptBundle):
        for case in read_golden(data).values():
            assert np.isfinite(case["output"]).all()


@fuzzed
@given(altered(SCHEMA.model_dump(mode="json")))
def test_an_altered_schema_of_fields_reads_its_own_json_or_is_refused(content: Any) -> None:
    with contextlib.suppress(ValueError):
        schema = FieldSchema.model_validate(content)
        assert FieldSchema.model_validate_json(schema.model_dump_json()) == schema


@fuzzed
@given(st.dictionaries(st.sampled_from([*SCHEMA.names, "age", "x"]), ANY_JSON, max_size=4))
def test_any_record_is_encoded_finitely_or_refused(raw: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidRecord):
        record = SCHEMA.parse(raw)
        for level in ("lesion", "patient"):
            fields = SCHEMA.at(level)
            own = {field.name: record[field.name] for field in fields if field.name in record}
            encoded = encode_records([own], fields)
            assert np.isfinite(encoded.values[encoded.present]).all()


@pytest.mark.filterwarnings("ignore::UserWarning")
@fuzzed
@given(st.sampled_from(PICTURES).flatmap(damaged))
def test_a_damaged_picture_is_shown_without_what_was_beside_it_or_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidImage):
        image = decode_image(data)
        assert (image.mode, image.info) == ("RGB", {})
        image.save(io.BytesIO(), "PNG")
        assert isinstance(image, Image.Image)
