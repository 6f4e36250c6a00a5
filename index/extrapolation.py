"""What a lesion's nearest neighbours say of its missing metadata, and when they do not agree.

Reads the neighbours' records, never their labels. An answer is a guess from pictures that look
alike: callers mark it as extrapolated and never store it as a fact.
"""

import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bundle.calibration import Extrapolation
from bundle.fields import Field, Value
from index.lesions import Hit

Reason = Literal["neighbours_too_far", "too_few_neighbours", "neighbours_disagree"]

# A neighbour at a right angle or behind still has a vote where the settings let it in, but one
# that next to nothing outweighs.
LEAST_WEIGHT = 1e-6
INTERVAL = (0.1, 0.9)


@dataclass(frozen=True)
class Extrapolated:
    """What the neighbours say of one field.

    Attributes:
        value: their answer, None when they abstain.
        support: neighbours near enough that have the field, each of another patient.
        agreement: weighted share of them, in [0, 1], that stands behind the answer: that voted
            for it, or, for a number, that lies within one standard deviation of the field from
            the answer. 0 when too few were asked to say.
        interval: of a number, the neighbours' weighted 10 % and 90 % quantiles; else None.
        reason: why they abstain; None with a value.
    """

    value: Value
    support: int
    agreement: float
    interval: tuple[float, float] | None
    reason: Reason | None


@dataclass(frozen=True)
class _Opinion:
    value: float | str | bool
    agreement: float
    interval: tuple[float, float] | None


def extrapolate(
    hits: Sequence[Hit], fields: Sequence[Field], settings: Extrapolation
) -> dict[str, Extrapolated]:
    """Return, for each field, what the nearest neighbours say, or why they abstain.

    Of the `settings.neighbours` first hits the nearest of each patient is asked, all where patients
    are not known: lesions of one patient are no independent evidence. Those with a similarity of
    `min_similarity` or more that have the field answer, weighted by similarity or alike: a vote for
    categories and booleans; for numbers a mean, held within its interval. They abstain when fewer
    than `min_support` answer (as "neighbours_too_far" if enough have the field but lie too far,
    else as "too_few_neighbours") and when less than `min_agreement` stands behind the answer
    ("neighbours_disagree").

    Args:
        hits: best first, as `Catalogue.search` gives them, without the lesion's own patient.
        fields: those to be filled; numeric ones with a fitted std.
        settings: how many neighbours, how near, and how much agreement.

    Raises:
        ValueError: a numeric field has no fitted std.
    """
    asked = _one_a_patient(hits[: settings.neighbours])
    return {field.name: _extrapolate_field(asked, field, settings) for field in fields}


def _one_a_patient(hits: Sequence[Hit]) -> list[Hit]:
    nearest: dict[tuple[str | None, str | None], Hit] = {}
    for hit in hits:
        lesion_id = hit.lesion_id if hit.patient_id is None else None
        nearest.setdefault((hit.patient_id, lesion_id), hit)
    return list(nearest.values())


def _extrapolate_field(asked: Sequence[Hit], field: Field, settings: Extrapolation) -> Extrapolated:
    known: list[tuple[float, float | str | bool]] = []
    for hit in asked:
        value = hit.record.get(field.name)
        if value is not None:
            known.append((hit.score, value))
    votes = [
        (max(score, LEAST_WEIGHT) if settings.weighting == "similarity" else 1.0, value)
        for score, value in known
        if score >= settings.min_similarity
    ]
    if len(votes) < settings.min_support or not votes:
        too_far = len(known) > len(votes) and len(known) >= settings.min_support
        reason: Reason = "neighbours_too_far" if too_far else "too_few_neighbours"
        return Extrapolated(None, len(votes), 0.0, None, reason)
    opinion = _mean(votes, field) if field.kind == "numeric" else _vote(votes, field)
    if opinion.agreement < settings.min_agreement:
        return Extrapolated(None, len(votes), opinion.agreement, None, "neighbours_disagree")
    return Extrapolated(opinion.value, len(votes), opinion.agreement, opinion.interval, None)


def _vote(votes: Sequence[tuple[float, float | str | bool]], field: Field) -> _Opinion:
    """Return the heaviest value; of equals the one that the schema lists first, False before True.

    A value that the schema does not list wins nothing, but weighs against the others.
    """
    choices: Sequence[str | bool] = field.categories or (False, True)
    weights = {
        choice: math.fsum(weight for weight, value in votes if value == choice)
        for choice in choices
    }
    winner = max(choices, key=weights.__getitem__)
    return _Opinion(winner, weights[winner] / math.fsum(weight for weight, _ in votes), None)


def _mean(votes: Sequence[tuple[float, float | str | bool]], field: Field) -> _Opinion:
    if field.std is None:
        raise ValueError(f"{field.name}: std is not fitted; call fit_fields first")
    numbers = sorted((float(value), weight) for weight, value in votes)
    total = math.fsum(weight for _, weight in numbers)
    low, high = (_quantile(numbers, share * total) for share in INTERVAL)
    # A few far numbers, or rounding, must not carry the mean out of its interval.
    mean = math.fsum(number * weight for number, weight in numbers) / total
    mean = min(max(mean, low), high)
    near = math.fsum(weight for number, weight in numbers if abs(number - mean) <= field.std)
    return _Opinion(mean, near / total, (low, high))


def _quantile(numbers: Sequence[tuple[float, float]], share: float) -> float:
    """Return the least number at which the weights of it and all below it reach `share`.

    Args:
        numbers: (number, weight) pairs in rising order.
        share: a weight, above 0 and below the sum of all.
    """
    reached = list(itertools.accumulate(weight for _, weight in numbers))
    return numbers[bisect_left(reached, share)][0]
