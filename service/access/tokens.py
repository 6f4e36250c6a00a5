"""OIDC: tokens that the site's identity provider signed, checked by PyJWT.

Only algorithms with a public and a private half are known here: a token "signed" with the public
key as a shared secret, or not at all, is refused by its algorithm's name.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
from jwt import PyJWK, PyJWKClient, PyJWKSet
from jwt.exceptions import (
    PyJWKClientConnectionError,
    PyJWKClientError,
    PyJWKSetError,
    PyJWTError,
)

from bundle.errors import InvalidSettings
from service.access.callers import Caller, Scope
from service.errors import ExpiredCredentials, IdentityUnavailable, InvalidCredentials
from service.settings import Settings

FETCH_TIMEOUT_S = 5
# Keys of an identity provider change seldom; one that is not known is looked for sooner.
KEYS_LIFESPAN_S = 300
# An identity provider that did not answer, or not with keys, is left alone for so long.
ASK_AGAIN_S = 10
MAX_NAME_LENGTH = 200
ASYMMETRIC = frozenset({"RSA", "EC", "OKP"})
REASONS: dict[type[PyJWTError], str] = {
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.InvalidIssuerError: "another issuer made it",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidAlgorithmError: "its algorithm is not accepted",
    jwt.MissingRequiredClaimError: "a claim is missing",
}


class Tokens:
    """Turns a token into a caller."""

    def __init__(self, settings: Settings) -> None:
        """Read the keys of a file; those of a URL are fetched when a token comes.

        Raises:
            InvalidSettings: the file cannot be read or holds no public key.
        """
        self._settings = settings
        self._find_key = _key_finder(str(settings.oidc_jwks))

    def caller(self, token: str) -> Caller:
        """Return whose token it is.

        Raises:
            InvalidCredentials: it does not hold.
            ExpiredCredentials: it did.
            IdentityUnavailable: the identity provider's keys cannot be fetched.
        """
        settings = self._settings
        try:
            claims = jwt.decode(
                token,
                self._key(token),
                algorithms=list(settings.oidc_algorithms),
                audience=settings.oidc_audience,
                issuer=settings.oidc_issuer,
                leeway=settings.oidc_leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise ExpiredCredentials("the token has expired: sign in again") from None
        except PyJWKClientConnectionError:
            raise IdentityUnavailable(
                "the identity provider's keys cannot be fetched: ask again later"
            ) from None
        except PyJWTError as error:
            reason = REASONS.get(type(error), "it is malformed or its signature does not hold")
            raise InvalidCredentials(f"the token is not accepted: {reason}") from None
        return Caller(f"oidc:{claims['sub'][:MAX_NAME_LENGTH]}", self._scope(claims))

    def _key(self, token: str) -> PyJWK:
        header = jwt.get_unverified_header(token)
        if header.get("alg") not in self._settings.oidc_algorithms:
            raise jwt.InvalidAlgorithmError
        key = self._find_key(str(header.get("kid")))
        if key.key_type not in ASYMMETRIC:
            raise jwt.InvalidKeyError
        return key

    def _scope(self, claims: dict[str, Any]) -> Scope | None:
        said = claims.get(self._settings.oidc_scope_claim, "")
        values = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
        known = self._settings.oidc_scopes
        given = {Scope(known[v]) for v in values if isinstance(v, str) and v in known}
        return max(given, key=list(Scope).index, default=None)


class FetchedKeys(PyJWKClient):
    """The keys of a URL; whoever comes right after a failure is told at once, and waits for none.

    PyJWT lets one caller after the other wait for a provider that hangs.
    """

    def __init__(self, source: str) -> None:
        super().__init__(source, lifespan=KEYS_LIFESPAN_S, timeout=FETCH_TIMEOUT_S)
        self._ask_again_at = 0.0

    def fetch_data(self) -> Any:
        """Return the provider's key set.

        Raises:
            PyJWKClientConnectionError: it does not answer, answers no key set, or did so just now.
        """
        if time.monotonic() < self._ask_again_at:
            raise PyJWKClientConnectionError("the keys could not be fetched a moment ago")
        try:
            return super().fetch_data()
        except (PyJWKClientError, PyJWKSetError, ValueError, OSError) as error:
            self._ask_again_at = time.monotonic() + ASK_AGAIN_S
            raise PyJWKClientConnectionError(type(error).__qualname__) from None


def _key_finder(source: str) -> Callable[[str], PyJWK]:
    if source.startswith("https://"):
        return FetchedKeys(source).get_signing_key
    try:
        keys = PyJWKSet.from_json(Path(source).read_text(encoding="utf-8")).keys
    except (OSError, ValueError, AttributeError, PyJWKSetError) as error:
        raise InvalidSettings(
            f"SLIMP_OIDC_JWKS: expected an https URL or a file with a JSON Web Key Set, got "
            f"{source} ({error})"
        ) from None

    def find(kid: str) -> PyJWK:
        for key in keys:
            if key.key_id == kid and key.public_key_use in (None, "sig"):
                return key
        raise jwt.InvalidKeyError

    return find
