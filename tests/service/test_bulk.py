"""Many files to a CSV: what stands in it, and what is refused before any image is read."""

import csv
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import (
    CatalogueError,
    CorruptBundle,
    ForeignCatalogue,
    InvalidRecord,
    OutOfRange,
    UnknownCategory,
    UnknownField,
)
from bundle.store import Bundle
from service.bulk import BulkSummary, image_files, predict_files, read_records
from service.errors import InvalidRequest
from service.models import load_models
from service.runtime import Runtime
from tests.fakes import BLUE, GREEN, LABELS, RED, draw_image, make_lesion, write_bundle
from tests.fakes import write_catalogue as write_fake_catalogue

COLUMNS = ["file", "status", "label", "malignancy", "p_nv", "p_mel", "p_bcc", "reasons", "error"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bulk") / "bundle")


@pytest.fixture(scope="module")
def runtime(bundle: Bundle) -> Runtime:
    return Runtime(load_models(bundle.path, threads=1), None)


@dataclass(frozen=True)
class Desk:
    """A folder with images, and `slimp predict`'s function on them."""

    folder: Path
    bundle: Path

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def out(self) -> Path:
        return self.folder / "answers.csv"

    def put(self, name: str, content: bytes) -> Path:
        path = self.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def write_metadata(self, text: str, *, encoding: str = "utf-8") -> Path:
        path = self.folder / "metadata.csv"
        path.write_text(text, encoding=encoding)
        return path

    def predict(self, **changes: Any) -> BulkSummary:
        given = {"bundle": self.bundle, "images": [self.images], "out": self.out}
        return predict_files(**{**given, **changes})

    def rows(self) -> list[dict[str, str]]:
        with self.out.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def desk(tmp_path: Path, bundle: Bundle) -> Desk:
    """Three pictures: red, green and blue."""
    desk = Desk(tmp_path, bundle.path)
    for name, colour in (("red", RED), ("green", GREEN), ("blue", BLUE)):
        desk.put(f"{name}.png", draw_image(colour))
    return desk


def shares(row: dict[str, str]) -> list[float]:
    return [float(row[f"p_{label}"]) for label in LABELS]


def test_a_row_says_what_the_runtime_answers(desk: Desk, runtime: Runtime) -> None:
    assert desk.predict() == BulkSummary(answered=3, refused=0)
    rows = desk.rows()
    assert [Path(row["file"]).name for row in rows] == ["blue.png", "green.png", "red.png"]
    assert [row["label"] for row in rows] == ["bcc", "mel", "nv"]
    for row in rows:
        assert list(row) == COLUMNS
        answer = runtime.classify([Path(row["file"]).read_bytes()], extrapolate=False)
        assert answer.probabilities is not None
        assert shares(row) == pytest.approx(list(answer.probabilities.values()), abs=1e-6)
        assert float(row["malignancy"]) == pytest.approx(answer.malignancy, abs=1e-6)
        assert (row["status"], row["reasons"], row["error"]) == ("answered", "", "")


def test_a_file_that_cannot_be_judged_or_read_is_listed_and_the_others_go_on(desk: Desk) -> None:
    desk.put("a.png", draw_image(RED)[:200])
    desk.put("b.jpg", b"no picture at all")
    absent = desk.images / "absent.png"
    summary = desk.predict(images=[absent, desk.images])
    assert summary == BulkSummary(answered=3, refused=3)
    rows = desk.rows()
    assert [row["status"] for row in rows] == ["refused"] * 3 + ["answered"] * 3
    errors = ["cannot be read: No such file", "truncated or broken", "expected an image in one of"]
    for row, error in zip(rows[:3], errors, strict=True):
        assert error in row["error"]
        assert [row[c] for c in COLUMNS[2:8]] == [""] * 6


def test_a_picture_that_is_not_assessable_has_reasons_and_no_label(desk: Desk) -> None:
    desk.put("flat.png", draw_image(RED, grain=0))
    assert desk.predict(images=[desk.images / "flat.png"]) == BulkSummary(answered=1, refused=0)
    (row,) = desk.rows()
    assert row["status"] == "not_assessable"
    assert row["reasons"] == "blurred no_contrast"
    assert [row[c] for c in COLUMNS[2:7]] == [""] * 5
    assert row["error"] == ""


def test_metadata_reaches_the_image_that_has_its_name(desk: Desk, runtime: Runtime) -> None:
    metadata = desk.write_metadata(
        "\ufeffage, image ,diameter_mm\n90,red.png,\n\n,green.png,UNK\n", encoding="utf-8"
    )
    desk.predict(metadata=metadata)
    plain = [shares(row) for row in desk.rows()]
    old = runtime.classify([draw_image(RED)], {"age_years": 90}, extrapolate=False)
    assert old.probabilities is not None
    assert plain[2] == pytest.approx(list(old.probabilities.values()), abs=1e-6)
    desk.predict()
    bare = [shares(row) for row in desk.rows()]
    assert plain[:2] == bare[:2]
    assert plain[2][LABELS.index("mel")] > bare[2][LABELS.index("mel")]


def test_metadata_about_no_image_is_reported(desk: Desk) -> None:
    metadata = desk.write_metadata("image,age\nred.png,40\nlost.png,50\nimages/green.png,60\n")
    assert desk.predict(metadata=metadata).unused == ("lost.png", "images/green.png")


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("file,age\nred.png,40\n", InvalidRecord, r"expected a column 'image'.*got 'file', 'age'"),
        ("image;age\nred.png;40\n", InvalidRecord, r"commas between columns; got 'image;age'"),
        ("", InvalidRecord, "expected a column 'image'.*got an empty file"),
        ("image,agee\nred.png,40\n", UnknownField, "metadata of red.png.*'agee'; nearest is 'age"),
        ("image,age\nred.png,400\n", OutOfRange, "metadata of red.png: age_years.*got '400'"),
        ("image,sex\nred.png,x\n", UnknownCategory, "metadata of red.png: sex: unknown category"),
        ("image,itch\nred.png,2\n", InvalidRecord, "red.png: itch: expected true or false"),
        ("image,age\nred.png,1\nred.png,2\n", InvalidRecord, r"line 3: .* got red.png twice"),
        ("image,age,age\nred.png,1,2\n", InvalidRecord, "every column once, got 'age' twice"),
        ("image,age\nred.png,1,2\n", InvalidRecord, "line 2: expected 2 cells.*got 3"),
        ("image,age\nred.png\n", InvalidRecord, "line 2: expected 2 cells.*got 1"),
        ("image,age\n ,1\n", InvalidRecord, "line 2: expected an image's file name, got none"),
        ('image,age\n"red.png,1\n', InvalidRecord, "expected a CSV file in UTF-8: unexpected end"),
        ("image,age\nred,1\n", InvalidRecord, r"such as blue.png\), got red and none"),
    ],
)
def test_metadata_at_fault_is_refused_before_any_image_is_read(
    desk: Desk, text: str, kind: type[InvalidRecord], message: str
) -> None:
    reports: list[tuple[int, int]] = []
    with pytest.raises(InvalidRecord, match=message) as refusal:
        desk.predict(metadata=desk.write_metadata(text), report=lambda *done: reports.append(done))
    assert refusal.type is kind
    assert reports == []
    assert sorted(desk.folder.iterdir()) == [desk.images, desk.folder / "metadata.csv"]


