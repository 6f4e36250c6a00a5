"""Whether training holds at SLICE-3D's size: 1,000 patients of 400 tiles each, 40 fields.

    python -m benchmarks.slice3d_scale make COHORT
    python -m benchmarks.slice3d_scale reads COHORT
    python -m benchmarks.slice3d_scale run COHORT --out DIR [--steps 200]

`make` prepares the cohort, streamed, through the room that prepares any other. Size and shape are
SLICE-3D's; the values are random and the tiles come again and again from a small pool, so that
nothing can be learnt and 400,000 rows take minutes. `reads` measures the reading of random batches.
`run` trains ViT-S/16 at 96 px on 16 patients x 8 lesions by `slimp train`, in a process of its own
whose files are not in the page cache when it starts, and prints what it took as a table.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle.fields import Field, FieldSchema, Record, Value
from bundle.images import ImageInput
from cohort.cohort import Cohort
from cohort.rows import Group, LesionImage, Source
from cohort.slice3d import LABELS
from cohort.slice3d_fields import columns_of
from cohort.store import prepare
from cohort.synthetic import synthetic_source
from cohort.vocabulary import FITZPATRICK_SKIN_TYPE

PATIENTS, LESIONS = 1_000, 400
# The data set's own 38 usable columns, and two of a patient's.
FIELDS = (
    *columns_of(measured=True, nevi_confidence=True, position=True).values(),
    FITZPATRICK_SKIN_TYPE,
    Field(name="family_history", level="patient", kind="boolean"),
)
MALIGNANT_SHARE = 0.001
MISSING_SHARE = 0.01
TILES_PX = (80, 88, 96, 104, 112)
TILES_OF_A_SIZE = 100

CONFIG = """\
log_steps = 1
precision = "auto"

[image]
size_px = 96
resize_px = 96

[batch]
patients = 16
lesions = 8

[optimiser]
steps = {steps}
"""


def tile_pool() -> list[bytes]:
    """Return drawn tiles of the sizes that the scanner's crops have."""
    pool: list[bytes] = []
    for px in TILES_PX:
        rows = synthetic_source(patients=TILES_OF_A_SIZE, seed=px, image_px=px).rows()
        tiles = (row.image for row in rows if isinstance(row, LesionImage))
        pool.extend(next(tiles) for _ in range(TILES_OF_A_SIZE))
    return pool


def random_column(field: Field, rng: np.random.Generator, count: int) -> list[Value]:
    """Return `count` values that the field accepts, some of them missing."""
    if field.kind == "numeric":
        low = -50.0 if field.minimum is None else field.minimum
        high = 50.0 if field.maximum is None else field.maximum
        values: list[Value] = rng.uniform(low, min(high, low + 100), count).tolist()
    elif field.kind == "boolean":
        values = rng.integers(0, 2, count).astype(bool).tolist()
    else:
        values = [field.categories[i] for i in rng.integers(0, len(field.categories), count)]
    missing = rng.random(count) < MISSING_SHARE
    return [None if m else v for m, v in zip(missing.tolist(), values, strict=True)]


def random_records(rng: np.random.Generator, count: int) -> list[Record]:
    """Return the records of one patient's lesions."""
    columns = {
        field.name: random_column(field, rng, count)
        if field.level == "lesion"
        else random_column(field, rng, 1) * count
        for field in FIELDS
    }
    return [
        {name: value for name, value in zip(columns, row, strict=True) if value is not None}
        for row in zip(*columns.values(), strict=True)
    ]


def scale_source(patients: int = PATIENTS, lesions: int = LESIONS) -> Source:
    """Return a cohort of SLICE-3D's shape; nothing is drawn before it is read."""

    def malignant(patient: int) -> NDArray[np.bool_]:
        return np.random.default_rng([1, patient]).random(lesions) < MALIGNANT_SHARE

    def groups() -> Iterator[Group]:
        for patient in range(patients):
            for is_malignant in malignant(patient):
                yield Group(f"IP_{patient:07d}", LABELS[int(is_malignant)])

    def rows() -> Iterator[LesionImage]:
        pool = tile_pool()
        for patient in range(patients):
            rng = np.random.default_rng([2, patient])
            tiles = rng.integers(0, len(pool), lesions).tolist()
            records = random_records(rng, lesions)
            for place, is_malignant in enumerate(malignant(patient).tolist()):
                name = f"ISIC_{patient * lesions + place:07d}"
                yield LesionImage(
                    image_id=name,
                    lesion_id=name,
                    patient_id=f"IP_{patient:07d}",
                    image=pool[tiles[place]],
                    label=LABELS[int(is_malignant)],
                    malignant=is_malignant,
                    record=records[place],
                )

    return Source(
        name="slice3d_scale",
        schema=FieldSchema(fields=FIELDS),
        labels=LABELS,
        malignant_labels=("malignant",),
        licence="CC0-1.0",
        citation="Random; no patient and no photograph is behind it.",
        groups=groups,
        rows=rows,
    )


