"""Many files to a CSV: what stands in it, and what is refused before any image is read."""

import csv
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
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
from bundle.images import ImageLimits
from bundle.store import Bundle
from service.bulk import BATCH_FILES, BulkSummary, image_files, predict_files
from service.bulk_records import read_records
from service.bulk_table import journal_path, refused_path
from service.errors import InvalidRequest
from service.models import load_models
from service.runtime import Runtime
from tests.fakes import BLUE, GREEN, LABELS, RED, draw_image, make_lesion, write_bundle
from tests.fakes import write_catalogue as write_fake_catalogue

COLUMNS = [
    *("file", "status", "label", "malignancy", "p_nv", "p_mel", "p_bcc"),
    *("prediction_set", "given", "warnings", "reasons", "error"),
]


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
        assert row["prediction_set"] == " ".join(answer.prediction_set or ())
        assert (row["given"], row["warnings"]) == ("", "")


def test_a_table_at_the_sites_prevalence_is_what_the_service_answers_there(
    desk: Desk, bundle: Bundle
) -> None:
    there = Runtime(load_models(bundle.path, threads=1), None, prevalence=0.01)
    desk.predict(prevalence=0.01)
    for row in desk.rows():
        answer = there.classify([Path(row["file"]).read_bytes()], extrapolate=False)
        assert float(row["malignancy"]) == pytest.approx(answer.malignancy, abs=1e-6)
        assert row["warnings"] == "prevalence_shifted"
    with pytest.raises(InvalidRequest, match="prevalence: expected a share"):
        desk.predict(prevalence=1.0)


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


def test_a_name_without_its_suffix_is_that_of_the_one_file_that_has_it(desk: Desk) -> None:
    metadata = desk.write_metadata("image,age\nred,40\ngreen.png,50\nlost,60\n")
    summary = desk.predict(metadata=metadata)
    assert summary.unused == ("lost",)
    given = {Path(row["file"]).name: row["given"] for row in desk.rows()}
    assert given["red.png"] == given["green.png"] == "age_years"
    twice = desk.write_metadata("image,age\nred,40\nred.png,50\n")
    with pytest.raises(InvalidRecord, match=r"two about red\.png"):
        desk.predict(metadata=twice)


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
        ("image,age\nlost,1\n", InvalidRecord, r"such as blue.png\), got lost and none"),
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


class Cut(BaseException):
    """Ends a run after the first batch."""


