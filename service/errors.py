"""Errors as HTTP: the one place that knows which error gets which status.

Every error answers with RFC 9457 problem+json of one shape. A message of ours names what to do and
goes to the caller; where it could show the site's paths (`public` in the table) a constant takes
its place and the message goes to the log only. An exception that nobody foresaw is answered by
`service/middleware.py` with a constant body.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import ClassVar

from bundle import errors as e

# How a 401 or 403 says what to send.
CHALLENGE = 'Bearer realm="slimp"'


class InvalidRequest(e.LesionError):
    """A part or parameter that is missing, unknown, of the wrong type or out of bounds."""

    code: ClassVar[str] = "invalid_request"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class NotAssessable(InvalidRequest):
    """A picture that cannot be judged where one that can is needed."""

    code: ClassVar[str] = "not_assessable"


class MalformedUpload(e.LesionError):
    """A body that is not the multipart form that its content type says."""

    code: ClassVar[str] = "malformed_upload"


class UnsupportedMedia(e.LesionError):
    """A body of another content type than multipart/form-data."""

    code: ClassVar[str] = "unsupported_media"


class RequestTooLarge(e.LesionError):
    """More bytes or more images than one request may carry."""

    code: ClassVar[str] = "request_too_large"


class TooManyHeaders(e.LesionError):
    """More headers than any caller needs; reading them all would hold up the others."""

    code: ClassVar[str] = "too_many_headers"


class NotReady(e.LesionError):
    """The bundle and the catalogue are not loaded, or could not be."""

    code: ClassVar[str] = "not_ready"


class Loading(NotReady):
    """The bundle and the catalogue are still being read and checked."""

    code: ClassVar[str] = "loading"


class LoadFailed(NotReady):
    """The bundle or the catalogue cannot be used; the service needs a restart."""

    code: ClassVar[str] = "load_failed"


class Stalled(NotReady):
    """Every thread works for a request whose time is over."""

    code: ClassVar[str] = "stalled"


class Unhealthy(NotReady):
    """Something that the service stands on does not hold: a database, the disk, inference."""

    code: ClassVar[str] = "unhealthy"


class Draining(NotReady):
    """The service was told to stop: it ends what is inside and takes nothing more."""

    code: ClassVar[str] = "draining"


class TimedOut(e.LesionError):
    """The request's time is over."""

    code: ClassVar[str] = "timed_out"


class AccessRefused(e.LesionError):
    """A request that its sender may not make; `headers` go into the answer."""

    code: ClassVar[str] = "access_refused"

    def __init__(self, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.headers = headers or {}


class Unauthenticated(AccessRefused):
    """No credential where one is needed."""

    code: ClassVar[str] = "unauthenticated"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"WWW-Authenticate": CHALLENGE})


class CredentialsRefused(AccessRefused):
    """A credential that does not hold."""

    code: ClassVar[str] = "credentials_refused"

    def __init__(self, message: str) -> None:
        challenge = f'{CHALLENGE}, error="invalid_token"'
        super().__init__(message, headers={"WWW-Authenticate": challenge})


class InvalidCredentials(CredentialsRefused):
    """A credential that never held here."""

    code: ClassVar[str] = "invalid_credentials"


class ExpiredCredentials(CredentialsRefused):
    """A credential whose time is over."""

    code: ClassVar[str] = "expired_credentials"


class RevokedCredentials(CredentialsRefused):
    """A key that the site has revoked."""

    code: ClassVar[str] = "revoked_credentials"


class InsufficientScope(AccessRefused):
    """A caller that is known and may not do this."""

    code: ClassVar[str] = "insufficient_scope"

    def __init__(self, needed: str) -> None:
        challenge = f'{CHALLENGE}, error="insufficient_scope", scope="{needed}"'
        super().__init__(
            f"this needs the scope {needed}: ask for a key that has it",
            headers={"WWW-Authenticate": challenge},
        )


class RateLimited(AccessRefused):
    """More requests a minute than a caller, or failures than an address, may have."""

    code: ClassVar[str] = "rate_limited"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after_s)})


class MisdirectedRequest(AccessRefused):
    """A host name under which a service without keys is not reached."""

    code: ClassVar[str] = "misdirected_request"


class ForeignOrigin(AccessRefused):
    """A request that another site's page makes to a service without keys."""

    code: ClassVar[str] = "foreign_origin"


class IdentityUnavailable(e.LesionError):
    """The identity provider's keys cannot be fetched."""

    code: ClassVar[str] = "identity_unavailable"


class UnknownKey(e.LesionError):
    """A key id that the ledger does not hold."""

    code: ClassVar[str] = "unknown_key"


class UnusableKey(e.LesionError):
    """A key that is expired or revoked where a usable one is needed."""

    code: ClassVar[str] = "unusable_key"


