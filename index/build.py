"""A prepared cohort to a catalogue, in chunks, so that memory is flat.

Each core decodes and embeds a chunk of its own while earlier ones are written. What is written is
not made again by whoever goes on after an interruption (`index/unfinished.py`).
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bundle.cpus import available_cpus
from bundle.encoder import Encoders
from bundle.errors import CatalogueError, InferenceError, InvalidImage
from bundle.fields import Record
from bundle.images import content_hash, decode_image, prepare_image
from bundle.store import Bundle
from cohort.cohort import Cohort
from index.catalogue import Catalogue
from index.choice import AUTO, RECALL, Measured, check_choice
from index.cohort_lesions import (
    CohortLesion,
    Disagreement,
    RejectedValue,
    accepted_values,
    chunks,
    cohort_lesions,
    first_of,
)
from index.lesions import CatalogueLesion, FloatArray
from index.live import directions
from index.pipeline import in_order
from index.thumbnails import make_thumbnail
from index.unfinished import UnreadableImage, unfinished

# Lesions added in one transaction, at least, but for the last.
TRANSACTION_LESIONS = 256

Progress = Callable[[int, int], None]
Note = Callable[[Sequence[UnreadableImage]], None]


@dataclass
class BuildReport:
    """What became of a cohort's rows.

    Attributes:
        lesions: lesions added.
        images: images that were embedded.
        fields_left_out: the cohort's fields that the bundle does not read, and why.
        unreadable: images that could not be decoded or embedded.
        lesions_without_image: lesions left out because none of their images could be.
        rejected_values: values that the bundle's schema does not accept; they are missing.
        disagreements: lesions whose images carry different labels or values; the first is kept.
        index: how an approximate index was measured; None where every vector is compared.
    """

    lesions: int = 0
    images: int = 0
    fields_left_out: Mapping[str, str] = field(default_factory=dict)
    unreadable: list[UnreadableImage] = field(default_factory=list)
    lesions_without_image: list[str] = field(default_factory=list)
    rejected_values: list[RejectedValue] = field(default_factory=list)
    disagreements: list[Disagreement] = field(default_factory=list)
    index: Measured | None = None


def build_catalogue(
    bundle: Bundle,
    encoders: Encoders,
    cohort: Cohort,
    out: Path,
    *,
    splits: Collection[str] = ("train",),
    batch_size: int = 16,
    variant: str | None = None,
    factory: str = AUTO,
    recall: float = RECALL,
    progress: Progress | None = None,
) -> BuildReport:
    """Write a catalogue of the cohort's lesions; it appears under its name only when complete.

    What was made before an error or an interruption stays in `OUT.partial`, and the same call goes
    on from there; so does one that asks for another index.

    Args:
        bundle: names the encoder and gives the fields and the image input.
        encoders: the bundle's graphs; one thread within an inference is best, as several run at
            once.
        cohort: its fields are matched with the bundle's by name; others are left out and reported.
        out: a folder that does not exist yet or is empty.
        splits: which lesions; an evaluation is honest only while its own split stays out.
        batch_size: images embedded at once, 1 or more.
        variant: the encoders' precision; None where it is the bundle's choice.
        factory: the vector index; as `Catalogue.choose_index` takes it.
        recall: the least recall of an approximate index.
        progress: called with the images done and the images in all, after each chunk.

    Returns:
        what was added, and all that was not, with the reason.

    Raises:
        BundleError: `out` is taken.
        CatalogueError: the splits hold no lesion, or none whose images can be decoded; or the
            vector index that was asked for cannot be made; or `OUT.partial` is in use, or of
            another cohort, splits, bundle or variant.
        CohortError: the cohort cannot be read.
    """
    manifest = bundle.manifest
    check_choice(factory, recall, manifest.embedding_dim)
    lesions = _chosen(cohort, splits, batch_size)
    made_by = {"bundle_id": manifest.bundle_id, "variant": variant or manifest.variant}
    with unfinished(out, {**made_by, "lesions": _identify(cohort, lesions)}) as stage:
        catalogue = (
            Catalogue.open(stage.catalogue, **made_by)
            if stage.is_begun
            else Catalogue.create(
                stage.catalogue,
                **made_by,
                embedding_dim=manifest.embedding_dim,
                schema=manifest.record_schema,
            )
        )
        with catalogue:
            stage.begin()
            builder = _Builder(bundle, encoders, cohort, batch_size)
            builder.recall(catalogue, lesions, stage.noted())
            report = _add(catalogue, builder, lesions, stage.note, progress)
            if report.lesions:
                report.index = catalogue.choose_index(factory=factory, recall=recall)
                catalogue.save()
        if report.lesions == 0:
            stage.discard()
            raise CatalogueError(
                f"expected images that can be decoded, got {len(report.unreadable)} that cannot: "
                f"{report.unreadable[0].reason}"
            )
    return report


def write_unreadable(out: Path, report: BuildReport) -> Path | None:
    """List the images that could not be decoded beside a catalogue; return where, None if none is.

    The list of an older catalogue of this name goes.
    """
    path = out.with_name(f"{out.name}.refused.csv")
    path.unlink(missing_ok=True)
    if not report.unreadable:
        return None
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image_id", "lesion_id", "error"])
        writer.writerows([u.image_id, u.lesion_id, u.reason] for u in report.unreadable)
    return path


def add_cohort(
    catalogue: Catalogue,
    bundle: Bundle,
    encoders: Encoders,
    cohort: Cohort,
    *,
    splits: Collection[str] = ("train",),
    batch_size: int = 16,
    progress: Progress | None = None,
) -> BuildReport:
    """Add a cohort's lesions to an open catalogue; arguments as for `build_catalogue`.

    Lesions are added in chunks: after an error, those of earlier chunks are in the catalogue.
    Call `Catalogue.save` afterwards.

    Raises:
        CatalogueError: the splits hold no lesion, or the catalogue holds one of them already.
        CohortError: the cohort cannot be read.
    """
    lesions = _chosen(cohort, splits, batch_size)
    builder = _Builder(bundle, encoders, cohort, batch_size)
    return _add(catalogue, builder, lesions, lambda refused: None, progress)


def _chosen(cohort: Cohort, splits: Collection[str], batch_size: int) -> list[CohortLesion]:
    if batch_size < 1:
        raise CatalogueError(f"batch_size: expected 1 or more, got {batch_size}")
    return cohort_lesions(cohort, splits)


def _identify(cohort: Cohort, lesions: Sequence[CohortLesion]) -> str:
    """Return a hash by which chosen lesions, their records and images, are known again."""
    told = hashlib.sha256(cohort.info.model_dump_json().encode())
    for shard in cohort.info.shards:
        with (cohort.path / shard.file).open("rb") as file:
            told.update(hashlib.file_digest(file, "sha256").digest())
    for lesion in lesions:
        told.update(repr(lesion).encode())
    return told.hexdigest()


def _add(
    catalogue: Catalogue,
    builder: "_Builder",
    lesions: Sequence[CohortLesion],
    note: Note,
    progress: Progress | None,
) -> BuildReport:
    """Add those of the lesions that the builder does not know to be there.

    Args:
        catalogue: grows.
        builder: makes catalogue lesions.
        lesions: the cohort's, in its order.
        note: told what was refused, before the lesions beside it are committed.
        progress: as for `build_catalogue`.
    """
    total = sum(len(lesion.images) for lesion in lesions)
    left = [lesion for lesion in lesions if lesion.lesion_id not in builder.held]
    report, made, noted = builder.report, list[CatalogueLesion](), len(builder.report.unreadable)

    def commit() -> None:
        nonlocal made, noted
        note(report.unreadable[noted:])
        catalogue.add(made)
        made, noted = [], len(report.unreadable)

    if progress is not None:
        progress(report.images + len(report.unreadable), total)
    read = map(builder.read, chunks(left, builder.batch_size))
    for looked in in_order(builder.look, read, threads=available_cpus()):
        made += builder.lesions(looked)
        if len(made) >= TRANSACTION_LESIONS:
            commit()
        if progress is not None:
            progress(report.images + len(report.unreadable), total)
    commit()
    return report


@dataclass(frozen=True)
class _Decoded:
    """What stays of an image once it is decoded; `pixels` are (3, H, W) float32."""

    pixels: FloatArray
    content: str
    thumbnail: bytes


@dataclass(frozen=True)
class _Picture:
    """What stays of an image once it is embedded; `embedding` is (D,) float32."""

    embedding: FloatArray
    content: str
    thumbnail: bytes


@dataclass(frozen=True)
class _Chunk:
    """Some lesions with the files of their images, by row of the cohort."""

    lesions: Sequence[CohortLesion]
    files: dict[int, bytes]


@dataclass(frozen=True)
class _Looked:
    """A chunk's lesions with their pictures by row; why, where there is none."""

    lesions: Sequence[CohortLesion]
    pictures: dict[int, _Picture]
    refused: dict[int, str]


