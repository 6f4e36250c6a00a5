"""A lesion's metadata as the models read it: given, extrapolated from its neighbours, or missing.

Neighbours are catalogue lesions that look like the query. Those that hold one of its images, and
all other lesions of their patients, may not speak for it: that would be the lesion itself.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from bundle.calibration import Condition, FloatArray
from bundle.fields import Record
from index.catalogue import Catalogue, Exclusion
from index.extrapolation import Extrapolated, extrapolate
from service.models import Models
from service.schemas import MetadataEntry
from service.stages import stage

NOT_GIVEN = "not_given"
NOT_ASSESSABLE = "image_not_assessable"
NO_CATALOGUE = "no_catalogue"
FROM_CATALOGUE = "from_catalogue"
DISAGREE: Final = "neighbours_disagree"


@dataclass(frozen=True)
class Known:
    """What the models read of one lesion's metadata.

    Attributes:
        record: values that are given.
        filled: those and, in the gaps, what neighbours say.
        condition: which calibration holds.
    """

    record: Record
    filled: Record
    condition: Condition

    @classmethod
    def given(cls, record: Record) -> "Known":
        """Return a record whose gaps nobody fills; an empty one is a missing one."""
        known: Record = {name: v for name, v in record.items() if v is not None}
        return cls(known, known, "given" if known else "missing")


@dataclass(frozen=True)
class Metadata:
    """One lesion's metadata.

    Attributes:
        known: what the models read.
        entries: every field of the schema, with where its value is from.
    """

    known: Known
    entries: dict[str, MetadataEntry]


def complete(
    models: Models,
    record: Record,
    guesses: Mapping[str, Extrapolated],
    *,
    reason: str = NOT_GIVEN,
    from_catalogue: Collection[str] = (),
) -> Metadata:
    """Return the record with its gaps filled by what neighbours say.

    One given value makes the condition "given"; failing that, one extrapolated value makes it
    "extrapolated".

    Args:
        models: the loaded bundle.
        record: canonical values from the caller.
        guesses: field to what its neighbours say, for missing fields; empty when nobody was asked.
        reason: why a field without a guess stays missing.
        from_catalogue: fields of the record that the caller did not give: the catalogue did.
    """
    entries = {}
    for field in models.schema.names:
        value = record.get(field)
        if value is not None:
            entries[field] = MetadataEntry(
                value=value,
                source="given",
                reason=FROM_CATALOGUE if field in from_catalogue else None,
            )
        elif field in guesses:
            entries[field] = _entry(guesses[field])
        else:
            entries[field] = MetadataEntry(value=None, source="missing", reason=reason)
    own = Known.given(record)
    filled: Record = {
        name: entry.value for name, entry in entries.items() if entry.value is not None
    }
    guessed_alone = bool(filled) and not own.record
    condition: Condition = "extrapolated" if guessed_alone else own.condition
    return Metadata(Known(own.record, filled, condition), entries)


def _entry(guess: Extrapolated) -> MetadataEntry:
    return MetadataEntry(
        value=guess.value,
        source="missing" if guess.value is None else "extrapolated",
        support=guess.support,
        agreement=guess.agreement,
        interval=guess.interval,
        reason=guess.reason,
    )


def agree_on_patient(models: Models, guesses: Sequence[dict[str, Extrapolated]]) -> None:
    """Take back what neighbours say of a patient where they make different people of the lesions.

    Args:
        models: the loaded bundle.
        guesses: of each of the patient's lesions, by field; changed in place. Numbers agree where
            each lies in the interval of every other, and become their median.
    """
    for field in models.fields("patient"):
        name = field.name
        guessing = [own for own in guesses if name in own and own[name].value is not None]
        known = [own[name] for own in guessing]
        if len({guess.value for guess in known}) < 2:
            continue
        agreed = _middle(known) if field.kind == "numeric" and _are_compatible(known) else None
        for own in guessing:
            own[name] = (
                replace(own[name], value=None, interval=None, reason=DISAGREE)
                if agreed is None
                else replace(own[name], value=agreed)
            )


def _middle(guesses: Sequence[Extrapolated]) -> float:
    return float(np.median([float(guess.value or 0) for guess in guesses]))


def _are_compatible(guesses: Sequence[Extrapolated]) -> bool:
    spans = [guess.interval for guess in guesses if guess.interval is not None]
    low, high = max(span[0] for span in spans), min(span[1] for span in spans)
    return all(low <= float(guess.value or 0) <= high for guess in guesses)


def ask_neighbours(
    models: Models,
    catalogue: Catalogue,
    record: Record,
    embedding: FloatArray,
    *,
    exclude: Exclusion,
) -> dict[str, Extrapolated]:
    """Return what similar catalogue lesions say of the fields that the record lacks.

    Args:
        models: the loaded bundle.
        catalogue: whose lesions are asked.
        record: canonical values from the caller.
        embedding: (D,) float32, not normalised.
        exclude: lesions, patients and contents that may not speak.
    """
    wanted = [field for field in models.schema.fields if record.get(field.name) is None]
    if not wanted:
        return {}
    settings = models.calibration.extrapolation
    with stage("search"):
        (hits,) = catalogue.search(
            embedding[None],
            k=settings.neighbours,
            exclude=replace(exclude, with_kin=True),
        )
    return extrapolate(hits, wanted, settings)
