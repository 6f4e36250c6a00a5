"""From a lesion's image bytes to its embedding, and whether it can be judged.

An image whose quality is too poor, or that is unlike the training images, is left out with a
warning; the lesion is not assessable when none is left. The embedding is the mean over the images
that count; where none does it is the mean over all, for retrieval only. Only the encoder's input,
the content hash and the measurements outlive an image's decoding: at most one picture per request
is in memory at full size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bundle.calibration import FloatArray
from bundle.errors import InvalidImage
from bundle.images import ImageLimits, content_hash, decode_image, prepare_image
from bundle.quality import measure_quality, quality_reasons
from service.models import Models, finite
from service.schemas import AnswerWarning, ImageQuality, Quality
from service.stages import stage

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


def look(models: Models, images: Sequence[bytes], limits: ImageLimits) -> list[Picture]:
    """Return every image decoded, measured and embedded, in order.

    Raises:
        InvalidImage: an image cannot be read; the message says which where there are several.
        InferenceError: an embedding is not finite.
    """
    with stage("decode"):
        read = [_read(models, data, position, limits) for position, data in enumerate(images)]
    with stage("infer"):
        chunks = [
            models.encoders.embed_images(
                np.stack([one.pixels for one in read[start : start + CHUNK_IMAGES]])
            )
            for start in range(0, len(read), CHUNK_IMAGES)
        ]
    embeddings = finite(np.concatenate(chunks), "image embedding")
    return [_judge(models, embedding, one) for embedding, one in zip(embeddings, read, strict=True)]


@dataclass(frozen=True)
class _Input:
    """What is kept of one decoded image: (3, H, W) float32 pixels, its hash and measurements."""

    pixels: FloatArray
    content: str
    scores: dict[str, float]


def _read(models: Models, data: bytes, position: int, limits: ImageLimits) -> _Input:
    try:
        image = decode_image(data, limits)
    except InvalidImage as error:
        raise type(error)(f"image {position}: {error}") from None
    pixels = prepare_image(image, models.manifest.image_input)
    return _Input(pixels, content_hash(image), measure_quality(image))


def _judge(models: Models, embedding: FloatArray, read: _Input) -> Picture:
    reasons = quality_reasons(read.scores, models.calibration.quality)
    scores = read.scores
    if models.novelty is not None:
        novelty = float(finite(models.novelty.score(embedding[None]), "novelty score")[0])
        scores = {**scores, "novelty": novelty}
        if novelty > models.calibration.novelty_threshold:
            reasons = [*reasons, UNLIKE_TRAINING]
    return Picture(embedding, read.content, tuple(reasons), scores)


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
