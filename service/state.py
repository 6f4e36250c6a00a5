"""What one app holds while it runs: settings, the runtime once loaded, who may be served."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Annotated, TypeVar, cast

from fastapi import Depends, Request
from pydantic import BaseModel

from bundle.errors import LesionError
from index.catalogue import Catalogue
from service.access.callers import Caller
from service.access.gate import Gate
from service.checks import Checks
from service.embeddings import EmbeddingCache
from service.errors import (
    Draining,
    InvalidRequest,
    LoadFailed,
    Loading,
    RequestTooLarge,
    Stalled,
    Unhealthy,
)
from service.evidence import digest_form, note_input, note_output
from service.ledger.audit import AuditLog
from service.logging import Log, describe_exception
from service.metrics import Metrics
from service.requests import FormRequest, parse_form, parts_of
from service.runtime import Runtime, load_runtime
from service.scheduling import Scheduler
from service.schemas import Envelope, MetadataEntry, Quality
from service.settings import Settings
from service.stages import measuring
from service.tickets import Lane, Ticket, lane_of
from service.uploads import FormLimits, read_form

# Between two tries to load, and two looks at the threads.
LOAD_AGAIN_S = 5.0
WATCH_S = 1.0
STALLED_EXIT = 70

Asked = TypeVar("Asked", bound=FormRequest)
Changes = TypeVar("Changes")
Result = TypeVar("Result")
Response = TypeVar("Response", bound=Envelope)


class Service:
    """One app's state; made by `create_app`, reached by routes through `ServiceDep`."""

    def __init__(self, settings: Settings, runtime: Runtime | None, log: Log) -> None:
        self.settings = settings
        self.log = log
        self.gate = Gate(settings)
        self.metrics = Metrics()
        self.failure: str | None = None
        self.failure_code: str | None = None
        self.is_draining = False
        # Called at the end of `close`: whoever runs the process sees to it that it ends.
        self.when_closed: Callable[[], None] = lambda: None
        self.audit = _open_audit(settings)
        self._checks: Checks | None = None
        self._known_faults: tuple[str, ...] = ()
        # Requests answered with 500: neither the caller's doing nor the load's.
        self.failed = 0
        self.stopping = asyncio.Event()
        self._runtime = runtime
        self._owns_runtime = runtime is None
        self.scheduler = Scheduler(
            max_concurrency=settings.max_concurrency,
            max_queue=settings.max_queue,
            timeout_s=settings.request_timeout_s,
        )
        self.metrics.watch(
            "slimp_requests_admitted",
            "Requests inside now",
            lambda: float(self.scheduler.admitted),
        )
        self.metrics.watch(
            "slimp_ready",
            "1 when requests are answered, as /readyz said when it was asked last",
            lambda: float(self._is_ready),
        )
        self.metrics.watch(
            "slimp_catalogue_lesions",
            "Lesions of the catalogue",
            lambda: float(0 if (held := self._catalogue()) is None else len(held)),
        )
        self.metrics.watch(
            "slimp_catalogue_revision",
            "Changes of the catalogue that this process has seen",
            lambda: float(self.catalogue_revision or 0),
        )

        self._watch_cache()

    def _watch_cache(self) -> None:
        def read(name: str) -> Callable[[], float]:
            return lambda: float(0 if (kept := self._cache()) is None else getattr(kept, name))

        self.metrics.watch_count(
            "slimp_embedding_cache_hits", "Pictures that no model had to see again", read("hits")
        )
        self.metrics.watch_count(
            "slimp_embedding_cache_misses", "Pictures that a model had to see", read("misses")
        )
        self.metrics.watch(
            "slimp_embedding_cache_bytes", "Memory of the pictures kept", read("size_bytes")
        )

    @property
    def is_stalled(self) -> bool:
        """Whether nothing can be answered: all threads are lost, or the encoder's is."""
        encoder = None if self._runtime is None else self._runtime.batched
        hangs = encoder is not None and encoder.busy_s > self.settings.request_timeout_s
        return self.scheduler.is_stalled or hangs

    @property
    def _is_ready(self) -> bool:
        served = self._runtime is not None and not self.is_draining
        return served and not self.is_stalled and not self._known_faults

    @property
    def bundle_id(self) -> str | None:
        return None if self._runtime is None else self._runtime.bundle_id

    @property
    def catalogue_revision(self) -> int | None:
        catalogue = self._catalogue()
        return None if catalogue is None else catalogue.revision

    @property
    def loaded(self) -> Runtime | None:
        """The runtime, None while there is none or once nothing new is taken."""
        return None if self.is_draining else self._runtime

    def _catalogue(self) -> Catalogue | None:
        return None if self._runtime is None else self._runtime.catalogue

    def _cache(self) -> EmbeddingCache | None:
        return None if self._runtime is None else self._runtime.cache

    def runtime(self) -> Runtime:
        """Return the loaded runtime.

        Raises:
            Loading: not yet.
            LoadFailed: never; /readyz says why.
            Draining: no more.
        """
        if self.is_draining:
            raise Draining(
                "the service is stopping and takes nothing new: send the request again later"
            )
        if self._runtime is not None:
            return self._runtime
        if self.failure is not None:
            raise LoadFailed(
                f"the service could not load ({self.failure_code}); /readyz says why to a caller "
                "that the service knows: repair that and start it again"
            )
        raise Loading("the service is loading and checking its bundle: ask again in a moment")

    async def check_ready(self, *, told: bool) -> Runtime:
        """Return the runtime if requests would be answered now.

        Args:
            told: whether a failure's reason is told, which may name the site's paths.

        Raises:
            NotReady: with the reason, for the site's operator.
        """
        if self.failure is not None and told:
            raise LoadFailed(self.failure)
        if self.is_stalled:
            raise Stalled(
                "every thread works for a request whose time is over: restart the service if this "
                "stays"
            )
        runtime = self.runtime()
        if faults := await self._faults(runtime):
            raise Unhealthy("; ".join(faults) if told else "a check fails")
        return runtime

    async def _faults(self, runtime: Runtime) -> tuple[str, ...]:
        """Return what is wrong now; asked once a while, however many probes come."""
        if self._checks is None:
            folders = [self.settings.ledger_folder] if self.audit is not None else []
            self._checks = Checks(
                runtime,
                self.audit,
                folders,
                is_idle=lambda: self.scheduler.admitted == 0,
                failed=lambda: self.failed,
            )
        faults = await self._checks.faults()
        if faults != self._known_faults:
            # Probes without a key are not told why; the log is, once.
            self._known_faults = faults
            if faults:
                self.log.error("unhealthy", faults=faults)
            else:
                self.log.info("healthy")
        return faults

    async def load(self) -> bool:
        """Load the runtime on a thread and return whether it is there.

        A failure is kept for /readyz, never raised.
        """
        if self._runtime is not None:
            return True
        started = time.perf_counter()
        loading = asyncio.get_running_loop().create_task(
            asyncio.to_thread(load_runtime, self.settings)
        )
        await asyncio.wait([loading])
        error = loading.exception()
        if error is None:
            self._runtime = loading.result()
            self.failure = self.failure_code = None
            self.metrics.load_seconds.set(time.perf_counter() - started)
            models = self._runtime.models
            self.log.info(
                "ready",
                bundle_id=self.bundle_id,
                variant=models.variant,
                device=models.device,
            )
            return True
        if isinstance(error, LesionError | OSError):
            self.failure_code = getattr(error, "code", "storage_error")
            self.failure = f"{self.failure_code}: {error}"
            self.log.error("load_failed", code=self.failure_code, detail=str(error))
        else:
            self.failure_code = "internal_error"
            self.failure = f"internal_error: {type(error).__qualname__}, see the service's log"
            self.log.error("load_failed", code=self.failure_code, **describe_exception(error))
        return False

    async def keep_trying(self) -> None:
        """Load until it succeeds or the service stops: it serves when a failure's cause is gone."""
        while not await self.load():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOAD_AGAIN_S):
                    await self.stopping.wait()
            if self.stopping.is_set():
                return

    async def watch(self) -> None:
        """End the process when it has been stalled for too long: whoever keeps it starts it anew.

        A thread that hangs in native code cannot be ended in any other way.
        """
        since: float | None = None
        while True:
            await asyncio.sleep(WATCH_S)
            since = (since or time.monotonic()) if self.is_stalled else None
            if since is not None and time.monotonic() - since > self.settings.stall_exit_s:
                self.log.critical("stalled", seconds=round(time.monotonic() - since))
                os._exit(STALLED_EXIT)

    def close(self) -> None:
        """Let go of threads, and of the catalogue if this service opened it."""
        self.scheduler.close()
        if self.audit is not None:
            self.audit.close()
        self.gate.close()
        runtime, self._runtime = self._runtime, None if self._owns_runtime else self._runtime
        if self._owns_runtime and runtime is not None:
            try:
                runtime.close()
            except (LesionError, OSError) as error:
                # The vectors are made again from SQL at the next start.
                self.log.error("vectors_not_saved", detail=str(error))
        self.when_closed()

    async def ask(
        self,
        request: Request,
        model: type[Asked],
        work: Callable[[Runtime, Asked], Result],
        *,
        max_files: int,
    ) -> Result:
        """Return what the runtime answers to a multipart form.

        The request is admitted before its body is read, and its time covers both.

        Args:
            request: the HTTP request.
            model: what the form asks.
            work: calls the runtime; runs on an inference thread.
            max_files: images that the form may carry.
        """
        runtime = self.runtime()
        if name := next(iter(request.query_params), None):
            raise InvalidRequest(
                f"{name[:100]}: expected as a part of the form, got it in the URL",
                field=name[:100],
            )
        limits = FormLimits(
            files=max_files,
            file_bytes=self.settings.max_image_bytes,
            text_bytes=self.settings.max_text_bytes,
            body_bytes=self.settings.max_request_bytes,
        )
        _check_length(request, limits.body_bytes)
        async with self.scheduler.admit(_lane(request)) as ticket:
            content_type = request.headers.get("content-type", "")
            form = await read_form(content_type, request.stream(), parts_of(model), limits)
            # The hash of a few words alone could be guessed.
            if form.files:
                note_input(request.scope, digest_form(form))
            asked = parse_form(model, form)
            async with _watching(request, ticket):
                return await self._run(request, lambda: work(runtime, asked))

    async def ask_json(
        self,
        request: Request,
        parse: Callable[[bytes], Changes],
        work: Callable[[Runtime, Changes], Result],
    ) -> Result:
        """Return what the runtime answers to a small JSON body, read under the limit of a text.

        The audit holds no hash of it, which could be guessed.
        """
        runtime = self.runtime()
        limit = self.settings.max_text_bytes
        _check_length(request, limit)
        async with self.scheduler.admit(_lane(request)):
            body = bytearray()
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise RequestTooLarge(f"expected at most {limit} bytes of JSON, got more")
            asked = parse(bytes(body))
            return await self._run(request, lambda: work(runtime, asked))

    async def look_up(self, request: Request, work: Callable[[Runtime], Result]) -> Result:
        """Return what the runtime answers to a request without a body."""
        runtime = self.runtime()
        async with self.scheduler.admit(_lane(request)):
            return await self._run(request, lambda: work(runtime))

    async def _run(self, request: Request, work: Callable[[], Result]) -> Result:
        submitted = time.perf_counter()
        seconds = self.metrics.work_seconds.labels(route=route_of(request.scope))

        def measured() -> Result:
            self.metrics.waiting_seconds.observe(time.perf_counter() - submitted)
            with seconds.time(), measuring() as spent:
                try:
                    return work()
                finally:
                    for name, took in spent.items():
                        self.metrics.stage_seconds.labels(stage=name).observe(took)

        result = await self.scheduler.run(measured)
        note_output(request.scope, result)
        return result

    def count_metadata(self, metadata: Mapping[str, MetadataEntry]) -> None:
        """Count where an answered lesion's metadata came from, and why some is missing."""
        for entry in metadata.values():
            self.metrics.metadata.labels(source=entry.source, reason=entry.reason or "").inc()

    def count_quality(self, quality: Quality) -> None:
        """Count a lesion that could not be assessed, by its reasons."""
        for reason in quality.reasons:
            self.metrics.not_assessable.labels(reason=reason).inc()


