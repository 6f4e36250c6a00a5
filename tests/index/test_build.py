"""A prepared cohort to a catalogue, with an encoder that sees only the mean colour."""

import contextlib
import io
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.errors import BundleError, CatalogueError
from bundle.fields import Field, FieldSchema
from bundle.images import content_hash, decode_image
from bundle.store import Bundle
from cohort.cohort import Cohort
from cohort.rows import Group, LesionImage, Source
from cohort.splits import SPLITS
from cohort.store import prepare
from index import build
from index.build import (
    BuildReport,
    add_cohort,
    build_catalogue,
    write_unreadable,
)
from index.catalogue import Catalogue
from index.cohort_lesions import Disagreement, RejectedValue, chunks, cohort_lesions
from index.lesions import FloatArray
from index.thumbnails import make_thumbnail
from index.unfinished import UnreadableImage, unfinished
from index.upkeep import cut_off, verify
from tests.fakes import (
    BLUE,
    CONSTANT,
    GREEN,
    RED,
    Colour,
    FakeEncoders,
    draw_image,
    make_calibration,
    make_manifest,
)

MakeCohort = Callable[..., Cohort]

# The cohort knows another skin than the bundle's schema: a field more, a wider age, another site.
COHORT_SCHEMA = FieldSchema(
    fields=(
        Field(
            name="age_years", level="patient", kind="numeric", unit="years", minimum=0, maximum=200
        ),
        Field(name="anatom_site", level="lesion", kind="categorical", categories=("back", "moon")),
        Field(name="itch", level="lesion", kind="boolean"),
        Field(name="smoke", level="patient", kind="boolean"),
    )
)


def row(
    number: int, colour: Colour = RED, *, lesion: str = "", image: bytes | None = None, **more: Any
) -> LesionImage:
    content: dict[str, Any] = {
        "image_id": f"image-{number}",
        "lesion_id": lesion or f"lesion-{number}",
        "patient_id": "patient-1",
        "image": image or draw_image(colour, seed=number, file_format="PNG"),
        "label": "nv",
        "malignant": False,
        "record": {"age_years": 40.0, "itch": False, "smoke": True},
    }
    return LesionImage(**{**content, **more})


@pytest.fixture
def make_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeCohort:
    """Call it with rows, those of a patient together, for a prepared cohort.

    It may hold a picture that is cut off, as one of an earlier version may.
    """
    monkeypatch.setattr("cohort.store.picture_problem", lambda data: None)

    def make(rows: list[LesionImage], name: str = "squares") -> Cohort:
        def groups() -> Iterator[Group]:
            for each in rows:
                yield Group(each.group_id, each.label)

        source = Source(
            name=name,
            schema=COHORT_SCHEMA,
            labels=("nv", "mel"),
            malignant_labels=("mel",),
            licence="CC0-1.0",
            citation="drawn by the tests",
            groups=groups,
            rows=lambda: iter(rows),
        )
        prepare(source, tmp_path / name)
        return Cohort.open(tmp_path / name)

    return make


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(tmp_path / "bundle", make_manifest(), make_calibration())


def opened(path: Path, bundle: Bundle) -> Catalogue:
    manifest = bundle.manifest
    return Catalogue.open(path, bundle_id=manifest.bundle_id, variant=manifest.variant)


