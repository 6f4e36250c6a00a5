"""What happened is written down, fits together, and says nothing of anybody."""

import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy.event import listen
from starlette.testclient import TestClient

from service.errors import LedgerError
from service.ledger import audit
from service.ledger.audit import AuditLog, Event, Head
from service.ledger.database import FILE
from service.ledger.erasures import Erasures
from service.logging import describe_cause
from service.runtime import Runtime
from tests.fakes import BLUE, RED, draw_image, make_lesion, write_catalogue
from tests.service.asking import answer, ask, assert_error
from tests.service.test_scheduling import Blocked, wait_for

ROWS = 5


def event(number: int) -> Event:
    return Event(f"request {number}", "key", "POST /classify", 200, "ab", 3, "cd", {"n": number})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    log = AuditLog(tmp_path / "ledger")
    for number in range(1, ROWS + 1):
        assert log.append(event(number)).sequence == number
    log.close()
    return tmp_path / "ledger"


def run_sql(folder: Path, *statements: str) -> None:
    with sqlite3.connect(folder / FILE) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def verdict(folder: Path, known: Head | None = None) -> tuple[int, str | None]:
    log = AuditLog(folder)
    found = log.verify(known)
    log.close()
    return found.rows, found.broken


def test_a_chain_that_nobody_touched_fits(folder: Path) -> None:
    assert verdict(folder) == (ROWS, None)
    log = AuditLog(folder)
    rows = list(log.rows())
    assert [row["sequence"] for row in rows] == list(range(1, ROWS + 1))
    assert [json.loads(row["output"])["n"] for row in rows] == list(range(1, ROWS + 1))
    head = log.verify().head
    log.append(event(6))
    assert log.verify(head).broken is None
    log.close()


COLUMNS = [
    ("at", "'x'"),
    ("request_id", "'x'"),
    ("caller", "NULL"),
    ("action", "'GET /x'"),
    ("status", "500"),
    ("bundle_id", "NULL"),
    ("catalogue_revision", "4"),
    ("input_sha256", "NULL"),
    ("output", "'{}'"),
    ("row_sha256", "'00'"),
    # What no row was ever written with: bytes, no number, no Unicode.
    ("action", "CAST(action AS BLOB)"),
    ("status", "9e999"),
    ("action", "CAST(x'47ff' AS TEXT)"),
    ("row_sha256", "CAST(row_sha256 AS BLOB)"),
]


@pytest.mark.parametrize(("column", "value"), COLUMNS)
@pytest.mark.parametrize("row", [1, 3, ROWS])
def test_a_changed_row_is_named(folder: Path, column: str, value: str, row: int) -> None:
    run_sql(folder, f"UPDATE audit SET {column} = {value} WHERE sequence = {row}")
    rows, broken = verdict(folder)
    assert rows == row - 1
    assert broken is not None
    assert broken.startswith(f"row {row} is not as it was written")


@pytest.mark.parametrize("row", range(1, ROWS + 1))
def test_a_deleted_row_is_named(folder: Path, row: int) -> None:
    run_sql(folder, f"DELETE FROM audit WHERE sequence = {row}")
    rows, broken = verdict(folder)
    assert rows == row - 1
    assert broken is not None
    assert broken.startswith(f"row {row} is missing")


def test_swapped_rows_are_named(folder: Path) -> None:
    run_sql(
        folder,
        "UPDATE audit SET sequence = 99 WHERE sequence = 2",
        "UPDATE audit SET sequence = 2 WHERE sequence = 4",
        "UPDATE audit SET sequence = 4 WHERE sequence = 99",
    )
    assert verdict(folder) == (1, "row 2 is not as it was written, or not in its place")


