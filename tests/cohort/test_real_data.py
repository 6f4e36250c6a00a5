"""The published files themselves, end to end."""

from pathlib import Path

import pytest

from cohort.cohort import Cohort
from cohort.ham10000 import ham10000_source
from cohort.pad_ufes_20 import pad_ufes_20_source
from cohort.rows import Source
from cohort.slice3d import slice3d_source
from cohort.store import prepare

pytestmark = pytest.mark.real_data


def prepare_and_check(source: Source, out: Path, rows_read: int) -> Cohort:
    """Prepare, and check what holds for every data set."""
    info = prepare(source, out)
    cohort = Cohort.open(out)

    assert info.counts.rows_read == rows_read
    assert info.counts.images + info.counts.dropped == rows_read
    assert len(cohort.dropped()) == info.counts.dropped
    assert info.value_errors == ()
    sides: dict[str, str] = {}
    for group, split in zip(cohort.group_ids(), cohort.table()["split"].to_pylist(), strict=True):
        assert sides.setdefault(group, split) == split
    return cohort


@pytest.fixture(scope="module")
def ham(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    source = ham10000_source(real_data / "ham10000")
    return prepare_and_check(source, tmp_path_factory.mktemp("ham") / "out", 8542)


def test_ham10000_is_read_in_full(ham: Cohort) -> None:
    counts = ham.info.counts

    assert (counts.images, counts.lesions, counts.patients, counts.dropped) == (8542, 6356, None, 0)
    assert counts.labels == {
        "akiec": 271,
        "bcc": 442,
        "bkl": 941,
        "df": 109,
        "mel": 931,
        "nv": 5717,
        "vasc": 131,
    }
    assert all(min(split.labels.values()) > 0 for split in counts.splits.values())


def test_ham10000_keeps_ages_of_0_and_lacks_48(ham: Cohort) -> None:
    ages = ham.table()["age_years"].to_pylist()

    assert (ages.count(0.0), ages.count(None)) == (33, 48)
    assert ham.table()["sex"].null_count == 50
    assert ham.table()["anatom_site"].null_count == 196


def test_ham10000_images_are_the_published_files(ham: Cohort, real_data: Path) -> None:
    rows = range(0, len(ham), 267)
    ids = ham.table()["image_id"].take(list(rows)).to_pylist()
    files = {path.stem: path for path in (real_data / "ham10000").rglob("*.jpg")}

    assert ham.images(rows) == [files[image_id].read_bytes() for image_id in ids]


def test_pad_ufes_20_keeps_the_rows_that_have_an_image(real_data: Path, tmp_path: Path) -> None:
    source = pad_ufes_20_source(real_data / "pad_ufes_20")
    counts = prepare_and_check(source, tmp_path / "out", 1270).info.counts

    assert (counts.images, counts.lesions, counts.patients, counts.dropped) == (161, 154, 146, 1109)
    assert counts.labels == {"ACK": 41, "BCC": 52, "MEL": 5, "NEV": 41, "SCC": 8, "SEK": 14}


def test_the_sample_of_isic_2024_is_read_without_labels(real_data: Path, tmp_path: Path) -> None:
    source = slice3d_source(real_data / "isic2024_sample")
    cohort = prepare_and_check(source, tmp_path / "out", 3)

    assert (cohort.info.counts.images, cohort.info.counts.unlabelled) == (3, 3)
    assert all(image.startswith(b"\xff\xd8") for image in cohort.images([0, 1, 2]))
    assert all(len(record) == 34 for record in cohort.records([0, 1, 2]))