def test_the_refused_field_is_named_as_the_table_has_it(desk: Desk) -> None:
    with pytest.raises(OutOfRange) as refusal:
        desk.predict(metadata=desk.write_metadata("image,AGE\nred.png,-1\n"))
    assert refusal.value.field == "AGE"


def test_a_metadata_table_that_cannot_be_read_is_refused(desk: Desk) -> None:
    with pytest.raises(InvalidRecord, match="cannot read it: No such file"):
        read_records(desk.folder / "absent.csv")
    with pytest.raises(InvalidRecord, match="cannot read it: Is a directory"):
        read_records(desk.images)
    with pytest.raises(InvalidRecord, match="expected a CSV file in UTF-8"):
        read_records(desk.write_metadata("image,sex\nrené.png,male\n", encoding="latin-1"))


def test_a_table_without_lines_says_nothing(desk: Desk) -> None:
    assert read_records(desk.write_metadata("image,age\n")) == {}
    assert desk.predict(metadata=desk.write_metadata("image\n")).unused == ()


def test_metadata_for_a_name_that_two_images_have_is_refused(desk: Desk) -> None:
    desk.put("other/red.png", draw_image(GREEN))
    assert desk.predict().answered == 4
    with pytest.raises(InvalidRecord, match=r"metadata of red\.png: .*other.red\.png and .*red"):
        desk.predict(metadata=desk.write_metadata("image,age\nred.png,40\n"))
    metadata = desk.write_metadata("image,age\nblue.png,40\n")
    assert desk.predict(metadata=metadata).answered == 4


def test_folders_are_searched_below_and_each_is_sorted(desk: Desk) -> None:
    for name in ("below/deep/b.TIFF", "below/a.JPeG", "notes.txt", "red.png.bak"):
        desk.put(name, b"")
    (desk.images / "folder.png").mkdir()
    first = desk.folder / "z.dcm"
    found = image_files([first, desk.images, desk.images / "red.png"])
    assert [path.relative_to(desk.folder).as_posix() for path in found] == [
        "z.dcm",
        "images/below/a.JPeG",
        "images/below/deep/b.TIFF",
        "images/blue.png",
        "images/green.png",
        "images/red.png",
    ]


