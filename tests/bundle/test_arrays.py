"""Archives of arrays: a round trip, and nothing unpickled."""

import contextlib
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.arrays import read_arrays, write_arrays
from bundle.errors import CorruptBundle

ARRAYS = {
    "a/values": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a/present": np.asarray([True, False]),
    "empty": np.zeros((0, 4), np.float32),
    "one": np.asarray(7, np.int64),
}
DATA = write_arrays(ARRAYS)


def test_arrays_come_back_as_they_were_written() -> None:
    read = read_arrays(DATA, "x.npz")
    assert list(read) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape


def test_equal_arrays_give_equal_bytes_so_that_the_bundle_id_names_the_content() -> None:
    assert write_arrays(ARRAYS) == DATA


def test_no_array_is_an_archive_too() -> None:
    assert read_arrays(write_arrays({}), "x.npz") == {}


def test_an_object_array_is_not_written() -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        write_arrays({"odd": np.asarray([{}, None], dtype=object)})


class Bomb:
    """Unpickling it would raise an error that nobody handles."""

    def __reduce__(self) -> tuple[type[KeyboardInterrupt], tuple[str]]:
        return KeyboardInterrupt, ("unpickled",)


def pickled(container: str) -> bytes:
    buffer = io.BytesIO()
    bomb = np.asarray([Bomb()], dtype=object)
    if container == "npz":
        np.savez(buffer, bomb=bomb)
    elif container == "npy":
        np.save(buffer, bomb)
    else:
        import pickle

        buffer.write(pickle.dumps(Bomb()))
    return buffer.getvalue()


def plain_npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def boastful() -> bytes:
    """Return an archive whose array states more bytes than there is memory."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999,), }"
    padded = header.ljust(117) + b"\n"
    array = b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", array)
    return buffer.getvalue()


def renamed() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", b"no array")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        DATA[:-1],
        DATA[: len(DATA) // 2],
        pickled("npz"),
        pickled("npy"),
        pickled("pickle"),
        plain_npy(),
        boastful(),
    ],
    ids=["empty", "garbage", "cut", "half", "npz", "npy", "pickle", "array", "boastful"],
)
def test_what_is_no_archive_of_plain_arrays_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptBundle, match=r"x\.npz: expected an archive of arrays, got what"):
        read_arrays(data, "x.npz")


def test_a_member_that_is_no_array_is_refused() -> None:
    with pytest.raises(CorruptBundle) as caught:
        read_arrays(renamed(), "x.npz")
    assert str(caught.value) == (
        "x.npz: expected an archive of arrays, got what NumPy cannot read ('a' is no array): "
        "copy or export the bundle again"
    )


def test_a_refusal_names_what_numpy_raised() -> None:
    with pytest.raises(CorruptBundle, match=r"cannot read \(BadZipFile\): copy or export the"):
        read_arrays(DATA[:-1], "x.npz")


@settings(max_examples=80)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 255)), min_size=1, max_size=5
    ),
    keep=st.integers(0, len(DATA)) | st.just(len(DATA)),
)
def test_a_damaged_archive_is_read_or_refused_and_nothing_else(
    changes: list[tuple[int, int]], keep: int
) -> None:
    data = bytearray(DATA)
    for place, value in changes:
        data[place] = value
    try:
        read_arrays(bytes(data[:keep]), "x.npz")
    except CorruptBundle:
        return


def one_member(content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a.npy", content)
    return buffer.getvalue()


def test_an_archive_that_unpacks_to_more_than_itself_is_refused() -> None:
    plain = io.BytesIO()
    np.save(plain, np.zeros(10_000_000, np.float32))
    with pytest.raises(CorruptBundle, match="members are compressed or overlap"):
        read_arrays(one_member(plain.getvalue(), zipfile.ZIP_DEFLATED), "x.npz")


@given(header=st.text("()[]{}'\":,0123456789 \\#\n<f4shape", max_size=60))
def test_any_header_of_an_array_is_read_or_refused(header: str) -> None:
    raw = header.encode("latin-1")
    content = b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw
    with contextlib.suppress(CorruptBundle):
        read_arrays(one_member(content), "x.npz")


@pytest.mark.parametrize("shape", [(10**6, 10**6), (2**29,), (-1,), (2**70,)])
def test_a_shape_that_the_file_does_not_hold_is_refused(shape: tuple[int, ...]) -> None:
    header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with pytest.raises(CorruptBundle):
        read_arrays(one_member(content), "x.npz")


def test_a_header_that_does_not_end_is_refused() -> None:
    with pytest.raises(CorruptBundle, match="TokenError"):
        read_arrays(one_member(b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16), "x.npz")
