"""What is said of lesions: logits to calibrated probabilities, at the site's prevalence.

The label and the probabilities are at the site's prevalence where the site states one. The
prediction set is not: its quantiles hold at the training prevalence only, and the answer says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.calibration import (
    FloatArray,
    prediction_set,
    shift_odds,
    shift_prevalence,
)
from service.metadata import Known, Metadata
from service.models import Models, embed_known, finite
from service.pictures import LesionPictures
from service.schemas import AnswerWarning, Assessment
from service.stages import stage


@dataclass(frozen=True)
class Judgements:
    """N lesions, each judged alone, at the training prevalence.

    Attributes:
        probabilities: (N, C) float32, rows sum to 1.
        malignancy: (N,) float32 in [0, 1].
        lesion_record: (N, D) float32 features of the lesions' records, given values alone.
        lesion_present: (N,) bool, whether a lesion field is given.
    """

    probabilities: FloatArray
    malignancy: FloatArray
    lesion_record: FloatArray
    lesion_present: npt.NDArray[np.bool_]


def judge(models: Models, embeddings: FloatArray, metadata: Sequence[Known]) -> Judgements:
    """Return what the classifier makes of N lesions.

    Neighbours' guesses move the answer of a lesion of which nothing is given, as far as the
    bundle's calibration says. What they add beside given values was never measured, so there they
    move nothing.

    Args:
        models: the loaded bundle.
        embeddings: (N, D) float32 image features, not normalised.
        metadata: N, lesion and patient fields together.
    """
    with stage("infer"):
        return _judge(models, embeddings, metadata)


def _judge(models: Models, embeddings: FloatArray, metadata: Sequence[Known]) -> Judgements:
    lesion = embed_known(models, [known.record for known in metadata], "lesion")
    patient = embed_known(models, [known.record for known in metadata], "patient")
    logits = _classify(models, embeddings, lesion, patient)
    guessed = [row for row, known in enumerate(metadata) if known.condition == "extrapolated"]
    extrapolation = models.calibration.extrapolation
    if guessed and extrapolation.weight > 0:
        filled = [metadata[row].filled for row in guessed]
        believed = _classify(
            models,
            embeddings[guessed],
            embed_known(models, filled, "lesion"),
            embed_known(models, filled, "patient"),
        )
        logits[guessed] = extrapolation.weigh(logits[guessed], believed)
    finite(logits, "classifier's answer")
    rows = [
        models.calibration.probabilities(logits[row : row + 1], known.condition)
        for row, known in enumerate(metadata)
    ]
    probabilities = np.concatenate(rows)
    return Judgements(probabilities, probabilities[:, models.malignant].sum(axis=1), *lesion)


def _classify(
    models: Models,
    embeddings: FloatArray,
    lesion: tuple[FloatArray, npt.NDArray[np.bool_]],
    patient: tuple[FloatArray, npt.NDArray[np.bool_]],
) -> FloatArray:
    return models.encoders.classify(
        embeddings,
        lesion[0],
        patient[0],
        image_present=np.ones(len(embeddings), np.bool_),
        lesion_present=lesion[1],
        patient_present=patient[1],
    )


def at_site(models: Models, probabilities: FloatArray, site: float | None) -> list[float]:
    """Return one lesion's C probabilities at the site's prevalence, summing to 1.

    Args:
        models: the loaded bundle.
        probabilities: (C,) float32 at the training prevalence.
        site: malignant share at the site; None leaves them where they are.
    """
    shifted = probabilities[None]
    if site is not None:
        trained = models.trained_prevalence
        shifted = shift_prevalence(shifted, models.malignant, trained=trained, site=site)
    exact = shifted[0].astype(np.float64)
    return [float(share) for share in exact / exact.sum()]


def risk_at_site(models: Models, risk: float, site: float | None) -> float:
    """Return a malignant probability at the site's prevalence."""
    if site is None:
        return risk
    return shift_odds(risk, trained=models.trained_prevalence, site=site)