def test_a_chain_made_anew_does_not_pass_through_a_noted_head(folder: Path) -> None:
    log = AuditLog(folder)
    noted = log.verify().head
    log.close()
    run_sql(folder, "DELETE FROM audit", "DELETE FROM audit_head")
    assert verdict(folder) == (0, None)
    assert verdict(folder, noted) == (0, f"row 1 is missing: {ROWS} were written")
    log = AuditLog(folder)
    for number in range(1, ROWS + 1):
        log.append(event(number))
    log.close()
    assert verdict(folder)[1] is None
    assert verdict(folder, noted)[1] == f"row {ROWS} is not the one that was noted"


def test_a_cut_tail_with_its_head_moved_back_needs_a_noted_head(folder: Path) -> None:
    run_sql(folder, "DELETE FROM audit WHERE sequence = 5")
    assert verdict(folder) == (4, "row 5 is missing: 5 were written")


def test_rows_that_are_written_during_a_verification_are_no_fault(folder: Path) -> None:
    writer, log = AuditLog(folder), AuditLog(folder)

    def write_meanwhile(connection: object, cursor: object, statement: str, *_: object) -> None:
        if "FROM audit_head" in statement:
            writer.append(event(ROWS + 1))

    listen(log._engine, "before_cursor_execute", write_meanwhile)
    found = log.verify()
    assert (found.rows, found.broken) == (ROWS, None)
    assert writer.verify().rows == ROWS + 1
    log.close()
    writer.close()


def test_a_ledger_that_remembers_an_erasure_had_rows(folder: Path, tmp_path: Path) -> None:
    erasures = Erasures(folder)
    with write_catalogue(tmp_path / "catalogue", [make_lesion("a", RED)]) as catalogue:
        erasures.erase(catalogue, "lesion", "a")
    erasures.close()
    assert verdict(folder) == (ROWS, None)
    run_sql(folder, "DELETE FROM audit", "DELETE FROM audit_head")
    rows, broken = verdict(folder)
    assert rows == 0
    assert broken is not None
    assert broken.startswith("no row is there, though somebody was erased")


@pytest.fixture
def audited(
    tmp_path: Path, make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime]
) -> Iterator[TestClient]:
    with TestClient(make_app(make_runtime(), ledger=tmp_path / "ledger")) as client:
        yield client


def rows_of(tmp_path: Path) -> list[dict[str, Any]]:
    log = AuditLog(tmp_path / "ledger")
    rows = list(log.rows())
    assert log.verify().broken is None
    log.close()
    return rows


def test_every_request_leaves_a_row_and_nothing_personal(
    audited: TestClient, tmp_path: Path
) -> None:
    record = {"sex": "female", "age_years": 61.25}
    said = answer(audited, "/classify", draw_image(RED, seed=400), metadata=record)
    answer(audited, "/similar", draw_image(BLUE), exclude_patient=["canary-patient"])
    assert_error(ask(audited, "/classify", b"canary"), 415, "unsupported_format")
    audited.get("/lesions/canary-lesion")
    assert ask(audited, "/risk", draw_image(RED), patient={"age_years": 61.25}).status_code == 200
    audited.delete("/patients/canary-patient")
    audited.get("/livez")
    audited.get("/model")
    rows = rows_of(tmp_path)
    assert [(row["action"], row["status"]) for row in rows] == [
        ("POST /classify", 200),
        ("POST /similar", 200),
        ("POST /classify", 415),
        ("GET /lesions/{lesion_id:path}", 404),
        ("POST /risk", 200),
        ("DELETE /patients/{patient_id:path}", 503),
    ]
    first = rows[0]
    assert first["request_id"] == said["request_id"]
    assert first["bundle_id"] == said["bundle_id"]
    assert first["catalogue_revision"] == 1
    output = json.loads(first["output"])
    assert (output["label"], output["malignancy"]) == (said["label"], said["malignancy"])
    assert rows[1]["input_sha256"] != first["input_sha256"]
    assert rows[3]["input_sha256"] is None
    content = b"".join(f.read_bytes() for f in (tmp_path / "ledger").iterdir())
    for word in (b"canary", b"61.25", b"female"):
        assert word not in content


