"""From a JPEG's bytes to the encoder's input: core time by stage, and what shortcuts change.

    python -m benchmarks.decoding FOLDER --bundle BUNDLE [--pictures 30]

The folder's first pictures are scaled to the size of a web picture, of a small and of a full
smartphone picture, and stored as JPEG of quality 90. `exact` prepares by the filter over all
pixels; `ours` is what `bundle/images.py` and `bundle/quality.py` do; `draft` lets the JPEG decoder
give a smaller picture (at least four times the prepared size), of which no content hash can be
taken that another file of the same pixels has too. Changes are against `exact`: the largest of a
pixel, the least cosine of centred embeddings, the largest share of the sharpness.
"""

import argparse
import io
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from bundle.encoder import OnnxEncoders, unit_norm
from bundle.images import (
    ImageInput,
    content_hash,
    crop_box,
    decode_image,
    resize_image,
    standardise,
)
from bundle.quality import MEASURE_PX, measure_quality
from bundle.store import open_bundle

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
Result = TypeVar("Result")
SIZES = ((600, 450), (1500, 1125), (4032, 3024))
QUALITY = 90
DRAFT_TIMES = 4


def jpegs(folder: Path, size: tuple[int, int], count: int) -> Iterator[bytes]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg"))
    for path in files[:count]:
        scaled = Image.open(path).convert("RGB").resize(size, Image.Resampling.LANCZOS)
        file = io.BytesIO()
        scaled.save(file, "JPEG", quality=QUALITY)
        yield file.getvalue()


def exact_pixels(image: Image.Image, spec: ImageInput) -> ByteArray:
    box = crop_box(image.width, image.height, spec)
    size = (spec.size_px, spec.size_px)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box))


def exact_sharpness(image: Image.Image) -> float:
    """Return the sharpness of the picture scaled by the filter over all pixels."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert("L").crop((left, top, left + side, top + side))
    small = square.resize((MEASURE_PX, MEASURE_PX), Image.Resampling.BICUBIC)
    return measure_quality(small)["sharpness"]


def draft(data: bytes, spec: ImageInput) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (DRAFT_TIMES * spec.resize_px, DRAFT_TIMES * spec.resize_px))
    image.load()
    return image


class Clock:
    """Milliseconds of one core by stage, which other work on the machine hardly changes."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = defaultdict(list)

    def time(self, stage: str, work: Callable[..., Result], *given: object) -> Result:
        start = time.thread_time()
        result = work(*given)
        self.taken[stage].append((time.thread_time() - start) * 1000)
        return result

    def medians(self) -> dict[str, float]:
        return {stage: float(np.median(times)) for stage, times in self.taken.items()}


def measure_size(data: list[bytes], encoders: OnnxEncoders) -> None:
    """Print the stages' times and the shortcuts' changes of pictures of one size."""
    spec, clock = encoders.manifest.image_input, Clock()
    pixels: dict[str, list[ByteArray]] = defaultdict(list)
    sharpness: dict[str, list[float]] = defaultdict(list)
    for item in data:
        image = clock.time("decode", decode_image, item)
        clock.time("hash", content_hash, image)
        scores = clock.time("quality", measure_quality, image)
        own = clock.time("prepare", resize_image, image, spec)
        whole = clock.time("exact quality", exact_sharpness, image)
        exact = clock.time("exact prepare", exact_pixels, image, spec)
        small = clock.time("draft decode", draft, item, spec)
        drafted = clock.time("draft prepare", exact_pixels, small, spec)
        ready = clock.time("standardise", standardise, own, spec)
        clock.time("infer", encoders.embed_images, ready[None])
        for name, made in (("exact", exact), ("ours", own), ("draft", drafted)):
            pixels[name].append(made)
        sharpness["exact"].append(whole)
        sharpness["ours"].append(scores["sharpness"])
        sharpness["draft"].append(exact_sharpness(small))
    print("  " + "  ".join(f"{stage} {ms:.1f}" for stage, ms in clock.medians().items()))
    embeddings = {
        name: np.concatenate([encoders.embed_images(standardise(p, spec)[None]) for p in made])
        for name, made in pixels.items()
    }
    for name in ("ours", "draft"):
        print(f"  {name}: {_changes(name, pixels, embeddings, sharpness)}")


def _changes(
    name: str,
    pixels: dict[str, list[ByteArray]],
    embeddings: dict[str, FloatArray],
    sharpness: dict[str, list[float]],
) -> str:
    difference = np.abs(np.stack(pixels[name]).astype(int) - np.stack(pixels["exact"])).max()
    centre = embeddings["exact"].mean(axis=0)
    sides = [unit_norm(embeddings[side] - centre) for side in (name, "exact")]
    cosine = (sides[0] * sides[1]).sum(axis=1).min()
    share = np.abs(np.array(sharpness[name]) / np.array(sharpness["exact"]) - 1).max()
    return f"pixel {difference} of 255, cosine {cosine:.5f}, sharpness {share:.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=30)
    options = parser.parse_args()
    encoders = OnnxEncoders(open_bundle(options.bundle), threads=1)
    for size in SIZES:
        print(
            f"{size[0]} x {size[1]}, core ms a picture, medians of {options.pictures}:", flush=True
        )
        measure_size(list(jpegs(options.folder, size, options.pictures)), encoders)


if __name__ == "__main__":
    main()
