"""A cohort of coloured squares that a tiny network learns in seconds.

Red is "nv", green is "mel", blue is "bcc". A lesion's diameter is its colour's strength and a
patient's age the strength of the ground, so that pictures and records can be matched.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bundle.fields import Field, FieldSchema, Record
from cohort.cohort import Cohort
from cohort.rows import Group, LesionImage, Source
from cohort.store import prepare
from training.config import Config
from training.fit import fit
from training.trainer import pretrain

LABELS = ("nv", "mel", "bcc")
MALIGNANT = ("mel", "bcc")
PATIENTS = 20
# Every patient has these and one malignant lesion; the first is photographed twice.
BENIGN = 3
SIDE_PX = 20

SCHEMA = FieldSchema(
    fields=(
        Field(name="diameter_mm", level="lesion", kind="numeric", unit="mm"),
        Field(name="itch", level="lesion", kind="boolean"),
        Field(name="anatom_site", level="lesion", kind="categorical", categories=("back", "scalp")),
        Field(name="age_years", level="patient", kind="numeric", unit="years"),
        Field(name="sex", level="patient", kind="categorical", categories=("female", "male")),
    )
)

TINY: dict[str, Any] = {
    "checkpoint_steps": 5,
    "log_steps": 4,
    "image": {
        "size_px": 16,
        "resize_px": 16,
        "patch_px": 8,
        "width": 16,
        "blocks": 1,
        "heads": 2,
    },
    "record": {"width": 8, "layers": 1, "heads": 2},
    "objective": {"projection_dim": 16, "column_dropout": 0.1},
    "batch": {"patients": 8, "lesions": 4},
    "optimiser": {"epochs": 6, "learning_rate": 5e-3},
    "augment": {
        "min_crop": 0.9,
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "hue": 0.0,
    },
    "fit": {
        "epochs": 40,
        "folds": 2,
        "batch": 32,
        "hidden": 16,
        "learning_rate": 1e-2,
        "context_width": 8,
        "context_epochs": 6,
    },
}


def tiny_config(**sections: Any) -> Config:
    """Return the smallest useful experiment with some settings changed, by section."""
    content = {
        key: {**value, **sections.pop(key, {})} if isinstance(value, dict) else value
        for key, value in TINY.items()
    }
    return Config.model_validate({**content, **sections})


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Return the metrics that a run logged, one step after another."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def draw_square(label: str, strength: float, ground: float, seed: int) -> bytes:
    """Return a PNG: a square of the label's colour on grained skin.

    Args:
        label: one of `LABELS`.
        strength: of the colour, 0 to 1.
        ground: brightness of the skin, 0 to 1.
        seed: of the grain.
    """
    grain = np.random.default_rng(seed).normal(0, 6, (SIDE_PX, SIDE_PX, 3))
    pixels = np.full((SIDE_PX, SIDE_PX, 3), 100 + 100 * ground) + grain
    colour = np.full(3, 30.0)
    colour[LABELS.index(label)] = 120 + 130 * strength
    pixels[4:16, 4:16] = colour + grain[4:16, 4:16]
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def squares(
    *, patients: int = PATIENTS, with_ids: bool = True, benign: int = BENIGN
) -> Iterator[LesionImage]:
    """Yield every image of the cohort, all of one patient together."""
    rng = np.random.default_rng(3)
    for patient in range(patients):
        age = float(rng.uniform(20, 80))
        sex = "female" if patient % 2 else "male"
        for place in range(benign + 1):
            label = MALIGNANT[patient // 2 % 2] if place == benign else "nv"
            diameter = float(rng.uniform(2, 10))
            record: Record = {
                "diameter_mm": diameter,
                "itch": label != "nv",
                "anatom_site": "scalp" if label == "bcc" else "back",
                "age_years": age,
                "sex": sex,
            }
            if place == 1:
                del record["itch"]
            for picture in range(2 if place == 0 else 1):
                yield LesionImage(
                    image_id=f"image {patient} {place} {picture}",
                    lesion_id=f"lesion {patient} {place}",
                    patient_id=f"patient {patient}" if with_ids else None,
                    image=draw_square(label, diameter / 10, age / 100, int(rng.integers(1 << 30))),
                    label=label,
                    malignant=label in MALIGNANT,
                    record=record,
                )


def squares_source(images: list[LesionImage], **changes: Any) -> Source:
    """Return a source over these images."""
    content: dict[str, Any] = {
        "name": "squares",
        "schema": SCHEMA,
        "labels": LABELS,
        "malignant_labels": MALIGNANT,
        "licence": "CC0-1.0",
        "citation": "drawn by the tests",
        "groups": lambda: iter([Group(i.group_id, i.label) for i in images]),
        "rows": lambda: iter(images),
    }
    return Source(**{**content, **changes})


def write_cohort(out: Path, images: list[LesionImage] | None = None, **changes: Any) -> Cohort:
    """Write these images, or all squares, as a cohort and return it open."""
    prepare(squares_source(list(squares()) if images is None else images, **changes), out)
    return Cohort.open(out)


def write_fitted_run(folder: Path, cohort: Cohort) -> Path:
    """Pre-train and fit the tiny experiment below this folder and return the fitted run."""
    pretrain(cohort, tiny_config(), folder / "pretrained")
    fit(folder / "pretrained", cohort, folder / "fitted")
    return folder / "fitted"
