"""A catalogue's files and a caller's filter, damaged at random: read, or refused by our error.

The vectors themselves are in `test_vectors_untrusted.py`.
"""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from bundle.errors import CatalogueError, LesionError
from index import cache
from index.catalogue import Catalogue
from index.filters import parse_filter
from index.upkeep import back_up, put_back, verify
from tests.fakes import LABELS, SCHEMA
from tests.fuzzing import ANY_JSON, altered, damaged, fuzzed

HELD = 40
FIELDS = [*SCHEMA.names, "age", "label", "malignant", "x"]
BOUND = st.dictionaries(st.sampled_from(["gte", "gt", "lte", "lt", "x"]), ANY_JSON, max_size=2)


def opens_whole_or_is_refused(folder: Path) -> None:
    try:
        opened = Catalogue.open(folder, bundle_id="ab" * 32, variant="fp32")
    except CatalogueError:
        return
    with opened:
        assert len(opened) == HELD


@pytest.fixture(scope="module")
def site(pristine_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of 40 lesions of which single files are damaged and put back."""
    return Path(shutil.copytree(pristine_folder, tmp_path_factory.mktemp("fuzz") / "catalogue"))


@fuzzed
@given(st.data())
def test_an_altered_description_of_the_vectors_is_right_or_refused(
    site: Path, pristine_folder: Path, data: st.DataObject
) -> None:
    written = (pristine_folder / cache.DESCRIPTION).read_bytes()
    content = data.draw(altered(json.loads(written)))
    (site / cache.DESCRIPTION).write_text(json.dumps(content))
    opens_whole_or_is_refused(site)


@fuzzed
@given(st.data())
def test_a_damaged_description_of_the_vectors_is_right_or_refused(
    site: Path, pristine_folder: Path, data: st.DataObject
) -> None:
    written = (pristine_folder / cache.DESCRIPTION).read_bytes()
    (site / cache.DESCRIPTION).write_bytes(data.draw(damaged(written)))
    opens_whole_or_is_refused(site)


@fuzzed
@given(altered(SCHEMA.model_dump(mode="json")))
def test_an_altered_schema_in_the_database_is_read_or_refused(
    tmp_path: Path, pristine_folder: Path, content: Any
) -> None:
    folder = Path(shutil.copytree(pristine_folder, tmp_path / "catalogue", dirs_exist_ok=True))
    engine = create_engine(f"sqlite:///{folder / 'catalogue.sqlite'}")
    with engine.begin() as connection:
        stored = {"content": json.dumps(content)}
        connection.execute(text("UPDATE catalogue_info SET field_schema = :content"), stored)
    engine.dispose()
    opens_whole_or_is_refused(folder)


@pytest.fixture(scope="module")
def backup(pristine_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return back_up(pristine_folder, tmp_path_factory.mktemp("backups") / "backup").parent


@fuzzed
@given(st.sampled_from(["SHA256SUMS", "catalogue.sqlite"]), st.data())
def test_a_damaged_backup_is_whole_or_refused(
    backup: Path, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    content = data.draw(damaged((backup / name).read_bytes()))
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        copy, restored = Path(folder) / "copy", Path(folder) / "restored"
        shutil.copytree(backup, copy)
        (copy / name).write_bytes(content)
        with contextlib.suppress(CatalogueError):
            put_back(copy, restored)
            assert verify(restored).faults == ()


@fuzzed
@given(st.dictionaries(st.sampled_from(FIELDS), ANY_JSON | BOUND, max_size=3) | ANY_JSON)
def test_any_filter_is_read_or_refused(raw: Any) -> None:
    try:
        read = parse_filter(raw, SCHEMA, LABELS)
    except LesionError:
        return
    assert len(read.conditions) <= len(raw)
