"""What a service does on a disk that is really full, and once there is room again.

    mount -t tmpfs -o size=64m tmpfs FOLDER
    python -m benchmarks.full_disk FOLDER

FOLDER is an empty folder on a small file system of its own, which is filled to the last block.
Lesions are added before, while it is full, and after. Prints what each request was answered; fails
where an acknowledged lesion is lost, one is taken while the disk is full, a cause is not named, or
the service does not serve again. Catalogue and audit are verified at the end.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx

from index.upkeep import verify
from service.ledger.audit import open_audit
from tests.fakes import BLUE, RED, draw_image, make_lesion, write_bundle, write_catalogue
from tests.ports import free_port

MOST_BYTES = 1_000_000_000
WHILE_FULL = 40
READY_WITHIN_S = 60
# Checks behind /readyz are made anew after two seconds.
CHECKED_AGAIN_S = 2.5


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[httpx.Client]:
    """Yield a client of a service whose bundle, catalogue and ledger lie in the folder."""
    bundle = write_bundle(folder / "bundle")
    lesions = [make_lesion(f"seed-{n}", RED, seed=n) for n in range(5)]
    bundle_id = bundle.manifest.bundle_id
    write_catalogue(folder / "catalogue", lesions, bundle_id=bundle_id).close()
    port = str(free_port())
    command = [sys.executable, "-m", "slimp", "serve", "bundle", "catalogue", "--port", port]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    environ["SLIMP_LEDGER"] = str(folder / "ledger")
    process = subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            until = time.monotonic() + READY_WITHIN_S
            while time.monotonic() < until:
                with contextlib.suppress(httpx.HTTPError):
                    if client.get("/readyz").status_code == 200:
                        break
                time.sleep(0.2)
            yield client
    finally:
        process.terminate()
        process.wait(30)


def fill(path: Path) -> None:
    """Write a file until no block is left."""
    file = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(file, bytes(4096))
    except OSError as error:
        print(f"filled: {error.strerror}")
    finally:
        os.close(file)


def add(client: httpx.Client, number: int) -> httpx.Response:
    image = {"image": ("i.png", draw_image(BLUE, seed=1000 + number))}
    return client.post("/lesions", files=image, data={"lesion_id": f"new-{number}"})


def expect(what: str, response: httpx.Response, status: int, *words: str) -> None:
    """Print what came; end where it is not what must come."""
    said = response.json()
    print(f"{what}: {response.status_code} {said.get('code') or ''} {said.get('detail') or ''}")
    if response.status_code != status or not all(word in response.text for word in words):
        raise SystemExit(f"{what}: expected {status} and {words}")


def run(folder: Path) -> None:
    picture = {"image": ("i.png", draw_image(RED, seed=3))}
    with serving(folder) as client:
        expect("add", add(client, 0), 201)
        fill(folder / "filling")
        for number in range(1, WHILE_FULL + 1):
            response = add(client, number)
            if response.status_code != 503:
                raise SystemExit(f"a full disk, and {response.status_code} to a lesion")
        expect(f"the last of {WHILE_FULL} added while full", response, 503, "_error")
        expect("classify", client.post("/classify", files=picture), 503, "ledger_error")
        expect("erase", client.delete("/lesions/seed-1"), 503, "_error")
        time.sleep(CHECKED_AGAIN_S)
        expect("readyz", client.get("/readyz"), 503, "disk: 0 bytes are free")
        expect("livez", client.get("/livez"), 200)
        (folder / "filling").unlink()
        time.sleep(CHECKED_AGAIN_S)
        expect("readyz, with room again", client.get("/readyz"), 200)
        expect("add", add(client, 100), 201)
        expect("classify", client.post("/classify", files=picture), 200)
        there = {lesion["lesion_id"] for lesion in client.get("/lesions").json()["lesions"]}
        wanted = {"new-0", "new-100", *(f"seed-{n}" for n in range(5))}
        if there != wanted:
            raise SystemExit(f"lesions that should be there or not: {there ^ wanted}")
    faults = verify(folder / "catalogue").faults
    with open_audit(folder / "ledger") as audit:
        broken = audit.verify().broken
    print(f"catalogue: {len(faults)} faults; audit: {broken or 'whole'}")
    if faults or broken:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    if any(folder.iterdir()) or shutil.disk_usage(folder).free > MOST_BYTES:
        parser.error("expected an empty folder on a file system of less than 1 GB of its own")
    run(folder)


if __name__ == "__main__":
    main()