def cut_off(done: int, total: int) -> None:
    if done:
        raise Cut


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read for an answer."""
    names: list[str] = []
    opened = Path.open

    def noting(path: Path, *given: Any, **named: Any) -> Any:
        names.append(path.name)
        return opened(path, *given, **named)

    monkeypatch.setattr(Path, "open", noting)
    return names


def test_an_interrupted_run_goes_on_and_does_no_finished_row_again(
    desk: Desk, looked_at: list[str]
) -> None:
    for number in range(3 * BATCH_FILES):
        desk.put(f"{number:03}.png", draw_image(RED, seed=number))
    desk.put("000.png", b"broken")
    first: list[int] = []

    def stop_late(done: int, total: int) -> None:
        first.append(done)
        if len(first) == 3:
            raise Cut

    with pytest.raises(Cut):
        desk.predict(report=stop_late)
    assert not desk.out.exists()
    looked_at.clear()
    told: list[tuple[int, int]] = []
    files = 3 * BATCH_FILES + 3
    assert desk.predict(report=lambda *done: told.append(done)) == BulkSummary(files - 1, 1)
    pictures = [name for name in looked_at if name.endswith("png")]
    assert sorted(pictures) == sorted(p.name for p in image_files([desk.images])[2 * BATCH_FILES :])
    assert told == [(2 * BATCH_FILES, files), (3 * BATCH_FILES, files), (files, files)]
    whole = desk.out.read_bytes()
    desk.predict()
    assert desk.out.read_bytes() == whole


def test_a_row_that_was_cut_off_in_the_middle_is_made_again(desk: Desk) -> None:
    desk.predict()
    whole = desk.out.read_bytes()
    with pytest.raises(Cut):
        desk.predict(report=cut_off)
    journal = journal_path(desk.out)
    written = journal.read_bytes()
    for end in (0, 5, len(written) // 2, len(written) - 1, len(written)):
        journal.write_bytes(written[:end])
        desk.predict()
        assert desk.out.read_bytes() == whole
        assert not journal.exists()


def test_a_file_that_changed_or_came_since_is_answered_as_it_is_now(desk: Desk) -> None:
    absent = desk.images / "later.png"
    with pytest.raises(Cut):
        desk.predict(images=[desk.images, absent], report=cut_off)
    desk.put("red.png", draw_image(GREEN, size=80))
    desk.put("later.png", draw_image(BLUE))
    (desk.images / "green.png").unlink()
    desk.predict(images=[desk.images, absent])
    named = {Path(row["file"]).name: row["label"] for row in desk.rows()}
    assert named == {"blue.png": "bcc", "later.png": "bcc", "red.png": "mel"}


@pytest.mark.parametrize("change", ["bundle", "metadata", "catalogue"])
def test_rows_of_another_run_are_refused(desk: Desk, bundle: Bundle, change: str) -> None:
    with pytest.raises(Cut):
        desk.predict(report=cut_off)
    if change == "bundle":
        other = write_bundle(desk.folder / "bundle", intended_use="other").path
    elif change == "metadata":
        other = desk.write_metadata("image,age\nred.png,40\n")
    else:
        other = desk.folder / "catalogue"
        write_fake_catalogue(other, [], bundle_id=bundle.manifest.bundle_id).close()
    with pytest.raises(InvalidRequest, match="another bundle, metadata or catalogue: remove it"):
        desk.predict(**{change: other})
    journal_path(desk.out).unlink()
    assert desk.predict(**{change: other}).answered == 3


def test_two_runs_do_not_write_one_table(desk: Desk) -> None:
    def again(done: int, total: int) -> None:
        desk.predict()

    with pytest.raises(InvalidRequest, match="another process writes this table"):
        desk.predict(report=again)
    assert desk.predict().answered == 3


def test_a_crash_leaves_the_older_table_and_success_takes_its_place(desk: Desk) -> None:
    desk.out.write_text("older")
    with pytest.raises(Cut):
        desk.predict(report=cut_off)
    assert desk.out.read_text() == "older"
    desk.predict()
    assert len(desk.rows()) == 3
    assert sorted(desk.folder.iterdir()) == [desk.out, desk.images]


def test_refused_files_are_listed_beside_the_table_as_long_as_there_are_any(desk: Desk) -> None:
    desk.put("a.png", b"no picture")
    desk.predict()
    with refused_path(desk.out).open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert Path(row["file"]).name == "a.png"
    assert row["error"] == desk.rows()[0]["error"]
    desk.put("a.png", draw_image(RED))
    desk.predict()
    assert sorted(desk.folder.iterdir()) == [desk.out, desk.images]


def test_a_batch_answers_as_its_files_do_alone_whatever_is_bad_in_it(
    desk: Desk, runtime: Runtime
) -> None:
    for number in range(2 * BATCH_FILES):
        colour = (RED, GREEN, BLUE)[number % 3]
        desk.put(f"{number:03}.png", draw_image(colour, seed=number, grain=20))
    for number in (3, 4, 20):
        desk.put(f"{number:03}.png", b"broken")
    desk.put("007.png", draw_image(RED, grain=0))
    assert desk.predict().refused == 3
    for row in desk.rows():
        if row["status"] == "refused":
            assert row["error"].startswith("image 0: ")
            continue
        alone = runtime.classify([Path(row["file"]).read_bytes()], extrapolate=False)
        assert row["status"] == alone.status
        assert row["label"] == (alone.label or "")
        if alone.probabilities is not None:
            assert shares(row) == pytest.approx(list(alone.probabilities.values()), abs=2e-6)


def test_parquet_holds_the_same_rows_in_full_precision(desk: Desk, runtime: Runtime) -> None:
    desk.put("a.png", b"no picture")
    desk.put(os.fsdecode(b"caf\xe9.png"), draw_image(RED))
    desk.predict()
    out = desk.folder / "answers.parquet"
    assert desk.predict(out=out) == BulkSummary(answered=4, refused=1)
    rows = pq.read_table(out).to_pylist()
    assert [list(row) for row in rows] == [COLUMNS] * 5
    assert rows[0]["p_nv"] is None
    for row, shown in zip(rows, desk.rows(), strict=True):
        assert [row[c] or "" for c in ("file", "status", "label")] == [
            shown[c] for c in ("file", "status", "label")
        ]
    answer = runtime.classify([draw_image(RED)], extrapolate=False)
    assert answer.probabilities is not None
    assert rows[4]["p_mel"] == pytest.approx(answer.probabilities["mel"], abs=1e-7)
    assert rows[4]["malignancy"] == pytest.approx(answer.malignancy, abs=1e-7)


def test_many_row_groups_lose_no_row(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.bulk_table.GROUP_ROWS", 2)
    out = desk.folder / "answers.parquet"
    desk.predict(out=out)
    assert pq.ParquetFile(out).metadata.num_row_groups == 2
    assert len(pq.read_table(out)) == 3


@pytest.mark.parametrize("name", ["answers", "answers.xlsx", "answers.CSV.gz"])
def test_another_kind_of_table_is_refused(desk: Desk, name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"ends in \.csv or \.parquet"):
        desk.predict(out=desk.folder / name)
    assert list(desk.folder.iterdir()) == [desk.images]


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
    with pytest.raises(InvalidRequest, match="is a folder: name the table"):
        desk.predict(out=desk.images)
    assert metadata.read_text() == "image,age\nred.png,40\n"
    assert picture.read_bytes() == draw_image(RED)


def test_a_name_that_is_no_text_is_answered_too(desk: Desk) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(desk.images / "red.png", desk.images / name)
    assert desk.predict().answered == 4
    assert desk.rows()[1]["file"].endswith(r"caf\udce9.png")


def test_progress_is_told_before_the_first_batch_and_after_each(desk: Desk) -> None:
    absent = [desk.folder / f"{n}.png" for n in range(BATCH_FILES + 6)]
    told: list[tuple[int, int]] = []
    desk.predict(images=absent, report=lambda *done: told.append(done))
    assert told == [(done, BATCH_FILES + 6) for done in (0, BATCH_FILES, BATCH_FILES + 6)]


def test_a_refusal_whose_cause_is_not_in_the_file_is_tried_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def refuse(path: Path, *given: Any, **named: Any) -> Any:
        if path.name == "green.png":
            raise PermissionError(13, "Permission denied")
        return opened(path, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(Cut):
            desk.predict(report=cut_off)
    assert "Permission denied" in journal_path(desk.out).read_text()
    assert desk.predict() == BulkSummary(answered=3, refused=0)


def test_what_cannot_be_read_of_a_folder_is_refused_by_name_and_the_others_go_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = desk.images / "closed"
    closed.mkdir()
    (desk.images / "gone.png").symlink_to(desk.folder / "nowhere.png")
    scan = os.scandir

    def refuse(place: Any) -> Any:
        if Path(os.fsdecode(place)) == closed:
            raise PermissionError(13, "Permission denied", str(closed))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    assert desk.predict() == BulkSummary(answered=3, refused=2)
    refused = {Path(row["file"]).name: row["error"] for row in desk.rows() if row["error"]}
    assert refused.keys() == {"closed", "gone.png"}
    assert refused["gone.png"] == "cannot be read: No such file or directory"


def test_of_a_file_that_is_too_long_only_so_much_is_read(desk: Desk) -> None:
    long = desk.put("long.png", b"")
    os.truncate(long, 2**40)
    assert desk.predict(images=[long]) == BulkSummary(answered=0, refused=1)
    assert f"at most {ImageLimits().max_bytes} bytes" in desk.rows()[0]["error"]


def test_a_catalogue_made_anew_in_the_same_place_is_another(desk: Desk, bundle: Bundle) -> None:
    catalogue = desk.folder / "catalogue"
    lesions, bundle_id = [make_lesion("one", RED)], bundle.manifest.bundle_id
    write_fake_catalogue(catalogue, lesions, bundle_id=bundle_id).close()
    with pytest.raises(Cut):
        desk.predict(catalogue=catalogue, report=cut_off)
    shutil.rmtree(catalogue)
    write_fake_catalogue(catalogue, lesions, bundle_id=bundle_id).close()
    with pytest.raises(InvalidRequest, match="another bundle, metadata or catalogue"):
        desk.predict(catalogue=catalogue)


def test_two_tables_of_one_stem_have_lists_of_their_own(desk: Desk) -> None:
    assert refused_path(desk.out) != refused_path(desk.out.with_suffix(".parquet"))
