"""OIDC tokens: what the identity provider signed is let in, and nothing that looks like it."""

import base64
import contextlib
import hashlib
import hmac
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from jwt.exceptions import PyJWKClientConnectionError, PyJWKSetError
from starlette.testclient import TestClient

from bundle.errors import InvalidSettings
from service.access.callers import Scope
from service.access.gate import TOKEN_THREADS
from service.access.tokens import ASK_AGAIN_S, Tokens
from service.app import create_app
from service.errors import (
    CredentialsRefused,
    ExpiredCredentials,
    IdentityUnavailable,
    InvalidCredentials,
)
from service.ledger.database import FILE, open_ledger
from service.ledger.keys import ApiKeys
from service.runtime import Runtime
from service.settings import Settings, read_settings
from tests.service.asking import assert_error

ISSUER = "https://id.hospital.example"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
SHARED = b"a secret that somebody left in the key set"


def public_keys() -> dict[str, Any]:
    """Return the provider's key set, with an encryption key and a shared secret among them."""
    rsa_key: dict[str, Any] = RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True)
    ec_key: dict[str, Any] = ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True)
    shared = base64.urlsafe_b64encode(SHARED).decode().rstrip("=")
    return {
        "keys": [
            rsa_key | {"kid": "rsa", "use": "sig", "alg": "RS256"},
            ec_key | {"kid": "ec", "alg": "ES256"},
            rsa_key | {"kid": "sealing", "use": "enc", "alg": "RS256"},
            {"kty": "oct", "kid": "shared", "k": shared, "alg": "HS256"},
        ]
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("oidc")
    (folder / "jwks.json").write_text(json.dumps(public_keys()))
    return Settings(
        host="0.0.0.0",
        ledger=folder / "ledger",
        log_level="error",
        failed_auth_per_minute=1000,
        oidc_issuer=ISSUER,
        oidc_audience="slimp",
        oidc_jwks=str(folder / "jwks.json"),
    )


def claims(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    wanted = {
        "iss": ISSUER,
        "aud": "slimp",
        "sub": "nurse-7",
        "exp": now + 600,
        "nbf": now - 5,
        "scope": "openid slimp:read",
        **changed,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def sign(key: Any = RSA_KEY, algorithm: str = "RS256", kid: str = "rsa", **changed: Any) -> str:
    return jwt.encode(claims(**changed), key, algorithm, headers={"kid": kid})


def encoded(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def forge_hs256(secret: bytes, *, kid: str, algorithm: str = "HS256") -> str:
    """Return a token whose signature is a hash with a shared secret, whatever its header says."""
    body = f"{encoded({'alg': algorithm, 'kid': kid})}.{encoded(claims())}"
    signature = hmac.new(secret, body.encode(), hashlib.sha256).digest()
    return f"{body}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def public_pem() -> bytes:
    return RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def unsigned() -> str:
    return f"{encoded({'alg': 'none', 'kid': 'rsa'})}.{encoded(claims())}."


def tampered() -> str:
    header, _, signature = sign().split(".")
    return f"{header}.{encoded(claims(scope='slimp:admin'))}.{signature}"


NOW = int(time.time())
FORGED: dict[str, Callable[[], str]] = {
    "wrong issuer": lambda: sign(iss="https://id.elsewhere.example"),
    "no issuer": lambda: sign(iss=None),
    "wrong audience": lambda: sign(aud="another service"),
    "no audience": lambda: sign(aud=None),
    "no subject": lambda: sign(sub=None),
    "no end": lambda: sign(exp=None),
    "not yet valid": lambda: sign(nbf=NOW + 3600),
    "issued in the future": lambda: sign(iat=NOW + 3600),
    "unsigned": unsigned,
    "hs256 with the public key": lambda: forge_hs256(public_pem(), kid="rsa"),
    "hs256 called rs256": lambda: forge_hs256(public_pem(), kid="rsa", algorithm="RS256"),
    "shared secret": lambda: forge_hs256(SHARED, kid="shared"),
    "shared secret called rs256": lambda: forge_hs256(SHARED, kid="shared", algorithm="RS256"),
    "unknown kid": lambda: sign(kid="nobody"),
    "no kid": lambda: jwt.encode(claims(), RSA_KEY, "RS256"),
    "another's key": lambda: sign(OTHER_RSA_KEY),
    "a key for sealing": lambda: sign(kid="sealing"),
    "an algorithm that is not listed": lambda: sign(algorithm="RS512"),
    "an ec key named as the rsa one": lambda: sign(EC_KEY, "ES256", "rsa"),
    "changed claims": tampered,
    "no token": lambda: "a.b.c",
    "nothing like one": lambda: "\N{SNOWMAN}",
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_token_that_does_not_hold_is_refused(settings: Settings, kind: str) -> None:
    with pytest.raises(InvalidCredentials):
        Tokens(settings).caller(FORGED[kind]())


def test_a_token_that_has_expired_is_told_apart(settings: Settings) -> None:
    tokens = Tokens(settings)
    with pytest.raises(ExpiredCredentials):
        tokens.caller(sign(exp=int(time.time()) - 31))
    assert tokens.caller(sign(exp=int(time.time()) - 20)).scope is Scope.READ


def test_the_reason_is_said_without_the_token(settings: Settings) -> None:
    for kind, words in (
        ("wrong issuer", "another issuer"),
        ("wrong audience", "another audience"),
        ("not yet valid", "not valid yet"),
        ("unsigned", "algorithm"),
        ("no end", "claim is missing"),
        ("another's key", "signature"),
    ):
        with pytest.raises(InvalidCredentials, match=words) as refused:
            Tokens(settings).caller(FORGED[kind]())
        assert FORGED[kind]().split(".")[1] not in str(refused.value)


def test_both_kinds_of_key_sign(settings: Settings) -> None:
    tokens = Tokens(settings)
    for token in (sign(), sign(EC_KEY, "ES256", "ec"), sign(aud=["other", "slimp"])):
        caller = tokens.caller(token)
        assert (caller.name, caller.scope) == ("oidc:nurse-7", Scope.READ)


@pytest.mark.parametrize(
    ("said", "scope"),
    [
        ("slimp:read slimp:admin slimp:write", Scope.ADMIN),
        (["slimp:write"], Scope.WRITE),
        ("openid", None),
        ("", None),
        (None, None),
        (7, None),
        ([["slimp:admin"], {"slimp:admin": 1}], None),
        ("SLIMP:ADMIN slimp:adminx", None),
    ],
)
def test_a_claim_maps_to_the_largest_scope_that_it_names(
    settings: Settings, said: object, scope: Scope | None
) -> None:
    assert Tokens(settings).caller(sign(scope=said)).scope is scope


def test_a_site_maps_its_own_claim(settings: Settings) -> None:
    mapped = settings.model_copy(
        update={"oidc_scope_claim": "groups", "oidc_scopes": {"dermatology": "write"}}
    )
    assert Tokens(mapped).caller(sign(groups=["dermatology"])).scope is Scope.WRITE
    assert Tokens(mapped).caller(sign()).scope is None


@pytest.fixture(scope="module")
def client(settings: Settings, make_runtime: Callable[..., Runtime]) -> Iterator[TestClient]:
    with TestClient(create_app(settings, make_runtime())) as opened:
        yield opened


def test_the_service_starts_with_tokens_alone_and_lets_them_in(client: TestClient) -> None:
    def ask(token: str) -> Any:
        return client.get("/model", headers={"Authorization": f"Bearer {token}"})

    assert ask(sign()).status_code == 200
    assert_error(ask(sign(scope="openid")), 403, "insufficient_scope", "read")
    assert_error(ask(sign(exp=1)), 401, "expired_credentials")
    for kind in ("unsigned", "hs256 with the public key", "unknown kid", "changed claims"):
        response = ask(FORGED[kind]())
        assert_error(response, 401, "invalid_credentials")
        assert 'error="invalid_token"' in response.headers["www-authenticate"]


@pytest.mark.parametrize(
    "failure",
    [
        PyJWKClientConnectionError("refused"),
        PyJWKSetError("no keys"),
        ConnectionResetError(),
        json.JSONDecodeError("a page of HTML", "<html>", 0),
    ],
    ids=lambda failure: type(failure).__qualname__,
)
def test_keys_of_a_url_that_cannot_be_had_are_the_providers_fault_not_the_callers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    asked: list[bool] = []

    def fail(self: object) -> None:
        asked.append(True)
        raise failure

    tokens = Tokens(settings.model_copy(update={"oidc_jwks": f"{ISSUER}/keys"}))
    with monkeypatch.context() as patch:
        patch.setattr(jwt.PyJWKClient, "fetch_data", fail)
        # Nobody waits for a provider that has just failed.
        for _ in range(3):
            with pytest.raises(IdentityUnavailable):
                tokens.caller(sign())
        assert asked == [True]
    ask_again(tokens)
    fetched: list[bool] = []

    def fetch(self: Any) -> Any:
        fetched.append(True)
        self._last_successful_fetch = time.monotonic()
        return public_keys()

    monkeypatch.setattr(jwt.PyJWKClient, "fetch_data", fetch)
    assert tokens.caller(sign()).scope is Scope.READ
    for _ in range(5):
        with pytest.raises(CredentialsRefused):
            tokens.caller(FORGED["unknown kid"]())
    with pytest.raises(CredentialsRefused):
        tokens.caller(forge_hs256(SHARED, kid="shared", algorithm="RS256"))
    assert fetched == [True]


def ask_again(tokens: Tokens) -> None:
    """Let the time pass after which a provider that failed is asked again."""
    find: Any = tokens._find_key
    find.__self__._ask_again_at -= ASK_AGAIN_S


def test_a_provider_that_hangs_holds_up_nobody_who_has_a_key(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_ledger(tmp_path)
    key, _ = ApiKeys(engine).create(label="a", scope=Scope.READ)
    engine.dispose()
    goes_on, waiting = threading.Event(), threading.Semaphore(0)

    def hang(self: object, token: str) -> None:
        waiting.release()
        goes_on.wait(60)
        raise IdentityUnavailable("gone")

    monkeypatch.setattr(Tokens, "caller", hang)
    service = create_app(settings.model_copy(update={"ledger": tmp_path}))
    with TestClient(service) as client, ThreadPoolExecutor(60) as callers:
        token = {"Authorization": f"Bearer {sign()}"}
        asked = [callers.submit(client.get, "/fields", headers=token) for _ in range(60)]
        assert all(waiting.acquire(timeout=60) for _ in range(TOKEN_THREADS))
        mine = client.get("/fields", headers={"Authorization": f"Bearer {key}"})
        assert mine.status_code != 401
        assert not any(call.done() for call in asked)
        goes_on.set()
        assert {call.result().status_code for call in asked} == {503}


@pytest.fixture
def away(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a site whose identity provider does not answer."""

    def fail(self: object) -> None:
        raise PyJWKClientConnectionError("refused")

    monkeypatch.setattr(jwt.PyJWKClient, "fetch_data", fail)
    return settings.model_copy(update={"oidc_jwks": f"{ISSUER}/keys", "ledger": tmp_path})


def test_strangers_that_make_the_service_ask_the_provider_are_limited(away: Settings) -> None:
    limited = away.model_copy(update={"failed_auth_per_minute": 2})
    with TestClient(create_app(limited)) as client:
        token = {"Authorization": f"Bearer {sign()}"}
        statuses = [client.get("/model", headers=token).status_code for _ in range(3)]
        assert statuses == [503, 503, 429]
        assert client.get("/livez", headers=token).status_code == 200


def test_callers_that_nobody_can_name_do_not_fill_the_audit(away: Settings, tmp_path: Path) -> None:
    with TestClient(create_app(away)) as client:
        answer = client.get("/lesions", headers={"Authorization": f"Bearer {sign()}"})
        assert_error(answer, 503, "identity_unavailable")
        assert client.get("/lesions").status_code == 401
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as ledger:
        assert ledger.execute("SELECT status FROM audit").fetchall() == [(401,)]


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"keys": []}', '{"keys": [{}]}'])
def test_a_file_without_a_key_stops_the_service(
    settings: Settings, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidSettings, match="SLIMP_OIDC_JWKS"):
        create_app(settings.model_copy(update={"oidc_jwks": str(path)}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"oidc_issuer": ISSUER}, "go together"),
        ({"oidc_jwks": "keys.json", "oidc_audience": "slimp"}, "go together"),
        ({"oidc_algorithms": ["HS256"]}, "OIDC_ALGORITHMS"),
        ({"oidc_algorithms": ["none"]}, "OIDC_ALGORITHMS"),
        ({"oidc_algorithms": []}, "OIDC_ALGORITHMS"),
        ({"oidc_scopes": {"a": "root"}}, "OIDC_SCOPES"),
        (
            {"oidc_issuer": "a", "oidc_audience": "b", "oidc_jwks": "http://id.example/keys"},
            "https",
        ),
    ],
)
def test_settings_that_would_let_anybody_in_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSettings, match=said):
        read_settings(given, environ={})


def test_a_setting_that_is_no_json_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMP_OIDC_SCOPES", "read")
    with pytest.raises(InvalidSettings, match="oidc_scopes"):
        read_settings(environ={})