@contextlib.asynccontextmanager
async def _watching(request: Request, ticket: Ticket) -> AsyncIterator[None]:
    """Mark the ticket when the client goes away during the block; the body has been read."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        ticket.leave()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()


def _open_audit(settings: Settings) -> AuditLog | None:
    """Return the audit of this site; None where nothing says where it would lie."""
    if not settings.audit or (settings.ledger is None and settings.catalogue is None):
        return None
    return AuditLog(settings.ledger_folder)


def _lane(request: Request) -> Lane:
    return lane_of(request.headers.get("priority"))


def _check_length(request: Request, limit: int) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise RequestTooLarge(f"expected at most {limit} bytes a request, got {declared}")


def route_of(scope: object) -> str:
    """Return the route's path as it is declared, "unmatched" where none matched."""
    route = cast("dict[str, object]", scope).get("route")
    return str(getattr(route, "path", "unmatched"))


def get_service(request: Request) -> Service:
    """Return the app's state."""
    return cast(Service, request.app.state.service)


def request_id_of(request: Request) -> str:
    """Return the id that the middleware gave the request."""
    return cast(str, request.state.request_id)


def caller_of(request: Request) -> Caller | None:
    """Return whose request it is, None where a route that needs no key got none."""
    return cast("Caller | None", request.state.caller)


def bundle_id_for(request: Request) -> str | None:
    """Return the bundle's id for a caller; nobody else is told what is served."""
    return None if caller_of(request) is None else get_service(request).bundle_id


def envelop(kind: type[Response], answer: BaseModel, request: Request) -> Response:
    """Return an answer with the envelope that every response carries."""
    service = get_service(request)
    envelope = {"request_id": request_id_of(request), "bundle_id": service.bundle_id}
    return kind(**dict(answer), **envelope)


async def _provide_service(request: Request) -> Service:
    # Asynchronous, though it waits for nothing: FastAPI calls any other function on a thread, and
    # under load a request would wait for one twice.
    return get_service(request)


ServiceDep = Annotated[Service, Depends(_provide_service)]
