"""The vectors on disk: never trusted unseen, made again when behind, refused when ahead."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from bundle.errors import CatalogueError, CorruptCatalogue, ForeignCatalogue, StaleCatalogue
from index import cache
from index.catalogue import Catalogue, CatalogueLesion, Hit
from index.database import open_engine
from index.vectors import FlatIndex

MakeLesion = Callable[..., CatalogueLesion]
MakeCatalogue = Callable[..., Catalogue]

BUNDLE_ID = "ab" * 32
QUERIES = np.random.default_rng(3).normal(0, 1, (9, 6)).astype(np.float32)


def reopen(folder: Path, *, bundle_id: str = BUNDLE_ID, variant: str = "fp32") -> Catalogue:
    return Catalogue.open(folder, bundle_id=bundle_id, variant=variant)


def hits_of(folder: Path) -> list[list[Hit]]:
    with reopen(folder) as catalogue:
        return catalogue.search(QUERIES, k=11)


def run_sql(folder: Path, *statements: str) -> None:
    engine = create_engine(f"sqlite:///{folder / 'catalogue.sqlite'}")
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def change_description(folder: Path, **changes: Any) -> None:
    path = folder / cache.DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_catalogue_is_three_files_and_opens_as_it_was(
    make_catalogue: MakeCatalogue, make_lesion: MakeLesion
) -> None:
    made = make_catalogue([make_lesion(n) for n in range(40)])
    before = made.search(QUERIES, k=11)
    made.close()
    files = {file.name for file in made.path.iterdir()}
    assert files == {"catalogue.sqlite", "vectors.faiss", "vectors.json"}
    with reopen(made.path) as opened:
        assert opened.search(QUERIES, k=11) == before
        assert (opened.bundle_id, opened.variant, opened.embedding_dim) == (BUNDLE_ID, "fp32", 6)
        assert (opened.schema, opened.revision, len(opened)) == (made.schema, 1, 40)


def test_an_opened_catalogue_takes_more_lesions_and_saves_them(
    folder: Path, make_lesion: MakeLesion
) -> None:
    with reopen(folder) as opened:
        opened.add([make_lesion(50)])
        opened.save()
        after = opened.search(QUERIES, k=50)
    with reopen(folder) as again:
        assert (again.revision, len(again)) == (2, 41)
        assert again.search(QUERIES, k=50) == after


def test_an_absent_cache_is_rebuilt_equal_and_the_log_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = hits_of(folder)
    (folder / cache.VECTORS).unlink()
    (folder / cache.DESCRIPTION).unlink()
    with caplog.at_level(logging.INFO, logger="index"):
        assert hits_of(folder) == before
    assert "no vector cache; rebuilding" in caplog.text


def test_a_cache_behind_the_database_catches_up_and_the_log_says_so(
    folder: Path, make_lesion: MakeLesion, caplog: pytest.LogCaptureFixture
) -> None:
    with reopen(folder) as opened:
        opened.add([make_lesion(50), make_lesion(51)])
        expected = opened.search(QUERIES, k=42)
    with caplog.at_level(logging.INFO, logger="index"), reopen(folder) as again:
        assert again.search(QUERIES, k=42) == expected
        again.save()
    assert "revision 1, the database of 2; catching up" in caplog.text
    caplog.clear()
    assert len(hits_of(folder)) == len(QUERIES)
    assert "catching up" not in caplog.text


def test_a_cache_ahead_of_the_database_is_stale(folder: Path, make_lesion: MakeLesion) -> None:
    restored = folder / "old.sqlite"
    shutil.copy(folder / "catalogue.sqlite", restored)
    with reopen(folder) as opened:
        opened.add([make_lesion(50)])
        opened.save()
    restored.rename(folder / "catalogue.sqlite")
    with pytest.raises(StaleCatalogue, match="of revision 2, the database is of revision 1"):
        reopen(folder)


def test_another_bundle_or_variant_is_refused(folder: Path) -> None:
    with pytest.raises(ForeignCatalogue, match="index the cohort again"):
        reopen(folder, bundle_id="cd" * 32)
    with pytest.raises(ForeignCatalogue, match=r"\(int8\)"):
        reopen(folder, variant="int8")


def test_vectors_of_another_bundle_beside_the_database_are_refused(folder: Path) -> None:
    change_description(folder, variant="int8")
    with pytest.raises(ForeignCatalogue, match=r"remove vectors\.faiss"):
        reopen(folder)


def test_embeddings_of_another_variant_in_the_database_are_refused(folder: Path) -> None:
    (folder / cache.DESCRIPTION).unlink()
    run_sql(folder, "UPDATE lesion SET variant = 'int8' WHERE pk = 7")
    with pytest.raises(ForeignCatalogue, match="embeddings of another bundle"):
        reopen(folder)


@pytest.mark.parametrize("position", [0, 50, -1])
def test_a_flipped_byte_in_the_vectors_is_found(folder: Path, position: int) -> None:
    path = folder / cache.VECTORS
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptCatalogue, match="SHA-256"):
        reopen(folder)


def test_truncated_and_missing_vectors_are_found(folder: Path) -> None:
    path = folder / cache.VECTORS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptCatalogue, match=r"expected 1.* bytes, got 1"):
        reopen(folder)
    path.unlink()
    with pytest.raises(CorruptCatalogue, match="the file is missing"):
        reopen(folder)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"revision": -1}'])
def test_a_description_that_cannot_be_read_is_corrupt(folder: Path, content: str) -> None:
    (folder / cache.DESCRIPTION).write_text(content)
    with pytest.raises(CorruptCatalogue, match="made again from the database"):
        reopen(folder)


def test_following_the_advice_of_the_error_repairs_the_catalogue(folder: Path) -> None:
    before = hits_of(folder)
    (folder / cache.VECTORS).write_bytes(b"")
    with pytest.raises(CorruptCatalogue, match=r"remove vectors\.faiss and vectors\.json"):
        reopen(folder)
    (folder / cache.VECTORS).unlink()
    (folder / cache.DESCRIPTION).unlink()
    assert hits_of(folder) == before


def replace_vectors(folder: Path, index: Any) -> None:
    """Put another index in place, described as if it belonged there."""
    faiss.write_index(index, str(folder / cache.VECTORS))
    written = folder / cache.VECTORS
    change_description(folder, bytes=written.stat().st_size, sha256=cache.digest(written))


def test_vectors_of_another_number_or_length_are_refused_though_well_described(
    folder: Path,
) -> None:
    other: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(6))
    other.add_with_ids(QUERIES[:2], np.asarray([1, 2], np.int64))
    replace_vectors(folder, other)
    with pytest.raises(CorruptCatalogue, match="expected 40 vectors of length 6, got 2"):
        reopen(folder)
    replace_vectors(folder, faiss.IndexIDMap2(faiss.IndexFlatIP(7)))
    with pytest.raises(CorruptCatalogue, match="expected vectors of length 6, got 7"):
        reopen(folder)


class Cut(Exception):
    """Stands for a power cut."""


@pytest.mark.parametrize("step", range(9))
def test_a_save_cut_at_any_step_loses_nothing(
    folder: Path, make_lesion: MakeLesion, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    steps = iter(range(100))

    def cut_at_step(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            if next(steps) == step:
                raise Cut
            return work(*args, **options)

        return run

    with reopen(folder) as opened:
        opened.add([make_lesion(50)])
        expected = opened.search(QUERIES, k=41)
        with monkeypatch.context() as patch:
            patch.setattr(FlatIndex, "save", cut_at_step(FlatIndex.save))
            patch.setattr(cache, "sync", cut_at_step(cache.sync))
            patch.setattr(Path, "unlink", cut_at_step(Path.unlink))
            patch.setattr(Path, "rename", cut_at_step(Path.rename))
            with pytest.raises(Cut):
                opened.save()
    with reopen(folder) as again:
        assert again.search(QUERIES, k=41) == expected


@pytest.mark.parametrize("content", [b"", b"not a database " * 400])
def test_a_file_that_is_no_catalogue_database_is_corrupt(folder: Path, content: bytes) -> None:
    (folder / "catalogue.sqlite").write_bytes(content)
    with pytest.raises(CorruptCatalogue, match="expected a"):
        reopen(folder)


def test_a_truncated_database_is_corrupt(folder: Path) -> None:
    path = folder / "catalogue.sqlite"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CorruptCatalogue, match="damaged"):
        reopen(folder)


def test_a_folder_without_a_database_is_told_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(CorruptCatalogue, match="slimp index"):
        reopen(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_cannot_be_used_is_told(folder: Path) -> None:
    (folder / "catalogue.sqlite").unlink()
    (folder / "catalogue.sqlite").mkdir()
    with pytest.raises(CorruptCatalogue, match="slimp index"):
        reopen(folder)
    with pytest.raises(CatalogueError, match="must be writable"):
        open_engine(folder / "catalogue.sqlite")


def test_fields_and_embeddings_that_cannot_be_read_are_corrupt(folder: Path) -> None:
    (folder / cache.DESCRIPTION).unlink()
    run_sql(folder, "UPDATE lesion SET embedding = x'00000000' WHERE pk = 7")
    with pytest.raises(CorruptCatalogue, match="expected embeddings of 24 bytes, got 4"):
        reopen(folder)
    run_sql(folder, "UPDATE catalogue_info SET field_schema = '{\"fields\": 1}'")
    with pytest.raises(CorruptCatalogue, match="fields cannot be read"):
        reopen(folder)


def test_a_hit_whose_row_another_process_removed_is_stale_and_its_id_is_not_reused(
    folder: Path, make_lesion: MakeLesion
) -> None:
    with reopen(folder) as opened:
        run_sql(folder, "PRAGMA foreign_keys=ON", "DELETE FROM lesion WHERE pk = 40")
        with pytest.raises(StaleCatalogue, match="open the catalogue again"):
            opened.search(QUERIES, k=40)
    (folder / cache.DESCRIPTION).unlink()
    with reopen(folder) as again:
        again.add([make_lesion(60)])
        ids = [hit.lesion_id for hit in again.search(QUERIES, k=50)[0]]
        assert "lesion-060" in ids
        assert len(ids) == 40
    with create_engine(f"sqlite:///{folder / 'catalogue.sqlite'}").connect() as connection:
        assert connection.scalar(text("SELECT max(pk) FROM lesion")) == 41
        connection.engine.dispose()


def test_erasing_a_lesion_leaves_no_row_of_it(folder: Path, make_lesion: MakeLesion) -> None:
    run_sql(folder, "PRAGMA foreign_keys=ON", "DELETE FROM lesion")
    engine = create_engine(f"sqlite:///{folder / 'catalogue.sqlite'}")
    with engine.connect() as connection:
        for table in ("lesion_image", "field_value", "thumbnail"):
            assert connection.scalar(text(f"SELECT count(*) FROM {table}")) == 0
    engine.dispose()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200))
def test_any_bytes_as_a_description_are_corrupt(tmp_path: Path, content: bytes) -> None:
    (tmp_path / cache.DESCRIPTION).write_bytes(content)
    with pytest.raises(CorruptCatalogue):
        cache.describe_cache(tmp_path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200))
def test_any_bytes_as_vectors_never_reach_faiss(folder: Path, content: bytes) -> None:
    (folder / cache.VECTORS).write_bytes(content)
    with pytest.raises(CorruptCatalogue, match=r"expected .* bytes|SHA-256"):
        reopen(folder)
