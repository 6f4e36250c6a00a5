"""A lesion's metadata as the models read it: given, extrapolated from its neighbours, or missing.

Neighbours are catalogue lesions that look like the query. Those that hold one of its images, and
all other lesions of their patients, may not speak for it: that would be the lesion itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

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
) -> Metadata:
    """Return the record with its gaps filled by what neighbours say.

    One given value makes the condition "given"; failing that, one extrapolated value makes it
    "extrapolated".

    Args:
        models: the loaded bundle.
        record: canonical values from the caller.
        guesses: field to what its neighbours say, for missing fields; empty when nobody was asked.
        reason: why a field without a guess stays missing.
    """
    entries = {}
    for field in models.schema.names:
        value = record.get(field)
        if value is not None:
            entries[field] = MetadataEntry(value=value, source="given")
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
