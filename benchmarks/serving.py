"""Ours beside a bare loop and beside what a user would run instead, on one machine in one run.

    python -m benchmarks.serving BUNDLE CATALOGUE IMAGES --out FOLDER [--variant fp32]
        [--run FITTED --peers PYTHON]

The same weights and the same image files. `bare` decodes, prepares and embeds in a loop without a
server, in the same variant; `ours` is /embed, `ours classify` all of /classify against the
catalogue. With `--run` and `--peers` (an interpreter with torch, fastapi, litserve and bentoml) the
torch model of the run is served by each of them, in bfloat16 where ours is not in float32. All
servers are up all the time and take turns, so that a slow moment of the machine is everybody's;
those that are not asked are stopped meanwhile. The embedding cache is off. Phases: one client; as
many as saturate; Poisson arrivals at 80 % of what ours did (seeded); ten times that, and after it.
"""

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving_load import Load, Outcome, percentile
from bundle.cpus import available_cpus
from bundle.encoder import OnnxEncoders
from bundle.images import decode_image, prepare_image
from bundle.manifest import BASE_VARIANT
from bundle.store import open_bundle
from export.ladder import describe_machine
from tests.ports import free_port

PEERS = ("fastapi", "litserve", "bentoml")
# As many as find a place: SLIMP_MAX_CONCURRENCY and SLIMP_MAX_QUEUE by default.
CLIENTS = 12
SHARE, OVERLOAD = 0.8, 10
SEED = 0
START_S = 180.0
SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass
class Server:
    """A process that answers at a URL."""

    name: str
    process: subprocess.Popen[bytes]
    url: str

    def memory_mib(self) -> float:
        """Resident memory of the process and its children."""
        import psutil

        root = psutil.Process(self.process.pid)
        family = [root, *root.children(recursive=True)]
        return float(sum(each.memory_info().rss for each in family)) / 2**20


@contextlib.contextmanager
def only(asked: Server | None, up: Iterable[Server]) -> Iterator[None]:
    """Stop the processes of all other servers for the block: some are busy though nobody asks."""
    import psutil

    others = {server.process.pid for server in up}
    others -= set() if asked is None else {asked.process.pid}
    roots = [psutil.Process(pid) for pid in others]
    stopped = [each for root in roots for each in (root, *root.children(recursive=True))]
    for each in stopped:
        each.suspend()
    try:
        yield
    finally:
        for each in stopped:
            each.resume()


@contextlib.contextmanager
def started(
    name: str,
    command: Sequence[str],
    port: int,
    path: str,
    environ: Mapping[str, str],
    *,
    poll_s: float = 0.5,
) -> Iterator[Server]:
    """Yield a server once it answers something at its path; it ends with the block."""
    process = subprocess.Popen(command, env={**os.environ, **environ}, start_new_session=True)
    server = Server(name, process, f"http://127.0.0.1:{port}{path}")
    try:
        await_answer(server, poll_s)
        yield server
    finally:
        # A session of its own: its workers end with it. One that ended by itself has none left.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def await_answer(server: Server, poll_s: float) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and server.process.poll() is None:
        try:
            urllib.request.urlopen(server.url.replace("/embed", "/readyz"), timeout=5).close()
            return
        except urllib.error.HTTPError as answer:
            # The peers have no such route, and thereby say that they answer.
            if answer.code in (404, 405):
                return
        except OSError:
            pass
        time.sleep(poll_s)
    raise RuntimeError(f"{server.name} did not start within {START_S:g} s")


