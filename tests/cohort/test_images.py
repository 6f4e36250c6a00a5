"""Finding image files, and what is no picture."""

import io
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bundle.images import COHORT_LIMITS
from cohort.images import FolderImages, Hdf5Images, index_images, is_plain_path, picture_problem


@pytest.mark.parametrize("kind", COHORT_LIMITS.formats)
def test_every_accepted_format_passes(kind: str, make_image: Callable[..., bytes]) -> None:
    assert picture_problem(make_image(kind=kind)) is None


def animation() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    return file.getvalue()


def truncated() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()[: file.tell() // 2]


def wide() -> bytes:
    file = io.BytesIO()
    Image.new("1", (COHORT_LIMITS.max_side_px + 1, 1)).save(file, "PNG")
    return file.getvalue()


def gif() -> bytes:
    file = io.BytesIO()
    Image.new("P", (4, 4)).save(file, "GIF")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"not an image", "expected an image in one of JPEG"),
        (gif(), "expected an image in one of JPEG"),
        (wide(), "12000 px a side"),
        (animation(), "one still image"),
        (truncated(), "truncated or broken"),
        (b"\xff\xd8" + bytes(COHORT_LIMITS.max_bytes), "20000000 bytes"),
    ],
)
def test_what_cannot_be_one_image_is_told(data: bytes, words: str) -> None:
    problem = picture_problem(data)

    assert problem is not None
    assert words in problem


@given(st.binary(max_size=60), st.integers(0, 300))
def test_any_bytes_pass_or_have_a_reason(noise: bytes, cut: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    for data in (noise, file.getvalue()[:cut] + noise):
        problem = picture_problem(data)
        assert problem is None or problem


def test_an_index_finds_images_in_folders_and_in_doubled_folders(tmp_path: Path) -> None:
    for name in ("one/a.jpg", "two/two/b.PNG", "one/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())

    images = index_images([tmp_path / "one", tmp_path / "two", tmp_path / "absent"])

    assert images.read("b.PNG") == b"two/two/b.PNG"
    assert images.has("a.jpg")
    assert not images.has("notes.txt")
    with pytest.raises(FileNotFoundError):
        images.read("c.jpg")


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../../b", "a\\b", "c:a", "a\0"])
def test_a_name_that_may_leave_the_folder_is_not_plain(name: str, tmp_path: Path) -> None:
    assert not is_plain_path(name)
    assert not FolderImages(tmp_path).has(name)


def test_a_folder_gives_its_files_and_no_link_out_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.jpg").write_bytes(b"inside")
    (tmp_path / "secret.jpg").write_bytes(b"outside")
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    images = FolderImages(folder, ".jpg")

    assert images.read("sub/a") == b"inside"
    assert not images.has("link")
    with pytest.raises(FileNotFoundError):
        images.read("link")


def test_hdf5_gives_the_stored_bytes_however_they_are_typed(tmp_path: Path) -> None:
    path = tmp_path / "images.hdf5"
    # The zero bytes at the end must survive.
    data = b"\xff\xd8 jpeg \x00\x00"
    with h5py.File(path, "w") as file:
        file["fixed"] = np.array(data, dtype=f"S{len(data)}")
        file["opaque"] = np.void(data)
        file["bytes"] = np.frombuffer(data, np.uint8)
        file.create_dataset("variable", data=b"jpeg", dtype=h5py.special_dtype(vlen=bytes))
        file.create_group("group")
    images = Hdf5Images(path)

    assert images.read("fixed") == images.read("opaque") == images.read("bytes") == data
    assert images.read("variable") == b"jpeg"
    assert images.has("fixed")
    assert not images.has("")
    with pytest.raises(FileNotFoundError):
        images.read("absent")
    with pytest.raises(OSError, match="group"):
        images.read("group")


def test_a_photograph_with_a_second_picture_inside_passes() -> None:
    file = io.BytesIO()
    first, second = (Image.new("RGB", (8, 6), colour) for colour in ("red", "blue"))
    first.save(file, "MPO", save_all=True, append_images=[second])
    assert picture_problem(file.getvalue()) is None
