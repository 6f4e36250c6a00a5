"""What is served: /model and /fields."""

from typing import Any

from fastapi import APIRouter, Request

from bundle.calibration import Calibration, OperatingPoint
from bundle.fields import MISSING_WORDS, Field
from bundle.manifest import Variant
from service.access.mode import OFF_BANNER, Mode
from service.assessment import risk_at_site
from service.batching import Batching
from service.problems import problems
from service.runtime import Runtime
from service.schemas import (
    AnswerWarning,
    CalibrationDescription,
    CatalogueDescription,
    DataDescription,
    FieldDescription,
    FieldsResponse,
    ModelResponse,
    OperatingPointDescription,
    SchedulingDescription,
    VariantDescription,
)
from service.settings import Settings
from service.state import ServiceDep, request_id_of

router = APIRouter(tags=["about"])
ACCESS_OFF = AnswerWarning(field="access", code="access_off", message=OFF_BANNER)


@router.get("/model", responses=problems(503))
async def model(request: Request, service: ServiceDep) -> ModelResponse:
    """Say what is served, for what it may be used, and the evidence behind it."""
    runtime = service.runtime()
    return ModelResponse(
        request_id=request_id_of(request),
        bundle_id=runtime.bundle_id,
        access=service.gate.mode.value,
        warnings=(ACCESS_OFF,) if service.gate.mode is Mode.OFF else (),
        **_describe_bundle(runtime),
        **_describe_site(runtime, service.settings),
    )


def _describe_bundle(runtime: Runtime) -> dict[str, Any]:
    models = runtime.models
    manifest, calibration = models.manifest, models.calibration
    return {
        "intended_use": manifest.intended_use,
        "limits": manifest.limits,
        "labels": manifest.labels,
        "malignant_labels": manifest.malignant_labels,
        "objective": manifest.objective,
        "created_at": manifest.created_at,
        "software_version": manifest.software_version,
        "variant": models.variant,
        "variants": tuple(map(_describe_variant, manifest.variants)),
        "embedding_dim": manifest.embedding_dim,
        "has_context": models.encoders.has_context,
        "has_novelty_check": models.novelty is not None,
        "prevalence": calibration.prevalence,
        "training_prevalence": models.trained_prevalence,
        "calibration": _describe_calibration(calibration),
        "operating_points": tuple(
            _describe_point(runtime, point) for point in calibration.operating_points
        ),
        "split_recipe": manifest.split_recipe,
        "data": tuple(DataDescription(**source.model_dump()) for source in manifest.data),
    }


def _describe_site(runtime: Runtime, settings: Settings) -> dict[str, Any]:
    catalogue = runtime.catalogue
    return {
        "site_prevalence": runtime.prevalence,
        "scheduling": _describe_scheduling(runtime, settings),
        "catalogue": CatalogueDescription(
            lesions=0 if catalogue is None else len(catalogue),
            revision=0 if catalogue is None else catalogue.revision,
        ),
        "max_k": runtime.max_k,
        "max_images": settings.max_images,
        "max_images_risk": settings.max_images_risk,
        "image_formats": runtime.limits.formats,
    }


def _describe_point(runtime: Runtime, point: OperatingPoint) -> OperatingPointDescription:
    """Return the point with its threshold where malignancy is answered: the shift keeps the order.

    A threshold outside [0, 1], which all lesions or none pass, is at every prevalence where it is.
    """
    site, threshold = runtime.prevalence, point.threshold
    at_site = None
    if site is not None:
        inside = 0 < threshold < 1
        at_site = risk_at_site(runtime.models, threshold, site) if inside else threshold
    return OperatingPointDescription(**point.model_dump(), threshold_at_site=at_site)


def _describe_variant(variant: Variant) -> VariantDescription:
    near = variant.agreement
    return VariantDescription(
        name=variant.name,
        runtime=variant.runtime,
        images_per_second={speed.batch: speed.images_per_second for speed in variant.speeds},
        macro_auroc={cost.split: cost.macro_auroc for cost in variant.costs},
        cosine_lowest=None if near is None else near.cosine_lowest,
    )


def _describe_scheduling(runtime: Runtime, settings: Settings) -> SchedulingDescription:
    batching = Batching() if runtime.batched is None else runtime.batched.batching
    return SchedulingDescription(
        device=runtime.models.device,
        threads=settings.threads_each,
        max_batch=batching.max_batch,
        at_once=batching.at_once,
        max_delay_ms=batching.max_delay_s * 1000,
        images_per_second=dict(batching.rates),
        images_per_second_side_by_side=batching.side_by_side_rate,
        max_concurrency=settings.max_concurrency,
        max_queue=settings.max_queue,
    )


def _describe_calibration(calibration: Calibration) -> dict[str, CalibrationDescription]:
    return {
        condition: CalibrationDescription(
            expected_calibration_error=fitted.expected_calibration_error,
            lesions=fitted.lesions,
            coverage=1 - fitted.conformal.alpha,
        )
        for condition, fitted in calibration.conditions.items()
    }


@router.get("/fields", responses=problems(503))
async def fields(request: Request, service: ServiceDep) -> FieldsResponse:
    """List the metadata fields: level, kind, unit, categories, bounds and aliases."""
    runtime = service.runtime()
    return FieldsResponse(
        request_id=request_id_of(request),
        bundle_id=runtime.bundle_id,
        fields=tuple(_describe_field(field) for field in runtime.models.schema.fields),
        missing_words=tuple(sorted(MISSING_WORDS)),
    )


def _describe_field(field: Field) -> FieldDescription:
    shown = field.model_dump(include=set(FieldDescription.model_fields))
    return FieldDescription(**shown)
