"""Named arrays as the bytes of an `.npz` archive; nothing is pickled or unpickled.

`ArrayModel` is what a model of a few fitted arrays is made of.
"""

import io
import struct
import tokenize
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from bundle.errors import CorruptBundle

# What NumPy and zipfile raise on broken input.
READ_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    TypeError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def write_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return an archive of the arrays, of any shape; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_arrays(data: bytes, name: str) -> dict[str, npt.NDArray[Any]]:
    """Return what `write_arrays` wrote: arrays of any shape, by name.

    Args:
        data: the archive.
        name: its file name, for the message.

    Raises:
        CorruptBundle: the bytes are no archive of plain arrays.
    """
    try:
        _check_members(data, name)
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except READ_ERRORS as error:
        raise _unreadable(name, type(error).__name__) from None
    # NumPy hands a member that is no array over as its raw bytes.
    if odd := [key for key, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise _unreadable(name, f"{odd[0]!r} is no array")
    return arrays


def _check_members(data: bytes, name: str) -> None:
    """Refuse members that would unpack to more than the file: ours are stored as they are."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > len(data):
        raise _unreadable(name, "members are compressed or overlap")


def _unreadable(name: str, reason: str) -> CorruptBundle:
    return CorruptBundle(
        f"{name}: expected an archive of arrays, got what NumPy cannot read ({reason}): "
        "copy or export the bundle again"
    )


@dataclass(frozen=True)
class ArrayModel(ABC):
    """A fitted model whose every field is a float32 array, and its file in runs and bundles.

    Attributes:
        FILE: the file's name.
    """

    FILE: ClassVar[str]

    def to_bytes(self) -> bytes:
        """Return the model as the content of its file."""
        return write_arrays(self.__dict__)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote; nothing is unpickled.

        Raises:
            CorruptBundle: the bytes are no archive of arrays, or the arrays do not fit together.
        """
        arrays = read_arrays(data, cls.FILE)
        names = {field.name for field in fields(cls)}
        if set(arrays) != names:
            raise CorruptBundle(f"{cls.FILE}: expected {sorted(names)}, got {sorted(arrays)}")
        if any(a.dtype != np.float32 or not np.isfinite(a).all() for a in arrays.values()):
            raise CorruptBundle(f"{cls.FILE}: expected finite float32 arrays")
        model = cls(**arrays)
        if {name: a.shape for name, a in arrays.items()} != model.shapes():
            raise CorruptBundle(f"{cls.FILE}: the arrays' shapes do not fit together")
        model.check_values()
        return model

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]] | None:
        """Return the shape that each array must have beside the others, None where none fits."""

    @abstractmethod
    def check_values(self) -> None:
        """Refuse numbers that the model cannot compute with; the shapes are right.

        Raises:
            CorruptBundle: saying what was expected.
        """
