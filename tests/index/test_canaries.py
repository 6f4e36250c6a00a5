"""Nothing that an image file says beside its pixels reaches a catalogue."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.images import decode_image
from bundle.store import Bundle
from cohort.cohort import Cohort
from cohort.rows import Group, LesionImage, Source
from cohort.splits import SPLITS
from cohort.store import prepare
from index.build import build_catalogue
from index.catalogue import Catalogue
from index.thumbnails import make_thumbnail
from tests.canaries import CANARY, canary_images, holds
from tests.fakes import (
    RED,
    SCHEMA,
    FakeEncoders,
    draw_image,
    make_calibration,
    make_manifest,
)


@pytest.fixture(scope="module")
def planted() -> dict[str, bytes]:
    picture = decode_image(draw_image(RED, size=300))
    return dict(canary_images(picture))


def test_the_canary_is_planted(planted: dict[str, bytes]) -> None:
    missing = [name for name, data in planted.items() if not holds(data)]
    assert [name for name in missing if not name.startswith(("PNG zTXt", "PNG tIME"))] == [
        "PNG profile"
    ]
    assert len(planted) > 35


def test_a_canary_in_every_slot_is_in_no_file_of_a_catalogue(
    planted: dict[str, bytes], tmp_path: Path
) -> None:
    rows = [
        LesionImage(
            image_id=f"image-{number}",
            lesion_id=f"lesion-{number}",
            patient_id=None,
            image=data,
            label="nv",
            malignant=False,
            record={},
        )
        for number, data in enumerate(planted.values())
    ]

    def groups() -> Iterator[Group]:
        for each in rows:
            yield Group(each.group_id, each.label)

    source = Source(
        name="canaries",
        schema=SCHEMA,
        labels=("nv",),
        malignant_labels=(),
        licence="CC0-1.0",
        citation="drawn by the tests",
        groups=groups,
        rows=lambda: iter(rows),
    )
    prepare(source, tmp_path / "cohort")
    folder = tmp_path / "catalogue"
    bundle = Bundle(tmp_path / "bundle", make_manifest(), make_calibration())
    cohort = Cohort.open(tmp_path / "cohort")
    report = build_catalogue(bundle, FakeEncoders(), cohort, folder, splits=SPLITS)
    assert (report.lesions, report.unreadable) == (len(rows), [])

    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {"catalogue.sqlite", "vectors.faiss"} <= {file.name for file in files}
    assert [file.name for file in files if holds(file.read_bytes())] == []
    manifest = bundle.manifest
    with Catalogue.open(folder, bundle_id=manifest.bundle_id, variant=manifest.variant) as opened:
        for number in range(len(rows)):
            thumbnail = opened.thumbnail(f"lesion-{number}")
            assert decode_image(thumbnail).info == {}
            # Not even an empty slot: a JPEG's own segments and no others.
            assert not any(
                bytes([0xFF, kind]) in thumbnail[:600] for kind in (0xE1, 0xE2, 0xED, 0xFE)
            )


def test_a_thumbnail_is_made_of_pixels_alone() -> None:
    picture = decode_image(draw_image(RED))
    picture.info["comment"] = CANARY.encode()
    assert not holds(make_thumbnail(picture))
