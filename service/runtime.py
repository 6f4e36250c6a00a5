"""The service without HTTP: what `slimp predict` calls, and what the routes call.

Every method takes raw image bytes and raw metadata, checks them, and returns an answer of
`service/schemas.py` or raises an error of `bundle/errors.py`. A runtime holds no state of its own
and may be used from several threads at once.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bundle.errors import CatalogueError, InvalidSettings
from bundle.fields import Record
from bundle.images import ImageLimits
from index.catalogue import Catalogue, Exclusion, StoredLesion
from index.extrapolation import Extrapolated
from index.filters import Filter, parse_filter
from index.lesions import Receipt, RequestKey
from service.assessment import assess, assess_each
from service.batch_choice import fixed_batching, measure_batching
from service.batching import BatchedEncoders
from service.context import Candidate, answer_risk
from service.embeddings import EmbeddingCache
from service.errors import InvalidRequest, LedgerError
from service.growing import NewLesion, add_lesion, edit_lesion
from service.ledger.erasures import Erasures, Kind
from service.metadata import (
    NO_CATALOGUE,
    NOT_ASSESSABLE,
    NOT_GIVEN,
    Metadata,
    agree_on_patient,
    ask_neighbours,
    complete,
)
from service.models import Models, load_models
from service.patient import (
    SubmittedLesion,
    check_contents,
    check_lesions,
    one_lesion_an_image,
    read_lesion_record,
    read_patient,
)
from service.pictures import LesionPictures, look, pool
from service.retrieval import show_hits
from service.schemas import (
    AnswerWarning,
    Assessment,
    EmbedAnswer,
    RiskAnswer,
    SimilarAnswer,
    Status,
)
from service.settings import Settings
from service.stages import stage
from service.tickets import check_awaited
from service.turns import Turns

IMAGE_ONLY = AnswerWarning(
    field="metadata",
    code="image_only",
    message="similarity is by image alone; to narrow by metadata, send a filter",
)
NOBODY = Exclusion()
DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True)
class Runtime:
    """A loaded bundle and its catalogue.

    Attributes:
        models: the bundle.
        catalogue: reference lesions; None answers without neighbours (`slimp predict`).
        limits: what an image may be.
        cache: pictures that came before; None looks at every picture anew.
        prevalence: the site's share of malignant lesions; None stays at the training prevalence.
        max_k: most hits in one answer.
        max_context_lesions: lesions that the context model sees at once.
    """

    models: Models
    catalogue: Catalogue | None
    erasures: Erasures | None = None
    limits: ImageLimits = DEFAULT_LIMITS
    cache: EmbeddingCache | None = None
    prevalence: float | None = None
    max_k: int = 100
    max_context_lesions: int = 64

    def __post_init__(self) -> None:
        self.models.check_prevalence(self.prevalence)
        if self.catalogue is not None and self.cache is not None:
            self.catalogue.on_removal(self.cache.clear)
        if self.catalogue is not None:
            # Who waited for the write lock until nobody waited for the answer changes nothing.
            self.catalogue.before_change = check_awaited

    @property
    def batched(self) -> BatchedEncoders | None:
        """The image encoder's queue; None where every request runs it by itself."""
        encoders = self.models.encoders
        return encoders if isinstance(encoders, BatchedEncoders) else None

    @property
    def bundle_id(self) -> str:
        return self.models.manifest.bundle_id

    def classify(
        self,
        images: Sequence[bytes],
        record: Mapping[str, Any] | None = None,
        *,
        extrapolate: bool = True,
        exclude: Exclusion = NOBODY,
    ) -> Assessment:
        """Return the answer about one lesion.

        Args:
            images: one or more images of it, as files.
            record: raw metadata, field or alias to value.
            extrapolate: whether neighbours may speak for missing fields.
            exclude: lesions and patients that may not; those that hold one of the images never do.
        """
        given = self.models.schema.parse(record or {})
        pictures = self._look(images)
        metadata = self._complete(pictures, given, extrapolate=extrapolate, exclude=exclude)
        return assess(self.models, pictures, metadata, site=self.prevalence)

    def classify_each(
        self,
        images: Sequence[bytes],
        records: Sequence[Mapping[str, Any] | None],
        *,
        extrapolate: bool = True,
    ) -> list[Assessment]:
        """Return the answers about N lesions of one image each, as `classify` gives each alone.

        Args:
            images: N files; taken one by one.
            records: N, raw metadata or None.
            extrapolate: whether neighbours may speak for missing fields.

        Raises:
            InvalidImage, InvalidRecord, InferenceError: one cannot be answered, so none is.
        """
        given = [self.models.schema.parse(record or {}) for record in records]
        lesions = [pool([one], [0]) for one in look(self.models, images, self.limits, self.cache)]
        metadata = [
            self._complete(pictures, record, extrapolate=extrapolate, exclude=NOBODY)
            for pictures, record in zip(lesions, given, strict=True)
        ]
        return assess_each(self.models, lesions, metadata, site=self.prevalence)

    def similar(
        self,
        images: Sequence[bytes],
        record: Mapping[str, Any] | None = None,
        *,
        k: int = 10,
        where: Mapping[str, Any] | None = None,
        exclude: Exclusion = NOBODY,
    ) -> SimilarAnswer:
        """Return the catalogue lesions that look most like one lesion.

        Args:
            images: one or more images of it, as files.
            record: raw metadata; checked, and reserved for retrieval by image and metadata.
            k: hits wanted, 1 to `max_k`; fewer come only where fewer are eligible.
            where: raw filter; None keeps all.
            exclude: lesions and patients left out, beside those that hold one of the images.
        """
        catalogue = self._catalogue()
        self._check_k(k)
        given = self.models.schema.parse(record or {})
        kept = self._filter(where)
        pictures = self._look(images)
        with stage("search"):
            (hits,) = catalogue.search(
                pictures.embedding[None],
                k=k,
                where=kept,
                exclude=_with_contents(exclude, pictures.contents),
            )
        named = any(value is not None for value in given.values())
        return SimilarAnswer(
            status=_status(pictures),
            quality=pictures.quality,
            hits=show_hits(hits),
            warnings=(*pictures.warnings, *((IMAGE_ONLY,) if named else ())),
        )

    def similar_to(
        self,
        lesion_id: str,
        *,
        k: int = 10,
        where: Mapping[str, Any] | None = None,
        exclude: Exclusion = NOBODY,
    ) -> SimilarAnswer:
        """Return the catalogue lesions that look most like one of them, itself left out.

        Raises:
            UnknownLesion: the catalogue has no such lesion.
        """
        catalogue = self._catalogue()
        self._check_k(k)
        kept = self._filter(where)
        lesion = catalogue.lesion(lesion_id)
        left_out = Exclusion(
            exclude.lesions | {lesion_id}, exclude.patients, frozenset(lesion.content_hashes)
        )
        with stage("search"):
            (hits,) = catalogue.search(lesion.embedding[None], k=k, where=kept, exclude=left_out)
        return SimilarAnswer(status=None, quality=None, hits=show_hits(hits))

    def risk(
        self,
        images: Sequence[bytes],
        lesions: Sequence[SubmittedLesion] | None = None,
        patient: Mapping[str, Any] | None = None,
        *,
        patient_id: str | None = None,
        extrapolate: bool = True,
    ) -> RiskAnswer:
        """Return the answer about one patient's lesions.

        Args:
            images: of all lesions, as files.
            lesions: which images belong to which lesion; None makes one lesion an image.
            patient: raw metadata that holds for all lesions.
            patient_id: adds this patient's catalogue lesions as context, and what they agree on.
            extrapolate: whether neighbours of other patients may speak for missing fields.
        """
        asked = one_lesion_an_image(len(images)) if lesions is None else lesions
        check_lesions(asked, len(images))
        records = [read_lesion_record(self.models, one) for one in asked]
        self.models.schema.parse(patient or {})
        if patient_id is not None:
            self._catalogue()
        looked = look(self.models, images, self.limits, self.cache)
        known = read_patient(
            self.models,
            self.catalogue,
            patient or {},
            patient_id=patient_id,
            contents=frozenset(picture.content for picture in looked),
        )
        # All pictures are one patient's, whose lesions must not speak for each other.
        same = Exclusion(
            patients=frozenset(() if patient_id is None else (patient_id,)),
            contents=frozenset(picture.content for picture in looked),
        )
        check_contents(asked, [picture.content for picture in looked])
        pictures = [pool([looked[i] for i in one.images], one.images) for one in asked]
        given = [
            {**known.record, **{name: v for name, v in record.items() if v is not None}}
            for record in records
        ]
        said = [
            self._ask(seen, own, extrapolate=extrapolate, exclude=same)
            for seen, own in zip(pictures, given, strict=True)
        ]
        agree_on_patient(self.models, [guesses for guesses, _ in said])
        candidates = [
            Candidate(
                one.id,
                seen,
                complete(
                    self.models,
                    own,
                    guesses,
                    reason=reason,
                    from_catalogue=known.from_catalogue,
                ),
            )
            for one, seen, own, (guesses, reason) in zip(asked, pictures, given, said, strict=True)
        ]
        return answer_risk(
            self.models,
            candidates,
            known,
            site=self.prevalence,
            max_context=self.max_context_lesions,
        )

    def embed(self, images: Sequence[bytes]) -> EmbedAnswer:
        """Return the image encoder's feature of one lesion."""
        pictures = self._look(images)
        return EmbedAnswer(
            status=_status(pictures),
            quality=pictures.quality,
            embedding=tuple(float(x) for x in pictures.embedding),
            variant=self.models.variant,
            warnings=pictures.warnings,
        )

    def lesion(self, lesion_id: str) -> StoredLesion:
        """Return a lesion of the catalogue; whoever shows it leaves the patient id out."""
        return self._catalogue().lesion(lesion_id)

    def lesions(self, cursor: int, count: int) -> tuple[list[StoredLesion], int | None]:
        """Return a page of the catalogue's lesions and the cursor of the next one."""
        return self._catalogue().lesions_after(cursor, count)

    def add_lesion(self, new: NewLesion, request: RequestKey | None) -> tuple[StoredLesion, bool]:
        """Add a lesion to the catalogue; return it, and whether it was added now."""
        return add_lesion(self.models, self._catalogue(), new, request, self.limits)

    def edit_lesion(self, lesion_id: str, changes: Mapping[str, Any]) -> StoredLesion:
        """Change what is known of a catalogue lesion and return it."""
        return edit_lesion(self.models, self._catalogue(), lesion_id, changes)

    def erase(self, kind: Kind, name: str) -> Receipt:
        """Erase a lesion, or all lesions of a patient."""
        if self.erasures is None:
            raise LedgerError("an erasure must be remembered, and this runtime has no ledger")
        try:
            return self.erasures.erase(self._catalogue(), kind, name)
        finally:
            # It may hold pictures of somebody whom the catalogue does not.
            if self.cache is not None:
                self.cache.clear()

    def check_catalogue(self) -> None:
        """Do nothing if the catalogue, where there is one, answers and gives its write lock.

        Whoever was erased since it was opened, by a service with another catalogue beside the same
        ledger, is erased here too.

        Raises:
            CatalogueError, LedgerError: it does not, or the ledger does not.
        """
        if self.catalogue is None:
            return
        self.catalogue.check()
        if self.erasures is not None:
            self.erasures.finish(self.catalogue)

    def close(self) -> None:
        """Keep the vectors for the next start and release the databases."""
        if self.batched is not None:
            self.batched.close()
        if self.catalogue is not None:
            self.catalogue.save()
            self.catalogue.close()
        if self.erasures is not None:
            self.erasures.close()

    def thumbnail(self, lesion_id: str) -> bytes:
        """Return a catalogue lesion's thumbnail file."""
        return self._catalogue().thumbnail(lesion_id)

    def _look(self, images: Sequence[bytes]) -> LesionPictures:
        if not images:
            raise InvalidRequest("image: expected at least one image, got none", field="image")
        looked = look(self.models, images, self.limits, self.cache)
        return pool(looked, range(len(images)))

    def _complete(
        self, pictures: LesionPictures, given: Record, *, extrapolate: bool, exclude: Exclusion
    ) -> Metadata:
        guesses, reason = self._ask(pictures, given, extrapolate=extrapolate, exclude=exclude)
        return complete(self.models, given, guesses, reason=reason)

    def _ask(
        self, pictures: LesionPictures, given: Record, *, extrapolate: bool, exclude: Exclusion
    ) -> tuple[dict[str, Extrapolated], str]:
        """Return what neighbours say of the gaps, and why a gap of which they were not asked stays.

        None are asked of a lesion that is not assessable.
        """
        if not pictures.assessable:
            return {}, NOT_ASSESSABLE
        if not extrapolate:
            return {}, NOT_GIVEN
        if self.catalogue is None:
            return {}, NO_CATALOGUE
        guesses = ask_neighbours(
            self.models,
            self.catalogue,
            given,
            pictures.embedding,
            exclude=_with_contents(exclude, pictures.contents),
        )
        return guesses, NOT_GIVEN

    def _catalogue(self) -> Catalogue:
        if self.catalogue is None:
            raise CatalogueError("expected a catalogue, this runtime was opened without: name one")
        return self.catalogue

    def _check_k(self, k: int) -> None:
        if not 1 <= k <= self.max_k:
            raise InvalidRequest(f"k: expected from 1 to {self.max_k}, got {k}", field="k")

    def _filter(self, where: Mapping[str, Any] | None) -> Filter | None:
        if where is None:
            return None
        return parse_filter(where, self._catalogue().schema, self.models.labels)


