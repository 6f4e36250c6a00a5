"""API keys: made, shown once, looked up by their public id, rotated and revoked.

A key is `slimp_<id>_<secret>`. The ledger holds the SHA-256 of the secret. A slow, salted hash is
for passwords, which are few and guessed from lists; nobody lists 2^256 random secrets, so a fast
hash gives nothing away, and costs nothing at every request.
"""

import contextlib
import datetime
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from index.sqlite import writing
from service.access.callers import Scope
from service.errors import (
    ExpiredCredentials,
    InvalidCredentials,
    LedgerError,
    RevokedCredentials,
    UnknownKey,
    UnusableKey,
)
from service.ledger.database import reporting_damage
from service.ledger.tables import ApiKeyRow

PREFIX = "slimp_"
ID_BYTES = 6
SECRET_BYTES = 32
KEY = re.compile(rf"{PREFIX}([0-9a-f]{{{2 * ID_BYTES}}})_([0-9a-f]{{{2 * SECRET_BYTES}}})")
# Use is written down this coarsely: a busy key costs one write an hour, not one a request.
USE_RESOLUTION = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class ApiKey:
    """What may be said of a key; the secret and its hash are not in here."""

    key_id: str
    scope: Scope
    label: str
    created_at: datetime.datetime
    expires_at: datetime.datetime | None
    revoked_at: datetime.datetime | None
    last_used_at: datetime.datetime | None

    def state(self, now: datetime.datetime) -> str:
        """Return usable, expired or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "usable"


def utc_now() -> datetime.datetime:
    """Return this moment."""
    return datetime.datetime.now(datetime.UTC)


class ApiKeys:
    """The ledger's keys."""

    def __init__(self, engine: Engine, now: Callable[[], datetime.datetime] = utc_now) -> None:
        self._engine = engine
        self._now = now

    def create(
        self, *, label: str, scope: Scope, lifetime: datetime.timedelta | None = None
    ) -> tuple[str, ApiKey]:
        """Make a key.

        Args:
            label: whom or what it is for.
            scope: what it may do.
            lifetime: None never expires.

        Returns:
            The key's text, which cannot be had again, and what is kept of it.
        """
        with self._write() as session:
            return self._create(session, label, scope, lifetime)

    def list(self) -> tuple[ApiKey, ...]:
        """Return every key, oldest first, those that are no longer usable too."""
        with self._read() as session:
            rows = session.scalars(
                select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.key_id)
            )
            return tuple(_describe(row) for row in rows)

    def has_usable(self) -> bool:
        """Say whether any key would be accepted now."""
        now = self._now()
        return any(key.state(now) == "usable" for key in self.list())

    def rotate(self, key_id: str, *, overlap: datetime.timedelta) -> tuple[str, ApiKey]:
        """Make a key in place of another, which stays valid for the overlap.

        The new key has the old one's label, scope and length of life.

        Raises:
            UnknownKey: no key has this id.
            UnusableKey: the old key is expired or revoked.
        """
        with self._write() as session:
            row, now = _find(session, key_id), self._now()
            if (state := _describe(row).state(now)) != "usable":
                raise UnusableKey(f"{key_id}: expected a usable key, got one that is {state}")
            lifetime = None if row.expires_at is None else row.expires_at - row.created_at
            row.expires_at = min(filter(None, (row.expires_at, now + overlap)))
            return self._create(session, row.label, Scope(row.scope), lifetime)

    def revoke(self, key_id: str) -> ApiKey:
        """End a key at once; revoking it again changes nothing.

        Raises:
            UnknownKey: no key has this id.
        """
        with self._write() as session:
            row = _find(session, key_id)
            row.revoked_at = row.revoked_at or self._now()
            return _describe(row)

    def authenticate(self, text: str) -> ApiKey:
        """Return the key that the text is.

        Raises:
            InvalidCredentials: it is none; whether its id is known is not told.
            ExpiredCredentials: it was one.
            RevokedCredentials: likewise.
        """
        now, match = self._now(), KEY.fullmatch(text)
        if match is None:
            raise InvalidCredentials("this is no key of this service")
        with self._read() as session:
            row = session.get(ApiKeyRow, match[1])
            # The id is public and may be looked up; the secret is compared in constant time.
            if row is None or not hmac.compare_digest(_hash(match[2]), row.secret_sha256):
                raise InvalidCredentials("this is no key of this service")
            key = _describe(row)
        if key.state(now) == "revoked":
            raise RevokedCredentials("this key was revoked: ask for another")
        if key.state(now) == "expired":
            raise ExpiredCredentials("this key has expired: ask for another")
        if key.last_used_at is None or now - key.last_used_at >= USE_RESOLUTION:
            # Bookkeeping: that the ledger takes no row at the moment is no reason to refuse.
            with contextlib.suppress(LedgerError), self._write() as session:
                _find(session, key.key_id).last_used_at = now
        return key

    def _create(
        self, session: Session, label: str, scope: Scope, lifetime: datetime.timedelta | None
    ) -> tuple[str, ApiKey]:
        key_id, secret = secrets.token_hex(ID_BYTES), secrets.token_hex(SECRET_BYTES)
        now = self._now()
        row = ApiKeyRow(
            key_id=key_id,
            secret_sha256=_hash(secret),
            scope=scope.value,
            label=label,
            created_at=now,
            expires_at=None if lifetime is None else now + lifetime,
            revoked_at=None,
            last_used_at=None,
        )
        session.add(row)
        return f"{PREFIX}{key_id}_{secret}", _describe(row)

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with reporting_damage(Path(str(self._engine.url.database))), Session(self._engine) as read:
            yield read

    @contextmanager
    def _write(self) -> Iterator[Session]:
        engine = writing(self._engine)
        path = Path(str(engine.url.database))
        with reporting_damage(path), Session(engine) as session, session.begin():
            yield session


def _hash(secret: str) -> bytes:
    return hashlib.sha256(bytes.fromhex(secret)).digest()


def _find(session: Session, key_id: str) -> ApiKeyRow:
    row = session.get(ApiKeyRow, key_id)
    if row is None:
        raise UnknownKey(f"{key_id}: no key has this id; slimp keys list shows them")
    return row


def _describe(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        key_id=row.key_id,
        scope=Scope(row.scope),
        label=row.label,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
