"""Every route against every kind of credential, and what a refusal says.

The matrix is made from the app's own table of routes, and counts what it has sent.
"""

import asyncio
import datetime
import itertools
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from httpx2 import Response
from starlette.testclient import TestClient

from bundle.errors import InvalidSettings
from service.access.callers import Scope
from service.access.mode import Mode, choose_mode
from service.access.routes import NEEDED, OPEN, RouteTable
from service.app import create_app
from service.errors import LedgerError
from service.ledger.database import FILE, open_ledger
from service.ledger.erasures import Erasures
from service.ledger.keys import ApiKeys
from service.logging import make_log
from service.runtime import Runtime
from service.settings import Settings
from tests.fakes import BLUE, GREEN, RED, draw_image, make_lesion, write_catalogue
from tests.service.asking import ask, assert_error

DAY = datetime.timedelta(days=1)
PROBES = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")


@dataclass(frozen=True)
class Site:
    """A folder with a ledger, and keys of every kind."""

    folder: Path
    keys: dict[str, str]

    def settings(self, **changed: Any) -> Settings:
        wanted = {"ledger": self.folder, "auth": "on", "log_level": "error", **changed}
        return Settings(**{"rate_per_minute": 10_000, "failed_auth_per_minute": 10_000, **wanted})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("ledger")
    engine = open_ledger(folder)
    known = ApiKeys(engine)
    past = ApiKeys(engine, now=lambda: datetime.datetime.now(datetime.UTC) - 2 * DAY)
    made = {scope.value: known.create(label="a", scope=scope)[0] for scope in Scope}
    made["expired"] = past.create(label="b", scope=Scope.ADMIN, lifetime=DAY)[0]
    made["revoked"], revoked = known.create(label="c", scope=Scope.ADMIN)
    known.revoke(revoked.key_id)
    made["unknown"] = "slimp_" + "0" * 12 + "_" + "0123456789abcdef" * 4
    made["wrong secret"] = made["admin"][:-64] + made["read"][-64:]
    made["malformed"] = made["admin"][:-1]
    engine.dispose()
    return Site(folder, made)