def _status(pictures: LesionPictures) -> Status:
    return "answered" if pictures.assessable else "not_assessable"


def _with_contents(exclude: Exclusion, contents: Collection[str]) -> Exclusion:
    return Exclusion(exclude.lesions, exclude.patients, exclude.contents | frozenset(contents))


def load_runtime(settings: Settings) -> Runtime:
    """Return the runtime once the bundle is proven on this machine and the catalogue is its own.

    Args:
        settings: name both.

    Raises:
        InvalidSettings: the bundle or the catalogue is not named.
        BundleError: the bundle cannot be used.
        CatalogueError: the catalogue cannot be used, or another bundle made it.
    """
    if settings.bundle is None:
        raise InvalidSettings("SLIMP_BUNDLE: expected a bundle folder, it is not set")
    if settings.catalogue is None:
        raise InvalidSettings("SLIMP_CATALOGUE: expected a catalogue folder, it is not set")
    models = load_models(
        settings.bundle,
        threads=settings.threads_each,
        variant=settings.variant,
        device=settings.device,
        engines=settings.tensorrt_engines,
        side_by_side=settings.max_batch == 0,
    )
    catalogue = Catalogue.open(
        settings.catalogue,
        bundle_id=models.manifest.bundle_id,
        variant=models.variant,
    )
    cached_mib = settings.embedding_cache_mib
    erasures = Erasures(settings.ledger_folder)
    erasures.finish(catalogue)
    return Runtime(
        _queued(models, settings),
        catalogue,
        erasures,
        limits=settings.image_limits,
        cache=EmbeddingCache(cached_mib) if cached_mib > 0 else None,
        prevalence=settings.prevalence,
        max_k=settings.max_k,
        max_context_lesions=settings.max_context_lesions,
    )


def _queued(models: Models, settings: Settings) -> Models:
    """Return the models with the image encoder behind a queue, warm."""
    size_px, delay_ms = models.manifest.image_input.size_px, settings.batch_delay_ms
    delay_s = None if delay_ms is None else delay_ms / 1000
    threads = settings.threads_each
    if settings.max_batch == 0:
        batching = measure_batching(
            models.encoders, size_px, delay_s, narrow=models.narrow, at_once=threads
        )
    else:
        batching = fixed_batching(models.encoders, size_px, settings.max_batch, delay_s)
    narrow = models.narrow if batching.at_once > 1 else None
    decoding = Turns(threads)
    return replace(
        models,
        encoders=BatchedEncoders(
            models.encoders, batching, narrow=narrow, coming=lambda: decoding.asked
        ),
        decoding=decoding,
        # What is not used is let go.
        narrow=None,
    )
