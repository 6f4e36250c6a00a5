"""The bundle on disk: written under a temporary name, read only after every hash is checked."""

import datetime
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from bundle.arrays import ArrayModel
from bundle.calibration import CONDITIONS, Calibration
from bundle.errors import BundleError, CorruptBundle
from bundle.manifest import (
    FileEntry,
    Manifest,
    check_manifest,
    first_problem,
    identify,
    parse_manifest,
)

Model = TypeVar("Model", bound=ArrayModel)
MANIFEST = "manifest.json"
REQUIRED = ("image_encoder.onnx", "classifier.onnx", "calibration.json", "golden.npz")
MAX_FILE_BYTES = 4 * 1024**3
MAX_NAME_SHOWN = 100
# Relative, forward slashes, no part that starts with a dot: it cannot leave the folder.
PLAIN_NAME = re.compile(r"[\w-][\w.-]{0,99}(/[\w-][\w.-]{0,99}){0,3}", re.ASCII)


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: the folder.
        manifest: what it says of itself.
        calibration: its `calibration.json`.
    """

    path: Path
    manifest: Manifest
    calibration: Calibration

    def has(self, name: str) -> bool:
        """Return whether the manifest lists this file."""
        return name in self.manifest.files

    def read(self, name: str) -> bytes:
        """Return a file's bytes after comparing them with the manifest.

        Raises:
            CorruptBundle: the file is not listed, missing, changed or truncated.
        """
        if not self.has(name):
            raise CorruptBundle(f"{name}: the manifest does not list this file")
        return read_verified(self.path, name, self.manifest.files[name])

    def read_model(self, kind: type[Model]) -> Model | None:
        """Return a model of arrays, None where the bundle has none.

        Raises:
            CorruptBundle: the file is missing, changed, or not of this kind.
        """
        return kind.from_bytes(self.read(kind.FILE)) if self.has(kind.FILE) else None


def check_free(out: Path) -> None:
    """Do nothing where a folder may be made under this name.

    Raises:
        BundleError: `out` exists and is not an empty folder.
    """
    if os.path.lexists(out) and (out.is_symlink() or not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out} exists: name a folder that does not, or remove it first")


@contextmanager
def staged_folder(out: Path, *, mode: int = 0o755) -> Iterator[Path]:
    """Yield an empty folder beside `out` that becomes `out` only if the block succeeds.

    Args:
        out: a folder that does not exist yet or is empty.
        mode: who may look into it; meanwhile its owner only.

    Raises:
        BundleError: `out` exists and is not an empty folder.
    """
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield stage
        stage.chmod(mode)
        if out.exists():
            out.rmdir()
        stage.rename(out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def seal(folder: Path, content: dict[str, Any]) -> Manifest:
    """Hash every file of the folder and write its manifest.

    Args:
        folder: holds the bundle's files, no manifest yet.
        content: the manifest's values but for `bundle_id`, `created_at` and `files`.

    Raises:
        CorruptBundle: a required file is missing, a name or a value is not accepted, or the folder
            is sealed already.
    """
    names = _files_in(folder)
    if MANIFEST in names:
        raise CorruptBundle(f"{folder} holds a {MANIFEST} already: a bundle is sealed once")
    if missing := [name for name in REQUIRED if name not in names]:
        raise CorruptBundle(f"a bundle needs {', '.join(missing)}")
    files = {name: _entry(_inside(folder, name)) for name in names}
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    draft = check_manifest(
        {**content, "files": files, "bundle_id": "0" * 64, "created_at": created}
    )
    named = draft.model_dump(mode="json")
    named["bundle_id"] = identify(named)
    (folder / MANIFEST).write_text(json.dumps(named, indent=1) + "\n", encoding="utf-8")
    return check_manifest(named)


def _files_in(folder: Path) -> list[str]:
    """Return the relative name of everything below the folder but plain folders, sorted."""
    found = (f for f in folder.rglob("*") if f.is_symlink() or not f.is_dir())
    return sorted(f.relative_to(folder).as_posix() for f in found)


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(sha256=digest, bytes=path.stat().st_size)


def open_bundle(path: Path) -> Bundle:
    """Return the bundle after checking its manifest, every file's hash and its calibration.

    Raises:
        UnsupportedVersion: a newer software wrote it.
        CorruptBundle: a file is missing, changed, truncated, unlisted or outside the folder.
    """
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise CorruptBundle(f"{path}: expected a bundle folder with a {MANIFEST}")
    manifest = parse_manifest(manifest_path.read_bytes())
    if missing := [name for name in REQUIRED if name not in manifest.files]:
        raise CorruptBundle(f"the manifest lacks {', '.join(missing)}")
    for name, entry in manifest.files.items():
        read_verified(path, name, entry)
    if extra := [n for n in _files_in(path) if n != MANIFEST and n not in manifest.files]:
        raise CorruptBundle(f"{extra[0]!r}: this file is not in the manifest; remove it")
    raw = read_verified(path, "calibration.json", manifest.files["calibration.json"])
    return Bundle(path, manifest, _parse_calibration(raw, manifest))


def _parse_calibration(raw: bytes, manifest: Manifest) -> Calibration:
    try:
        calibration = Calibration.model_validate_json(raw)
    except ValidationError as error:
        raise CorruptBundle(f"calibration.json: {first_problem(error)}") from None
    if missing := [c for c in CONDITIONS if c not in calibration.conditions]:
        raise CorruptBundle(f"calibration.json: the condition {missing[0]!r} is not calibrated")
    labels = len(manifest.labels)
    for condition, fitted in calibration.conditions.items():
        if len(fitted.bias) != labels:
            raise CorruptBundle(f"calibration.json: {condition} does not fit {labels} labels")
    if set(calibration.prevalence) != set(manifest.labels):
        raise CorruptBundle("calibration.json: prevalence does not name the manifest's labels")
    return calibration


def read_verified(folder: Path, name: str, entry: FileEntry) -> bytes:
    """Return the bytes of a listed file once they match its entry.

    Raises:
        CorruptBundle: the name leaves the folder, or the file is missing, changed or truncated.
    """
    path = _inside(folder, name)
    if not path.is_file():
        raise CorruptBundle(f"{name}: expected {entry.bytes} bytes, the file is missing")
    size = path.stat().st_size
    if size != entry.bytes:
        raise CorruptBundle(f"{name}: expected {entry.bytes} bytes, got {size}")
    if size > MAX_FILE_BYTES:
        raise CorruptBundle(f"{name}: expected at most {MAX_FILE_BYTES} bytes, got {size}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise CorruptBundle(f"{name}: its SHA-256 is not the manifest's; the file was changed")
    return data


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a plain relative name; other names, and links out, are refused."""
    path = folder / name
    plain = PLAIN_NAME.fullmatch(name) is not None
    if not plain or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise CorruptBundle(
            f"{name[:MAX_NAME_SHOWN]!r}: expected the plain relative name of a file inside the "
            "bundle's folder (letters, digits, '_', '-', '.')"
        )
    return path
