"""Which vector ids a search may find: filter and exclusion, asked of the database."""

import functools
import threading
from collections import OrderedDict

import numpy as np
from sqlalchemy import Connection, Select, String, cast, func, select

from index.filters import Filter
from index.lesions import Exclusion
from index.rows import IdArray, ids_where, ids_with_content
from index.tables import Lesion
from index.vectors import Eligible

# Filters whose ids are remembered: a page asks the same one again and again.
KEPT_FILTERS = 4


class Eligibility:
    """Which vector ids a search may find; for any number of threads.

    What the last few filters match is remembered until the catalogue changes: of half a million
    lesions it takes longer to ask the database than to search among them.
    """

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._known: OrderedDict[Filter, tuple[int, IdArray]] = OrderedDict()
        self._lock = threading.Lock()

    def lesions(
        self, connection: Connection, revision: int, where: Filter | None, exclude: Exclusion
    ) -> Eligible | None:
        """Return which ids may be found, None for all of them.

        Without a filter the few excluded ids are named, not the many that stay.

        Args:
            connection: to the database.
            revision: its own, at the moment that the connection reads.
            where: None keeps all.
            exclude: lesions that may not be found.
        """
        excluded = _excluded(connection, exclude)
        if where is None or not where.conditions:
            return Eligible(excluded, inverted=True) if len(excluded) else None
        kept = self._matching(connection, revision, where)
        return Eligible(np.setdiff1d(kept, excluded, assume_unique=True) if len(excluded) else kept)

    def _matching(self, connection: Connection, revision: int, where: Filter) -> IdArray:
        with self._lock:
            known = self._known.get(where)
            if known is not None and known[0] == revision:
                self._known.move_to_end(where)
                return known[1]
        found = (_all_ids(connection, condition.select()) for condition in where.conditions)
        kept = functools.reduce(functools.partial(np.intersect1d, assume_unique=True), found)
        with self._lock:
            self._known[where] = revision, kept
            self._known.move_to_end(where)
            while len(self._known) > KEPT_FILTERS:
                self._known.popitem(last=False)
        return kept


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
    named = [
        *ids_with_content(connection, exclude.contents),
        *ids_where(connection, Lesion.pk, Lesion.lesion_id, exclude.lesions),
    ]
    patients = exclude.patients
    if exclude.with_kin:
        owners = ids_where(connection, Lesion.patient_id, Lesion.pk, named)
        patients = patients.union(owner for owner in owners if owner is not None)
    found = [*named, *ids_where(connection, Lesion.pk, Lesion.patient_id, patients)]
    return np.unique(np.asarray(found, np.int64))