@pytest.fixture(scope="module")
def guarded(
    site: Site, make_runtime: Callable[..., Runtime], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    """A client of a service that needs keys, with lesions that may be erased."""
    lesions = [make_lesion("red-0", RED, patient_id="red-0")]
    lesions += [make_lesion(f"x{n}", GREEN, seed=n, patient_id=f"x{n}") for n in range(40)]
    erasures = Erasures(site.folder)
    with write_catalogue(tmp_path_factory.mktemp("guarded") / "catalogue", lesions) as catalogue:
        runtime = make_runtime(catalogue=catalogue, erasures=erasures)
        with TestClient(create_app(site.settings(), runtime)) as client:
            yield client
    erasures.close()


FRESH, DOOMED = itertools.count(5000), itertools.count()


def refusals_of(ledger: Path) -> int:
    """Return how many refusals of somebody unknown the audit holds."""
    with sqlite3.connect(ledger / FILE) as connection:
        query = "SELECT count(*) FROM audit WHERE status IN (401, 403, 421, 429)"
        count: int = connection.execute(query).fetchone()[0]
    connection.close()
    return count


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def send(client: TestClient, method: str, path: str, headers: dict[str, str]) -> Response:
    """Send a request that its route can answer when it is let in, with a body where one belongs."""
    target = f"x{next(DOOMED)}" if method == "DELETE" else "red-0"
    filled = re.sub(r"\{[^}]*\}", target, path)
    if method == "POST":
        part = "images" if path == "/risk" else "image"
        files = {part: ("a.png", draw_image(BLUE, seed=next(FRESH)))}
        return client.post(filled, files=files, headers=headers)
    return client.request(method, filled, headers=headers, json={} if method == "PATCH" else None)


REFUSED = {
    "no key": "unauthenticated",
    "malformed": "invalid_credentials",
    "unknown": "invalid_credentials",
    "wrong secret": "invalid_credentials",
    "expired": "expired_credentials",
    "revoked": "revoked_credentials",
}


def test_every_route_refuses_every_wrong_credential_and_answers_the_right_one(
    guarded: TestClient, site: Site
) -> None:
    app: Any = guarded.app
    routes = {
        (method, str(context.path))
        for context in iter_route_contexts(app.routes)
        for method in (context.methods or {"GET"})
    }
    visited: set[tuple[str, str]] = set()
    requests = 0
    for method, path in sorted(routes):
        needed = NEEDED[("GET" if method == "HEAD" else method, path)]
        target = "/page/app.js" if path == "/page" else path
        for kind, code in REFUSED.items():
            headers = {} if kind == "no key" else bearer(site.keys[kind])
            response = send(guarded, method, target, headers)
            requests += 1
            if needed is OPEN:
                assert response.status_code == 200, (method, path, kind)
                continue
            assert response.status_code == 401, (method, path, kind)
            assert response.headers["www-authenticate"].startswith('Bearer realm="slimp"')
            if method != "HEAD":
                content = assert_error(response, 401, code)
                assert content["bundle_id"] is None
        for scope in Scope:
            response = send(guarded, method, target, bearer(site.keys[scope.value]))
            requests += 1
            if needed is OPEN or scope.covers(needed):
                assert response.status_code in (200, 201), (method, path, scope, response.text)
            else:
                said = assert_error(response, 403, "insufficient_scope", needed.value)
                assert needed.value in response.headers["www-authenticate"]
                assert said["bundle_id"] is not None
        visited.add((method, path))
    assert visited == routes
    assert len(visited) >= len(NEEDED)
    assert requests == len(visited) * (len(REFUSED) + len(Scope))


def test_the_table_names_every_route_and_no_other(guarded: TestClient) -> None:
    app: Any = guarded.app
    assert {(d.method, d.path) for d in RouteTable(app).declared} == set(NEEDED)
    opened = {path for (_, path), needed in NEEDED.items() if needed is OPEN}
    assert opened == {"/", "/page", *PROBES}


def test_a_route_that_declares_no_scope_stops_the_service(
    make_app: Callable[..., FastAPI],
) -> None:
    app = make_app()

    @app.delete("/everything")
    async def everything() -> None: ...

    with pytest.raises(RuntimeError, match="DELETE /everything declares no scope"):
        RouteTable(app)


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("needed", Scope)
def test_a_caller_without_the_scope_is_told_which(
    site: Site,
    make_runtime: Callable[..., Runtime],
    monkeypatch: pytest.MonkeyPatch,
    scope: Scope,
    needed: Scope,
) -> None:
    monkeypatch.setitem(NEEDED, ("GET", "/model"), needed)
    with TestClient(create_app(site.settings(), make_runtime())) as client:
        response = client.get("/model", headers=bearer(site.keys[scope.value]))
    order = ["read", "write", "admin"]
    if order.index(scope) >= order.index(needed):
        assert response.status_code == 200
    else:
        assert_error(response, 403, "insufficient_scope", needed)
        challenge = response.headers["www-authenticate"]
        assert challenge == f'Bearer realm="slimp", error="insufficient_scope", scope="{needed}"'


def test_a_key_comes_in_either_header_once_and_never_in_the_url(
    guarded: TestClient, site: Site
) -> None:
    key = site.keys["read"]
    assert guarded.get("/model", headers={"X-API-Key": key}).status_code == 200
    assert guarded.get("/model", headers={"Authorization": f"bearer {key}"}).status_code == 200
    for headers in (
        bearer(key) | {"X-API-Key": key},
        {"Authorization": f"Basic {key}"},
        {"Authorization": key},
        {"Authorization": "Bearer"},
        {"X-API-Key": ""},
    ):
        assert_error(guarded.get("/model", headers=headers), 401, "invalid_credentials")
    for name in ("key", "api_key", "access_token", "X-API-Key", "Authorization"):
        assert_error(guarded.get(f"/model?{name}={key}"), 401, "unauthenticated")


def test_a_path_that_is_not_there_is_told_to_callers_only(guarded: TestClient, site: Site) -> None:
    for method, path in (("GET", "/nowhere"), ("DELETE", "/model"), ("OPTIONS", "/classify")):
        assert_error(guarded.request(method, path), 401, "unauthenticated")
        told = guarded.request(method, path, headers=bearer(site.keys["read"]))
        assert told.status_code in (404, 405)
    assert_error(guarded.get("/page/../model"), 401, "unauthenticated")
    assert_error(guarded.get("/page/%2e%2e/model", headers={}), 404, "not_found")


def test_a_body_is_not_read_before_its_sender_is_known(guarded: TestClient) -> None:
    statuses: list[int] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/classify",
        "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=line")],
    }
    app: Any = guarded.app
    asyncio.run(app(scope, receive, send))
    assert statuses[0] == 401


