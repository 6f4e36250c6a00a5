"""What the service answers, as pydantic models: each value with its range and unit.

An *answer* is made by the runtime, without HTTP; a *Response* is the same answer with the envelope
that every response carries. Answers grow by adding: what is here stays. A number that is not
finite cannot be answered.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from bundle.devices import Device
from bundle.fields import Kind, Level

Value = FiniteFloat | bool | str | None
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Status = Literal["answered", "not_assessable"]
Source = Literal["given", "extrapolated", "missing"]

EXAMPLE_BUNDLE = "5f0c2b8e" * 8
EXAMPLE_REQUEST = "0c9f4f6e2b5f4a51a3a2c7d1"


class Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AnswerWarning(Schema):
    """Something the reader of the answer must know; `code` is stable."""

    field: str | None = Field(description="the part or metadata field it is about")
    code: str = Field(examples=["image_left_out"])
    message: str


class Envelope(Schema):
    """What every response carries."""

    request_id: str = Field(
        description="names the request in the service's log", examples=[EXAMPLE_REQUEST]
    )
    bundle_id: str | None = Field(
        description="SHA-256 that names the bundle's content; null before it is loaded",
        examples=[EXAMPLE_BUNDLE],
    )


class Warned(Schema):
    warnings: tuple[AnswerWarning, ...] = ()


class ProblemResponse(Envelope, Warned):
    """RFC 9457 problem details; `code` is stable and meant for programs."""

    type: str = Field(examples=["urn:slimp:problem:unknown_field"])
    title: str = Field(examples=["Unprocessable Entity"])
    status: int = Field(examples=[422])
    code: str = Field(examples=["unknown_field"])
    detail: str = Field(
        description="what was expected, what came and what to do",
        examples=["unknown field 'agee'; nearest is 'age_years'"],
    )
    field: str | None = Field(default=None, description="the part, parameter or field at fault")


class ImageQuality(Schema):
    """The measurements of one image."""

    index: int = Field(description="position among the request's images, from 0")
    reasons: tuple[str, ...] = Field(description="why it is left out; empty when it counts")
    scores: dict[str, FiniteFloat]


class Quality(Schema):
    """Whether the lesion's images can be judged, and the measurements behind that.

    An image with a reason is left out; the lesion is not assessable when none is left, and then
    `reasons` joins the images' reasons. `scores` are means over the images that count (over all
    where none does): min_side_px in pixels, sharpness from 0, brightness and contrast in [0, 1],
    novelty from 0, about 1 for a lesion of the training; appearance higher the less the picture's
    plain look is that of the training pictures.
    """

    reasons: tuple[str, ...] = Field(examples=[["blurred"]])
    scores: dict[str, FiniteFloat] = Field(
        examples=[{"min_side_px": 450.0, "sharpness": 0.06, "brightness": 0.6, "contrast": 0.1}]
    )
    images: tuple[ImageQuality, ...] = ()


class MetadataEntry(Schema):
    """One metadata field of the lesion as the models read it.

    An extrapolated value is a guess from similar lesions, never a fact: `support` neighbours have
    the field, a weighted share `agreement` of them agrees, a number has the interval they span.
    """

    value: Value
    source: Source
    support: int | None = None
    agreement: Share | None = None
    interval: tuple[FiniteFloat, FiniteFloat] | None = Field(
        default=None, description="low and high, in the field's unit; numeric fields only"
    )
    reason: str | None = Field(
        default=None, description="why a value is missing; from_catalogue: who gave it"
    )


class Assessment(Warned):
    """The answer about one lesion."""

    status: Status
    label: str | None = Field(
        description="the likeliest label at the prevalence of the probabilities; a balanced "
        "accuracy asks for the decision as of equally frequent labels instead: by probability over "
        "the prevalence that /model names, where the site states none",
        examples=["nv"],
    )
    probabilities: dict[str, Share] | None = Field(
        description="calibrated, sum 1; at the site's prevalence where the site states one",
        examples=[{"nv": 0.91, "mel": 0.09}],
    )
    malignancy: Share | None = Field(
        description="probability of the malignant labels together", examples=[0.09]
    )
    prediction_set: tuple[str, ...] | None = Field(
        description="labels that cannot be excluded at the bundle's coverage, likeliest first, at "
        "the training prevalence",
        examples=[["nv"]],
    )
    quality: Quality
    metadata: dict[str, MetadataEntry]


class ClassifyResponse(Assessment, Envelope):
    """Answer of /classify."""


class SimilarLesion(Schema):
    """One lesion of the catalogue."""

    lesion_id: str
    score: FiniteFloat = Field(ge=-1, le=1, description="cosine similarity [-1, 1]")
    label: str | None
    malignant: bool | None = Field(description="as the catalogue knows it; null: it does not")
    record: dict[str, Value] = Field(description="its metadata, canonical names")
    source: str | None = Field(description="the data set it is from")
    thumbnail_url: str | None = Field(description="path on this service; null without a thumbnail")


class SimilarAnswer(Warned):
    """Catalogue lesions that look like the query, best first, ties by id.

    Hits are facts about the catalogue and are given for a query that is not assessable too;
    `status` and `quality` then say that its likeness means little. Both are null where the query
    is a lesion of the catalogue.
    """

    status: Status | None
    quality: Quality | None
    hits: tuple[SimilarLesion, ...]


class SimilarResponse(SimilarAnswer, Envelope):
    """Answer of /similar and /lesions/{id}/similar."""


class UglyDuckling(Schema):
    """How far the lesion looks from the patient's other lesions."""

    score: Share | None = Field(description="percentile of the oddness; 1 is the oddest")
    rank: int | None = Field(description="1 is the oddest of the patient's lesions that were used")
    basis: Literal["reference", "patient"] | None = Field(
        description="what the percentile is among: the calibration's lesions, or the patient's own"
    )
    reason: str | None = Field(default=None, description="why there is no score")