def malignancy_of(models: Models, probabilities: Sequence[float]) -> float:
    """Return the malignant labels' probabilities together, at most 1."""
    return min(1.0, float(np.asarray(probabilities)[models.malignant].sum()))


def assess(
    models: Models, pictures: LesionPictures, metadata: Metadata, *, site: float | None
) -> Assessment:
    """Return the answer about one lesion; nothing is said of one that is not assessable."""
    (answer,) = assess_each(models, [pictures], [metadata], site=site)
    return answer


def assess_each(
    models: Models,
    lesions: Sequence[LesionPictures],
    metadata: Sequence[Metadata],
    *,
    site: float | None,
) -> list[Assessment]:
    """Return the answers about N lesions, each judged alone, in one run of the classifier.

    Args:
        models: the loaded bundle.
        lesions: N, their pictures.
        metadata: N, what is known of them.
        site: malignant share at the site; None stays at the training prevalence.
    """
    usable = [at for at, pictures in enumerate(lesions) if pictures.assessable]
    judged: dict[int, FloatArray] = {}
    if usable:
        embeddings = np.stack([lesions[at].embedding for at in usable])
        judgements = judge(models, embeddings, [metadata[at].known for at in usable])
        judged = dict(zip(usable, judgements.probabilities, strict=True))
    return [
        _answer(models, pictures, known, judged[at], site)
        if at in judged
        else _no_answer(pictures, known)
        for at, (pictures, known) in enumerate(zip(lesions, metadata, strict=True))
    ]


def _no_answer(pictures: LesionPictures, metadata: Metadata) -> Assessment:
    return Assessment(
        status="not_assessable",
        label=None,
        probabilities=None,
        malignancy=None,
        prediction_set=None,
        quality=pictures.quality,
        metadata=metadata.entries,
    )


def _answer(
    models: Models,
    pictures: LesionPictures,
    metadata: Metadata,
    trained: FloatArray,
    site: float | None,
) -> Assessment:
    """Return the answer that a lesion's (C,) probabilities at the training prevalence make."""
    shares = at_site(models, trained, site)
    conformal = models.calibration.conditions[metadata.known.condition].conformal
    return Assessment(
        status="answered",
        label=models.labels[int(np.argmax(shares))],
        probabilities=dict(zip(models.labels, shares, strict=True)),
        malignancy=malignancy_of(models, shares),
        prediction_set=tuple(models.labels[i] for i in prediction_set(trained, conformal)),
        quality=pictures.quality,
        metadata=metadata.entries,
        warnings=(
            *pictures.warnings,
            *guess_warnings(models, [metadata.known]),
            *standing_warnings(models, site),
        ),
    )


def guess_warnings(models: Models, metadata: Sequence[Known]) -> tuple[AnswerWarning, ...]:
    """Return that guessed values are shown and not used, where that is so."""
    has_weight = models.calibration.extrapolation.weight > 0
    if not any(
        known.filled != known.record and not (has_weight and known.condition == "extrapolated")
        for known in metadata
    ):
        return ()
    why = (
        "what they add beside given values was not measured"
        if has_weight
        else "on this bundle's calibration lesions they did not make answers better"
    )
    message = f"metadata guessed from similar lesions are shown and do not move the answer: {why}"
    return (AnswerWarning(field=None, code="guesses_not_used", message=message),)


def standing_warnings(models: Models, site: float | None) -> tuple[AnswerWarning, ...]:
    """Return what a reader of any answer of this bundle at this site must know."""
    warnings = []
    if site is not None:
        message = (
            f"probabilities are shifted to the site's prevalence of {site:g}; the prediction set "
            "holds at the training prevalence"
        )
        warnings.append(AnswerWarning(field=None, code="prevalence_shifted", message=message))
    if models.novelty is None:
        message = "this bundle cannot tell images that are unlike its training images"
        warnings.append(AnswerWarning(field=None, code="novelty_unchecked", message=message))
    return tuple(warnings)
