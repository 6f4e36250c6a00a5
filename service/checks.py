"""Whether what the service stands on still holds: inference, databases, disk."""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bundle.errors import LesionError
from service.ledger.audit import AuditLog
from service.models import finite
from service.runtime import Runtime

# Probes come from several sides; the checks themselves are made this often.
AGAIN_S = 2.0
WITHIN_S = 5.0
LEAST_FREE_BYTES = 50_000_000
# Written and synced in each folder: a block of most file systems.
PROBE = bytes(4096)


class Checks:
    """Asks all of it, on a thread, and remembers the answer for a moment."""

    def __init__(
        self,
        runtime: Runtime,
        audit: AuditLog | None,
        folders: Sequence[Path],
        is_idle: Callable[[], bool],
        failed: Callable[[], int],
    ) -> None:
        """Ask nothing yet.

        Args:
            runtime: its models and catalogue are asked.
            audit: must be able to take its database's write lock.
            folders: must have room and take what is written.
            is_idle: whether no request is inside; those that are try the inference themselves, and
                the scheduler tells when none of them ends.
            failed: counts the requests so far that the service failed, by whatever it was.
        """
        self._runtime, self._audit, self._folders = runtime, audit, folders
        self._is_idle, self._failed = is_idle, failed
        # Failures that the models were asked after, and answered.
        self._cleared = 0
        self._asking = asyncio.Lock()
        self._asked: asyncio.Task[tuple[str, ...]] | None = None
        self._answered_at = -AGAIN_S
        self._faults: tuple[str, ...] = ()

    async def faults(self) -> tuple[str, ...]:
        """Return what is wrong, in words for the site's operator; empty if nothing is."""
        async with self._asking:
            if time.monotonic() - self._answered_at >= AGAIN_S:
                self._faults = await self._ask_in_time()
                self._answered_at = time.monotonic()
            return self._faults

    async def _ask_in_time(self) -> tuple[str, ...]:
        # Checks that wait for a database still hold their thread: more of them would only wait
        # behind each other, and the service would stay unready long after the cause is gone.
        asking = self._asked or asyncio.create_task(asyncio.to_thread(self._ask))
        await asyncio.wait([asking], timeout=WITHIN_S)
        self._asked = None if asking.done() else asking
        if not asking.done():
            return (f"the checks did not end within {WITHIN_S:g} s",)
        error = asking.exception()
        # What nobody foresaw is named by its type: its message might repeat a value.
        return asking.result() if error is None else (f"inference: {type(error).__qualname__}",)

    def _ask(self) -> tuple[str, ...]:
        found = [self._inference(), self._catalogue(), self._ledger(), *self._disks()]
        return tuple(fault for fault in found if fault is not None)

    def _inference(self) -> str | None:
        failed = self._failed()
        if not self._is_idle() and failed == self._cleared:
            return None
        side = self._runtime.models.manifest.image_input.size_px
        try:
            pixels = np.zeros((1, 3, side, side), np.float32)
            finite(self._runtime.models.encoders.embed_images(pixels), "image embedding")
        except LesionError as error:
            return f"inference: {error}"
        self._cleared = failed
        return None

    def _catalogue(self) -> str | None:
        try:
            self._runtime.check_catalogue()
        except LesionError as error:
            return f"catalogue: {error}"
        return None

    def _ledger(self) -> str | None:
        try:
            if self._audit is not None:
                self._audit.check()
        except LesionError as error:
            return f"ledger: {error}"
        return None

    def _disks(self) -> list[str | None]:
        folders = list(self._folders)
        if self._runtime.catalogue is not None:
            folders.append(self._runtime.catalogue.path)
        return [_disk(folder) for folder in folders]


def _disk(folder: Path) -> str | None:
    """Say why the folder's disk takes nothing; None if it took a block and synced it.

    A write lock proves nothing: SQLite takes it on a disk that refuses every byte. The file has no
    name where the system allows it, so that workers do not meet and one that is killed leaves none.
    """
    try:
        free = shutil.disk_usage(folder).free
        if free < LEAST_FREE_BYTES:
            return f"disk: {free} bytes are free at {folder}, {LEAST_FREE_BYTES} needed"
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(PROBE)
            os.fsync(file.fileno())
    except OSError as error:
        return f"disk: {folder} cannot be written ({error.strerror})"
    return None
