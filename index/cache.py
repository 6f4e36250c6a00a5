"""The vector cache on disk: `vectors.faiss`, and `vectors.json` that says which revision it is.

Where an approximate index was chosen, `near.faiss` holds it, and `vectors.json` says how it was
measured. A file is handed to FAISS only when its length and SHA-256 are those that are named there:
FAISS reads lengths and pointers from it and was not made for hostile input. Whoever can write both
files can still choose them; a checksum finds accidents, file permissions keep others out.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bundle.errors import CatalogueError, CorruptCatalogue
from index.approximate import ApproximateIndex
from index.choice import Measured
from index.vectors import FlatIndex, VectorIndex

VECTORS = "vectors.faiss"
NEAR = "near.faiss"
DESCRIPTION = "vectors.json"
# In the order in which they go: vectors without a description are no cache.
FILES = (DESCRIPTION, NEAR, VECTORS)
STAGED = ".part"
# What a write that was cut off leaves.
PARTS = tuple(f"{name}{STAGED}" for name in FILES)
REMEDY = f"remove {VECTORS} and {DESCRIPTION}: they are made again from the database"


class NearDescription(Measured):
    """What `vectors.json` says of `near.faiss`.

    Attributes:
        sha256: of the file.
        bytes: its length.
    """

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class CacheDescription(BaseModel):
    """What `vectors.json` holds.

    Attributes:
        revision: the catalogue revision whose lesions are in the file, all of them.
        sha256: of `vectors.faiss`.
        bytes: its length.
        bundle_id: the bundle whose encoder made the vectors.
        variant: the bundle's variant that did.
        dim: length of a vector.
        near: the approximate index beside them; None where every vector is compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    revision: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    bundle_id: str
    variant: str
    dim: int = Field(gt=0)
    near: NearDescription | None = None

    @property
    def measured(self) -> Measured | None:
        """How the approximate index was measured, None where there is none."""
        if self.near is None:
            return None
        return Measured(**self.near.model_dump(exclude={"sha256", "bytes"}))


def write_cache(
    folder: Path,
    index: VectorIndex,
    measured: Measured | None,
    *,
    revision: int,
    bundle_id: str,
    variant: str,
) -> None:
    """Write the index so that a cut at any moment leaves a whole cache, or none.

    The old description goes before the new vectors come; vectors without a description are no
    cache, and are made again from SQL.
    """
    try:
        staged = folder / f"{VECTORS}{STAGED}"
        index.exact.save(staged)
        sync(staged)
        staged_near = folder / f"{NEAR}{STAGED}"
        near = None
        if isinstance(index, ApproximateIndex) and measured is not None:
            index.save(staged_near)
            sync(staged_near)
            near = NearDescription(
                **measured.model_dump(),
                sha256=digest(staged_near),
                bytes=staged_near.stat().st_size,
            )
        description = CacheDescription(
            revision=revision,
            sha256=digest(staged),
            bytes=staged.stat().st_size,
            bundle_id=bundle_id,
            variant=variant,
            dim=index.dim,
            near=near,
        )
        staged_description = folder / f"{DESCRIPTION}{STAGED}"
        staged_description.write_text(description.model_dump_json(indent=1) + "\n", "utf-8")
        sync(staged_description)
        _remove(folder, FILES)
        staged.rename(folder / VECTORS)
        if near is not None:
            staged_near.rename(folder / NEAR)
        sync(folder)
        staged_description.rename(folder / DESCRIPTION)
        sync(folder)
    except (OSError, RuntimeError) as error:
        _remove(folder, PARTS)
        # FAISS has no error of its own for a disk that is full.
        if isinstance(error, RuntimeError):
            raise CatalogueError(f"{folder}: the vectors cannot be written ({error})") from None
        raise


def drop_cache(folder: Path) -> None:
    """Remove the cache, and what a write that was cut off left of one; SQL makes it again."""
    _remove(folder, [*FILES, *PARTS])


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
    sync(folder)


def describe_cache(folder: Path) -> CacheDescription | None:
    """Return what the cache says of itself, None where there is no cache.

    Raises:
        CorruptCatalogue: `vectors.json` cannot be read.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    try:
        return CacheDescription.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise CorruptCatalogue(f"{path}: {problem}: {REMEDY}") from None


def read_cache(folder: Path) -> tuple[CacheDescription, VectorIndex] | None:
    """Return the cache as it is at one moment, None where there is none.

    Whoever writes or drops one meanwhile, in any process, is followed.

    Raises:
        CorruptCatalogue: as `describe_cache` and `load_cache`.
    """
    description = describe_cache(folder)
    while description is not None:
        try:
            return description, load_cache(folder, description)
        except CorruptCatalogue:
            found = describe_cache(folder)
            if found == description:
                raise
            description = found
    return None


def load_cache(folder: Path, description: CacheDescription) -> VectorIndex:
    """Return the index after comparing its files with their description.

    Raises:
        CorruptCatalogue: a file is missing, changed or truncated.
    """
    path = folder / VECTORS
    _compare(path, description.bytes, description.sha256)
    index = FlatIndex.load(path)
    if index.dim != description.dim:
        raise CorruptCatalogue(
            f"{path}: expected vectors of length {description.dim}, got {index.dim}: {REMEDY}"
        )
    if description.near is None:
        return index
    _compare(folder / NEAR, description.near.bytes, description.near.sha256)
    return ApproximateIndex.load(folder / NEAR, index, description.near.effort)


def _compare(path: Path, length: int, sha256: str) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size != length:
        got = "the file is missing" if size is None else f"got {size}"
        raise CorruptCatalogue(f"{path}: expected {length} bytes, {got}: {REMEDY}")
    if digest(path) != sha256:
        raise CorruptCatalogue(f"{path}: its SHA-256 is not the expected one: {REMEDY}")


def digest(path: Path) -> str:
    """Return the file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
