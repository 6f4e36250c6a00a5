"""What a caller may ask, as pydantic models: one declaration for reading a form and for OpenAPI."""

import hashlib
import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from service.errors import InvalidRequest
from service.growing import Confirmation, Diagnosis, NewLesion
from service.patient import SubmittedLesion
from service.uploads import Form, FormParts

MAX_ID_LENGTH = 200
MAX_EXCLUDED = 500

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]
Ids = Annotated[list[Id], Field(max_length=MAX_EXCLUDED)]


def parse_json(text: str) -> Any:
    """Return what strict JSON says: no NaN, no infinity, no name twice, no broken text.

    Raises:
        ValueError: it is not JSON; the message does not repeat the text.
    """
    try:
        read = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_pairs)
        # Half a surrogate pair, written as an escape, is no text that could be answered or stored.
        json.dumps(read, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("expected JSON of Unicode text, got half a surrogate pair") from None
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("expected JSON") from None
    return read


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"expected JSON, got {name}, which is no JSON number")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("expected every name once in a JSON object, one is given twice")
    return result


def read_json(text: str) -> Any:
    """Return a text part's JSON; blank text says nothing was given."""
    return parse_json(text) if text.strip() else None


def read_object(text: str) -> Any:
    """Return a text part's JSON object, empty when nothing was given."""
    read = read_json(text)
    if read is not None and not isinstance(read, dict):
        raise ValueError("expected a JSON object, such as {} with names and values")
    return {} if read is None else read


def json_text(description: str, example: str) -> Any:
    """Return the OpenAPI schema of a text part that holds JSON."""
    return WithJsonSchema(
        {
            "type": "string",
            "contentMediaType": "application/json",
            "description": description,
            "examples": [example],
        }
    )


RecordText = Annotated[
    dict[str, Any],
    BeforeValidator(read_object),
    json_text(
        "metadata of the lesion and the patient: any fields of /fields, canonical names or "
        'aliases; null, "", "unknown" and "UNK" mean missing',
        '{"age_years": 55, "sex": "female", "anatom_site": "back"}',
    ),
]
PatientText = Annotated[
    dict[str, Any],
    BeforeValidator(read_object),
    json_text(
        "metadata that holds for all submitted lesions; a lesion's own value wins",
        '{"age_years": 55, "sex": "female"}',
    ),
]
FilterText = Annotated[
    dict[str, Any],
    BeforeValidator(read_object),
    json_text(
        "which lesions may be hits: fields, label and malignant are AND, lists are OR",
        '{"sex": "female", "anatom_site": ["back", "scalp"], "age_years": {"gte": 40, "lte": 60}}',
    ),
]


class LesionText(BaseModel):
    """One lesion of a /risk request; further names are its metadata."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: Id
    images: list[int] = Field(min_length=1, max_length=1024)

    def submitted(self) -> SubmittedLesion:
        return SubmittedLesion(self.id, tuple(self.images), self.model_extra or {})


LesionsText = Annotated[
    Annotated[list[LesionText], Field(min_length=1, max_length=1024)] | None,
    BeforeValidator(read_json),
    json_text(
        "which images belong to which lesion, with the lesion's metadata; without it every image "
        "is a lesion, named by its position",
        '[{"id": "a", "images": [0], "anatom_site": "back"}, {"id": "b", "images": [1, 2]}]',
    ),
]
Images = Annotated[
    list[bytes],
    Field(min_length=1),
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "format": "binary"},
            "description": "image files (JPEG, PNG, WebP, TIFF)",
        }
    ),
]


class FormRequest(BaseModel):
    """A multipart form; a list is a part that may come several times."""

    model_config = ConfigDict(extra="forbid")


class ClassifyRequest(FormRequest):
    """One lesion: one to eight images, pooled."""

    image: Images
    metadata: RecordText = {}
    extrapolate: bool = Field(
        default=True, description="whether similar lesions may speak for missing fields"
    )
    exclude_lesion: Ids = Field(
        default=[], description="catalogue lesions that may not speak; may be repeated"
    )
    exclude_patient: Ids = Field(
        default=[], description="catalogue patients that may not speak; may be repeated"
    )


class SimilarRequest(FormRequest):
    """One lesion, and which catalogue lesions may be its hits."""

    image: Images
    metadata: RecordText = {}
    k: int = Field(default=10, ge=1, description="hits wanted, at most SLIMP_MAX_K")
    filter: FilterText = {}
    exclude_lesion: Ids = Field(default=[], description="lesions left out; may be repeated")
    exclude_patient: Ids = Field(default=[], description="patients left out; may be repeated")


class RiskRequest(FormRequest):
    """One patient's lesions."""

    images: Images
    lesions: LesionsText = None
    patient: PatientText = {}
    patient_id: Id | None = Field(
        default=None, description="adds this patient's catalogue lesions as context"
    )
    extrapolate: bool = Field(
        default=True, description="whether similar lesions may speak for missing fields"
    )