class PatientLesion(Schema):
    """One submitted lesion, alone and in the context of the patient's others."""

    id: str
    status: Status
    label: str | None
    malignancy: Share | None = Field(description="of the lesion alone, as /classify gives it")
    risk_in_context: Share | None = Field(
        description="malignancy given the patient's other lesions"
    )
    ugly_duckling: UglyDuckling
    quality: Quality
    metadata: dict[str, MetadataEntry]
    reason: str | None = Field(default=None, description="why there is no risk_in_context")


class PatientRisk(Schema):
    """The patient's submitted lesions together."""

    risk: Share | None = Field(
        description="probability that at least one submitted assessable lesion is malignant, their "
        "risks taken as independent; never below the largest risk_in_context"
    )
    lesions_used: int = Field(description="assessable lesions, submitted and from the catalogue")
    lesions_from_catalogue: int
    context: Literal["enough", "none"] = Field(
        description="enough: three or more lesions were used"
    )
    reason: str | None = Field(default=None, description="why there is no risk")


class RiskAnswer(Warned):
    """The answer about one patient's lesions, in the order in which they were sent."""

    lesions: tuple[PatientLesion, ...]
    patient: PatientRisk


class RiskResponse(RiskAnswer, Envelope):
    """Answer of /risk."""


class EmbedAnswer(Warned):
    """The image encoder's feature of one lesion."""

    status: Status
    quality: Quality
    embedding: tuple[FiniteFloat, ...] = Field(
        description="D numbers, not normalised: divide by the length before comparing by cosine"
    )
    variant: str = Field(description="precision variant of the graphs that made it")


class EmbedResponse(EmbedAnswer, Envelope):
    """Answer of /embed."""


class CatalogueEntry(Schema):
    """One lesion of the catalogue; never its patient."""

    lesion_id: str
    label: str | None
    malignant: bool | None
    confirmed_by: str | None = Field(description="how the label was found out")
    record: dict[str, Value]
    source: str | None
    thumbnail_url: str | None


class LesionResponse(CatalogueEntry, Envelope, Warned):
    """Answer of /lesions/{id}."""


class LesionsResponse(Envelope, Warned):
    """One page of the catalogue's lesions, in the order they were added."""

    lesions: tuple[CatalogueEntry, ...]
    cursor: str | None = Field(description="asks for the next page; null where this is the last")


class ErasureResponse(Envelope, Warned):
    """The receipt of an erasure: what is gone from rows, vectors, small pictures and caches."""

    lesions: int
    images: int = Field(description="pictures that were known by their hashes")
    thumbnails: int
    revision: int = Field(description="the catalogue's, from which on they are gone")
    log_is_empty: bool = Field(
        description="whether the database's log is without them too; not while another process "
        "reads, such as a backup: a later write or probe empties it"
    )


