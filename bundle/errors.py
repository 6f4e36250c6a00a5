"""Every error that a caller can act on, for all rooms.

    LesionError
    ├── InvalidRecord            a metadata value that the schema does not accept
    │   ├── UnknownField         a field name that no field or alias carries
    │   ├── UnknownCategory      a category that the field does not list
    │   └── OutOfRange           a number outside the field's bounds
    ├── InvalidImage             bytes that are not one sound picture
    │   ├── UnsupportedFormat    a format outside the allow-list
    │   └── ImageTooLarge        more bytes, pixels or side length than the limit
    ├── InvalidFilter            a catalogue filter that cannot be read
    ├── InvalidSettings          a configuration value or key that is not accepted
    ├── CohortError              a data set that cannot be prepared or read
    │   ├── LeakColumn           a schema that asks for a column which gives the label away
    │   └── SeenGroups           an evaluation on groups that training saw
    ├── TrainingError            a run that cannot be made, resumed or read
    ├── BundleError
    │   ├── CorruptBundle        a file missing, changed, truncated or outside the folder
    │   ├── UnsupportedVersion   a format version newer than this software
    │   └── ParityError          ONNX and torch disagree by more than the tolerance
    ├── InferenceError           a model answered with something that is not a finite number
    ├── CatalogueError
    │   ├── DimensionMismatch    vectors of another length than the catalogue's
    │   ├── ForeignCatalogue     a catalogue made by another bundle or variant
    │   ├── CorruptCatalogue     a catalogue file missing, changed or truncated
    │   ├── StaleCatalogue       a vector index behind or ahead of its SQL rows
    │   ├── UnknownLesion        a lesion or patient id that the catalogue does not hold
    │   ├── LesionExists         a lesion id that the catalogue holds already
    │   ├── DuplicateImage       a picture that another lesion of the catalogue holds
    │   ├── RequestKeyReused     the key of a written request on another request
    │   └── LesionGone           a written request sent again after its lesion was removed
    └── Overloaded               no room for more work now

A message says what was expected, what came and what to do. Only `service/errors.py` knows HTTP.
"""

from typing import ClassVar


class LesionError(Exception):
    """Base of every error raised on purpose; `code` is stable and meant for programs."""

    code: ClassVar[str] = "lesion_error"


class InvalidRecord(LesionError):
    """A metadata value that the schema does not accept; `field` names it as the caller wrote it."""

    code: ClassVar[str] = "invalid_record"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnknownField(InvalidRecord):
    code: ClassVar[str] = "unknown_field"


class UnknownCategory(InvalidRecord):
    code: ClassVar[str] = "unknown_category"


class OutOfRange(InvalidRecord):
    code: ClassVar[str] = "out_of_range"


class InvalidImage(LesionError):
    code: ClassVar[str] = "invalid_image"


class UnsupportedFormat(InvalidImage):
    code: ClassVar[str] = "unsupported_format"


class ImageTooLarge(InvalidImage):
    code: ClassVar[str] = "image_too_large"


class InvalidFilter(LesionError):
    code: ClassVar[str] = "invalid_filter"


class InvalidSettings(LesionError):
    code: ClassVar[str] = "invalid_settings"


class CohortError(LesionError):
    code: ClassVar[str] = "cohort_error"


class LeakColumn(CohortError):
    code: ClassVar[str] = "leak_column"


class SeenGroups(CohortError):
    code: ClassVar[str] = "seen_groups"


class TrainingError(LesionError):
    code: ClassVar[str] = "training_error"


class BundleError(LesionError):
    code: ClassVar[str] = "bundle_error"


class CorruptBundle(BundleError):
    code: ClassVar[str] = "corrupt_bundle"


class UnsupportedVersion(BundleError):
    code: ClassVar[str] = "unsupported_version"


class ParityError(BundleError):
    code: ClassVar[str] = "parity_error"


class InferenceError(LesionError):
    code: ClassVar[str] = "inference_error"


class CatalogueError(LesionError):
    code: ClassVar[str] = "catalogue_error"


class DimensionMismatch(CatalogueError):
    code: ClassVar[str] = "dimension_mismatch"


class ForeignCatalogue(CatalogueError):
    code: ClassVar[str] = "foreign_catalogue"


class CorruptCatalogue(CatalogueError):
    code: ClassVar[str] = "corrupt_catalogue"


class StaleCatalogue(CatalogueError):
    code: ClassVar[str] = "stale_catalogue"


class UnknownLesion(CatalogueError):
    code: ClassVar[str] = "unknown_lesion"


class LesionExists(CatalogueError):
    code: ClassVar[str] = "lesion_exists"


class DuplicateImage(CatalogueError):
    code: ClassVar[str] = "duplicate_image"


class RequestKeyReused(CatalogueError):
    code: ClassVar[str] = "request_key_reused"


class LesionGone(CatalogueError):
    code: ClassVar[str] = "lesion_gone"


class Overloaded(LesionError):
    code: ClassVar[str] = "overloaded"
