"""Fixtures that every room's tests share."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient


@pytest.fixture(scope="session", autouse=True)
def clients_call_from_this_machine() -> Iterator[None]:
    """Test clients name localhost as their host, which a service without keys answers to.

    Starlette's own default is a name of no machine.
    """
    with pytest.MonkeyPatch.context() as patch:
        init = functools.partialmethod(TestClient.__init__, base_url="http://localhost")
        patch.setattr(TestClient, "__init__", init)
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; its absence is a failure, never a skip."""
    value = os.environ.get("SLIMP_REAL_DATA")
    if not value or not (Path(value) / "ham10000").is_dir():
        pytest.fail(
            "SLIMP_REAL_DATA must name the folder that holds ham10000, pad_ufes_20 and "
            f"isic2024_sample; got {value!r} (leave these tests out with -m 'not real_data')"
        )
    return Path(value)