def test_the_same_request_has_the_same_hash(audited: TestClient, tmp_path: Path) -> None:
    for metadata in ({"sex": "male"}, {"sex": "male"}, {"sex": "female"}):
        answer(audited, "/classify", draw_image(RED), metadata=metadata)
    first, same, other = (row["input_sha256"] for row in rows_of(tmp_path))
    assert first == same != other


def test_words_without_a_picture_are_not_hashed_since_they_could_be_guessed(
    audited: TestClient, tmp_path: Path
) -> None:
    """Both are refused, after their body was read."""
    words = {"metadata": (None, '{"age_years": 55}')}
    assert_error(audited.post("/classify", files=words), 422, "invalid_request", "image")
    assert audited.patch("/lesions/nobody", json={"patient_id": "4711"}).status_code == 404
    assert [row["input_sha256"] for row in rows_of(tmp_path)] == [None, None]


def test_a_request_id_that_the_caller_chose_is_no_word_in_the_audit(
    audited: TestClient, tmp_path: Path
) -> None:
    for sent in ("JaneDoeCanary", "ab" * 16):
        audited.get("/lesions/red-0", headers={"X-Request-ID": sent})
    chosen, kept = (row["request_id"] for row in rows_of(tmp_path))
    assert re.fullmatch("[0-9a-f]{32}", chosen)
    assert kept == "ab" * 16


def test_an_answer_that_cannot_be_written_down_is_not_given(
    audited: TestClient, tmp_path: Path
) -> None:
    run_sql(
        tmp_path / "ledger",
        "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN "
        "SELECT RAISE(ABORT, 'database or disk is full'); END",
    )
    response = ask(audited, "/classify", draw_image(RED))
    content = assert_error(response, 503, "ledger_error")
    assert "full" not in response.text
    assert content["bundle_id"] is not None
    assert audited.get("/livez").status_code == 200
    run_sql(tmp_path / "ledger", "DROP TRIGGER full")
    answer(audited, "/classify", draw_image(RED))
    assert len(rows_of(tmp_path)) == 1


def test_what_nobody_foresaw_leaves_a_row_too(
    audited: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("canary")

    monkeypatch.setattr(Runtime, "classify", fail)
    assert_error(ask(audited, "/classify", draw_image(RED)), 500, "internal_error")
    (row,) = rows_of(tmp_path)
    assert (row["action"], row["status"]) == ("POST /classify", 500)


def test_a_request_that_is_turned_away_as_too_many_leaves_no_row(
    tmp_path: Path, make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime]
) -> None:
    encoders = Blocked()
    limits = {"max_concurrency": 1, "max_queue": 0}
    app = make_app(make_runtime(encoders=encoders), ledger=tmp_path / "ledger", **limits)
    with TestClient(app) as client, ThreadPoolExecutor(1) as callers:
        inside = callers.submit(ask, client, "/embed", draw_image(RED))
        wait_for(lambda: app.state.service.scheduler.admitted == 1)
        assert_error(ask(client, "/embed", draw_image(RED)), 429, "overloaded")
        encoders.may.set()
        assert inside.result().status_code == 200
    assert [row["status"] for row in rows_of(tmp_path)] == [200]


def test_threads_that_append_at_once_make_one_chain(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "ledger")
    with ThreadPoolExecutor(8) as threads:
        heads = list(threads.map(lambda number: log.append(event(number)), range(80)))
    log.close()
    assert sorted(head.sequence for head in heads) == list(range(1, 81))
    assert verdict(tmp_path / "ledger") == (80, None)


@contextmanager
def held_up(log: AuditLog) -> Iterator[None]:
    """Keep the thread that writes from writing during the block."""
    may_go_on = threading.Event()
    log._thread.submit(may_go_on.wait)
    try:
        yield
    finally:
        may_go_on.set()