def test_where_no_image_is_found_the_places_are_named(desk: Desk) -> None:
    empty = desk.folder / "empty"
    empty.mkdir()
    with pytest.raises(InvalidRequest, match=r"expected image files \(\.jpg, .*found none in .*em"):
        desk.predict(images=[empty])
    with pytest.raises(InvalidRequest, match="found none in no file or folder"):
        desk.predict(images=[])
    assert not desk.out.exists()


def test_a_catalogue_speaks_for_missing_metadata(desk: Desk, bundle: Bundle) -> None:
    lesions = [
        make_lesion(f"old-{n}", RED, seed=100 + n, record={"age_years": 90.0}) for n in range(5)
    ]
    site = desk.folder / "catalogue"
    bundle_id = bundle.manifest.bundle_id
    with write_fake_catalogue(site, lesions, bundle_id=bundle_id) as catalogue:
        runtime = Runtime(load_models(bundle.path, threads=1), catalogue)
        expected = runtime.classify([draw_image(RED)]).probabilities
    assert expected is not None
    desk.predict()
    bare = shares(desk.rows()[2])
    desk.predict(catalogue=site)
    told = shares(desk.rows()[2])
    assert told == pytest.approx(list(expected.values()), abs=1e-6)
    assert told[LABELS.index("mel")] > bare[LABELS.index("mel")] + 0.01


def test_a_bundle_or_catalogue_that_cannot_be_used_is_refused_at_once(desk: Desk) -> None:
    with pytest.raises(CorruptBundle, match="expected a bundle folder"):
        desk.predict(bundle=desk.images)
    with pytest.raises(CatalogueError):
        desk.predict(catalogue=desk.images)
    foreign = desk.folder / "foreign"
    write_fake_catalogue(foreign, [make_lesion("a")]).close()
    with pytest.raises(ForeignCatalogue):
        desk.predict(catalogue=foreign)
    assert not desk.out.exists()


def test_the_table_appears_only_when_it_is_complete(desk: Desk) -> None:
    seen: list[tuple[int, int, list[str]]] = []
    beside = {desk.images.name}

    def crash(done: int, total: int) -> None:
        new = [p.name for p in desk.folder.iterdir() if p.name not in beside]
        seen.append((done, total, new))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        desk.predict(report=crash)
    assert seen == [(3, 3, ["answers.csv.partial"])]
    assert list(desk.folder.iterdir()) == [desk.images]


def test_a_crash_leaves_the_older_table_and_success_takes_its_place(desk: Desk) -> None:
    desk.out.write_text("older")

    def crash(done: int, total: int) -> None:
        raise OSError(28, os.strerror(28))

    with pytest.raises(OSError, match="No space left"):
        desk.predict(report=crash)
    assert desk.out.read_text() == "older"
    desk.predict()
    assert len(desk.rows()) == 3


def test_the_tables_folder_is_made(desk: Desk) -> None:
    out = desk.folder / "new" / "deep" / "answers.csv"
    assert desk.predict(out=out).answered == 3
    assert out.is_file()


def test_a_table_among_the_images_is_no_image(desk: Desk) -> None:
    out = desk.images / "answers.csv"
    for _ in range(2):
        assert desk.predict(out=out) == BulkSummary(answered=3, refused=0)


def test_a_file_that_is_read_is_not_written_over(desk: Desk) -> None:
    metadata = desk.write_metadata("image,age\nred.png,40\n")
    picture = desk.images / "red.png"
    for out in (metadata, picture, desk.images / ".." / "metadata.csv"):
        with pytest.raises(InvalidRequest, match="is one of the files that are read"):
            desk.predict(metadata=metadata, out=out)
    with pytest.raises(InvalidRequest, match="is a folder: name the CSV file"):
        desk.predict(out=desk.images)
    assert metadata.read_text() == "image,age\nred.png,40\n"
    assert picture.read_bytes() == draw_image(RED)


def test_a_name_that_is_no_text_is_answered_too(desk: Desk) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(desk.images / "red.png", desk.images / name)
    assert desk.predict().answered == 4
    assert desk.rows()[1]["file"].endswith(r"caf\udce9.png")


def test_progress_is_told_every_ten_files_and_at_the_end(desk: Desk) -> None:
    absent = [desk.folder / f"{n}.png" for n in range(22)]
    told: list[tuple[int, int]] = []
    desk.predict(images=absent, report=lambda *done: told.append(done))
    assert told == [(10, 22), (20, 22), (22, 22)]


@pytest.fixture(autouse=True)
def nothing_is_left(desk: Desk) -> Iterator[None]:
    """No test leaves half a table."""
    yield
    assert list(desk.folder.rglob("*.partial")) == []
