"""What a bundle says of itself: `manifest.json`, grouped as a reader asks."""

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bundle.errors import CorruptBundle, InvalidSettings, UnsupportedVersion
from bundle.fields import FieldSchema
from bundle.images import ImageInput

FORMAT_VERSION = 2
BASE_VARIANT = "fp32"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

RESEARCH_USE = (
    "Research use only. Not a medical device: no answer of this software is a diagnosis, and none "
    "may replace the judgement of a clinician who has seen the patient."
)


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileEntry(Frozen):
    sha256: Sha256
    bytes: int = Field(ge=0)


class ParityCase(Frozen):
    """One comparison of the ONNX graphs with the torch model they came from."""

    case: str
    graph: str
    max_abs_difference: float
    tolerance: float


class AccuracyCost(Frozen):
    """What a variant costs on one split of held-out images, judged by the picture alone.

    Attributes:
        recalls: by label, of the decision that balanced accuracy rewards.
        images: by label.
    """

    split: str
    macro_auroc: float
    macro_auroc_fp32: float
    recalls: dict[str, float]
    recalls_fp32: dict[str, float]
    images: dict[str, int]


class Agreement(Frozen):
    """How far a variant's embeddings of held-out images are fp32's.

    Attributes:
        cosine_lowest: the least cosine of any image's two embeddings.
        neighbours_shared: mean share of an image's 10 nearest others that both name.
    """

    images: int
    cosine_lowest: float
    cosine_mean: float
    neighbours_shared: float


class Speed(Frozen):
    """Images a second of the image encoder alone."""

    batch: int = Field(gt=0)
    images_per_second: float = Field(gt=0)


class Variant(Frozen):
    """The image encoder at one precision, and what was measured of it.

    Attributes:
        runtime: what runs it; cuda is ONNX Runtime on a GPU and nowhere else.
        file: its graph; OpenVINO makes its own precision of the fp32 graph.
        is_batched: whether a picture's feature is the same whatever is beside it in the batch;
            where it is not, pictures go through one by one.
        tolerance: how far its golden answer may be off, relative to the largest magnitude.
        parity: differences from torch, which computes in fp32.
        machine: what the speeds were measured on.
    """

    name: str
    runtime: Literal["onnxruntime", "openvino", "cuda"] = "onnxruntime"
    file: str = "image_encoder.onnx"
    is_batched: bool = True
    tolerance: float = Field(gt=0)
    parity: tuple[ParityCase, ...] = ()
    agreement: Agreement | None = None
    costs: tuple[AccuracyCost, ...] = ()
    speeds: tuple[Speed, ...] = ()
    machine: str = ""


# float32 kernels of different processors sum in different orders.
BASE_TOLERANCE = 2e-3


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
    format_version: int = Field(default=FORMAT_VERSION, ge=1, le=FORMAT_VERSION, strict=True)
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
    variant: str = BASE_VARIANT
    variants: tuple[Variant, ...] = ()
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

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: expected one or more, each once")
        if unknown := sorted(set(self.malignant_labels) - set(self.labels)):
            raise ValueError(f"malignant_labels: {unknown[0]!r} is not among the labels")
        for field in self.record_schema.fields:
            if field.kind == "numeric" and field.mean is None:
                raise ValueError(f"record_schema: {field.name} has no fitted mean and std")
        if self.variant not in self._variants:
            raise ValueError(f"variant: {self.variant!r} is not among the variants")
        return self

    @property
    def _variants(self) -> dict[str, Variant]:
        base = Variant(name=BASE_VARIANT, tolerance=BASE_TOLERANCE)
        return {variant.name: variant for variant in (base, *self.variants)}

    def find_variant(self, name: str | None = None) -> Variant:
        """Return a variant by its name; None names the one that was chosen.

        Raises:
            InvalidSettings: the bundle has no such variant.
        """
        found = self._variants.get(name or self.variant)
        if found is None:
            raise InvalidSettings(
                f"variant: expected one of {', '.join(self._variants)}, which this bundle has, got "
                f"{name!r}"
            )
        return found


def identify(content: dict[str, Any]) -> str:
    """Return the bundle id of a manifest's JSON content."""
    named = {k: v for k, v in content.items() if k not in ("bundle_id", "created_at")}
    canonical = json.dumps(named, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def parse_manifest(data: bytes) -> Manifest:
    """Return the manifest after checking its version, its values and its id.

    Raises:
        UnsupportedVersion: a newer software wrote it.
        CorruptBundle: it is not JSON, has other keys, or its id does not name its content.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise CorruptBundle("manifest.json is not JSON") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int | float) and version > FORMAT_VERSION:
        raise UnsupportedVersion(
            f"this software reads bundle format {FORMAT_VERSION}, the bundle has format {version}: "
            "upgrade slimp"
        )
    if version is None:
        raise CorruptBundle("manifest.json: expected an object with a format_version, got none")
    manifest = check_manifest(content)
    if manifest.bundle_id != identify(content):
        raise CorruptBundle("manifest.json was changed: its bundle_id does not name its content")
    return manifest


def check_manifest(content: object) -> Manifest:
    """Return the manifest whose JSON content this is; its id is not checked.

    Raises:
        CorruptBundle: a key is unknown or missing, or a value is not accepted.
    """
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise CorruptBundle(f"manifest.json: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """Return where the first refused value stands and why it was refused."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