class EmbedRequest(FormRequest):
    """One lesion: one to eight images, pooled."""

    image: Images


class NewLesionRequest(FormRequest):
    """A lesion for the catalogue: one to eight images, pooled, and what is known of it."""

    image: Images
    metadata: RecordText = {}
    lesion_id: Id | None = Field(
        default=None, description="its name in the catalogue; without it the service makes one"
    )
    patient_id: Id | None = Field(default=None, description="whose it is; never shown again")
    label: Id | None = Field(default=None, description="the confirmed diagnosis")
    malignant: bool | None = Field(
        default=None, description="needed only where the bundle does not know the label"
    )
    confirmed_by: Confirmation | None = Field(
        default=None, description="how the label was found out; a label needs it"
    )

    def lesion(self) -> NewLesion:
        """Return what is to be added."""
        diagnosis = Diagnosis(self.label, self.malignant, self.confirmed_by)
        return NewLesion(self.image, self.metadata, diagnosis, self.lesion_id, self.patient_id)

    def digest(self) -> str:
        """Return a hash of everything that is asked, 64 hexadecimal digits."""
        content = self.model_dump(mode="python", exclude={"image"})
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
        for image in self.image:
            digest.update(hashlib.sha256(image).digest())
        return digest.hexdigest()


class EditRequest(BaseModel):
    """What is to change of a catalogue lesion; what is absent stays."""

    model_config = ConfigDict(extra="forbid", strict=True)

    metadata: dict[str, Any] = Field(
        default={}, description="fields to set; null makes a field missing"
    )
    patient_id: Id | None = None
    label: Id | None = None
    malignant: bool | None = None
    confirmed_by: Confirmation | None = None

    def changes(self) -> dict[str, Any]:
        """Return what was sent, by name."""
        return self.model_dump(mode="python", exclude_unset=True)


Asked = TypeVar("Asked", bound=FormRequest)
FILE_PARTS = frozenset({"image", "images"})
REPEATED_PARTS = frozenset({"exclude_lesion", "exclude_patient"})


def parts_of(model: type[FormRequest]) -> FormParts:
    """Return the parts that the model's form may have."""
    names = frozenset(model.model_fields)
    return FormParts(files=names & FILE_PARTS, texts=names - FILE_PARTS)


def parse_form(model: type[Asked], form: Form) -> Asked:
    """Return what a form asks.

    Raises:
        InvalidRequest: a part is missing, given twice or of the wrong type or range.
    """
    content: dict[str, Any] = dict(form.files)
    for name, texts in form.texts.items():
        if name in REPEATED_PARTS:
            content[name] = texts
        elif len(texts) > 1:
            raise InvalidRequest(f"{name}: expected once, got {len(texts)} times", field=name)
        else:
            content[name] = texts[0]
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise invalid_request(error.errors(include_input=False, include_url=False)) from None


def parse_edit(body: bytes) -> EditRequest:
    """Return what a JSON body asks to change.

    Raises:
        InvalidRequest: it is no such JSON.
    """
    try:
        content = parse_json(body.decode("utf-8", "strict"))
        return EditRequest.model_validate(content)
    except ValidationError as error:
        raise invalid_request(error.errors(include_input=False, include_url=False)) from None
    except ValueError:
        raise InvalidRequest(
            'expected a JSON object, such as {"label": "mel", "confirmed_by": "histopathology"}'
        ) from None


def invalid_request(errors: Any) -> InvalidRequest:
    """Return the first validation error as one of ours; what was sent is not repeated."""
    first = errors[0]
    where = [str(part) for part in first["loc"] if part not in ("query", "path", "body")]
    message = first["msg"].removeprefix("Value error, ")
    name = where[0] if where else None
    if first["type"] == "missing":
        kind = "an image file" if name in FILE_PARTS else "a value"
        message = f"expected {kind}, the part is missing"
    return InvalidRequest(f"{'.'.join(where)}: {message}", field=name)
