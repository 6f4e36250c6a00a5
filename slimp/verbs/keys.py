"""`slimp keys`: who may ask the service.

What is to be kept goes to standard output, everything else to standard error, so that
`KEY=$(slimp keys create ...)` holds the key and nothing else.
"""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

if TYPE_CHECKING:
    from service.ledger.keys import ApiKey, ApiKeys

keys = typer.Typer(
    no_args_is_help=True,
    help="Make, list, rotate and revoke the service's API keys (docs/security.md).",
)

# A hundred years: further on the calendar ends.
MAX_DAYS = 36_500
Ledger = Annotated[
    Path | None,
    Option(help="the ledger's folder; else SLIMP_LEDGER, else beside SLIMP_CATALOGUE"),
]
KeyId = Annotated[str, Argument(metavar="ID", help="the key's id, as slimp keys list shows it")]


class ScopeName(StrEnum):
    """What a key may do; each contains those before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@keys.command()
def create(
    label: Annotated[str, Option(help="whom or what the key is for; no secret")],
    scope: Annotated[ScopeName, Option(help="what it may do")] = ScopeName.READ,
    expires_days: Annotated[
        int | None, Option(min=1, max=MAX_DAYS, help="days it holds; else for ever")
    ] = None,
    ledger: Ledger = None,
) -> None:
    """Make a key and show it, this once."""
    from service.access.callers import Scope

    lifetime = None if expires_days is None else datetime.timedelta(days=expires_days)
    with opened(ledger) as known:
        text, key = known.create(label=label, scope=Scope(scope.value), lifetime=lifetime)
    show(text, key)


@keys.command(name="list")
def list_keys(ledger: Ledger = None) -> None:
    """Show every key, but for its secret."""
    from service.ledger.keys import utc_now
    from slimp.console import say

    now = utc_now()
    with opened(ledger) as known:
        for key in known.list():
            say(f"{key.key_id}  {key.scope:5}  {key.state(now):7}  {history(key)}  {key.label}")


@keys.command()
def rotate(
    key_id: KeyId,
    overlap_hours: Annotated[
        int, Option(min=0, max=720, help="hours that the old key still holds")
    ] = 24,
    ledger: Ledger = None,
) -> None:
    """Make a key in place of another, which holds for the overlap, so that clients can change."""
    with opened(ledger) as known:
        text, key = known.rotate(key_id, overlap=datetime.timedelta(hours=overlap_hours))
    typer.echo(f"{key_id} holds for {overlap_hours} more hours at most", err=True)
    show(text, key)


@keys.command()
def revoke(key_id: KeyId, ledger: Ledger = None) -> None:
    """End a key at once."""
    with opened(ledger) as known:
        known.revoke(key_id)
    typer.echo(f"{key_id} is revoked", err=True)


@contextmanager
def opened(folder: Path | None) -> "Iterator[ApiKeys]":
    """Yield the keys of the ledger that the option or the settings name."""
    from service.ledger.database import open_ledger
    from service.ledger.keys import ApiKeys
    from service.settings import read_settings

    engine = open_ledger(read_settings({"ledger": folder}).ledger_folder)
    try:
        yield ApiKeys(engine)
    finally:
        engine.dispose()


def show(text: str, key: "ApiKey") -> None:
    """Print a new key."""
    until = "for ever" if key.expires_at is None else f"until {moment(key.expires_at)}"
    typer.echo(f"{key.key_id} may {key.scope} {until}; its key is not shown again:", err=True)
    typer.echo(text)


def history(key: "ApiKey") -> str:
    """Return when a key was made, until when it holds, and when it was last used."""
    ends = "never" if key.expires_at is None else moment(key.expires_at)
    used = "never" if key.last_used_at is None else moment(key.last_used_at)
    return f"made {moment(key.created_at)}  expires {ends}  used {used}"


def moment(when: datetime.datetime) -> str:
    """Return a moment to the minute, in UTC."""
    return f"{when:%Y-%m-%dT%H:%MZ}"
