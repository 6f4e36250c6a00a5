"""The vector cache on disk: `vectors.faiss`, and `vectors.json` that says which revision it is.

The file is handed to FAISS only when its length and SHA-256 are those that `vectors.json` names:
FAISS reads lengths and pointers from it and was not made for hostile input. Whoever can write both
files can still choose them; a checksum finds accidents, file permissions keep others out.
"""

import hashlib
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bundle.errors import CorruptCatalogue
from index.vectors import FlatIndex, VectorIndex

VECTORS = "vectors.faiss"
DESCRIPTION = "vectors.json"
REMEDY = f"remove {VECTORS} and {DESCRIPTION}: they are made again from the database"


class CacheDescription(BaseModel):
    """What `vectors.json` holds.

    Attributes:
        revision: the catalogue revision whose lesions are in the file, all of them.
        sha256: of `vectors.faiss`.
        bytes: its length.
        bundle_id: the bundle whose encoder made the vectors.
        variant: the bundle's variant that did.
        dim: length of a vector.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    revision: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    bundle_id: str
    variant: str
    dim: int = Field(gt=0)


def write_cache(
    folder: Path, index: VectorIndex, *, revision: int, bundle_id: str, variant: str
) -> None:
    """Write the index so that a cut at any moment leaves a whole cache, or none.

    The old description goes before the new vectors come; vectors without a description are no
    cache, and are made again from SQL.
    """
    staged = folder / f"{VECTORS}.part"
    index.save(staged)
    sync(staged)
    description = CacheDescription(
        revision=revision,
        sha256=digest(staged),
        bytes=staged.stat().st_size,
        bundle_id=bundle_id,
        variant=variant,
        dim=index.dim,
    )
    staged_description = folder / f"{DESCRIPTION}.part"
    staged_description.write_text(description.model_dump_json(indent=1) + "\n", "utf-8")
    sync(staged_description)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    sync(folder)
    staged.rename(folder / VECTORS)
    sync(folder)
    staged_description.rename(folder / DESCRIPTION)
    sync(folder)


def drop_cache(folder: Path) -> None:
    """Remove the cache; it is made again from SQL."""
    for name in (DESCRIPTION, VECTORS):
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


def load_cache(folder: Path, description: CacheDescription) -> FlatIndex:
    """Return the index after comparing the file with its description.

    Raises:
        CorruptCatalogue: the file is missing, changed or truncated.
    """
    path = folder / VECTORS
    size = path.stat().st_size if path.is_file() else None
    if size != description.bytes:
        got = "the file is missing" if size is None else f"got {size}"
        raise CorruptCatalogue(f"{path}: expected {description.bytes} bytes, {got}: {REMEDY}")
    if digest(path) != description.sha256:
        raise CorruptCatalogue(f"{path}: its SHA-256 is not the expected one: {REMEDY}")
    index = FlatIndex.load(path)
    if index.dim != description.dim:
        raise CorruptCatalogue(
            f"{path}: expected vectors of length {description.dim}, got {index.dim}: {REMEDY}"
        )
    return index


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