class FieldDescription(Schema):
    """One metadata field: how to ask for it and what is accepted."""

    name: str
    level: Level
    kind: Kind
    unit: str | None
    categories: tuple[str, ...]
    category_aliases: dict[str, str]
    aliases: tuple[str, ...]
    minimum: FiniteFloat | None
    maximum: FiniteFloat | None
    description: str


class FieldsResponse(Envelope, Warned):
    """The metadata fields of the bundle, in order."""

    fields: tuple[FieldDescription, ...]
    missing_words: tuple[str, ...] = Field(
        description="what counts as missing beside null, in any case"
    )


class DataDescription(Schema):
    """A data set that training saw."""

    name: str
    licence: str
    citation: str
    images: int
    lesions: int
    patients: int | None


class OperatingPointDescription(Schema):
    """A threshold on malignancy at the training prevalence, with 95 % intervals."""

    name: str
    condition: Source
    threshold: FiniteFloat
    threshold_at_site: FiniteFloat | None = Field(
        description="the same threshold on malignancy as it is answered here, at the site's "
        "prevalence; null where the site states none"
    )
    sensitivity: Share
    sensitivity_interval: tuple[Share, Share]
    specificity: Share
    specificity_interval: tuple[Share, Share]


class CalibrationDescription(Schema):
    """The evidence behind the probabilities of one metadata condition."""

    expected_calibration_error: FiniteFloat
    lesions: int
    coverage: Share = Field(description="share of lesions whose prediction set holds their label")


class CatalogueDescription(Schema):
    lesions: int
    revision: int


class VariantDescription(Schema):
    """The image encoder at one precision, as measured when the bundle was exported."""

    name: str
    runtime: str
    images_per_second: dict[int, FiniteFloat] = Field(description="by batch, encoder alone")
    macro_auroc: dict[str, FiniteFloat] = Field(
        description="by held-out split, from the picture alone"
    )
    cosine_lowest: FiniteFloat | None = Field(
        description="least likeness of a held-out picture's embedding to fp32's"
    )


class SchedulingDescription(Schema):
    """How requests go through the image encoder here."""

    device: Device = Field(description="what runs the image encoder")
    threads: int = Field(description="within one inference; the container's quota bounds them")
    max_batch: int = Field(description="pictures of several requests at once; 1: batches off")
    at_once: int = Field(
        description="runs of the image encoder side by side, of one thread each; a picture that is "
        "the only one inside has all threads"
    )
    max_delay_ms: FiniteFloat = Field(description="how long a picture waits for company")
    images_per_second: dict[int, FiniteFloat] = Field(
        description="by batch, measured when the service started; empty where the site chose. A "
        "batch twice as large is tried only where the last one paid"
    )
    images_per_second_side_by_side: FiniteFloat | None = Field(
        description="of runs side by side, as measured; null where that was no choice"
    )
    max_concurrency: int
    max_queue: int


class ModelResponse(Envelope, Warned):
    """What is served, for what it may be used, and the evidence behind it."""

    access: Literal["loopback", "off", "required"] = Field(
        description="whether callers need a key; off lets in whoever reaches the service"
    )
    intended_use: str
    limits: tuple[str, ...]
    labels: tuple[str, ...]
    malignant_labels: tuple[str, ...]
    objective: str
    created_at: str
    software_version: str
    variant: str
    variants: tuple[VariantDescription, ...] = Field(
        description="what was measured at export; empty where nothing was"
    )
    scheduling: SchedulingDescription
    embedding_dim: int
    has_context: bool
    has_novelty_check: bool
    prevalence: dict[str, Share] = Field(
        description="each label's share of the lesions in training, at which answers hold; "
        "probability / prevalence decides as if all labels were equally frequent"
    )
    training_prevalence: Share = Field(description="the malignant labels' together")
    site_prevalence: Share | None
    calibration: dict[Source, CalibrationDescription]
    operating_points: tuple[OperatingPointDescription, ...]
    split_recipe: str
    data: tuple[DataDescription, ...]
    catalogue: CatalogueDescription
    max_k: int
    max_images: int
    max_images_risk: int
    image_formats: tuple[str, ...]


class HealthResponse(Envelope, Warned):
    """Answer of the probes."""

    status: Literal["alive", "ready", "loading", "failed", "stalled"]
    reason: str | None = None
