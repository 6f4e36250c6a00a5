"""From a lesion's image bytes to its embedding, and whether it can be judged.

An image whose quality is too poor, or that is unlike the training images, is left out with a
warning; the lesion is not assessable when none is left. The embedding is the mean over the images
that count; where none does it is the mean over all, for retrieval only. Only the encoder's input,
the content hash and the measurements outlive an image's decoding: at most one picture per request
is in memory at full size.

A picture that came before is not embedded again, nor decoded if its file came before
(`service/embeddings.py`).
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from bundle.appearance import describe_appearance
from bundle.calibration import FloatArray
from bundle.errors import InvalidImage
from bundle.images import ImageLimits, content_hash, decode_image, prepare_image
from bundle.quality import measure_quality, quality_reasons
from service.embeddings import EmbeddingCache, Model, Seen, file_digest
from service.models import Models, finite
from service.schemas import AnswerWarning, ImageQuality, Quality
from service.stages import stage
from service.tickets import check_awaited

UNLIKE_TRAINING = "unlike_training_images"
# Images per run of the image encoder: bounds the memory of a whole patient's images.
CHUNK_IMAGES = 8


@dataclass(frozen=True)
class Picture:
    """One image, looked at.

    Attributes:
        embedding: (D,) float32, the image encoder's feature, not normalised.
        content: hash of its pixels.
        reasons: why it is left out; empty when it counts.
        scores: its measurements.
    """

    embedding: FloatArray
    content: str
    reasons: tuple[str, ...]
    scores: dict[str, float]


@dataclass(frozen=True)
class LesionPictures:
    """The images of one lesion.

    Attributes:
        embedding: (D,) float32, mean over the images that count, or over all where none does.
        contents: hashes of all its images.
        assessable: whether at least one image counts.
    """

    embedding: FloatArray
    contents: frozenset[str]
    assessable: bool
    quality: Quality
    warnings: tuple[AnswerWarning, ...]


def look(
    models: Models,
    images: Sequence[bytes],
    limits: ImageLimits,
    cache: EmbeddingCache | None = None,
) -> list[Picture]:
    """Return every image decoded, measured and embedded, in order.

    Args:
        models: the loaded bundle.
        images: as files.
        limits: what an image may be.
        cache: pictures that came before; None looks at every image anew.

    Raises:
        InvalidImage: an image cannot be read; the message says which where there are several.
        InferenceError: an embedding is not finite.
        ClientDisconnect, TimedOut: nobody waits any more.
    """
    memory = _Memory(models, cache)
    read = [_read_in_turn(models, data, at, limits, memory) for at, data in enumerate(images)]
    with stage("infer"):
        new = [one for one in read if isinstance(one, Unseen)]
        made = iter(embed(models, new))
    seen = [
        memory.keep(one.digest, one.seen(next(made))) if isinstance(one, Unseen) else one
        for one in read
    ]
    return [judge_picture(models, one) for one in seen]


@dataclass(frozen=True)
class Unseen:
    """One decoded image that no model has seen: (3, H, W) float32 pixels, hash, measurements."""

    pixels: FloatArray
    content: str
    scores: Mapping[str, float]
    digest: str

    def seen(self, embedding: FloatArray) -> Seen:
        """Return the picture with its (D,) float32 embedding."""
        # A row of its own: one embedding must not hold a batch's in memory.
        embedding = embedding.copy()
        embedding.setflags(write=False)
        return Seen(self.content, self.scores, embedding)


class _Memory:
    """The cache as one request sees it; without one it knows nothing and keeps nothing."""

    def __init__(self, models: Models, cache: EmbeddingCache | None) -> None:
        self._cache = cache
        self._model = Model(models.manifest.bundle_id, models.variant)
        self._era = 0 if cache is None else cache.era

    def by_file(self, data: bytes) -> tuple[str, Seen | None]:
        if self._cache is None:
            return "", None
        digest = file_digest(data)
        return digest, self._cache.by_file(self._model, digest)

    def by_content(self, content: str) -> Seen | None:
        return None if self._cache is None else self._cache.by_content(self._model, content)

    def keep(self, digest: str, seen: Seen) -> Seen:
        if self._cache is not None:
            self._cache.keep(self._model, digest, seen, self._era)
        return seen


def _read_in_turn(
    models: Models, data: bytes, position: int, limits: ImageLimits, memory: _Memory
) -> Seen | Unseen:
    """Read one image when its turn has come: a request of many lets others in between."""
    with ExitStack() as turn:
        with stage("wait"):
            turn.enter_context(models.decoding)
        check_awaited()
        with stage("decode"):
            return _read(models, data, position, limits, memory)


def _read(
    models: Models, data: bytes, position: int, limits: ImageLimits, memory: _Memory
) -> Seen | Unseen:
    digest, seen = memory.by_file(data)
    if seen is not None:
        return seen
    try:
        image = decode_image(data, limits)
    except InvalidImage as error:
        raise type(error)(f"image {position}: {error}") from None
    content = content_hash(image)
    seen = memory.by_content(content)
    if seen is not None:
        return memory.keep(digest, seen)
    pixels = prepare_image(image, models.manifest.image_input)
    scores = measure_quality(image)
    if models.appearance is not None:
        described = describe_appearance(image)
        scores["appearance"] = float(models.appearance.score(described[None])[0])
    return Unseen(pixels, content, scores, digest)


def embed(models: Models, images: Sequence[Unseen]) -> FloatArray:
    """Return the (N, D) float32 features of N decoded images.

    Raises:
        InferenceError: one is not finite.
    """
    chunks = [
        models.encoders.embed_images(
            np.stack([one.pixels for one in images[start : start + CHUNK_IMAGES]])
        )
        for start in range(0, len(images), CHUNK_IMAGES)
    ]
    none = np.zeros((0, models.encoders.embedding_dim), np.float32)
    return finite(np.concatenate([none, *chunks]), "image embedding")


def judge_picture(models: Models, seen: Seen) -> Picture:
    """Return the picture with the reasons why it does not count."""
    scores, embedding = dict(seen.scores), seen.embedding
    reasons = quality_reasons(scores, models.calibration.quality)
    calibration, is_unlike = models.calibration, False
    if models.novelty is not None:
        scores["novelty"] = float(finite(models.novelty.score(embedding[None]), "novelty")[0])
        is_unlike = scores["novelty"] > calibration.novelty_threshold
    if calibration.appearance_threshold is not None:
        is_unlike |= scores["appearance"] > calibration.appearance_threshold
    if is_unlike:
        reasons = [*reasons, UNLIKE_TRAINING]
    return Picture(embedding, seen.content, tuple(reasons), scores)


def pool(pictures: Sequence[Picture], indices: Sequence[int]) -> LesionPictures:
    """Return one lesion's pictures joined.

    Args:
        pictures: the lesion's, at least one.
        indices: their positions in the request, for the answer.
    """
    usable = [picture for picture in pictures if not picture.reasons]
    counted = usable or list(pictures)
    joined = dict.fromkeys(reason for picture in pictures for reason in picture.reasons)
    quality = Quality(
        reasons=() if usable else tuple(joined),
        scores={
            name: float(np.mean([picture.scores[name] for picture in counted]))
            for name in counted[0].scores
        },
        images=tuple(
            ImageQuality(index=index, reasons=picture.reasons, scores=picture.scores)
            for index, picture in zip(indices, pictures, strict=True)
        ),
    )
    return LesionPictures(
        embedding=np.mean([picture.embedding for picture in counted], axis=0, dtype=np.float32),
        contents=frozenset(picture.content for picture in pictures),
        assessable=bool(usable),
        quality=quality,
        warnings=tuple(_left_out(quality.images)) if usable else (),
    )


def _left_out(images: Sequence[ImageQuality]) -> list[AnswerWarning]:
    return [
        AnswerWarning(
            field="image",
            code="image_left_out",
            message=f"image {image.index} does not count: {', '.join(image.reasons)}",
        )
        for image in images
        if image.reasons
    ]
