"""Everything a site may change, read once from the environment (prefix SLIMP_).

`python -m service.settings` prints the documentation table; a test compares it with
`docs/settings.md`.
"""

import difflib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from bundle.cpus import available_cpus
from bundle.devices import Wanted
from bundle.errors import InvalidSettings
from bundle.images import ImageLimits

PREFIX = "SLIMP_"
# Signatures made with a private key and checked with a public one; nothing else is known.
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
# Read by other programs of the project, not by the service.
FOREIGN_KEYS = frozenset({"SLIMP_REAL_DATA"})


def setting(default: Any, help_text: str, *, unit: str = "", **bounds: Any) -> Any:
    """Return a field declared once: default, meaning, unit and bounds."""
    return Field(default=default, description=help_text, json_schema_extra={"unit": unit}, **bounds)


class Settings(BaseSettings):
    """The service's settings; each may be given as SLIMP_<NAME IN CAPITALS>."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    bundle: Path | None = setting(None, "folder of the bundle that is served")
    catalogue: Path | None = setting(None, "folder of the catalogue of reference lesions")
    ledger: Path | None = setting(
        None,
        "folder of the service's own database (API keys). Unset: the folder `ledger` beside the "
        "catalogue's folder",
    )
    host: str = setting(
        "127.0.0.1", "address to listen on; any but a loopback address needs keys (SLIMP_AUTH)"
    )
    port: int = setting(8000, "port to listen on", ge=1, le=65535)
    audit: bool = setting(
        True, "whether every request is written into the ledger's audit before it is answered"
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "least severe log line that is written"
    )
    auth: Literal["auto", "on", "off"] = setting(
        "auto",
        "whether callers need a key or token: auto, unless the service listens on a loopback "
        "address and no proxy is trusted; on, always (behind a proxy); off, never, whoever "
        "reaches it",
    )
    publish: str | None = setting(
        None,
        "address at which others reach the service, where that is not SLIMP_HOST: of a "
        "container's published port. SLIMP_AUTH=off is refused for any but a loopback address",
    )
    trusted_proxies: str = setting(
        "",
        "addresses of proxies, with commas between, whose X-Forwarded-For names the client; "
        "empty trusts none",
    )
    rate_per_minute: int = setting(
        600, "requests of one key or token subject", unit="requests a minute", ge=1, le=1_000_000
    )
    failed_auth_per_minute: int = setting(
        30,
        "refusals of strangers from one client address that say why; more get 429",
        unit="requests a minute",
        ge=1,
        le=1_000_000,
    )
    oidc_issuer: str | None = setting(
        None, "the identity provider whose tokens are accepted (`iss`). Unset: API keys only"
    )
    oidc_audience: str | None = setting(None, "who tokens must be for (`aud`)")
    oidc_jwks: str | None = setting(
        None, "the identity provider's public keys: a JWKS file, read at start, or an https URL"
    )
    oidc_algorithms: tuple[Algorithm, ...] = setting(
        ("RS256", "ES256"), "signatures that are accepted, as a JSON list", min_length=1
    )
    oidc_leeway_s: int = setting(
        30, "how far the identity provider's clock may be off", unit="seconds", ge=0, le=300
    )
    oidc_scope_claim: str = setting(
        "scope", "claim that says what a subject may do: words in a text, or a list"
    )
    oidc_scopes: dict[str, Literal["read", "write", "admin"]] = setting(
        {"slimp:read": "read", "slimp:write": "write", "slimp:admin": "admin"},
        "what each value of that claim allows, as JSON; other values allow nothing",
    )
    otlp_endpoint: str | None = setting(
        None,
        "where traces are sent, an OTLP/HTTP collector's address such as "
        "http://collector:4318/v1/traces; needs the extra otel. Unset: nowhere",
    )
    prevalence: float | None = setting(
        None,
        "share of lesions that are malignant at this site; probabilities are shifted from the "
        "training prevalence to it. Unset: answers hold at the training prevalence",
        unit="share",
        gt=0,
        lt=1,
    )
    variant: str | None = setting(
        None,
        "precision of the image encoder, one of the bundle's; the catalogue must be of the same. "
        "Unset: the one that the bundle chose when it was exported",
    )
    device: Wanted = setting(
        "auto",
        "what runs the image encoder: auto, a GPU where the installed ONNX Runtime finds one, else "
        "the processor; one that is named is taken, or the service does not start",
    )
    tensorrt_engines: Path | None = setting(
        None,
        "folder in which SLIMP_DEVICE=tensorrt keeps the engines that it makes for a bundle, a GPU "
        "and a TensorRT, one such folder for each bundle. Unset: they are made at each start, in "
        "minutes",
    )
    threads: int = setting(
        0,
        "threads within one inference; 0 takes each worker's share of the processors that this "
        "process may use, which a container's quota bounds",
        unit="threads",
        ge=0,
        le=256,
    )
    embedding_cache_mib: int = setting(
        16,
        "memory of each process for pictures that came before, which are not embedded again; an "
        "erasure empties it; 0 keeps none",
        unit="MiB",
        ge=0,
        le=65_536,
    )
    workers: int = setting(
        1,
        "processes that answer; from 2 on, one that dies or hangs is replaced, and SIGHUP swaps "
        "bundle and catalogue one worker at a time",
        unit="processes",
        ge=1,
        le=64,
    )
    stall_exit_s: float = setting(
        120.0,
        "how long every inference thread may be lost before the process ends, to be started anew",
        unit="seconds",
        gt=0,
        le=86_400,
    )
    max_batch: int = setting(
        0,
        "pictures of several requests that go through the image encoder at once, a power of two; "
        "0 measures at start what is fastest, also runs side by side, 1 takes one at a time",
        unit="pictures",
        ge=0,
        le=64,
    )
    batch_delay_ms: float | None = setting(
        None,
        "how long a picture waits for those that are being decoded, where batches pay; without it "
        "as long as one picture takes, measured at start",
        unit="milliseconds",
        ge=0,
        le=1000,
    )
    max_concurrency: int = setting(
        8,
        "requests that are worked on at the same time; as many as there are processors decode, the "
        "others wait for the image encoder. Bulk requests (`Priority: u=5` or higher) have half",
        unit="requests",
        ge=1,
        le=256,
    )
    max_queue: int = setting(
        4, "requests that may wait beyond those; more get 429", unit="requests", ge=0, le=10_000
    )
    request_timeout_s: float = setting(
        60.0,
        "longest time from a request's arrival to its answer, upload and waiting included",
        unit="seconds",
        gt=0,
        le=3600,
    )
    retry_after_s: int = setting(
        2, "what Retry-After tells a caller that was turned away", unit="seconds", ge=1, le=3600
    )
    max_request_bytes: int = setting(
        100_000_000,
        "largest request body; all admitted bodies are held in memory, so memory is bounded by "
        "(max_concurrency + max_queue) times this",
        unit="bytes",
        ge=1_000,
        le=4_000_000_000,
    )
    max_image_bytes: int = setting(
        20_000_000, "largest image file", unit="bytes", ge=1_000, le=1_000_000_000
    )
    max_image_pixels: int = setting(
        40_000_000, "largest image, width times height", unit="pixels", ge=1, le=500_000_000
    )
    max_image_side_px: int = setting(
        12_000, "longest side of an image", unit="pixels", ge=1, le=100_000
    )
    max_images: int = setting(8, "images of one lesion in one request", unit="images", ge=1, le=64)
    max_images_risk: int = setting(
        64, "images of one patient in one request to /risk", unit="images", ge=1, le=1024
    )
    max_context_lesions: int = setting(
        64,
        "lesions of one patient that the context model sees at once, submitted ones first",
        unit="lesions",
        ge=1,
        le=1024,
    )
    max_text_bytes: int = setting(
        65_536, "longest text part of a request (metadata, filter)", unit="bytes", ge=64, le=10**7
    )
    max_k: int = setting(100, "most similar lesions in one answer", unit="lesions", ge=1, le=1000)

    @model_validator(mode="after")
    def _check_oidc(self) -> Self:
        given = [self.oidc_issuer, self.oidc_audience, self.oidc_jwks]
        if None in given and given != [None] * 3:
            raise ValueError("oidc_issuer, oidc_audience and oidc_jwks go together")
        if self.oidc_jwks is not None and self.oidc_jwks.startswith("http://"):
            raise ValueError("oidc_jwks must be a file or an https URL")
        return self

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.max_batch.bit_count() > 1:
            raise ValueError("max_batch must be a power of two, or 0")
        return self

    @model_validator(mode="after")
    def _check_context(self) -> Self:
        if self.max_context_lesions < self.max_images_risk:
            raise ValueError("max_context_lesions must hold max_images_risk lesions")
        return self

    @property
    def ledger_folder(self) -> Path:
        """Return where the ledger lies.

        Raises:
            InvalidSettings: neither the ledger nor the catalogue is named.
        """
        if self.ledger is not None:
            return self.ledger
        if self.catalogue is None:
            raise InvalidSettings(
                "SLIMP_LEDGER: expected the folder of the service's own database, or "
                "SLIMP_CATALOGUE, beside which it then lies; got neither"
            )
        return self.catalogue.absolute().parent / "ledger"

    @property
    def threads_each(self) -> int:
        """Threads of a worker: SLIMP_THREADS, or its share of the processors, 1 at least."""
        return self.threads or max(1, available_cpus() // self.workers)

    @property
    def image_limits(self) -> ImageLimits:
        """Return what an uploaded image may be."""
        return ImageLimits(
            max_bytes=self.max_image_bytes,
            max_pixels=self.max_image_pixels,
            max_side_px=self.max_image_side_px,
        )


def read_settings(
    overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ
) -> Settings:
    """Return the environment's settings.

    Args:
        overrides: setting name to value, stronger than the environment; None counts as not given.
        environ: the environment's keys, to find those that no setting carries.

    Raises:
        InvalidSettings: a SLIMP_ key that no setting has, or a value outside its bounds.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields} | FOREIGN_KEYS
    for key in sorted(environ):
        if key.startswith(PREFIX) and key not in known:
            nearest = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.0)[0]
            raise InvalidSettings(f"{key}: no such setting; the nearest is {nearest}")
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    try:
        return Settings(**given)
    except SettingsError as error:
        raise InvalidSettings(f"{error}: expected JSON") from None
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise InvalidSettings(f"{first['msg']}") from None
        name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        raise InvalidSettings(f"{name}: {first['msg']}, got {first['input']!r}") from None


def settings_table() -> str:
    """Return the documentation of every setting as Markdown."""
    lines = [
        "# Settings of the service",
        "",
        "Made by `python -m service.settings`; a test compares the two. Every setting is an",
        "environment variable; a `SLIMP_` variable that is not listed is an error"
        f" ({', '.join(sorted(FOREIGN_KEYS))}, read by the tests, excepted).",
        "",
        "| variable | default | unit | bounds | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else f"`{field.default}`"
        cells = (f"`{PREFIX}{name.upper()}`", default, _unit(field), _bounds(field))
        lines.append("| " + " | ".join((*cells, str(field.description))) + " |")
    return "\n".join(lines) + "\n"


def _unit(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["unit"]) if isinstance(extra, dict) else ""


def _bounds(field: FieldInfo) -> str:
    words = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}
    return " ".join(
        f"{word} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, word in words.items()
        if getattr(limit, name, None) is not None
    )


if __name__ == "__main__":
    sys.stdout.write(settings_table())
