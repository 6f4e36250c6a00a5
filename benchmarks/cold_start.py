"""How long a service takes to be ready on a large catalogue, and what it holds in memory then.

    python -m benchmarks.cold_start make BUNDLE FOLDER [--lesions 400000] [--index auto]
    python -m benchmarks.cold_start time BUNDLE FOLDER [--starts 3] [--picture FILE]

`make` writes a catalogue for a bundle whose embeddings have 384 numbers: made vectors
(`benchmarks.retrieval_vectors`), a record of random values each, four lesions a patient. `time`
starts the service on it, several times: seconds from the process to ready, those of loading and
checking (`slimp_load_seconds`: bundle, golden vectors, batching, catalogue), so that the rest is
the interpreter and the imports; where its memory lies; and, with a picture that the bundle judges,
after the last start where it lies once a lesion of it was added, and how long that took. The
lesion is erased at the end, so that the catalogue can be timed again.
"""

import argparse
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import numpy as np

from benchmarks.memory import memory_mib
from benchmarks.retrieval_vectors import CHUNK, DIM, Generator
from benchmarks.serving import Server, started
from bundle.fields import FieldSchema, Record, Value
from bundle.store import open_bundle
from index.catalogue import Catalogue, CatalogueLesion
from tests.ports import free_port

LESIONS_A_PATIENT = 4
MIB = 2**20


def random_record(schema: FieldSchema, rng: np.random.Generator) -> Record:
    record: dict[str, Value] = {}
    for field in schema.fields:
        if field.kind == "numeric":
            record[field.name] = field.parse(float(rng.integers(20, 90)))
        elif field.kind == "boolean":
            record[field.name] = bool(rng.random() < 0.5)
        else:
            record[field.name] = field.categories[rng.integers(len(field.categories))]
    return record


def make(options: argparse.Namespace) -> None:
    bundle = open_bundle(options.bundle)
    manifest = bundle.manifest
    if manifest.embedding_dim != DIM:
        raise SystemExit(
            f"expected a bundle of embedding width {DIM}, got {manifest.embedding_dim}"
        )
    rng = np.random.default_rng(0)
    started_at = time.perf_counter()
    with Catalogue.create(
        options.folder,
        bundle_id=manifest.bundle_id,
        variant=manifest.variant,
        embedding_dim=DIM,
        schema=manifest.record_schema,
    ) as catalogue:
        for number, vectors in enumerate(Generator().chunks(options.lesions, seed=1)):
            first = number * CHUNK
            catalogue.add(
                [
                    CatalogueLesion(
                        lesion_id=f"lesion-{first + at}",
                        patient_id=f"patient-{(first + at) // LESIONS_A_PATIENT}",
                        record=random_record(manifest.record_schema, rng),
                        label=manifest.labels[rng.integers(len(manifest.labels))],
                        malignant=None,
                        source="made",
                        embedding=vector,
                        content_hashes=(f"{first + at:064x}",),
                    )
                    for at, vector in enumerate(vectors)
                ]
            )
            print(f"{len(catalogue)} lesions, {time.perf_counter() - started_at:.0f} s", flush=True)
        print(catalogue.choose_index(factory=options.index) or "every vector is compared")
        catalogue.save()


def time_starts(options: argparse.Namespace) -> None:
    print("| | seconds | of them loading | resident MiB | own | of files |")
    print("| --- | --- | --- | --- | --- | --- |")
    for start in range(1, options.starts + 1):
        port = free_port()
        command = [sys.executable, "-m", "slimp", "serve"]
        command += [str(options.bundle), str(options.folder)]
        with tempfile.TemporaryDirectory() as ledger:
            settings = {"SLIMP_PORT": str(port), "SLIMP_LEDGER": ledger}
            settings["SLIMP_LOG_LEVEL"] = "warning"
            began = time.perf_counter()
            with started("ours", command, port, "/readyz", settings, poll_s=0.02) as server:
                ready = time.perf_counter() - began
                url = server.url.replace("/readyz", "/metrics")
                metrics = urllib.request.urlopen(url).read().decode()
                said = re.search(r"^slimp_load_seconds (\S+)", metrics, re.MULTILINE)
                loading = 0.0 if said is None else float(said[1])
                show(f"start {start}", ready, f"{loading:.2f}", server)
                if start == options.starts and options.picture is not None:
                    with added_lesion(port, options.picture.read_bytes()) as took:
                        show("first lesion added", took, "", server)


def show(what: str, seconds: float, loading: str, server: Server) -> None:
    numbers = " | ".join(f"{mib:.0f}" for mib in memory_mib(server.process.pid).values())
    print(f"| {what} | {seconds:.2f} | {loading} | {numbers} |", flush=True)


@contextmanager
def added_lesion(port: int, picture: bytes) -> Iterator[float]:
    """Yield the seconds until a lesion of this picture is in the catalogue; it is erased then."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        began = time.perf_counter()
        added = client.post("/lesions", files={"image": picture}).raise_for_status()
        yield time.perf_counter() - began
        client.delete(added.headers["Location"]).raise_for_status()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    tasks = parser.add_subparsers(required=True)
    for name, run in (("make", make), ("time", time_starts)):
        task = tasks.add_parser(name)
        task.set_defaults(run=run)
        task.add_argument("bundle", type=Path)
        task.add_argument("folder", type=Path)
        if run is make:
            task.add_argument("--lesions", type=int, default=400_000)
            task.add_argument("--index", default="auto")
        else:
            task.add_argument("--starts", type=int, default=3)
            task.add_argument("--picture", type=Path)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