def test_a_stranger_is_told_that_the_service_is_not_ready_but_not_why(
    site: Site, make_runtime: Callable[..., Runtime]
) -> None:
    settings = site.settings(bundle="/srv/secret/bundle", catalogue="/srv/secret/catalogue")
    with TestClient(create_app(settings)) as client:
        admin = bearer(site.keys["admin"])
        while client.get("/readyz", headers=admin).json()["code"] == "loading":
            pass
        assert "/srv/secret" in client.get("/readyz", headers=admin).text
        stranger = client.get("/readyz")
        content = assert_error(stranger, 503, "load_failed")
        assert "/srv" not in stranger.text
        assert content["bundle_id"] is None
    with TestClient(create_app(site.settings(), make_runtime())) as client:
        for probe in PROBES:
            assert client.get(probe).json()["bundle_id"] is None
            assert client.get(probe, headers=admin).json()["bundle_id"] is not None


def test_a_probe_whose_key_cannot_be_looked_up_still_learns_that_the_process_lives(
    guarded: TestClient, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ApiKeys, text: str) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(ApiKeys, "authenticate", fail)
    key = bearer(site.keys["read"])
    assert guarded.get("/livez", headers=key).status_code == 200
    assert_error(guarded.get("/model", headers=key), 503, "ledger_error")


# rates


def test_a_key_that_asks_too_often_waits_and_others_do_not(
    site: Site, make_runtime: Callable[..., Runtime]
) -> None:
    settings = site.settings(rate_per_minute=3)
    with TestClient(create_app(settings, make_runtime())) as client:
        fast, other = bearer(site.keys["read"]), bearer(site.keys["admin"])
        statuses = [client.get("/model", headers=fast).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        response = client.get("/model", headers=fast)
        assert_error(response, 429, "rate_limited", "at most 3 a minute")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert client.get("/model", headers=other).status_code == 200
        assert client.get("/livez", headers=fast).status_code == 200


def test_failures_of_one_address_are_limited_and_lock_nobody_out(
    site: Site, make_runtime: Callable[..., Runtime]
) -> None:
    app = create_app(site.settings(failed_auth_per_minute=2), make_runtime())
    wrong = bearer(site.keys["unknown"])
    with TestClient(app) as client:
        statuses = [client.get("/model", headers=wrong).status_code for _ in range(3)]
        assert statuses == [401, 401, 429]
        response = client.get("/model", headers=wrong)
        assert_error(response, 429, "rate_limited")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert client.get("/model", headers=bearer(site.keys["read"])).status_code == 200
        assert client.get("/livez", headers=wrong).status_code == 200
        elsewhere = TestClient(app, client=("192.0.2.7", 1))
        assert elsewhere.get("/model", headers=wrong).status_code == 401


def test_strangers_are_limited_and_do_not_fill_the_audit(
    site: Site, make_runtime: Callable[..., Runtime], tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    shutil.copytree(site.folder, ledger)
    before = refusals_of(ledger)
    app = create_app(site.settings(ledger=ledger, failed_auth_per_minute=3), make_runtime())
    with TestClient(app) as client:
        statuses = [client.get("/lesions").status_code for _ in range(6)]
        assert statuses == [401, 401, 401, 429, 429, 429]
        assert_error(client.get("/nowhere"), 429, "rate_limited", "at most 3 a minute")
        assert client.get("/livez").status_code == 200
        assert client.get("/model", headers=bearer(site.keys["read"])).status_code == 200
    assert refusals_of(ledger) - before == 3


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Host": "evil.example"}, 421), ({"Origin": "https://evil.example"}, 403)],
)
def test_who_asks_a_service_without_keys_by_another_name_is_limited(
    make_app: Callable[..., FastAPI], tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    with TestClient(make_app(ledger=tmp_path, failed_auth_per_minute=2)) as client:
        statuses = [client.get("/lesions", headers=headers).status_code for _ in range(4)]
        assert statuses == [status, status, 429, 429]
        assert client.get("/livez", headers=headers).status_code == 429
        assert client.get("/livez").status_code == 200
    assert refusals_of(tmp_path) == 2


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ],
)
def test_addresses_that_one_stranger_has_are_counted_together(
    site: Site, make_runtime: Callable[..., Runtime], one: str, other: str, is_same: bool
) -> None:
    app = create_app(site.settings(failed_auth_per_minute=1), make_runtime())
    first, second = (TestClient(app, client=(address, 1)) for address in (one, other))
    assert first.get("/model").status_code == 401
    assert first.get("/model").status_code == 429
    assert second.get("/model").status_code == (429 if is_same else 401)
    app.state.service.close()


