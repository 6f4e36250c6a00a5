"""How long, and with how much memory, the service works on odd and hostile images.

    OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=1048576 python -m benchmarks.hostile_images

Asks `/classify` in process with every file of `tests/service/image_corpus.py`, the large ones too,
on the tests' fakes: the encoder costs nothing, so that what is measured is reading, decoding and
judging. Prints a table and fails where a refusal takes more than 200 ms, a sound picture more than
2 s, a file is answered otherwise than it should, or memory grows from round to round. Time is the
processor's, which others on the machine do not lengthen; the table shows what passed, too.
"""

import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from starlette.testclient import TestClient

from service.app import create_app
from service.models import Models
from service.runtime import Runtime
from service.settings import Settings
from tests.fakes import (
    RED,
    FakeEncoders,
    make_calibration,
    make_lesion,
    make_manifest,
    make_novelty,
    write_catalogue,
)
from tests.service.asking import ask
from tests.service.image_corpus import Entry, corpus, large_corpus

REFUSED_WITHIN_MS = 200
ANSWERED_WITHIN_MS = 2_000
ROUNDS = 3
GROWTH_MIB = 64
SLOWEST = 25


@dataclass(frozen=True)
class Line:
    """What one file took: `peak_mib` beyond what was in use before it."""

    entry: Entry
    status: int
    milliseconds: float
    passed_ms: float
    peak_mib: float

    @property
    def failure(self) -> str | None:
        expected = self.status == 200 if self.entry.sound else 400 <= self.status < 500
        limit = ANSWERED_WITHIN_MS if self.entry.sound else REFUSED_WITHIN_MS
        if not expected:
            return f"{self.entry.name}: answered with {self.status}"
        if self.milliseconds > limit:
            return f"{self.entry.name}: {self.milliseconds:.0f} ms, more than {limit}"
        return None


def memory_mib(name: str) -> float:
    """Return VmRSS or VmHWM of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def measure(client: TestClient, entry: Entry) -> Line:
    before = memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    started, began = time.process_time(), time.perf_counter()
    response = ask(client, "/classify", entry.data)
    milliseconds = (time.process_time() - started) * 1000
    passed_ms = (time.perf_counter() - began) * 1000
    peak_mib = memory_mib("VmHWM") - before
    return Line(entry, response.status_code, milliseconds, passed_ms, peak_mib)


def opened(folder: Path) -> TestClient:
    catalogue = write_catalogue(folder / "catalogue", [make_lesion("red", RED)])
    models = Models(make_manifest(), make_calibration(), FakeEncoders(), make_novelty())
    settings = Settings(log_level="error")
    runtime = Runtime(models, catalogue, limits=settings.image_limits)
    return TestClient(create_app(settings, runtime), base_url="http://localhost")


def table(lines: list[Line]) -> str:
    rows = [
        "| file | MB | status | ms | passed ms | peak MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line in sorted(lines, key=lambda line: -line.milliseconds)[:SLOWEST]:
        entry = line.entry
        rows.append(
            f"| {entry.name} | {len(entry.data) / 1e6:.2f} | {line.status} "
            f"| {line.milliseconds:.0f} | {line.passed_ms:.0f} | {line.peak_mib:.0f} |"
        )
    return "\n".join(rows)


def summary(lines: list[Line], *, sound: bool) -> str:
    times = [line.milliseconds for line in lines if line.entry.sound == sound]
    word = "sound" if sound else "refused"
    return (
        f"{len(times)} {word}: median {statistics.median(times):.1f} ms, "
        f"slowest {max(times):.0f} ms"
    )


def main() -> int:
    warnings.simplefilter("ignore")
    entries = [*corpus(), *large_corpus()]
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as client:
        client.get("/livez")
        rounds: list[list[Line]] = []
        used = [memory_mib("VmRSS")]
        for _ in range(ROUNDS):
            rounds.append([measure(client, entry) for entry in entries])
            used.append(memory_mib("VmRSS"))
    lines = [min(same, key=lambda line: line.milliseconds) for same in zip(*rounds, strict=True)]
    failures = [line.failure for line in lines if line.failure]
    if used[-1] - used[1] > GROWTH_MIB:
        failures.append(f"memory grew from {used[1]:.0f} to {used[-1]:.0f} MiB")
    grown = ", ".join(f"{mib:.0f}" for mib in used)
    print(table(lines), summary(lines, sound=True), summary(lines, sound=False), sep="\n\n")
    print(f"\nIn use before and after each of {ROUNDS} rounds: {grown} MiB")
    print(*failures, sep="\n", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