def append_together(log: AuditLog) -> list[BaseException | None]:
    """Have rows written that all wait when the first is; return how each failed."""
    with held_up(log):
        waiting = [log.submit(event(number)) for number in range(ROWS)]
    return [each.exception() for each in waiting]


def test_rows_that_wait_for_their_turn_are_synced_once(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "ledger")
    commits: list[object] = []
    listen(log._engine, "commit", commits.append)
    assert append_together(log) == [None] * ROWS
    log.close()
    assert len(commits) == 1
    assert verdict(tmp_path / "ledger") == (ROWS, None)


def test_rows_that_cannot_be_written_together_all_say_so(folder: Path) -> None:
    run_sql(folder, "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, ''); END")
    log = AuditLog(folder)
    failed = append_together(log)
    assert [type(each) for each in failed] == [LedgerError] * ROWS
    run_sql(folder, "DROP TRIGGER full")
    assert append_together(log) == [None] * ROWS
    log.close()
    assert verdict(folder) == (2 * ROWS, None)


def test_a_row_is_written_though_nobody_waits_for_it_any_more(folder: Path) -> None:
    log = AuditLog(folder)
    with held_up(log):
        left, waited_for = log.submit(event(1)), log.submit(event(2))
        assert left.cancel()
    assert waited_for.result().sequence == ROWS + 2
    with held_up(log):
        log.submit(event(3))
        closing = threading.Thread(target=log.close)
        closing.start()
    closing.join()
    assert verdict(folder) == (ROWS + 3, None)
    log.close()
    with pytest.raises(LedgerError, match="not written"):
        log.append(event(4))


def test_what_nobody_foresaw_is_in_the_log_with_its_places(
    tmp_path: Path,
    make_app: Callable[..., FastAPI],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> list[Head]:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(audit, "_insert", fail)
    with TestClient(make_app(ledger=tmp_path / "ledger")) as client:
        assert_error(ask(client, "/embed", draw_image(RED)), 503, "ledger_error")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "audit_failed" in line]
    logged = json.loads(line)
    assert logged["exception"] == "ZeroDivisionError"
    assert logged["places"][-1].endswith(" fail")
    assert "secret" not in line


POISON = [{"caller": "oidc:\ud800"}, {"output": {"n": float("nan")}}, {"output": {"n": object()}}]


@pytest.mark.parametrize("poison", POISON)
def test_a_row_that_nothing_can_hold_fails_alone(folder: Path, poison: dict[str, Any]) -> None:
    log = AuditLog(folder)
    events = [event(1), replace(event(2), **poison), event(3)]
    with held_up(log):
        first = log.submit(events[0])
        with pytest.raises(LedgerError, match="can hold"):
            log.submit(events[1])
        last = log.submit(events[2])
    assert (first.result().sequence, last.result().sequence) == (ROWS + 1, ROWS + 2)
    log.close()
    assert verdict(folder) == (ROWS + 2, None)


def test_rows_that_fail_in_a_way_nobody_foresaw_all_say_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> list[Head]:
        raise ZeroDivisionError("secret")

    log = AuditLog(folder)
    with monkeypatch.context() as patch:
        patch.setattr(audit, "_insert", fail)
        failed = append_together(log)
    assert [type(each) for each in failed] == [LedgerError] * ROWS
    assert {str(each) for each in failed} == {
        "a row of the audit was not written: ZeroDivisionError"
    }
    assert [describe_cause(each)["exception"] for each in failed if each] == [
        "ZeroDivisionError"
    ] * ROWS
    assert append_together(log) == [None] * ROWS
    log.close()
    assert verdict(folder) == (2 * ROWS, None)


def test_the_audit_can_be_switched_off(tmp_path: Path, make_app: Callable[..., FastAPI]) -> None:
    with TestClient(make_app(ledger=tmp_path / "ledger", audit=False)) as client:
        answer(client, "/classify", draw_image(RED))
    assert not (tmp_path / "ledger").exists()
