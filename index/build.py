"""A prepared cohort to a catalogue, in chunks, so that memory is flat."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from bundle.encoder import Encoders
from bundle.errors import CatalogueError, InvalidImage
from bundle.fields import Record
from bundle.images import content_hash, decode_image, prepare_image
from bundle.store import Bundle, staged_folder
from cohort.cohort import Cohort
from index.catalogue import Catalogue
from index.cohort_lesions import (
    CohortImage,
    CohortLesion,
    Disagreement,
    RejectedValue,
    accepted_values,
    chunks,
    cohort_lesions,
    first_of,
)
from index.lesions import CatalogueLesion, FloatArray
from index.thumbnails import make_thumbnail

# Batches of images whose lesions are added in one transaction.
CHUNK_BATCHES = 4

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class UnreadableImage:
    """An image of the cohort that could not be decoded."""

    image_id: str
    lesion_id: str
    reason: str


@dataclass
class BuildReport:
    """What became of a cohort's rows.

    Attributes:
        lesions: lesions added.
        images: images that were embedded.
        fields_left_out: the cohort's fields that the bundle's schema does not have.
        unreadable: images that could not be decoded.
        lesions_without_image: lesions left out because none of their images could be decoded.
        rejected_values: values that the bundle's schema does not accept; they are missing.
        disagreements: lesions whose images carry different labels or values; the first is kept.
    """

    lesions: int = 0
    images: int = 0
    fields_left_out: tuple[str, ...] = ()
    unreadable: list[UnreadableImage] = field(default_factory=list)
    lesions_without_image: list[str] = field(default_factory=list)
    rejected_values: list[RejectedValue] = field(default_factory=list)
    disagreements: list[Disagreement] = field(default_factory=list)


def build_catalogue(
    bundle: Bundle,
    encoders: Encoders,
    cohort: Cohort,
    out: Path,
    *,
    splits: Collection[str] = ("train",),
    batch_size: int = 32,
    progress: Progress | None = None,
) -> BuildReport:
    """Write a catalogue of the cohort's lesions; it appears under its name only when complete.

    Args:
        bundle: names the encoder and gives the fields and the image input.
        encoders: the bundle's graphs.
        cohort: its fields are matched with the bundle's by name; others are left out and reported.
        out: a folder that does not exist yet or is empty.
        splits: which lesions; an evaluation is honest only while its own split stays out.
        batch_size: images embedded at once, 1 or more.
        progress: called with the images done and the images in all, after each batch.

    Returns:
        what was added, and all that was not, with the reason.

    Raises:
        BundleError: `out` is taken.
        CatalogueError: the splits hold no lesion, or none whose images can be decoded.
        CohortError: the cohort cannot be read.
    """
    manifest = bundle.manifest
    with staged_folder(out) as stage:
        with Catalogue.create(
            stage,
            bundle_id=manifest.bundle_id,
            variant=manifest.variant,
            embedding_dim=manifest.embedding_dim,
            schema=manifest.record_schema,
        ) as catalogue:
            report = add_cohort(
                catalogue,
                bundle,
                encoders,
                cohort,
                splits=splits,
                batch_size=batch_size,
                progress=progress,
            )
            catalogue.save()
        if report.lesions == 0:
            raise CatalogueError(
                f"expected images that can be decoded, got {len(report.unreadable)} that cannot: "
                f"{report.unreadable[0].reason}"
            )
    return report


def add_cohort(
    catalogue: Catalogue,
    bundle: Bundle,
    encoders: Encoders,
    cohort: Cohort,
    *,
    splits: Collection[str] = ("train",),
    batch_size: int = 32,
    progress: Progress | None = None,
) -> BuildReport:
    """Add a cohort's lesions to an open catalogue; arguments as for `build_catalogue`.

    Lesions are added in chunks: after an error, those of earlier chunks are in the catalogue.
    Call `Catalogue.save` afterwards.

    Raises:
        CatalogueError: the splits hold no lesion, or the catalogue holds one of them already.
        CohortError: the cohort cannot be read.
    """
    if batch_size < 1:
        raise CatalogueError(f"batch_size: expected 1 or more, got {batch_size}")
    lesions = cohort_lesions(cohort, splits)
    builder = _Builder(bundle, encoders, cohort, batch_size, progress or _report_nothing)
    builder.total = sum(len(lesion.images) for lesion in lesions)
    for chunk in chunks(lesions, batch_size * CHUNK_BATCHES):
        catalogue.add(builder.lesions(chunk))
    return builder.report


def _report_nothing(done: int, total: int) -> None:
    """Stand in for a progress callback."""


@dataclass(frozen=True)
class _Picture:
    """What stays of an image once it is embedded; `embedding` is (D,) float32."""

    embedding: FloatArray
    content_hash: str
    thumbnail: bytes


class _Builder:
    """Turns a cohort's lesions into catalogue lesions, and keeps the books."""

    def __init__(
        self,
        bundle: Bundle,
        encoders: Encoders,
        cohort: Cohort,
        batch_size: int,
        progress: Progress,
    ) -> None:
        self._schema = bundle.manifest.record_schema
        self._image_input = bundle.manifest.image_input
        self._encoders = encoders
        self._cohort = cohort
        self._batch_size = batch_size
        self._progress = progress
        self.total = 0
        known = self._schema.names
        self.report = BuildReport(
            fields_left_out=tuple(name for name in cohort.schema.names if name not in known)
        )

    def lesions(self, chunk: Sequence[CohortLesion]) -> list[CatalogueLesion]:
        """Return those of the lesions that have an image which can be decoded."""
        images = [(lesion.lesion_id, image) for lesion in chunk for image in lesion.images]
        pictures = dict(self._pictures(images))
        rows = [image.row for _, image in images]
        records = dict(zip(rows, self._cohort.records(rows), strict=True))
        made = []
        for lesion in chunk:
            seen = [pictures[i.row] for i in lesion.images if i.row in pictures]
            if seen:
                made.append(self._lesion(lesion, seen, records))
            else:
                self.report.lesions_without_image.append(lesion.lesion_id)
        self.report.lesions += len(made)
        return made

    def _pictures(
        self, images: Sequence[tuple[str, CohortImage]]
    ) -> Iterator[tuple[int, _Picture]]:
        """Yield the row and what is kept of each image that can be decoded, batch by batch."""
        for start in range(0, len(images), self._batch_size):
            batch = images[start : start + self._batch_size]
            decoded = list(self._decoded(batch))
            self.report.images += len(decoded)
            if decoded:
                pixels = np.stack([prepare_image(i, self._image_input) for _, i in decoded])
                embeddings = self._encoders.embed_images(pixels)
                for (row, image), embedding in zip(decoded, embeddings, strict=True):
                    yield row, _Picture(embedding, content_hash(image), make_thumbnail(image))
            self._progress(self.report.images + len(self.report.unreadable), self.total)

    def _decoded(
        self, batch: Sequence[tuple[str, CohortImage]]
    ) -> Iterator[tuple[int, Image.Image]]:
        files = self._cohort.images([image.row for _, image in batch])
        for (lesion_id, image), data in zip(batch, files, strict=True):
            try:
                yield image.row, decode_image(data)
            except InvalidImage as error:
                unreadable = UnreadableImage(image.image_id, lesion_id, str(error))
                self.report.unreadable.append(unreadable)

    def _lesion(
        self, lesion: CohortLesion, pictures: Sequence[_Picture], records: dict[int, Record]
    ) -> CatalogueLesion:
        accepted, rejected = [], []
        for image in lesion.images:
            raw = records[image.row]
            values, refused = accepted_values(raw, self._schema, lesion.lesion_id)
            accepted.append(values)
            rejected += refused
        self.report.rejected_values += dict.fromkeys(rejected)
        record, differing = first_of(lesion.lesion_id, accepted)
        answers: list[Record] = [
            {"label": image.label, "malignant": image.malignant} for image in lesion.images
        ]
        answer, contradicting = first_of(lesion.lesion_id, answers)
        self.report.disagreements += contradicting + differing
        label, malignant = answer.get("label"), answer.get("malignant")
        return CatalogueLesion(
            lesion_id=lesion.lesion_id,
            patient_id=lesion.patient_id,
            record=record,
            label=None if label is None else str(label),
            malignant=None if malignant is None else bool(malignant),
            source=self._cohort.info.name,
            embedding=np.mean([picture.embedding for picture in pictures], axis=0),
            content_hashes=tuple(picture.content_hash for picture in pictures),
            thumbnail=pictures[0].thumbnail,
        )
