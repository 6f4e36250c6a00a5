"""Record towers that learn new columns: old tokens keep their weights, new ones start afresh.

A column that another cohort brings is one more token before the same attention layers; a category
that it brings is one more code of a known column. A record that says nothing in a new column has
that column's token for missing values beside the old ones, which is new too: features of old
records move a little before any step, and training settles them.
"""

import torch

from bundle.errors import TrainingError
from bundle.fields import Field, FieldSchema, Level
from training.config import Config
from training.data import Rows, fit_schema
from training.features import LEVELS
from training.model import Slimp
from training.record_encoder import RecordEncoder, categories_of


def join_schemas(own: FieldSchema, other: FieldSchema, rows: Rows) -> FieldSchema:
    """Return a run's fields, in order, and after them those that a cohort adds.

    Known numeric fields keep the run's mean and deviation, for the tower was trained with them;
    new ones are fitted on the rows. A known categorical field keeps its categories and gets the
    new ones behind them. A known field keeps its level: without patient ids a cohort holds of its
    lesions what is the patient's, and what a run reads of each lesion may be alike for all of a
    patient's.

    Args:
        own: the run's fitted fields.
        other: the cohort's fields.
        rows: the cohort's train rows.

    Raises:
        TrainingError: a field of the same name is of another kind or unit, or differs between a
            patient's lesions where it is the patient's in the run, or a new field's name means
            another one already.
    """
    known = {field.name: field for field in own.fields}
    new = [field for field in other.fields if field.name not in known]
    added = fit_schema(FieldSchema(fields=tuple(new)), rows).fields if new else ()
    ids = rows.cohort.has_patients
    widened = {f.name: _widen(known[f.name], f, ids) for f in other.fields if f.name in known}
    fields = (*(widened.get(field.name, field) for field in own.fields), *added)
    try:
        return FieldSchema(fields=fields)
    except ValueError as error:
        raise TrainingError(
            f"the cohort's fields do not fit the run's: {error}: rename the cohort's"
        ) from None


def _widen(own: Field, other: Field, has_patients: bool) -> Field:
    differs = has_patients and (own.level, other.level) == ("patient", "lesion")
    for part in ("kind", "unit", *(("level",) if differs else ())):
        if getattr(own, part) != getattr(other, part):
            raise TrainingError(
                f"{own.name}: expected {part} {getattr(own, part)!r} as in the run, got "
                f"{getattr(other, part)!r}: rename the cohort's field, or convert it"
            )
    new = tuple(name for name in other.categories if name not in own.categories)
    if not new:
        return own
    words = {**other.category_aliases, **own.category_aliases}
    # What was another word for a known category, and is one of its own in the cohort, becomes one.
    words = {word: name for word, name in words.items() if word not in new}
    return own.model_copy(update={"categories": (*own.categories, *new), "category_aliases": words})


def grow(
    towers: Slimp, config: Config, own: FieldSchema, joined: FieldSchema, *, labels: int
) -> Slimp:
    """Return towers that read the joined fields, with all the weights that the old ones had.

    Args:
        towers: read the fields `own`.
        config: the run's configuration.
        own: the run's fields.
        joined: those and more, as `join_schemas` gives them.
        labels: how many labels the run has.
    """
    if own == joined:
        return towers
    weights = towers.state_dict()
    grown = Slimp(config, joined, labels=labels, pretrained=False)
    records = tuple(f"{level}." for level in LEVELS)
    kept = {name: value for name, value in weights.items() if not name.startswith(records)}
    missing = grown.load_state_dict(kept, strict=False).missing_keys
    if strange := [name for name in missing if not name.startswith(records)]:
        raise TrainingError(f"the run's weights lack {strange[0]}: fit or pre-train it again")
    for level in LEVELS:
        before, after = towers.records(level), grown.records(level)
        if before is not None and after is not None:
            _copy_tower(before, after, own, joined, level)
    return grown.eval()


@torch.no_grad()
def _copy_tower(
    before: RecordEncoder, after: RecordEncoder, own: FieldSchema, joined: FieldSchema, level: Level
) -> None:
    for name in ("layers", "readout"):
        getattr(after, name).load_state_dict(getattr(before, name).state_dict())
    after.summary.copy_(before.summary)
    place = {field.name: i for i, field in enumerate(joined.at(level))}
    for old, field in enumerate(own.at(level)):
        new = place[field.name]
        for table in ("slope", "column", "missing"):
            getattr(after, table)[new] = getattr(before, table)[old]
        size = categories_of(field)
        start, end = int(before.offsets[old]), int(after.offsets[new])
        after.codes.weight[end : end + size] = before.codes.weight[start : start + size]
