"""Fixtures that every room's tests share."""

import os
from pathlib import Path

import pytest


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
