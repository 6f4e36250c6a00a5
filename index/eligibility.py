"""Which vector ids a search may find: filter and exclusion, asked of the database."""

import functools

import numpy as np
from sqlalchemy import Connection, Select, String, cast, func, select

from index.filters import Filter
from index.lesions import Exclusion
from index.rows import IdArray, ids_where, ids_with_content
from index.tables import Lesion
from index.vectors import Eligible


def eligible_lesions(
    connection: Connection, where: Filter | None, exclude: Exclusion
) -> Eligible | None:
    """Return which vector ids a search may find, None for all of them.

    Without a filter the few excluded ids are named, not the many that stay.
    """
    excluded = _excluded(connection, exclude)
    if where is None or not where.conditions:
        return Eligible(excluded, inverted=True) if len(excluded) else None
    matching = (_all_ids(connection, condition.select()) for condition in where.conditions)
    kept = functools.reduce(functools.partial(np.intersect1d, assume_unique=True), matching)
    return Eligible(np.setdiff1d(kept, excluded, assume_unique=True))


def _all_ids(connection: Connection, query: Select[int]) -> IdArray:
    """Return (M,) int64, unique, what the query selects.

    The database joins the ids to one text: half a million rows come in a third of the time that
    fetching them as rows takes.
    """
    ids = query.subquery()
    joined = connection.scalar(select(func.aggregate_strings(cast(ids.c[0], String), ",")))
    return np.fromstring(joined or "", np.int64, sep=",")


def _excluded(connection: Connection, exclude: Exclusion) -> IdArray:
    """Return (M,) int64, unique, the vector ids of the excluded lesions."""
    same = ids_with_content(connection, exclude.contents)
    patients = exclude.patients
    if exclude.with_kin:
        owners = ids_where(connection, Lesion.patient_id, Lesion.pk, same)
        patients = patients.union(owner for owner in owners if owner is not None)
    found = [
        *same,
        *ids_where(connection, Lesion.pk, Lesion.lesion_id, exclude.lesions),
        *ids_where(connection, Lesion.pk, Lesion.patient_id, patients),
    ]
    return np.unique(np.asarray(found, np.int64))
