"""Builders that the tests of this room share."""

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bundle.fields import Field, FieldSchema
from cohort.rows import DroppedRow, Group, LesionImage, Source

MakeImage = Callable[..., bytes]
WriteCsv = Callable[..., Path]
MakeSource = Callable[..., Source]

SCHEMA = FieldSchema(
    fields=(
        Field(name="age_years", level="patient", kind="numeric", unit="years"),
        Field(name="sex", level="patient", kind="categorical", categories=("female", "male")),
        Field(name="itch", level="lesion", kind="boolean"),
    )
)


def encode(colour: tuple[int, int, int] = (200, 150, 120), *, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="session")
def make_image() -> MakeImage:
    """Return a function that gives a small encoded image of one colour."""
    return encode


@pytest.fixture(scope="session")
def write_csv() -> WriteCsv:
    """Return a function that writes rows under a header and returns the path."""

    def write(
        path: Path,
        header: Sequence[str],
        rows: Iterable[Mapping[str, Any]],
        *,
        delimiter: str = ",",
        newline: str = "\r\n",
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(
                file, header, delimiter=delimiter, lineterminator=newline, restval=""
            )
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


@pytest.fixture
def lay_out(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes tables and images below a folder and returns it.

    Each image has a colour of its own, unless `copies` names the one that it repeats.
    """

    def write(
        tables: Mapping[str, str], images: Iterable[str], copies: Mapping[str, str] | None = None
    ) -> Path:
        root = tmp_path / "source"
        for name, text in tables.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        for name in images:
            of = (copies or {}).get(name, name)
            red, green, blue = hashlib.sha256(of.encode()).digest()[:3]
            kind = "BMP" if name.endswith(".bmp") else "JPEG"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(encode((red, green, blue), kind=kind))
        return root

    return write


@pytest.fixture(scope="session")
def make_row() -> Callable[..., LesionImage]:
    """Return a function that gives a lesion image with some attributes changed."""

    def make(number: int = 0, **changes: Any) -> LesionImage:
        content: dict[str, Any] = {
            "image_id": f"image-{number}",
            "lesion_id": f"lesion-{number}",
            "patient_id": f"patient-{number // 3}",
            "image": encode((number % 256, 10, 20)),
            "label": "mel" if number % 4 == 0 else "nv",
            "malignant": number % 4 == 0,
            "record": {"age_years": float(number), "sex": "female"},
        }
        return LesionImage(**{**content, **changes})

    return make


@pytest.fixture(scope="session")
def make_source() -> MakeSource:
    """Return a function that gives a source over given rows."""

    def make(rows: Sequence[LesionImage | DroppedRow], **changes: Any) -> Source:
        groups = [Group(r.group_id, r.label) for r in rows if isinstance(r, LesionImage)]
        content: dict[str, Any] = {
            "name": "small",
            "schema": SCHEMA,
            "labels": ("mel", "nv"),
            "malignant_labels": ("mel",),
            "licence": "CC0",
            "citation": "none",
            "groups": lambda: iter(groups),
            "rows": lambda: iter(rows),
        }
        return Source(**{**content, **changes})

    return make