def bare_loop(
    encoders: OnnxEncoders, images: Sequence[bytes], seconds: float, loops: int = 1
) -> dict[str, Any]:
    """Return what decoding, preparing and embedding one image after the other comes to.

    Args:
        encoders: the model.
        images: files.
        seconds: how long.
        loops: so many beside each other, each on a thread of its own.
    """
    spec = encoders.manifest.image_input
    took: list[float] = []
    begun = time.perf_counter()

    def turn(_: int) -> None:
        done = 0
        while time.perf_counter() - begun < seconds or done < 3:
            started_at = time.perf_counter()
            image = decode_image(images[len(took) % len(images)])
            encoders.embed_images(prepare_image(image, spec)[None])
            took.append((time.perf_counter() - started_at) * 1000)
            done += 1

    with ThreadPoolExecutor(loops) as threads:
        list(threads.map(turn, range(loops)))
    return {
        "per_second": len(took) / (time.perf_counter() - begun),
        "median_ms": percentile(took, 50),
        "p99_ms": percentile(took, 99),
    }


def save_program(run: Path, size_px: int, path: Path) -> None:
    """Write the run's image encoder as a torch program with a free batch."""
    import torch

    from training.encoders import load_encoders

    tower = load_encoders(run).towers.image.eval()
    example = (torch.zeros(2, 3, size_px, size_px),)
    shapes = ({0: torch.export.Dim("rows", min=1, max=64)},)
    torch.export.save(torch.export.export(tower, example, dynamic_shapes=shapes), path)


