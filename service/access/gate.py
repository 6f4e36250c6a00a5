"""Whose request it is: reads the credential that a request carries and asks who it belongs to."""

import ipaddress

import anyio
from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from bundle.errors import InvalidSettings
from service.access.callers import ANYONE, Caller
from service.access.mode import Mode, check_local, choose_mode
from service.access.rates import Rates
from service.access.tokens import Tokens
from service.errors import InvalidCredentials
from service.ledger.database import open_ledger
from service.ledger.keys import PREFIX, ApiKeys
from service.settings import Settings

# Tokens that are checked at once.
TOKEN_THREADS = 8


class Gate:
    """Knows the site's keys, its identity provider and its rates."""

    def __init__(self, settings: Settings) -> None:
        """Open the ledger where keys are needed.

        Raises:
            InvalidSettings: nobody could be let in, or everybody would be.
            LedgerError: the ledger cannot be used.
        """
        self.mode = choose_mode(settings)
        self._rates = Rates(settings.rate_per_minute)
        self._failures = Rates(settings.failed_auth_per_minute)
        self._tokens = Tokens(settings) if settings.oidc_issuer is not None else None
        self._token_threads = anyio.CapacityLimiter(TOKEN_THREADS)
        self._engine: Engine | None = None
        if self.mode is Mode.REQUIRED:
            self._engine = open_ledger(settings.ledger_folder)
            self._keys = ApiKeys(self._engine)
            if self._tokens is None and not self._keys.has_usable():
                self.close()
                raise InvalidSettings(
                    f"SLIMP_HOST={settings.host}: other machines may reach this service, which "
                    "needs a key: make one with slimp keys create, or set SLIMP_OIDC_ISSUER; "
                    "SLIMP_AUTH=off lets everybody in (docs/security.md)"
                )

    async def identify(self, request: Request) -> Caller | None:
        """Return whose request it is, None where it carries no credential.

        A caller whose credential holds is let in however many failed from its address, so that
        nobody behind the same address can lock it out: a secret of 256 bits is not guessed.

        Raises:
            CredentialsRefused: the credential does not hold.
            IdentityUnavailable: nobody can say whether it does.
            MisdirectedRequest: the service needs no keys, and the request is not local.
            ForeignOrigin: likewise.
        """
        if self.mode is not Mode.REQUIRED:
            check_local(request)
            return ANYONE
        credential = read_credential(request)
        if credential is None:
            return None
        if credential.startswith(PREFIX):
            return await run_in_threadpool(self._caller_of_key, credential)
        # Threads of their own: an identity provider that hangs holds up nobody with a key.
        return await anyio.to_thread.run_sync(
            self._caller_of_token, credential, limiter=self._token_threads
        )

    def count_refused(self, request: Request) -> None:
        """Count a refusal of somebody who is not known.

        Up to the limit each says why, and is a row of the audit, synced to disk; beyond it neither,
        or a stranger could fill the disk.

        Raises:
            RateLimited: one too many from its address this minute.
        """
        self._failures.hit(_address_of(request))

    def count(self, caller: Caller) -> None:
        """Count a caller's request; one that needs no key is not counted.

        Raises:
            RateLimited: one too many this minute.
        """
        if self.mode is Mode.REQUIRED:
            self._rates.hit(caller.name)

    def _caller_of_key(self, credential: str) -> Caller:
        key = self._keys.authenticate(credential)
        return Caller(f"key:{key.key_id}", key.scope)

    def _caller_of_token(self, credential: str) -> Caller:
        if self._tokens is None:
            raise InvalidCredentials(f"expected an API key, which begins with {PREFIX}")
        return self._tokens.caller(credential)

    def close(self) -> None:
        """Let go of the ledger."""
        if self._engine is not None:
            self._engine.dispose()


def _address_of(request: Request) -> str:
    """Return the client's address, of IPv6 the first half: whoever has one has all of a /64."""
    host = request.client.host if request.client is not None else "unknown"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 4 or address.ipv4_mapped is not None:
        return host
    return f"{int(address) >> 64:x}"


def read_credential(request: Request) -> str | None:
    """Return what `Authorization: Bearer` or `X-API-Key` carries, None where neither is there.

    Raises:
        InvalidCredentials: another scheme, or more than one credential.
    """
    headers = request.headers
    sent = [("Bearer", key) for key in headers.getlist("x-api-key")]
    for value in headers.getlist("authorization"):
        scheme, _, credential = value.partition(" ")
        sent.append((scheme, credential.strip()))
    if not sent:
        return None
    scheme, credential = sent[0]
    if len(sent) > 1 or scheme.casefold() != "bearer" or not credential:
        raise InvalidCredentials("expected one credential: Authorization: Bearer KEY or X-API-Key")
    return credential
