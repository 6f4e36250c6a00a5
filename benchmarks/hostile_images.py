"""How long, and with how much memory, the service works on odd and hostile images.

    OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=1048576 python -m benchmarks.hostile_images

Asks `/classify` in process with every file of `tests/service/image_corpus.py`, the large ones too,
on the tests' fakes: the encoder costs nothing, so that what is measured is reading, decoding and
judging. Three rounds; of each file the round of median processor time counts. Fails where a refusal
takes more than 200 ms, a sound picture more than 2 s, or a file is answered otherwise than it
should. What is judged is the processor's time, which others on the machine do not lengthen; the
table shows the wall's beside it. Then the files that took most memory are sent again, round after
round: fails where what is in use has not come to rest over the last half of those rounds.
"""

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
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
SLOWEST = 25
# The files whose memory is looked at round after round, and what may come over the last half of
# the rounds: less than one 40 Mpx picture, so that not even one in all of them is kept.
HEAVIEST, HEAVY_ROUNDS = 5, 16
KEPT_MIB = 32


@dataclass(frozen=True)
class Line:
    """What one file took: `peak_mib` beyond what was in use before it."""

    entry: Entry
    status: int
    cpu_ms: float
    wall_ms: float
    peak_mib: float

    @property
    def failure(self) -> str | None:
        expected = self.status == 200 if self.entry.sound else 400 <= self.status < 500
        limit = ANSWERED_WITHIN_MS if self.entry.sound else REFUSED_WITHIN_MS
        if not expected:
            return f"{self.entry.name}: answered with {self.status}"
        if self.cpu_ms > limit:
            return f"{self.entry.name}: {self.cpu_ms:.0f} ms, more than {limit}"
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
    cpu_ms = (time.process_time() - started) * 1000
    wall_ms = (time.perf_counter() - began) * 1000
    peak_mib = memory_mib("VmHWM") - before
    return Line(entry, response.status_code, cpu_ms, wall_ms, peak_mib)


def median_round(lines: Sequence[Line]) -> Line:
    """Return one file's line of median processor time, unless a round failed otherwise."""
    ordered = sorted(lines, key=lambda line: line.cpu_ms)
    middle = ordered[len(ordered) // 2]
    return next((line for line in lines if line.status != middle.status), middle)


def use_after_rounds(client: TestClient, lines: list[Line]) -> list[float]:
    """Return the MiB in use after each of many rounds of the files that took most."""
    heaviest = sorted(lines, key=lambda line: -line.peak_mib)[:HEAVIEST]
    used = []
    for _ in range(HEAVY_ROUNDS):
        for line in heaviest:
            ask(client, "/classify", line.entry.data)
        used.append(memory_mib("VmRSS"))
    return used


def kept_mib(used: list[float]) -> float:
    """Return what came over the last half: the median of its end over that of its beginning."""
    last = used[len(used) // 2 :]
    middle = len(last) // 2
    return statistics.median(last[middle:]) - statistics.median(last[:middle])


def opened(folder: Path) -> TestClient:
    catalogue = write_catalogue(folder / "catalogue", [make_lesion("red", RED)])
    models = Models(make_manifest(), make_calibration(), FakeEncoders(), make_novelty())
    settings = Settings(log_level="error")
    runtime = Runtime(models, catalogue, limits=settings.image_limits)
    return TestClient(create_app(settings, runtime), base_url="http://localhost")


def table(lines: list[Line]) -> str:
    rows = [
        "| file | MB | status | CPU ms | wall ms | peak MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line in sorted(lines, key=lambda line: -line.cpu_ms)[:SLOWEST]:
        entry = line.entry
        rows.append(
            f"| {entry.name} | {len(entry.data) / 1e6:.2f} | {line.status} "
            f"| {line.cpu_ms:.0f} | {line.wall_ms:.0f} | {line.peak_mib:.0f} |"
        )
    return "\n".join(rows)


def summary(lines: list[Line], *, sound: bool) -> str:
    own = [line for line in lines if line.entry.sound == sound]
    said = [f"{len(own)} {'sound' if sound else 'refused'}"]
    for word, times in (
        ("CPU", [line.cpu_ms for line in own]),
        ("wall", [line.wall_ms for line in own]),
    ):
        said.append(
            f"{word} {statistics.median(times):.1f} ms in the median, {max(times):.0f} most"
        )
    return "; ".join(said)


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
        lines = [median_round(same) for same in zip(*rounds, strict=True)]
        heavy = use_after_rounds(client, lines)
    failures = [line.failure for line in lines if line.failure]
    if (kept := kept_mib(heavy)) > KEPT_MIB:
        failures.append(f"memory grew by {kept:.0f} MiB over the last half of the rounds")
    print(table(lines), summary(lines, sound=True), summary(lines, sound=False), sep="\n\n")
    print(f"\nIn use before and after each of {ROUNDS} rounds: {shown(used)} MiB")
    print(f"After each of {HEAVY_ROUNDS} rounds of the {HEAVIEST} heaviest: {shown(heavy)} MiB")
    print(*failures, sep="\n", file=sys.stderr)
    return 1 if failures else 0


def shown(used: list[float]) -> str:
    return ", ".join(f"{mib:.0f}" for mib in used)


if __name__ == "__main__":
    sys.exit(main())