def with_median(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the rounds and the median of every number in them."""
    known = {k: [r[k] for r in rounds if isinstance(r[k], int | float)] for k in rounds[0]}
    middle = {k: float(np.median(values)) for k, values in known.items() if values}
    return {**middle, "rounds": list(rounds)}


class Bench:
    """One run: the servers that are up, the images, how long a phase lasts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.bundle = open_bundle(options.bundle)
        self.encoders = OnnxEncoders(self.bundle, variant=options.variant)
        self.narrow = OnnxEncoders(self.bundle, threads=1, variant=options.variant)
        files = sorted(p for p in options.images.rglob("*") if p.suffix.lower() in SUFFIXES)
        self.images = [path.read_bytes() for path in files[: options.count]]
        self.seconds: float = options.seconds

    @contextlib.contextmanager
    def servers(self, folder: Path) -> Iterator[dict[str, Server]]:
        """Yield all that are up, by name, and print which peer did not start."""
        spec = self.bundle.manifest.image_input
        with contextlib.ExitStack() as stack:
            port = free_port()
            settings = {
                "SLIMP_VARIANT": self.encoders.variant.name,
                "SLIMP_EMBEDDING_CACHE_MIB": "0",
                "SLIMP_LOG_LEVEL": "warning",
                "SLIMP_LEDGER": str(folder / "ledger"),
                "SLIMP_PORT": str(port),
            }
            command = [sys.executable, "-m", "slimp", "serve"]
            command += [str(self.options.bundle), str(self.options.catalogue)]
            ours = stack.enter_context(started("ours", command, port, "/embed", settings))
            up = {"ours": ours}
            classify = ours.url.replace("/embed", "/classify")
            up["ours classify"] = Server("ours classify", ours.process, classify)
            if self.options.run is not None and self.options.peers is not None:
                program = folder / "encoder.pt2"
                save_program(self.options.run, spec.size_px, program)
                is_lower = self.encoders.variant.name != BASE_VARIANT
                precision = {"BENCH_BF16": "1"} if is_lower else {}
                for name in PEERS:
                    port = free_port()
                    command = [str(self.options.peers), "-m", "benchmarks.serving_peers", name]
                    command += [str(program), str(spec.size_px), str(spec.resize_px), str(port)]
                    try:
                        peer = started(name, command, port, "/embed", precision)
                        up[name] = stack.enter_context(peer)
                    except RuntimeError as error:
                        print(error)
            yield up

    def run(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder, self.servers(Path(folder)) as up:
            model = json.load(urllib.request.urlopen(up["ours"].url.replace("/embed", "/model")))
            report: dict[str, Any] = {
                "machine": describe_machine(),
                "variant": model["variant"],
                "scheduling": model["scheduling"],
                "catalogue_lesions": model["catalogue"]["lesions"],
                "images": len(self.images),
                "clients": CLIENTS,
                "alone": self.phase(up, 1),
                "saturated": self.phase(up, CLIENTS),
            }
            rate = report["saturated"]["ours"]["per_second"] * SHARE
            with only(up["ours"], up.values()):
                figures = self.load(up["ours"]).poisson(rate, self.seconds * 2, SEED).figures()
                report["poisson"] = {"rate": rate, **figures}
                report["overload"] = self.overload(up["ours"], rate / SHARE * OVERLOAD)
            return report

    def load(self, server: Server) -> Load:
        return Load(server.url, self.images)

    def phase(self, up: Mapping[str, Server], clients: int) -> dict[str, Any]:
        """Return each one's figures; they take turns."""
        found: dict[str, list[dict[str, Any]]] = {}
        for server in up.values():
            self.load(server).closed(clients, 1.0)
        for _ in range(self.options.rounds):
            with only(None, up.values()):
                figures = self.bare(clients)
            found.setdefault("bare", []).append(figures)
            for name, server in up.items():
                with only(server, up.values()):
                    figures = self.load(server).closed(clients, self.seconds).figures()
                found.setdefault(name, []).append(figures)
        return {name: with_median(rounds) for name, rounds in found.items()}

    def bare(self, clients: int) -> dict[str, Any]:
        """Return the bare loop's figures; where several ask, those of the better of two.

        One picture at a time leaves processors idle while it is decoded; a loop a processor, each
        of one thread, does not.
        """
        alone = bare_loop(self.encoders, self.images, self.seconds)
        if clients == 1:
            return alone
        beside = bare_loop(self.narrow, self.images, self.seconds, available_cpus())
        return max(alone, beside, key=lambda figures: figures["per_second"])

    def overload(self, server: Server, rate: float) -> dict[str, Any]:
        """Return what is answered at ten times the capacity, and right after it."""
        before = server.memory_mib()
        flood: Outcome = self.load(server).poisson(rate, self.seconds, SEED, threads=200)
        during = server.memory_mib()
        after = self.load(server).closed(1, 2.0).figures()
        memory = {"memory_before_mib": before, "memory_after_mib": during}
        return {"rate": rate, **flood.figures(), **memory, "recovered": after}


def table(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [
        f"{report['machine']}; variant {report['variant']}; catalogue of "
        f"{report['catalogue_lesions']:,} lesions; largest batch "
        f"{report['scheduling']['max_batch']}, {report['scheduling']['at_once']} side by side.",
        "",
        f"| | median ms, 1 client | images/s, {CLIENTS} clients | of bare | client's processors |",
        "| --- | --- | --- | --- | --- |",
    ]
    bare = report["saturated"]["bare"]["per_second"]
    for name, figures in report["saturated"].items():
        # A server that answered nothing has no median.
        alone = report["alone"][name].get("median_ms", math.nan)
        share, own = figures["per_second"] / bare, figures.get("client_cpu_share", 0.0)
        rate = figures["per_second"]
        lines.append(f"| {name} | {alone:.1f} | {rate:.1f} | {share:.2f} | {own:.2f} |")
    for name in ("poisson", "overload"):
        found = report[name]
        lines += [
            "",
            f"{name}: {found['rate']:.1f} requests/s wanted, {found['sent_per_second']:.1f} sent, "
            f"{found['answered']} answered, median "
            f"{found['median_ms']:.0f} ms, p99 {found['p99_ms']:.0f} ms; {found['refused']} turned "
            f"away{_within(found['refused_p95_ms'])}; statuses {found['statuses']}.",
        ]
    over = report["overload"]
    lines += [
        "",
        f"Memory {over['memory_before_mib']:.0f} MiB before, {over['memory_after_mib']:.0f} after; "
        f"then a median of {over['recovered']['median_ms']:.1f} ms with one client.",
    ]
    return "\n".join(lines) + "\n"


def _within(refused_p95_ms: float | None) -> str:
    return "" if refused_p95_ms is None else f", 95 % of them within {refused_p95_ms:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    for name in ("bundle", "catalogue", "images"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variant", help="the bundle's choice by default")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    report = Bench(options).run()
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"serving-{report['variant']}"
    (options.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / f"{name}.md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
