"""What a bundle says of itself: `manifest.json`, grouped as a reader asks."""

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bundle.errors import CorruptBundle, UnsupportedVersion
from bundle.fields import FieldSchema
from bundle.images import ImageInput

FORMAT_VERSION = 1
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

RESEARCH_USE = (
    "Research use only. Not a medical device: no answer of this software is a diagnosis, and none "
    "may replace the judgement of a clinician who has seen the patient."
)


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(Frozen):
    sha256: Sha256
    bytes: int = Field(ge=0)


class ParityCase(Frozen):
    """One comparison of the ONNX graphs with the torch model they came from."""

    case: str
    graph: str
    max_abs_difference: float
    tolerance: float


class DataSource(Frozen):
    """A data set that training saw."""

    name: str
    licence: str
    citation: str
    images: int
    lesions: int
    patients: int | None


class Manifest(Frozen):
    """The manifest of a bundle.

    `bundle_id` is the SHA-256 of the manifest itself without `bundle_id` and `created_at`; since
    the manifest lists every file's hash, it names the content.
    """

    # identity
    format_version: int = FORMAT_VERSION
    bundle_id: Sha256
    created_at: str
    software_version: str
    run_config_sha256: Sha256
    objective: str
    # image input
    image_input: ImageInput
    # record input
    record_schema: FieldSchema
    # output
    variant: str = "fp32"
    embedding_dim: int = Field(gt=0)
    labels: tuple[str, ...]
    malignant_labels: tuple[str, ...]
    # evidence
    parity: tuple[ParityCase, ...]
    metrics: dict[str, Any]
    split_recipe: str
    # provenance
    data: tuple[DataSource, ...]
    intended_use: str = RESEARCH_USE
    limits: tuple[str, ...]
    # files
    files: dict[str, FileEntry]


def identify(content: dict[str, Any]) -> str:
    """Return the bundle id of a manifest's JSON content."""
    named = {k: v for k, v in content.items() if k not in ("bundle_id", "created_at")}
    canonical = json.dumps(named, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def parse_manifest(data: bytes) -> Manifest:
    """Read and check a manifest.

    Raises:
        UnsupportedVersion: a newer software wrote it.
        CorruptBundle: it is not JSON, has other keys, or its id does not name its content.
    """
    try:
        content = json.loads(data)
    except ValueError:
        raise CorruptBundle("manifest.json is not JSON") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UnsupportedVersion(
            f"this software reads bundle format {FORMAT_VERSION}, the bundle has format {version}: "
            "upgrade slimp"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CorruptBundle(f"manifest.json: {where}: {first['msg']}") from None
    if manifest.bundle_id != identify(content):
        raise CorruptBundle("manifest.json was changed: its bundle_id does not name its content")
    return manifest
