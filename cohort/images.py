"""Where a source keeps its image files, and whether bytes look like an image at all.

Decoding is `bundle/images.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import h5py

from bundle.errors import CohortError, InvalidImage
from bundle.images import decode_image

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})


class Images(Protocol):
    """The images of a source, by the key that its table uses."""

    def has(self, key: str) -> bool:
        """Return whether there is such an image, without reading it."""
        ...

    def read(self, key: str) -> bytes:
        """Return the bytes as they are stored.

        Raises:
            FileNotFoundError: there is no such image.
            OSError: it cannot be read.
        """
        ...


@dataclass(frozen=True)
class IndexedImages:
    """Image files found by scanning folders once, by file name."""

    paths: dict[str, Path]

    def has(self, key: str) -> bool:
        return key in self.paths

    def read(self, key: str) -> bytes:
        if key not in self.paths:
            raise FileNotFoundError(key)
        return self.paths[key].read_bytes()


def find_folders(path: Path, names: Sequence[str]) -> list[Path]:
    """Return those of the named folders that are here.

    Raises:
        CohortError: none is.
    """
    folders = [path / name for name in names if (path / name).is_dir()]
    if not folders:
        raise CohortError(f"{path}: expected a folder {' or '.join(names)}: unpack the images here")
    return folders


def inner_folder(path: Path, name: str) -> Path:
    """Return the folder of this name in `path`, or `path` where it is that folder itself."""
    return path / name if (path / name).is_dir() else path


def index_images(folders: Iterable[Path]) -> IndexedImages:
    """Return the image files in the folders, and in a folder that repeats its parent's name.

    Archives unpack as `part_1/*.jpg` or, with some tools, as `part_1/part_1/*.jpg`.
    """
    paths: dict[str, Path] = {}
    for folder in folders:
        for place in (folder, folder / folder.name):
            if place.is_dir():
                found = (f for f in place.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
                paths.update((file.name, file) for file in found)
    return IndexedImages(paths)


@dataclass(frozen=True)
class FolderImages:
    """Image files of one folder, by a path relative to it that may not leave it."""

    folder: Path
    suffix: str = ""

    def has(self, key: str) -> bool:
        return is_plain_path(key) and self._path(key).is_file() and self._is_inside(key)

    def read(self, key: str) -> bytes:
        if not self.has(key):
            raise FileNotFoundError(key)
        return self._path(key).read_bytes()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{self.suffix}"

    def _is_inside(self, key: str) -> bool:
        return self._path(key).resolve().is_relative_to(self.folder.resolve())


def is_plain_path(name: str) -> bool:
    """Return whether a name is a relative path in forward slashes without steps upwards."""
    pure = PurePosixPath(name)
    odd = "\\" in name or "\0" in name or ":" in name
    return bool(name) and not odd and not pure.is_absolute() and ".." not in pure.parts


class Hdf5Images:
    """The images of one HDF5 file with a JPEG byte string under each key.

    The file is opened at the first use and stays open until the object goes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _file(self) -> Any:
        return h5py.File(self._path, "r")

    @cached_property
    def _keys(self) -> frozenset[str]:
        # Listing the keys once is far quicker than asking the file for each of 400,000.
        return frozenset(self._file)

    def has(self, key: str) -> bool:
        return key in self._keys

    def read(self, key: str) -> bytes:
        if not self.has(key):
            raise FileNotFoundError(key)
        stored = self._file[key]
        if not isinstance(stored, h5py.Dataset):
            raise OSError(f"{key}: expected a byte string, got a group")
        value = stored[()]
        if stored.dtype.kind == "S":
            # NumPy cuts trailing zero bytes off a fixed-length string; the file's length is right.
            return bytes(value).ljust(stored.dtype.itemsize, b"\0")
        return value if isinstance(value, bytes) else bytes(value.tobytes())


def picture_problem(data: bytes) -> str | None:
    """Return why the bytes are not one whole still image of an accepted format and size, or None.

    The image is decoded: what passes here does not end a training hours later.
    """
    if not data:
        return "the image file is empty"
    try:
        decode_image(data)
    except InvalidImage as error:
        # What came differs from image to image; without it equal reasons can be counted.
        return str(error).partition(", got")[0]
    return None
