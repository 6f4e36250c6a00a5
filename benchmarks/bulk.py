"""`slimp predict` and `slimp index` beside the bare model on prepared arrays, in one run.

    python -m benchmarks.bulk BUNDLE COHORT --out FOLDER [--images 512] [--rounds 3]

The bare loops run the bundle's image encoder alone on arrays that are ready, in batches of 8: once
with all threads in one inference, once with as many inferences at a time as there are cores, one
thread each. `predict` reads the same images as files, `index` as a cohort; both decode, hash,
measure, embed and write what they always write. Rates are from the first report, before any image,
to the last, so that loading is left out; it is given apart. All take turns, round by round.
"""

import argparse
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bundle.cpus import available_cpus
from bundle.encoder import OnnxEncoders
from bundle.images import decode_image, prepare_image
from bundle.store import Bundle, open_bundle
from cohort.cohort import Cohort
from index.build import build_catalogue
from service.bulk import predict_files

FloatArray = npt.NDArray[np.float32]
BATCH = 8


class Rate:
    """When how many images were done."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.reports: list[tuple[float, float, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.reports.append((time.perf_counter(), time.process_time(), done))

    def figures(self) -> tuple[float, float, float]:
        """Return images per second and core time an image between the reports, seconds around."""
        spent = time.perf_counter() - self.began
        (first, busy, before), (last, busy_after, after) = self.reports[0], self.reports[-1]
        images, seconds = after - before, last - first
        return images / seconds, (busy_after - busy) / images * 1000, spent - seconds


def bare(encoders: OnnxEncoders, pixels: FloatArray, threads: int, report: Rate) -> None:
    batches = [pixels[at : at + BATCH] for at in range(0, len(pixels), BATCH)]
    report(0, len(pixels))
    with ThreadPoolExecutor(threads) as pool:
        for number, _ in enumerate(pool.map(encoders.embed_images, batches), 1):
            report(min(number * BATCH, len(pixels)), len(pixels))


def write_files(cohort: Cohort, rows: list[int], folder: Path) -> None:
    folder.mkdir(parents=True)
    for row, data in zip(rows, cohort.images(rows), strict=True):
        (folder / f"{row:06}.jpg").write_bytes(data)


def contenders(
    bundle: Bundle, cohort: Cohort, pixels: FloatArray, out: Path
) -> dict[str, Callable[[Rate], object]]:
    cores = available_cpus()
    whole, single = OnnxEncoders(bundle, threads=cores), OnnxEncoders(bundle, threads=1)

    def index(report: Rate) -> None:
        shutil.rmtree(out / "catalogue", ignore_errors=True)
        build_catalogue(bundle, single, cohort, out / "catalogue", progress=report)

    return {
        "bare, all threads in one inference": lambda rate: bare(whole, pixels, 1, rate),
        "bare, an inference a core": lambda rate: bare(single, pixels, cores, rate),
        "predict": lambda rate: predict_files(
            bundle.path, [out / "images"], out / "answers.csv", report=rate
        ),
        "index": index,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a folder that is made anew")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    bundle, cohort = open_bundle(options.bundle), Cohort.open(options.cohort)
    # The same images for all: the train split of `index` is the cohort cut down to them.
    groups = cohort.group_ids()
    rows = list(range(options.images))
    chosen = {groups[row] for row in rows}
    rows = [row for row, group in enumerate(groups) if group in chosen]
    cohort = cohort.with_splits({g: "train" if g in chosen else "test" for g in set(groups)})
    shutil.rmtree(options.out, ignore_errors=True)
    write_files(cohort, rows, options.out / "images")
    spec = bundle.manifest.image_input
    pixels = np.stack([prepare_image(decode_image(data), spec) for data in cohort.images(rows)])
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for _ in range(options.rounds):
        for name, work in contenders(bundle, cohort, pixels, options.out).items():
            rate = Rate()
            work(rate)
            found[name].append(rate.figures())
    best = max(np.median([f[0] for f in found[name]]) for name in found if name.startswith("bare"))
    print(f"{len(rows)} images at {spec.size_px} px, {available_cpus()} cores\n")
    print("| | images per second | of the better bare loop | core ms an image | seconds beside |")
    print("| --- | --- | --- | --- | --- |")
    for name, figures in found.items():
        rates, core, beside = (np.array(column) for column in zip(*figures, strict=True))
        shown = f"{np.median(rates):.1f} ({rates.min():.1f} to {rates.max():.1f})"
        share = np.median(rates) / best
        print(
            f"| {name} | {shown} | {share:.2f} | {np.median(core):.1f} | {np.median(beside):.1f} |"
        )


if __name__ == "__main__":
    main()