# who needs no key


def test_other_machines_are_not_served_without_a_key(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "slimp.hospital.example", ""):
        with pytest.raises(InvalidSettings, match="slimp keys create"):
            create_app(Settings(host=host, ledger=tmp_path, log_level="error"))
    with pytest.raises(InvalidSettings, match="slimp keys create"):
        create_app(Settings(auth="on", ledger=tmp_path, log_level="error"))
    with pytest.raises(InvalidSettings, match="SLIMP_LEDGER"):
        create_app(Settings(host="0.0.0.0", log_level="error"))


@pytest.mark.parametrize("spoilt", ["expired", "revoked"])
def test_a_key_that_is_no_longer_usable_does_not_start_the_service(
    tmp_path: Path, spoilt: str
) -> None:
    engine = open_ledger(tmp_path)
    lifetime = -DAY if spoilt == "expired" else None
    _, key = ApiKeys(engine).create(label="a", scope=Scope.READ, lifetime=lifetime)
    if spoilt == "revoked":
        ApiKeys(engine).revoke(key.key_id)
    engine.dispose()
    settings = Settings(host="0.0.0.0", ledger=tmp_path, log_level="error")
    with pytest.raises(InvalidSettings, match="slimp keys create"):
        create_app(settings)


def test_loopback_needs_no_key_and_without_an_audit_no_ledger(
    tmp_path: Path, make_runtime: Callable[..., Runtime]
) -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"):
        settings = Settings(host=host, ledger=tmp_path / "ledger", audit=False, log_level="error")
        with TestClient(create_app(settings, make_runtime())) as client:
            assert client.get("/model").json()["access"] == "loopback"
    assert not (tmp_path / "ledger").exists()


