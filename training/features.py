"""A cohort through the encoders: image features, record features and classifier logits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from bundle.appearance import describe_appearance
from bundle.encoder import Encoders
from bundle.fields import FieldSchema, Level, Record
from bundle.images import decode_image, standardise
from bundle.quality import measure_quality
from bundle.records import encode_records
from cohort.cohort import Cohort
from training.data import Rows, Squares, in_order

FloatArray = npt.NDArray[np.float32]
Modality = Literal["image", "record", "both"]
LEVELS: tuple[Level, ...] = ("lesion", "patient")


def embed_rows(
    encoders: Encoders,
    squares: Squares,
    *,
    batch: int = 32,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> FloatArray:
    """Return (N, D) float32 image features, not normalised, by the preprocessing of serving."""
    embeddings = np.zeros((len(squares), encoders.embedding_dim), np.float32)
    for part in in_order(len(squares), batch):
        pixels = standardise(squares.read(part), squares.spec)
        embeddings[part] = encoders.embed_images(pixels)
        report(part[-1] + 1, len(squares))
    return embeddings


def pictures_of(cohort: Cohort, rows: Rows, *, batch: int = 32) -> Iterator[Image.Image]:
    """Yield N images as RGB pictures, in order."""
    for part in in_order(len(rows), batch):
        files = cohort.images([int(rows.position[i]) for i in part])
        yield from map(decode_image, files)


def describe_rows(cohort: Cohort, rows: Rows) -> FloatArray:
    """Return the (N, F) float32 plain measurements of N images (`bundle/appearance.py`)."""
    return np.stack([describe_appearance(picture) for picture in pictures_of(cohort, rows)])


def look_at_rows(cohort: Cohort, rows: Rows) -> tuple[list[dict[str, float]], FloatArray]:
    """Return the quality measurements of N images, by name, and what `describe_rows` does."""
    looked = [(measure_quality(p), describe_appearance(p)) for p in pictures_of(cohort, rows)]
    return [quality for quality, _ in looked], np.stack([described for _, described in looked])


@dataclass(frozen=True)
class RecordFeatures:
    """Record features of N rows.

    Attributes:
        lesion: (N, D) float32.
        patient: (N, D) float32.
        lesion_present: (N,) bool, any lesion-level field is present.
        patient_present: (N,) bool, any patient-level field is present.
    """

    lesion: FloatArray
    patient: FloatArray
    lesion_present: npt.NDArray[np.bool_]
    patient_present: npt.NDArray[np.bool_]


def record_features(
    encoders: Encoders, records: Sequence[Record], schema: FieldSchema
) -> RecordFeatures:
    """Return the record features of N canonical records of both levels."""
    encoded = {level: encode_records(records, schema.at(level)) for level in LEVELS}
    return RecordFeatures(
        lesion=encoders.embed_records(encoded["lesion"], "lesion"),
        patient=encoders.embed_records(encoded["patient"], "patient"),
        lesion_present=encoded["lesion"].any_present,
        patient_present=encoded["patient"].any_present,
    )


def classify_rows(
    encoders: Encoders,
    images: FloatArray,
    records: RecordFeatures,
    modality: Modality = "both",
) -> FloatArray:
    """Return (N, C) float32 logits from the image, the record, or both.

    Args:
        encoders: the models.
        images: (N, D) float32 image features.
        records: the rows' record features.
        modality: what the classifier may see.
    """
    count = len(images)
    see_image = np.full(count, modality != "record")
    see_record = modality != "image"
    return encoders.classify(
        images,
        records.lesion,
        records.patient,
        image_present=see_image,
        lesion_present=records.lesion_present & see_record,
        patient_present=records.patient_present & see_record,
    )