def make(out: Path) -> None:
    """Prepare the cohort and print what that took."""
    start = time.perf_counter()
    info = prepare(scale_source(), out)
    megabytes = sum(shard.bytes for shard in info.shards) / 1e6
    print_table(
        {
            "images": f"{info.counts.images:,}",
            "patients": f"{info.counts.patients:,}",
            "fields": len(info.fields),
            "size, MB": f"{megabytes:,.0f}",
            "seconds to prepare": f"{time.perf_counter() - start:.0f}",
            "peak memory, GiB": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f}",
        }
    )


def reads(folder: Path, batches: int = 40) -> None:
    """Print what opening the cohort and reading batches of random tiles take."""
    from training.data import Squares, fit_schema, load_rows
    from training.sampler import PatientBatches

    times: dict[str, float] = {}
    mark = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal mark
        times[name] = time.perf_counter() - mark
        mark = time.perf_counter()

    drop_from_page_cache(folder)
    cohort = Cohort.open(folder)
    cohort.table()
    lap("table, s")
    rows = load_rows(cohort, ["train"], cohort.info.labels)
    lap("rows, s")
    schema = fit_schema(cohort.schema, rows)
    lap("schema, s")
    for level in ("lesion", "patient"):
        rows.encode(schema, level)
    lap("encoding, s")
    sampler = PatientBatches(rows.patient, patients=16, lesions=8, seed=0)
    some = list(sampler)[:batches]
    lap("batches of an epoch, s")
    squares = Squares(cohort, rows, ImageInput(size_px=96, resize_px=96))
    squares.read(some[0])
    lap("first read, s")
    for batch in some:
        cohort.images([int(rows.position[i]) for i in batch])
    lap("bytes")
    for batch in some:
        squares.read(batch)
    lap("squares")
    for part in ("bytes", "squares"):
        times[f"{part} of a batch of 128, ms"] = 1_000 * times.pop(part) / batches
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print_table({**{k: f"{v:.2f}" for k, v in times.items()}, "peak memory, GiB": f"{peak:.2f}"})


def drop_from_page_cache(folder: Path) -> None:
    """Forget what the system keeps of the cohort's files, so that they are read from the disk."""
    for file in folder.rglob("*.*"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(folder: Path, out: Path, steps: int) -> None:
    """Train in a fresh process and print what it took."""
    out.mkdir(parents=True)
    config = out / "experiment.toml"
    config.write_text(CONFIG.format(steps=steps))
    drop_from_page_cache(folder)
    command = [sys.executable, "-m", "slimp", "train", str(folder)]
    command += ["--config", str(config), "--out", str(out / "run")]
    log = out / "run" / "metrics.jsonl"
    start = time.perf_counter()
    with (out / "log.txt").open("w") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
        while process.poll() is None and not (log.is_file() and log.stat().st_size):
            time.sleep(0.02)
        first = time.perf_counter() - start
        process.wait()
    if process.returncode:
        raise SystemExit((out / "log.txt").read_text())
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    # Of the processes that have ended, the largest: there is one.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print_table(
        {
            "steps": len(lines),
            "seconds to the end of the first step": f"{first:.1f}",
            "of them in the step": f"{128 / lines[0]['images_per_second']:.1f}",
            "peak memory, GiB": f"{peak:.2f}",
            "memory after the first step, GiB": f"{lines[0]['memory_mib'] / 2**10:.2f}",
            "images per second, median": f"{median(lines, 'images_per_second'):.1f}",
            "share of it that waits for images": f"{median(lines, 'data_wait_share'):.4f}",
            "minutes": f"{(time.perf_counter() - start) / 60:.1f}",
        }
    )


def median(lines: list[dict[str, float]], name: str) -> float:
    return float(np.median([line[name] for line in lines]))


def print_table(figures: dict[str, Any]) -> None:
    """Print two columns of Markdown."""
    print("| | |\n| --- | --- |")
    for name, figure in figures.items():
        print(f"| {name} | {figure} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("make", "reads", "run"):
        part = parts.add_parser(name)
        part.add_argument("cohort", type=Path)
        if name == "run":
            part.add_argument("--out", type=Path, required=True)
            part.add_argument("--steps", type=int, default=200)
    chosen = parser.parse_args()
    if chosen.part == "run":
        run(chosen.cohort, chosen.out, chosen.steps)
    elif chosen.part == "make":
        make(chosen.cohort)
    else:
        reads(chosen.cohort)


if __name__ == "__main__":
    main()