class LedgerError(e.LesionError):
    """The service's own database cannot be used."""

    code: ClassVar[str] = "ledger_error"


@dataclass(frozen=True)
class Problem:
    """How an error is answered; `public` replaces its message where that is for the site only."""

    status: HTTPStatus
    public: str | None = None


ASK_OPERATOR = "this is the site's to repair: tell its operator the request_id"
NO_BUNDLE = Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"the bundle cannot be used; {ASK_OPERATOR}")
NO_CATALOGUE = Problem(
    HTTPStatus.SERVICE_UNAVAILABLE, f"the catalogue cannot answer; {ASK_OPERATOR}"
)
NO_LEDGER = Problem(
    HTTPStatus.SERVICE_UNAVAILABLE, f"the service's ledger cannot be used; {ASK_OPERATOR}"
)
NOT_OURS = Problem(HTTPStatus.INTERNAL_SERVER_ERROR, f"the service failed; {ASK_OPERATOR}")
CONTENT = Problem(HTTPStatus.UNPROCESSABLE_ENTITY)
UNAVAILABLE = Problem(HTTPStatus.SERVICE_UNAVAILABLE)

PROBLEMS: dict[type[e.LesionError], Problem] = {
    e.LesionError: NOT_OURS,
    e.InvalidRecord: CONTENT,
    e.UnknownField: CONTENT,
    e.UnknownCategory: CONTENT,
    e.OutOfRange: CONTENT,
    e.InvalidImage: Problem(HTTPStatus.BAD_REQUEST),
    e.UnsupportedFormat: Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    e.ImageTooLarge: Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    e.InvalidFilter: CONTENT,
    e.InvalidSettings: NOT_OURS,
    e.CohortError: NOT_OURS,
    e.LeakColumn: NOT_OURS,
    e.SeenGroups: NOT_OURS,
    e.TrainingError: NOT_OURS,
    e.BundleError: NO_BUNDLE,
    e.CorruptBundle: NO_BUNDLE,
    e.UnsupportedVersion: NO_BUNDLE,
    e.ParityError: NO_BUNDLE,
    e.InferenceError: Problem(HTTPStatus.INTERNAL_SERVER_ERROR),
    e.CatalogueError: NO_CATALOGUE,
    e.DimensionMismatch: NO_CATALOGUE,
    e.ForeignCatalogue: NO_CATALOGUE,
    e.CorruptCatalogue: NO_CATALOGUE,
    e.StaleCatalogue: NO_CATALOGUE,
    e.UnknownLesion: Problem(HTTPStatus.NOT_FOUND),
    e.LesionExists: Problem(HTTPStatus.CONFLICT),
    e.DuplicateImage: Problem(HTTPStatus.CONFLICT),
    e.RequestKeyReused: CONTENT,
    e.LesionGone: Problem(HTTPStatus.GONE),
    e.Overloaded: Problem(HTTPStatus.TOO_MANY_REQUESTS),
    InvalidRequest: CONTENT,
    NotAssessable: CONTENT,
    MalformedUpload: Problem(HTTPStatus.BAD_REQUEST),
    UnsupportedMedia: Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    RequestTooLarge: Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    TooManyHeaders: Problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
    NotReady: UNAVAILABLE,
    Loading: UNAVAILABLE,
    LoadFailed: UNAVAILABLE,
    Stalled: UNAVAILABLE,
    Unhealthy: UNAVAILABLE,
    Draining: UNAVAILABLE,
    TimedOut: UNAVAILABLE,
    AccessRefused: Problem(HTTPStatus.FORBIDDEN),
    Unauthenticated: Problem(HTTPStatus.UNAUTHORIZED),
    CredentialsRefused: Problem(HTTPStatus.UNAUTHORIZED),
    InvalidCredentials: Problem(HTTPStatus.UNAUTHORIZED),
    ExpiredCredentials: Problem(HTTPStatus.UNAUTHORIZED),
    RevokedCredentials: Problem(HTTPStatus.UNAUTHORIZED),
    InsufficientScope: Problem(HTTPStatus.FORBIDDEN),
    RateLimited: Problem(HTTPStatus.TOO_MANY_REQUESTS),
    MisdirectedRequest: Problem(HTTPStatus.MISDIRECTED_REQUEST),
    ForeignOrigin: Problem(HTTPStatus.FORBIDDEN),
    IdentityUnavailable: UNAVAILABLE,
    UnknownKey: Problem(HTTPStatus.NOT_FOUND),
    UnusableKey: Problem(HTTPStatus.CONFLICT),
    LedgerError: NO_LEDGER,
}
# Asking again later may help, so these carry Retry-After.
RETRY = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


def public_message(error: e.LesionError) -> str:
    """Return what a caller may read of an error."""
    problem = PROBLEMS[type(error)]
    return str(error) if problem.public is None else problem.public
