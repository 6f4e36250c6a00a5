"""`slimp keys`: a key on standard output, everything else beside it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.ledger.keys import KEY

Slimp = Callable[..., Any]


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the environment names, and no other setting of the machine's."""
    for key in [key for key in os.environ if key.startswith("SLIMP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("SLIMP_LEDGER", str(tmp_path / "ledger"))
    return tmp_path / "ledger"


def test_a_key_is_made_listed_rotated_and_revoked(slimp: Slimp) -> None:
    made = slimp("keys", "create", "--label", "scanner [3]", "--scope", "write")
    assert made.code == 0
    key = made.out.strip()
    match = KEY.fullmatch(key)
    assert match is not None
    assert match[1] in made.err
    assert match[2] not in made.err
    listed = slimp("keys", "list").out
    assert match[2] not in listed
    assert all(words in listed for words in (match[1], "write", "usable", "scanner [3]"))
    rotated = slimp("keys", "rotate", match[1], "--overlap-hours", 2)
    assert KEY.fullmatch(rotated.out.strip())
    assert "2 more hours" in rotated.err
    assert slimp("keys", "list").out.count("scanner [3]") == 2
    assert slimp("keys", "revoke", match[1]).code == 0
    assert "revoked" in slimp("keys", "list").out


def test_a_key_may_expire(slimp: Slimp) -> None:
    assert "until 2" in slimp("keys", "create", "--label", "a", "--expires-days", 30).err
    assert "for ever" in slimp("keys", "create", "--label", "b").err


def test_an_id_that_is_not_there_is_one_line(slimp: Slimp) -> None:
    for verb in ("revoke", "rotate"):
        ended = slimp("keys", verb, "abc")
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith("slimp: abc: no key")
        assert ended.err.count("\n") == 1


def test_a_ledger_that_nothing_names_is_one_line(
    slimp: Slimp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SLIMP_LEDGER")
    ended = slimp("keys", "list")
    assert ended.code == 1
    assert "SLIMP_CATALOGUE" in ended.err
    assert slimp("keys", "list", "--ledger", tmp_path / "named").code == 0
    assert (tmp_path / "named" / "ledger.sqlite").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ["create"],
        ["create", "--label", "a", "--scope", "root"],
        ["create", "--label", "a", "--expires-days", "0"],
        ["create", "--label", "a", "--expires-days", "4000000"],
        ["rotate"],
        ["rotate", "abc", "--overlap-hours", "-1"],
    ],
)
def test_what_is_no_order_is_a_usage_error(
    slimp: Slimp, ledger: Path, arguments: list[str]
) -> None:
    assert slimp("keys", *arguments).code == 2
    assert not ledger.exists()


def test_a_service_for_other_machines_is_refused_until_there_is_a_key(
    slimp: Slimp, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service import server

    ran: list[bool] = []
    monkeypatch.setattr(server.DrainingServer, "run", lambda self: ran.append(True))
    refused = slimp("serve", "--host", "0.0.0.0")
    assert refused.code == 1
    assert "slimp keys create" in refused.err
    assert refused.err.count("\n") == 1
    slimp("keys", "create", "--label", "a")
    assert slimp("serve", "--host", "0.0.0.0").code == 0
    assert ran == [True]
