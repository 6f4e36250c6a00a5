"""Checks that take long are waited for, not piled up; and what a folder must take."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service import checks
from service.checks import Checks
from service.runtime import Runtime


class SlowCatalogue:
    """Answers a check when it is let go; counts how many wait."""

    def __init__(self, path: Path) -> None:
        self.path, self.asked, self.released = path, 0, threading.Event()

    def check(self) -> None:
        self.asked += 1
        assert self.released.wait(30)


def test_a_check_that_waits_for_its_database_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "WITHIN_S", 0.05)
    monkeypatch.setattr(checks, "AGAIN_S", 0.0)
    catalogue = SlowCatalogue(tmp_path)
    runtime = cast(
        Runtime,
        cast(Any, SimpleNamespace(catalogue=catalogue, check_catalogue=catalogue.check)),
    )

    async def probe() -> list[tuple[str, ...]]:
        asking = Checks(runtime, None, [], is_idle=lambda: False, failed=lambda: 0)
        found = [await asking.faults() for _ in range(12)]
        asked = catalogue.asked
        catalogue.released.set()
        monkeypatch.setattr(checks, "WITHIN_S", 30.0)
        found.append(await asking.faults())
        assert asked == 1
        assert catalogue.asked == 1
        found.append(await asking.faults())
        assert catalogue.asked == 2
        return found

    *waited, ended, again = asyncio.run(probe())
    assert waited == [("the checks did not end within 0.05 s",)] * 12
    assert ended == again == ()


def test_a_folder_that_is_gone_is_named_and_one_that_is_written_stays_empty(
    tmp_path: Path,
) -> None:
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.mkdir()
    runtime = cast(
        Runtime, cast(Any, SimpleNamespace(catalogue=None, check_catalogue=lambda: None))
    )
    asking = Checks(runtime, None, [there, gone], is_idle=lambda: False, failed=lambda: 0)
    (fault,) = asyncio.run(asking.faults())
    assert fault == f"disk: {gone} cannot be written (No such file or directory)"
    assert list(there.iterdir()) == []