class _Builder:
    """Turns a cohort's lesions into catalogue lesions, and keeps the books."""

    def __init__(self, bundle: Bundle, encoders: Encoders, cohort: Cohort, batch_size: int) -> None:
        self._image_input = bundle.manifest.image_input
        self._encoders = encoders
        self._cohort = cohort
        self.batch_size = batch_size
        self.held: Collection[str] = frozenset()
        self._read, left_out = bundle.manifest.record_schema.match(cohort.schema)
        self.report = BuildReport(fields_left_out=left_out)

    def recall(
        self,
        catalogue: Catalogue,
        lesions: Sequence[CohortLesion],
        refused: Sequence[UnreadableImage],
    ) -> None:
        """Enter into the books the lesions that the catalogue holds already.

        Args:
            catalogue: of an indexing that was begun.
            lesions: the cohort's.
            refused: images of any of them that could not be read.
        """
        self.held = catalogue.lesion_ids()
        self.report.unreadable = [one for one in refused if one.lesion_id in self.held]
        missing = Counter(one.lesion_id for one in self.report.unreadable)
        for chunk in chunks([x for x in lesions if x.lesion_id in self.held], TRANSACTION_LESIONS):
            rows = [image.row for lesion in chunk for image in lesion.images]
            records = dict(zip(rows, self._cohort.records(rows), strict=True))
            for lesion in chunk:
                self._known(lesion, records)
                self.report.lesions += 1
                self.report.images += len(lesion.images) - missing[lesion.lesion_id]

    def read(self, lesions: Sequence[CohortLesion]) -> _Chunk:
        """Return the lesions with their files, which one thread reads: row groups are kept once."""
        rows = [image.row for lesion in lesions for image in lesion.images]
        return _Chunk(lesions, dict(zip(rows, self._cohort.images(rows), strict=True)))

    def look(self, chunk: _Chunk) -> _Looked:
        """Decode and embed a chunk; called on several threads."""
        decoded: dict[int, _Decoded] = {}
        refused: dict[int, str] = {}
        for row, data in chunk.files.items():
            try:
                decoded[row] = self._decode(data)
            except InvalidImage as error:
                refused[row] = str(error)
        rows = list(decoded)
        pictures: dict[int, _Picture] = {}
        for start in range(0, len(rows), self.batch_size):
            self._embed(rows[start : start + self.batch_size], decoded, pictures, refused)
        return _Looked(chunk.lesions, pictures, refused)

    def _embed(
        self,
        rows: list[int],
        decoded: Mapping[int, _Decoded],
        pictures: dict[int, _Picture],
        refused: dict[int, str],
    ) -> None:
        """Embed some images; of those that have no embedding, the others are embedded alone."""
        try:
            embeddings = self._encoders.embed_images(np.stack([decoded[r].pixels for r in rows]))
            directions(embeddings)
        except InferenceError as error:
            if len(rows) == 1:
                refused[rows[0]] = str(error)
                return
            for row in rows:
                self._embed([row], decoded, pictures, refused)
            return
        for row, embedding in zip(rows, embeddings, strict=True):
            pictures[row] = _Picture(embedding, decoded[row].content, decoded[row].thumbnail)

    def _decode(self, data: bytes) -> _Decoded:
        # One picture at a time, a thread, is in memory at full size.
        image = decode_image(data)
        pixels = prepare_image(image, self._image_input)
        return _Decoded(pixels, content_hash(image), make_thumbnail(image))

    def lesions(self, looked: _Looked) -> list[CatalogueLesion]:
        """Return those of a chunk's lesions that have an image which can be decoded."""
        images = [(lesion.lesion_id, image) for lesion in looked.lesions for image in lesion.images]
        rows = [image.row for _, image in images]
        self.report.images += len(looked.pictures)
        self.report.unreadable += [
            UnreadableImage(image.image_id, lesion_id, looked.refused[image.row])
            for lesion_id, image in images
            if image.row in looked.refused
        ]
        records = dict(zip(rows, self._cohort.records(rows), strict=True))
        made = []
        for lesion in looked.lesions:
            seen = [looked.pictures[i.row] for i in lesion.images if i.row in looked.pictures]
            if seen:
                made.append(self._lesion(lesion, seen, records))
            else:
                self.report.lesions_without_image.append(lesion.lesion_id)
        self.report.lesions += len(made)
        return made

    def _lesion(
        self, lesion: CohortLesion, pictures: Sequence[_Picture], records: dict[int, Record]
    ) -> CatalogueLesion:
        record, answer = self._known(lesion, records)
        label, malignant = answer.get("label"), answer.get("malignant")
        return CatalogueLesion(
            lesion_id=lesion.lesion_id,
            patient_id=lesion.patient_id,
            record=record,
            label=None if label is None else str(label),
            malignant=None if malignant is None else bool(malignant),
            source=self._cohort.info.name,
            embedding=np.mean([picture.embedding for picture in pictures], axis=0),
            content_hashes=tuple(picture.content for picture in pictures),
            thumbnail=pictures[0].thumbnail,
        )

    def _known(self, lesion: CohortLesion, records: Mapping[int, Record]) -> tuple[Record, Record]:
        """Return a lesion's record and its label and malignancy; report what is left out."""
        accepted, rejected = [], []
        for image in lesion.images:
            raw = records[image.row]
            values, refused = accepted_values(raw, self._read, lesion.lesion_id)
            accepted.append(values)
            rejected += refused
        self.report.rejected_values += dict.fromkeys(rejected)
        record, differing = first_of(lesion.lesion_id, accepted)
        answers: list[Record] = [
            {"label": image.label, "malignant": image.malignant} for image in lesion.images
        ]
        answer, contradicting = first_of(lesion.lesion_id, answers)
        self.report.disagreements += contradicting + differing
        return record, answer
