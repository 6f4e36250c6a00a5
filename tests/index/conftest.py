"""Catalogues of lesions on a circle: the angle between two of them can be seen in the number."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.catalogue import Catalogue, CatalogueLesion
from tests.fakes import SCHEMA

BUNDLE_ID = "ab" * 32
DIM = 6

MakeLesion = Callable[..., CatalogueLesion]
MakeCatalogue = Callable[..., Catalogue]


def lesion(number: int, **changes: Any) -> CatalogueLesion:
    """Return lesion `number`: record, patient and label follow from the number."""
    rng = np.random.default_rng(number)
    content: dict[str, Any] = {
        "lesion_id": f"lesion-{number:03d}",
        "patient_id": f"patient-{number // 3}",
        "record": {
            "sex": "female" if number % 2 else "male",
            "anatom_site": ("back", "scalp", "lower extremity")[number % 3],
            "age_years": float(number % 120),
            "itch": number % 5 == 0,
        },
        "label": ("nv", "mel", "bcc")[number % 3],
        "malignant": number % 3 > 0,
        "source": "circle",
        "embedding": rng.normal(0, 3, DIM).astype(np.float32),
        "content_hashes": (f"{number:064x}",),
        "thumbnail": f"jpeg {number}".encode() if number % 2 else None,
    }
    return CatalogueLesion(**{**content, **changes})


@pytest.fixture(scope="session")
def make_lesion() -> MakeLesion:
    """Call it with a number and changes for a lesion that follows from the number."""
    return lesion


@pytest.fixture(scope="session")
def pristine_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed catalogue of 40 lesions, its vectors saved, that no test changes."""
    path = tmp_path_factory.mktemp("pristine") / "catalogue"
    with Catalogue.create(
        path, bundle_id=BUNDLE_ID, variant="fp32", embedding_dim=DIM, schema=SCHEMA
    ) as made:
        made.add([lesion(number) for number in range(40)])
        made.save()
    return path


@pytest.fixture
def folder(pristine_folder: Path, tmp_path: Path) -> Path:
    """A closed catalogue of 40 lesions, its vectors saved, that a test may damage."""
    return Path(shutil.copytree(pristine_folder, tmp_path / "catalogue"))


@pytest.fixture
def make_catalogue(tmp_path: Path) -> Iterator[MakeCatalogue]:
    """Call it with lesions for an open, saved catalogue; all are closed after the test."""
    opened: list[Catalogue] = []

    def make(
        lesions: list[CatalogueLesion] | None = None, *, name: str = "catalogue", dim: int = DIM
    ) -> Catalogue:
        made = Catalogue.create(
            tmp_path / name,
            bundle_id=BUNDLE_ID,
            variant="fp32",
            embedding_dim=dim,
            schema=SCHEMA,
        )
        opened.append(made)
        made.add(lesions or [])
        made.save()
        return made

    yield make
    for catalogue in opened:
        catalogue.close()