def test_off_is_said_in_the_log_and_by_the_model(
    make_runtime: Callable[..., Runtime], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(host="0.0.0.0", auth="off", publish="127.0.0.1", log_level="warning")
    with TestClient(create_app(settings, make_runtime())) as client:
        said = client.get("/model").json()
    assert said["access"] == "off"
    assert said["warnings"][0]["code"] == "access_off"
    assert "access_control_off" in capsys.readouterr().out


@pytest.mark.parametrize("publish", ["0.0.0.0", "::", "192.0.2.1", "hospital.example", ""])
def test_off_is_refused_where_other_machines_reach_the_published_port(publish: str) -> None:
    with pytest.raises(InvalidSettings, match="SLIMP_PUBLISH"):
        create_app(Settings(host="0.0.0.0", auth="off", publish=publish, log_level="error"))
    with pytest.raises(InvalidSettings, match="SLIMP_LEDGER"):
        create_app(Settings(publish=publish, log_level="error"))


@pytest.mark.parametrize("path", ["/livez", "/model", "/", "/page/app.js", "/nowhere"])
def test_a_name_that_was_made_to_point_here_is_refused(
    make_app: Callable[..., FastAPI], path: str
) -> None:
    with TestClient(make_app()) as client:
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.0.2.1", ""):
            assert_error(client.get(path, headers={"Host": host}), 421, "misdirected_request")
        for host in ("localhost", "localhost:80", "127.0.0.1:80", "127.0.0.2", "[::1]", "[::1]:80"):
            assert client.get(path, headers={"Host": host}).status_code != 421


def test_another_sites_page_cannot_ask_a_service_without_keys(client: TestClient) -> None:
    image = {"image": ("a.png", draw_image(RED))}
    for origin in ("https://evil.example", "http://localhost:9999", "null"):
        response = client.post("/classify", files=image, headers={"Origin": origin})
        assert_error(response, 403, "foreign_origin")
    own = client.post("/classify", files=image, headers={"Origin": "http://localhost"})
    assert own.status_code == 200


def test_a_service_with_keys_answers_to_every_name(guarded: TestClient, site: Site) -> None:
    headers = bearer(site.keys["read"]) | {"Host": "slimp.hospital.example"}
    assert guarded.get("/model", headers=headers).status_code == 200


# what is kept secret


def test_no_key_is_in_a_log_an_answer_a_metric_or_the_ledger(
    site: Site, make_runtime: Callable[..., Runtime], capsys: pytest.CaptureFixture[str]
) -> None:
    app = create_app(site.settings(), make_runtime())
    app.state.service.log = make_log("debug")
    said = ""
    with TestClient(app) as client:
        for key in site.keys.values():
            for path in ("/model", "/nowhere", f"/lesions/{key}", f"/model?key={key}"):
                response = client.get(path, headers=bearer(key))
                said += "" if key in path else response.text
        said += client.get("/metrics", headers=bearer(site.keys["read"])).text
    logged = capsys.readouterr()
    said += logged.out + logged.err
    stored = b"".join(file.read_bytes() for file in site.folder.iterdir())
    assert "key:" in logged.out
    assert 'route="/model"' in said
    for key in site.keys.values():
        secret = key.rpartition("_")[2][:60]
        assert secret not in said
        assert secret.encode() not in stored
        assert bytes.fromhex(secret) not in stored


def test_no_answer_allows_another_origin(guarded: TestClient, site: Site) -> None:
    headers = bearer(site.keys["read"]) | {"Origin": "https://evil.example"}
    for response in (
        guarded.get("/model", headers=headers),
        guarded.get("/model", headers={"Origin": "https://evil.example"}),
        guarded.options("/classify", headers=headers | {"Access-Control-Request-Method": "POST"}),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"


def test_a_key_that_asks_is_noted_by_the_hour(
    site: Site, guarded: TestClient, make_runtime: Callable[..., Runtime]
) -> None:
    assert ask(guarded, "/classify", draw_image(RED)).status_code == 401
    guarded.get("/model", headers=bearer(site.keys["write"]))
    engine = open_ledger(site.folder)
    used = {key.key_id: key.last_used_at for key in ApiKeys(engine).list()}
    guarded.get("/model", headers=bearer(site.keys["write"]))
    assert {key.key_id: key.last_used_at for key in ApiKeys(engine).list()} == used
    engine.dispose()
    assert used[site.keys["write"].split("_")[1]] is not None
    assert used[site.keys["revoked"].split("_")[1]] is None


def test_behind_a_proxy_nobody_is_local() -> None:
    assert choose_mode(Settings()) is Mode.LOOPBACK
    assert choose_mode(Settings(trusted_proxies="127.0.0.1")) is Mode.REQUIRED
