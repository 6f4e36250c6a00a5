"""A patient's lesions together: risk in context, the ugly duckling, and the patient's risk.

A lesion that is not assessable takes no part in anything said of the others. The catalogue's
lesions of the patient are context only: they are not reported, and the patient's risk is of the
submitted lesions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bundle.calibration import FloatArray, log_odds
from bundle.encoder import unit_norm
from bundle.fields import Record
from bundle.oddness import MIN_LESIONS, oddness, percentile
from service.assessment import (
    Judgements,
    at_site,
    guess_warnings,
    judge,
    malignancy_of,
    risk_at_site,
    standing_warnings,
)
from service.metadata import Known, Metadata
from service.models import Models, embed_known, finite
from service.patient import Patient
from service.pictures import LesionPictures
from service.schemas import (
    AnswerWarning,
    PatientLesion,
    PatientRisk,
    RiskAnswer,
    UglyDuckling,
)

NOT_ASSESSABLE = "not_assessable"
NO_CONTEXT_MODEL = "no_context_model"
NOTHING_ASSESSABLE = "no_assessable_lesion"
FEW_LESIONS = "fewer_than_three_lesions"


@dataclass(frozen=True)
class Candidate:
    """A submitted lesion, ready to be judged."""

    id: str
    pictures: LesionPictures
    metadata: Metadata


@dataclass(frozen=True)
class Group:
    """The patient's assessable lesions: submitted ones first, in order, then the catalogue's.

    Attributes:
        embeddings: (L, D) float32, not normalised.
        judged: the L lesions, each alone.
        submitted: how many of the L were submitted.
        facts: the patient's own record.
    """

    embeddings: FloatArray
    judged: Judgements
    submitted: int
    facts: Record

    def __len__(self) -> int:
        return len(self.embeddings)


def gather(models: Models, candidates: Sequence[Candidate], patient: Patient) -> Group | None:
    """Return the lesions that take part, each judged alone; None when none was submitted."""
    usable = [one for one in candidates if one.pictures.assessable]
    if not usable:
        return None
    embeddings = [one.pictures.embedding for one in usable]
    metadata = [one.metadata.known for one in usable]
    for lesion in patient.stored:
        own = {name: value for name, value in lesion.record.items() if value is not None}
        embeddings.append(lesion.embedding)
        # Lesion fields of the request hold for the lesions that were sent with it.
        metadata.append(Known.given({**patient.facts, **own}))
    rows = np.stack(embeddings)
    return Group(rows, judge(models, rows, metadata), len(usable), patient.facts)


def risks_in_context(models: Models, group: Group, max_lesions: int) -> list[float] | None:
    """Return each submitted lesion's malignancy given the others, at the training prevalence.

    Args:
        models: the loaded bundle.
        group: the patient's lesions.
        max_lesions: how many the context model may see; the catalogue's last are left out.

    Returns:
        One probability for each submitted lesion of the group, None without a context model.
    """
    if not models.encoders.has_context:
        return None
    seen = slice(0, max_lesions)
    records, present = embed_known(models, [group.facts], "patient")
    logits = models.encoders.context(
        group.embeddings[seen],
        group.judged.lesion_record[seen],
        lesion_present=group.judged.lesion_present[seen],
        malignancy_logit=log_odds(group.judged.malignancy[seen]),
        patient_record=records[0],
        patient_present=bool(present[0]),
    )
    odds = finite(logits, "context model's answer")[: group.submitted].astype(np.float64)
    return [float(p) for p in np.exp(-np.logaddexp(0, -odds))]


def ugly_ducklings(models: Models, group: Group) -> list[UglyDuckling]:
    """Return how odd each submitted lesion of the group looks beside all the others."""
    if len(group) < MIN_LESIONS:
        return [_no_duckling(FEW_LESIONS)] * group.submitted
    odd = oddness(unit_norm(group.embeddings))
    ranks = np.argsort(np.argsort(-odd, kind="stable")) + 1
    reference = models.calibration.oddness_quantiles
    return [
        UglyDuckling(
            score=percentile(float(odd[row]), reference or np.delete(odd, row)),
            rank=int(ranks[row]),
            basis="reference" if reference else "patient",
        )
        for row in range(group.submitted)
    ]


def _no_duckling(reason: str) -> UglyDuckling:
    return UglyDuckling(score=None, rank=None, basis=None, reason=reason)


def join_risks(risks: Sequence[float]) -> float:
    """Return the probability that at least one of independent risks comes true."""
    none = float(np.prod([1 - risk for risk in risks]))
    return min(1.0, max(1 - none, *risks))


def answer_risk(
    models: Models,
    candidates: Sequence[Candidate],
    patient: Patient,
    *,
    site: float | None,
    max_context: int,
) -> RiskAnswer:
    """Return what is said of the patient's submitted lesions, in the order they were sent."""
    group = gather(models, candidates, patient)
    said = {} if group is None else _say(models, candidates, group, site, max_context)
    lesions = [said.get(one.id) or _unsaid(one) for one in candidates]
    warnings = [warning for one in candidates for warning in one.pictures.warnings]
    metadata = [one.metadata.known for one in candidates]
    warnings += [*patient.warnings, *guess_warnings(models, metadata)]
    warnings += standing_warnings(models, site)
    if group is not None:
        warnings += _context_warnings(models, group, max_context)
    return RiskAnswer(
        lesions=tuple(lesions), patient=_patient_risk(lesions, group), warnings=tuple(warnings)
    )


