"""API keys: made, kept as hashes, rotated, revoked, and what the command says of them."""

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

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
from service.ledger.database import open_ledger
from service.ledger.keys import KEY, ApiKeys

START = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
HOUR = datetime.timedelta(hours=1)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime.datetime:
        return self.time


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    opened = open_ledger(tmp_path)
    yield opened
    opened.dispose()


def test_a_key_is_known_until_it_expires(engine: Engine) -> None:
    clock = Clock()
    keys = ApiKeys(engine, clock)
    text, made = keys.create(label="scanner", scope=Scope.WRITE, lifetime=DAY)
    assert KEY.fullmatch(text)
    assert keys.authenticate(text).scope is Scope.WRITE
    assert made.expires_at == START + DAY
    clock.time = START + DAY - HOUR
    assert keys.has_usable()
    assert keys.authenticate(text).key_id == made.key_id
    clock.time = START + DAY
    assert not keys.has_usable()
    with pytest.raises(ExpiredCredentials):
        keys.authenticate(text)


def test_keys_are_never_alike(engine: Engine) -> None:
    made = {ApiKeys(engine).create(label="a", scope=Scope.READ)[0] for _ in range(20)}
    assert len({key[-64:] for key in made}) == len({key[6:18] for key in made}) == 20


def test_a_text_that_differs_anywhere_is_no_key(engine: Engine) -> None:
    keys = ApiKeys(engine)
    key, _ = keys.create(label="a", scope=Scope.READ)
    for position in range(len(key)):
        wrong = key[:position] + ("1" if key[position] == "0" else "0") + key[position + 1 :]
        with pytest.raises(InvalidCredentials):
            keys.authenticate(wrong)
    for wrong in ("", key.upper(), key + "\n", f" {key}", key * 2):
        with pytest.raises(InvalidCredentials):
            keys.authenticate(wrong)


def test_use_is_written_down_once_an_hour(engine: Engine) -> None:
    clock = Clock()
    keys = ApiKeys(engine, clock)
    key, made = keys.create(label="a", scope=Scope.READ)
    assert made.last_used_at is None
    for minutes, noted in ((0, 0), (59, 0), (61, 61), (100, 61)):
        clock.time = START + datetime.timedelta(minutes=minutes)
        keys.authenticate(key)
        assert keys.list()[0].last_used_at == START + datetime.timedelta(minutes=noted)


def test_after_a_rotation_both_keys_hold_for_the_overlap(engine: Engine) -> None:
    clock = Clock()
    keys = ApiKeys(engine, clock)
    old, made = keys.create(label="scanner", scope=Scope.WRITE, lifetime=30 * DAY)
    clock.time = START + 10 * DAY
    new, successor = keys.rotate(made.key_id, overlap=DAY)
    assert (successor.label, successor.scope) == ("scanner", Scope.WRITE)
    assert successor.expires_at == clock.time + 30 * DAY
    clock.time += DAY - HOUR
    assert {keys.authenticate(key).key_id for key in (old, new)} == {
        made.key_id,
        successor.key_id,
    }
    clock.time += HOUR
    keys.authenticate(new)
    with pytest.raises(ExpiredCredentials):
        keys.authenticate(old)
    with pytest.raises(UnusableKey, match="expired"):
        keys.rotate(made.key_id, overlap=DAY)


def test_a_rotation_never_lengthens_a_keys_life(engine: Engine) -> None:
    keys = ApiKeys(engine, Clock())
    _, made = keys.create(label="a", scope=Scope.READ, lifetime=HOUR)
    keys.rotate(made.key_id, overlap=DAY)
    assert next(key for key in keys.list() if key == made).expires_at == START + HOUR
    _, endless = keys.create(label="b", scope=Scope.READ)
    _, successor = keys.rotate(endless.key_id, overlap=DAY)
    assert successor.expires_at is None


def test_a_revoked_key_is_refused_at_once_and_stays_so(engine: Engine) -> None:
    clock = Clock()
    keys = ApiKeys(engine, clock)
    key, made = keys.create(label="a", scope=Scope.READ)
    keys.authenticate(key)
    assert keys.revoke(made.key_id).revoked_at == START
    with pytest.raises(RevokedCredentials):
        keys.authenticate(key)
    clock.time += DAY
    assert keys.revoke(made.key_id).revoked_at == START
    with pytest.raises(UnusableKey, match="revoked"):
        keys.rotate(made.key_id, overlap=DAY)


def test_an_id_that_is_not_there_is_named(engine: Engine) -> None:
    keys = ApiKeys(engine)
    for change in (keys.revoke, lambda key_id: keys.rotate(key_id, overlap=DAY)):
        with pytest.raises(UnknownKey, match="abc: no key"):
            change("abc")


def test_a_ledger_that_breaks_while_it_is_used_lets_nobody_in(engine: Engine) -> None:
    keys = ApiKeys(engine)
    key, _ = keys.create(label="a", scope=Scope.READ)
    with writing(engine).begin() as connection:
        connection.execute(text("DROP TABLE api_key"))
    with pytest.raises(LedgerError):
        keys.authenticate(key)


def test_a_ledger_that_takes_no_row_lets_those_in_whom_it_knows(engine: Engine) -> None:
    clock = Clock()
    keys = ApiKeys(engine, clock)
    key, made = keys.create(label="a", scope=Scope.READ)
    clock.time = START + datetime.timedelta(hours=2)
    with writing(engine).begin() as connection:
        connection.execute(
            text(
                "CREATE TRIGGER full BEFORE UPDATE ON api_key "
                "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
            )
        )
    assert keys.authenticate(key).key_id == made.key_id
    assert keys.list()[0].last_used_at is None