def truncated() -> bytes:
    """Return a picture whose header is sound and whose end is missing."""
    data = draw_image(RED, file_format="JPEG")
    return data[: len(data) // 2]


def test_every_lesion_of_the_split_is_found_by_its_colour(
    make_cohort: MakeCohort, bundle: Bundle, tmp_path: Path
) -> None:
    colours = {"red": RED, "green": GREEN, "blue": BLUE}
    rows = [row(n, c, lesion=name) for n, (name, c) in enumerate(colours.items())]
    cohort = make_cohort(rows)
    seen: list[tuple[int, int]] = []
    report = build_catalogue(
        bundle,
        FakeEncoders(),
        cohort,
        tmp_path / "catalogue",
        splits=SPLITS,
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (report.lesions, report.images) == (3, 3)
    assert seen == [(0, 3), (2, 3), (3, 3)]
    with opened(tmp_path / "catalogue", bundle) as catalogue:
        for name, colour in colours.items():
            query = np.asarray([[*(channel / 255 for channel in colour), CONSTANT]], np.float32)
            hit = catalogue.search(query, k=1)[0][0]
            assert (hit.lesion_id, hit.source, hit.label) == (name, "squares", "nv")
            assert hit.record == {"itch": False, "age_years": 40.0}
            assert hit.score == pytest.approx(1.0, abs=1e-4)
    files = {file.name for file in (tmp_path / "catalogue").iterdir()}
    assert files == {"catalogue.sqlite", "vectors.faiss", "vectors.json"}


def test_a_catalogue_is_the_same_whatever_is_done_at_once(
    make_cohort: MakeCohort, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(n, (RED, GREEN, BLUE)[n % 3], lesion=f"l-{n // 2:02}") for n in range(31)]
    rows[7] = row(7, lesion="l-03", image=truncated())
    rows[30] = row(30, lesion="l-15", image=truncated())
    cohort = make_cohort(rows)
    stored = []
    for number, (batch, transaction) in enumerate([(1, 1), (3, 5), (100, 100)]):
        monkeypatch.setattr("index.build.TRANSACTION_LESIONS", transaction)
        path = tmp_path / f"c-{number}"
        report = build_catalogue(
            bundle, FakeEncoders(), cohort, path, splits=SPLITS, batch_size=batch
        )
        assert (report.lesions, report.images, len(report.unreadable)) == (15, 29, 2)
        assert report.lesions_without_image == ["l-15"]
        with opened(path, bundle) as catalogue:
            page, _ = catalogue.lesions_after(0, 99)
            stored.append([(s.lesion_id, s.content_hashes, s.embedding.tolist()) for s in page])
    assert stored[0] == stored[1] == stored[2]


def test_images_that_cannot_be_read_are_listed_beside_the_catalogue(tmp_path: Path) -> None:
    report = BuildReport(unreadable=[UnreadableImage("image-1", "a, b", "truncated")])
    listed = write_unreadable(tmp_path / "catalogue", report)
    assert listed == tmp_path / "catalogue.refused.csv"
    assert listed.read_text() == 'image_id,lesion_id,error\nimage-1,"a, b",truncated\n'
    assert write_unreadable(tmp_path / "catalogue", BuildReport()) is None
    assert not listed.exists()


@pytest.mark.parametrize("poison", [np.nan, 0.0])
def test_an_image_without_an_embedding_is_refused_by_name_and_the_others_go_on(
    make_cohort: MakeCohort, bundle: Bundle, tmp_path: Path, poison: float
) -> None:
    class Poisoned(FakeEncoders):
        def embed_images(self, pixels: FloatArray) -> FloatArray:
            embeddings = super().embed_images(pixels)
            embeddings[embeddings.argmax(axis=1) == 1] = poison
            return embeddings

    rows = [row(n, GREEN if n == 4 else RED, lesion=f"l-{n}") for n in range(9)]
    report = build_catalogue(
        bundle, Poisoned(), make_cohort(rows), tmp_path / "c", splits=SPLITS, batch_size=8
    )
    assert (report.lesions, report.images) == (8, 8)
    assert [(one.lesion_id, "embedding" in one.reason) for one in report.unreadable] == [
        ("l-4", True)
    ]
    assert report.lesions_without_image == ["l-4"]


def test_the_images_of_a_lesion_are_pooled_by_their_mean(
    make_cohort: MakeCohort, bundle: Bundle, tmp_path: Path
) -> None:
    rows = [row(1, RED, lesion="a"), row(2, GREEN, lesion="b"), row(3, BLUE, lesion="a")]
    cohort = make_cohort(rows)
    build_catalogue(bundle, FakeEncoders(), cohort, tmp_path / "c", splits=SPLITS, batch_size=1)
    with opened(tmp_path / "c", bundle) as catalogue:
        stored = catalogue.lesion("a")
        half = [(r + b) / 2 / 255 for r, b in zip(RED, BLUE, strict=True)]
        np.testing.assert_allclose(stored.embedding, [*half, CONSTANT], atol=0.02)
        hashes = [content_hash(decode_image(rows[n].image)) for n in (0, 2)]
        assert list(stored.content_hashes) == hashes


def test_a_thumbnail_is_a_small_jpeg_that_carries_nothing_else(
    make_cohort: MakeCohort, bundle: Bundle, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe"
    photo = Image.new("RGB", (400, 300), RED)
    photo.save(buffer, "JPEG", exif=exif, comment=b"Jane Doe")
    cohort = make_cohort([row(1, image=buffer.getvalue())])
    build_catalogue(bundle, FakeEncoders(), cohort, tmp_path / "c", splits=SPLITS)
    with opened(tmp_path / "c", bundle) as catalogue:
        data = catalogue.thumbnail("lesion-1")
    thumbnail = Image.open(io.BytesIO(data))
    assert (thumbnail.format, thumbnail.size) == ("JPEG", (192, 144))
    assert b"Jane" not in data
    assert b"Jane" not in (tmp_path / "c" / "catalogue.sqlite").read_bytes()
    assert len(data) < 10_000


def test_a_small_picture_is_not_enlarged_for_its_thumbnail() -> None:
    small = Image.open(io.BytesIO(make_thumbnail(Image.new("RGB", (20, 10)))))
    assert small.size == (20, 10)


def test_everything_left_out_is_reported(
    make_cohort: MakeCohort, bundle: Bundle, tmp_path: Path
) -> None:
    rows = [
        row(1, lesion="a", image=truncated()),
        row(2, lesion="a", record={"age_years": 150.0}, label=None, malignant=None),
        row(3, lesion="b", image=truncated()),
        row(4, lesion="c", record={"anatom_site": "moon", "age_years": 30.0}),
        row(5, lesion="c", record={"anatom_site": "moon", "age_years": 35.0}, label="mel"),
    ]
    cohort = make_cohort(rows)
    path = tmp_path / "c"
    report = build_catalogue(bundle, FakeEncoders(), cohort, path, splits=SPLITS)
    assert (report.lesions, report.images) == (2, 3)
    assert report.fields_left_out == {"smoke": "the model does not know this field"}
    assert report.unreadable == [
        UnreadableImage("image-1", "a", report.unreadable[0].reason),
        UnreadableImage("image-3", "b", report.unreadable[1].reason),
    ]
    assert "truncated" in report.unreadable[0].reason
    assert report.lesions_without_image == ["b"]
    assert [(v.lesion_id, v.field) for v in report.rejected_values] == [
        ("a", "age_years"),
        ("c", "anatom_site"),
    ]
    assert "150" in report.rejected_values[0].reason
    assert report.disagreements == [
        Disagreement("c", "label", ("nv", "mel")),
        Disagreement("c", "age_years", (30.0, 35.0)),
    ]
    with opened(path, bundle) as catalogue:
        assert catalogue.lesion("a").record == {"itch": False, "age_years": 40.0}
        assert (catalogue.lesion("a").label, catalogue.lesion("a").malignant) == ("nv", False)
        assert catalogue.lesion("c").record == {"age_years": 30.0}
        assert len(catalogue.lesion("a").content_hashes) == 1


def test_lesions_of_other_splits_stay_out(
    make_cohort: MakeCohort, bundle: Bundle, tmp_path: Path
) -> None:
    rows = [row(n, patient_id=f"patient-{n}") for n in range(20)]
    cohort = make_cohort(rows)
    report = build_catalogue(bundle, FakeEncoders(), cohort, tmp_path / "c")
    with opened(tmp_path / "c", bundle) as catalogue:
        (hits,) = catalogue.search(np.ones((1, 4), np.float32), k=99)
    training = set(cohort.table("train")["lesion_id"].to_pylist())
    assert {hit.lesion_id for hit in hits} == training
    assert report.lesions == len(training) < 20


def test_a_second_cohort_may_be_added_later(
    make_cohort: MakeCohort, bundle: Bundle, tmp_path: Path
) -> None:
    first, second = make_cohort([row(1)]), make_cohort([row(2), row(3, GREEN)], name="more")
    build_catalogue(bundle, FakeEncoders(), first, tmp_path / "c", splits=SPLITS)
    with opened(tmp_path / "c", bundle) as catalogue:
        report = add_cohort(catalogue, bundle, FakeEncoders(), second, splits=SPLITS)
        catalogue.save()
        assert (report.lesions, len(catalogue)) == (2, 3)
        assert catalogue.lesion("lesion-3").source == "more"
        with pytest.raises(CatalogueError, match="such as 'lesion-1'"):
            add_cohort(catalogue, bundle, FakeEncoders(), first, splits=SPLITS)


@pytest.mark.parametrize("asked", [{"recall": 99.0}, {"factory": "HNWS32"}, {"factory": "LSH"}])
def test_an_index_that_cannot_be_made_is_refused_before_any_image_is_read(
    make_cohort: MakeCohort,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
) -> None:
    cohort = make_cohort([row(1)])
    monkeypatch.setattr(Cohort, "images", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(CatalogueError, match=r"recall|HNWS32|LSH"):
        build_catalogue(bundle, FakeEncoders(), cohort, tmp_path / "c", splits=SPLITS, **asked)
    assert not (tmp_path / "c").exists()


def test_no_catalogue_appears_when_none_can_be_made(
    make_cohort: MakeCohort, bundle: Bundle, tmp_path: Path
) -> None:
    broken = make_cohort([row(1, image=truncated())])
    before = set(tmp_path.iterdir())
    with pytest.raises(CatalogueError, match=r"got 1 that cannot: .*truncated"):
        build_catalogue(bundle, FakeEncoders(), broken, tmp_path / "c", splits=SPLITS)
    with pytest.raises(CatalogueError, match="expected splits among train, val, cal, test"):
        build_catalogue(bundle, FakeEncoders(), broken, tmp_path / "c", splits=("trian",))
    with pytest.raises(CatalogueError, match="no split, got none"):
        build_catalogue(bundle, FakeEncoders(), broken, tmp_path / "c", splits=())
    with pytest.raises(CatalogueError, match="batch_size: expected 1 or more"):
        build_catalogue(bundle, FakeEncoders(), broken, tmp_path / "c", batch_size=0)
    assert set(tmp_path.iterdir()) == before
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine").write_text("")
    with pytest.raises(BundleError, match="exists"):
        build_catalogue(bundle, FakeEncoders(), broken, tmp_path / "c", splits=SPLITS)


def test_chunks_keep_lesions_whole_and_in_order(make_cohort: MakeCohort) -> None:
    rows = [row(n, lesion=f"lesion-{n // 3}") for n in range(20)]
    lesions = cohort_lesions(make_cohort(rows), SPLITS)
    made = list(chunks(lesions, images=5))
    assert [lesion for chunk in made for lesion in chunk] == lesions
    assert [sum(len(lesion.images) for lesion in chunk) for chunk in made] == [6, 6, 6, 2]
    assert list(chunks(lesions[:2], images=6)) == [lesions[:2]]


def test_a_report_starts_empty() -> None:
    report = BuildReport()
    rejected: list[RejectedValue] = report.rejected_values
    assert rejected == BuildReport().rejected_values == []


def fail(done: int, total: int) -> None:
    raise CatalogueError(f"ended at {done} of {total}")


class Cut(Exception):
    """Somebody ends an indexing."""


class CountingEncoders(FakeEncoders):
    """Count the images that are embedded, and end the indexing at some number of them."""

    def __init__(self, last: int = 10**6) -> None:
        self.embedded, self.last = 0, last

    def embed_images(self, pixels: FloatArray) -> FloatArray:
        if self.embedded >= self.last:
            raise Cut
        self.embedded += len(pixels)
        return super().embed_images(pixels)


def rows_of(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return the content of a catalogue's tables but for moments and revisions."""
    names = ("lesion", "lesion_image", "field_value", "thumbnail")
    with contextlib.closing(sqlite3.connect(path / "catalogue.sqlite")) as connection:
        connection.row_factory = sqlite3.Row
        found = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}
    left_out = ("added_at", "created_at", "changed_at", "revision")
    return {
        name: sorted(
            tuple(repr(row[key]) for key in row.keys() if key not in left_out)  # noqa: SIM118
            for row in content
        )
        for name, content in found.items()
    }


def test_an_indexing_that_was_cut_off_goes_on_and_embeds_nothing_twice(
    bundle: Bundle, make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "TRANSACTION_LESIONS", 2)
    monkeypatch.setattr(build, "available_cpus", lambda: 1)
    broken = draw_image(RED, seed=1, file_format="PNG")[:200]
    rows = [row(n, lesion=f"lesion-{n // 2}") for n in range(12)]
    # One lesion of two pictures, one of them unreadable; one with none that can be read.
    rows[1] = row(1, lesion="lesion-0", image=broken, record={"age_years": 150.0, "itch": True})
    rows[4], rows[5] = (row(n, lesion="lesion-2", image=broken) for n in (4, 5))
    cohort = make_cohort(rows)
    wanted: dict[str, Any] = {"splits": SPLITS, "batch_size": 2}
    whole = build_catalogue(bundle, FakeEncoders(), cohort, tmp_path / "whole", **wanted)

    first, out = CountingEncoders(last=5), tmp_path / "c"
    with pytest.raises(Cut):
        build_catalogue(bundle, first, cohort, out, **wanted)
    assert not out.exists()
    assert cut_off(tmp_path) == [tmp_path / "c.partial"]
    changed = [row(n, BLUE, lesion=f"lesion-{n // 2}") for n in range(12)]
    for other in (make_cohort(rows[:6], "fewer"), make_cohort(changed, "repainted")):
        with pytest.raises(CatalogueError, match="another cohort, splits, bundle or variant"):
            build_catalogue(bundle, first, other, out, **wanted)
    # As a disk that was full would leave it.
    with (tmp_path / "c.partial" / "refused.jsonl").open("a") as noted:
        noted.write('["image-1", "les')
    seen: list[tuple[int, int]] = []
    second = CountingEncoders()
    report = build_catalogue(
        bundle, second, cohort, out, **wanted, progress=lambda *now: seen.append(now)
    )
    assert seen[0][0] > 0
    assert first.embedded + second.embedded < 9 + 4
    assert second.embedded < 9
    assert report == whole
    assert rows_of(out) == rows_of(tmp_path / "whole")
    assert not (tmp_path / "c.partial").exists()
    assert verify(out).faults == ()


def test_an_index_that_is_refused_at_the_end_costs_no_embedding_again(
    bundle: Bundle, make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Catalogue, **asked: Any) -> None:
        raise CatalogueError("its recall is less than was asked for")

    cohort = make_cohort([row(n) for n in range(4)])
    with monkeypatch.context() as patch:
        patch.setattr(Catalogue, "choose_index", refuse)
        with pytest.raises(CatalogueError, match="recall"):
            build_catalogue(bundle, FakeEncoders(), cohort, tmp_path / "c", splits=SPLITS)
    counted = CountingEncoders()
    report = build_catalogue(bundle, counted, cohort, tmp_path / "c", splits=SPLITS)
    assert (counted.embedded, report.lesions) == (0, 4)


@pytest.mark.parametrize(
    ("run", "catalogue"),
    [(b"", b"half"), (b'{"bundle_id": "ab"', b"half"), (b"\xff\xfe", b"half"), (b"{}\n", None)],
)
def test_what_was_left_without_a_catalogue_is_begun_anew(
    bundle: Bundle,
    make_cohort: MakeCohort,
    tmp_path: Path,
    run: bytes,
    catalogue: bytes | None,
) -> None:
    left = tmp_path / "c.partial"
    (left / "catalogue").mkdir(parents=True)
    (left / "run.json").write_bytes(run)
    (left / "refused.jsonl").write_bytes(b"half")
    if catalogue is not None:
        (left / "catalogue" / "catalogue.sqlite").write_bytes(catalogue)
    assert cut_off(tmp_path) == [left]
    cohort = make_cohort([row(n) for n in range(4)])
    report = build_catalogue(bundle, FakeEncoders(), cohort, tmp_path / "c", splits=SPLITS)
    assert (report.lesions, report.unreadable) == (4, [])


@pytest.mark.parametrize("content", [b"[1]\n", b"{\n", b"\xff\n", b"7\n"])
def test_what_was_refused_before_is_read_with_care(
    bundle: Bundle, make_cohort: MakeCohort, tmp_path: Path, content: bytes
) -> None:
    cohort = make_cohort([row(n) for n in range(4)])
    with pytest.raises(CatalogueError):
        build_catalogue(
            bundle, FakeEncoders(), cohort, tmp_path / "c", splits=SPLITS, progress=fail
        )
    (tmp_path / "c.partial" / "refused.jsonl").write_bytes(content)
    with pytest.raises(CatalogueError, match=r"remove .*c\.partial and index again"):
        build_catalogue(bundle, FakeEncoders(), cohort, tmp_path / "c", splits=SPLITS)


def test_two_processes_do_not_make_one_catalogue(
    bundle: Bundle, make_cohort: MakeCohort, tmp_path: Path
) -> None:
    cohort = make_cohort([row(n) for n in range(4)])
    with unfinished(tmp_path / "c", {}) as stage:
        stage.catalogue.mkdir()
        with pytest.raises(CatalogueError, match="another process is indexing"):
            build_catalogue(bundle, FakeEncoders(), cohort, tmp_path / "c", splits=SPLITS)