def _say(
    models: Models,
    candidates: Sequence[Candidate],
    group: Group,
    site: float | None,
    max_context: int,
) -> dict[str, PatientLesion]:
    risks = risks_in_context(models, group, max_context)
    ducklings = ugly_ducklings(models, group)
    said = {}
    for row, one in enumerate(c for c in candidates if c.pictures.assessable):
        shares = at_site(models, group.judged.probabilities[row], site)
        said[one.id] = PatientLesion(
            id=one.id,
            status="answered",
            label=models.labels[int(np.argmax(shares))],
            malignancy=malignancy_of(models, shares),
            risk_in_context=None if risks is None else risk_at_site(models, risks[row], site),
            ugly_duckling=ducklings[row],
            quality=one.pictures.quality,
            metadata=one.metadata.entries,
            reason=NO_CONTEXT_MODEL if risks is None else None,
        )
    return said


def _unsaid(one: Candidate) -> PatientLesion:
    return PatientLesion(
        id=one.id,
        status="not_assessable",
        label=None,
        malignancy=None,
        risk_in_context=None,
        ugly_duckling=_no_duckling(NOT_ASSESSABLE),
        quality=one.pictures.quality,
        metadata=one.metadata.entries,
        reason=NOT_ASSESSABLE,
    )


def _patient_risk(lesions: Sequence[PatientLesion], group: Group | None) -> PatientRisk:
    risks = [one.risk_in_context for one in lesions if one.risk_in_context is not None]
    reason = None
    if group is None:
        reason = NOTHING_ASSESSABLE
    elif not risks:
        reason = NO_CONTEXT_MODEL
    used = 0 if group is None else len(group)
    return PatientRisk(
        risk=join_risks(risks) if risks else None,
        lesions_used=used,
        lesions_from_catalogue=0 if group is None else used - group.submitted,
        context="enough" if used >= MIN_LESIONS else "none",
        reason=reason,
    )


def _context_warnings(models: Models, group: Group, max_context: int) -> list[AnswerWarning]:
    if not models.encoders.has_context:
        message = "this bundle has no context model: lesions are judged alone, risk is null"
        return [AnswerWarning(field=None, code=NO_CONTEXT_MODEL, message=message)]
    if len(group) <= max_context:
        return []
    message = f"the context model saw the first {max_context} of {len(group)} lesions"
    return [AnswerWarning(field=None, code="context_shortened", message=message)]
