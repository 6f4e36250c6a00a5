"""Search against brute force: filters, exclusions, ties; nothing excluded is ever a hit."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event

from bundle.encoder import unit_norm
from bundle.errors import CatalogueError, DimensionMismatch, InferenceError
from index.catalogue import Catalogue, CatalogueLesion, Exclusion
from index.filters import parse_filter
from tests.fakes import LABELS, SCHEMA

FloatArray = npt.NDArray[np.float32]
MakeLesion = Callable[..., CatalogueLesion]
MakeCatalogue = Callable[..., Catalogue]
DIM = 6


class Lesions(list[CatalogueLesion]):
    """A list that a failing property test can print."""

    def __repr__(self) -> str:
        return f"{len(self)} lesions"


@pytest.fixture(scope="module")
def lesions(make_lesion: MakeLesion) -> Lesions:
    """90 lesions in mixed order; every third shares its direction, and some their picture."""
    rng = np.random.default_rng(5)
    shared = rng.normal(0, 1, (4, DIM)).astype(np.float32)
    made = Lesions()
    for number in rng.permutation(90).tolist():
        changes = {"content_hashes": (f"{number % 40:064x}", f"{number + 500:064x}")}
        if number % 3 == 0:
            made.append(make_lesion(number, embedding=shared[number % 4], **changes))
        else:
            made.append(make_lesion(number, **changes))
    return made


@pytest.fixture(scope="module")
def catalogue(
    lesions: list[CatalogueLesion], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Catalogue]:
    path = tmp_path_factory.mktemp("search") / "catalogue"
    with Catalogue.create(
        path, bundle_id="ab" * 32, variant="fp32", embedding_dim=DIM, schema=SCHEMA
    ) as made:
        for start in range(0, len(lesions), 20):
            made.add(lesions[start : start + 20])
        yield made


def unit(vector: FloatArray) -> FloatArray:
    direction: FloatArray = unit_norm(vector[None])[0]
    return direction


def brute_force(
    lesions: list[CatalogueLesion], query: FloatArray, k: int
) -> list[tuple[str, float]]:
    scored = []
    for lesion in lesions:
        cosine = np.sum(unit(query).astype(np.float64) * unit(lesion.embedding))
        scored.append((float(np.float32(min(cosine, 1.0))), lesion.lesion_id))
    return [(name, score) for score, name in sorted(scored, key=lambda s: (-s[0], s[1]))[:k]]


def matches(lesion: CatalogueLesion, raw: dict[str, object]) -> bool:
    """Return whether the lesion meets the filter, by reading it as a person would."""
    values = {**lesion.record, "label": lesion.label, "malignant": lesion.malignant}
    for name, wanted in raw.items():
        value = values.get(name)
        if value is None:
            return False
        if isinstance(wanted, dict):
            number = float(value)
            if not wanted.get("gte", -1) <= number <= wanted.get("lte", 1000):
                return False
        elif value not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "sex": st.sampled_from(["female", "male"]),
        "anatom_site": st.lists(st.sampled_from(["back", "scalp"]), min_size=1, max_size=2),
        "itch": st.booleans(),
        "label": st.sampled_from([*LABELS, ["mel", "bcc"]]),
        "malignant": st.booleans(),
        "age_years": st.one_of(
            st.sampled_from([3, [3, 4, 5], 119]),
            st.fixed_dictionaries({}, optional={"gte": st.integers(0, 90)}).filter(bool),
            st.integers(0, 60).map(lambda low: {"gte": low, "lte": low + 25}),
        ),
    },
)


@settings(max_examples=60, deadline=None)
@given(
    FILTERS,
    st.frozensets(st.integers(0, 95), max_size=20),
    st.frozensets(st.integers(0, 31), max_size=5),
    st.frozensets(st.integers(0, 600), max_size=10),
    st.booleans(),
    st.integers(1, 100),
    st.integers(0, 2**32 - 1),
)
def test_search_returns_exactly_the_best_eligible_lesions_in_order(
    catalogue: Catalogue,
    lesions: list[CatalogueLesion],
    raw: dict[str, object],
    numbers: frozenset[int],
    patients: frozenset[int],
    contents: frozenset[int],
    with_kin: bool,
    k: int,
    seed: int,
) -> None:
    exclude = Exclusion(
        lesions=frozenset(f"lesion-{n:03d}" for n in numbers),
        patients=frozenset(f"patient-{n}" for n in patients),
        contents=frozenset(f"{n:064x}" for n in contents),
        with_kin=with_kin,
    )
    same = [
        lesion
        for lesion in lesions
        if exclude.contents & set(lesion.content_hashes) or lesion.lesion_id in exclude.lesions
    ]
    owners = {lesion.patient_id for lesion in same if with_kin and lesion.patient_id is not None}
    eligible = [
        lesion
        for lesion in lesions
        if matches(lesion, raw)
        and lesion.lesion_id not in exclude.lesions
        and lesion.patient_id not in exclude.patients | owners
        and not exclude.contents & set(lesion.content_hashes)
    ]
    rng = np.random.default_rng(seed)
    # One query lies on a shared direction, so that ties are cut.
    queries = np.stack([rng.normal(0, 2, DIM), lesions[seed % 90].embedding]).astype(np.float32)
    where = parse_filter(raw, SCHEMA, LABELS)
    found = catalogue.search(queries, k=k, where=where, exclude=exclude)
    for query, hits in zip(queries, found, strict=True):
        assert len(hits) == min(k, len(eligible))
        assert [(hit.lesion_id, hit.score) for hit in hits] == brute_force(eligible, query, k)


def test_a_lesion_does_not_find_itself_its_patient_or_its_picture_when_excluded(
    catalogue: Catalogue, lesions: list[CatalogueLesion]
) -> None:
    for own in lesions[:30]:
        exclude = Exclusion(
            frozenset({own.lesion_id}),
            frozenset({str(own.patient_id)}),
            frozenset(own.content_hashes),
        )
        (hits,) = catalogue.search(own.embedding[None], k=90, exclude=exclude)
        others = [lesion for lesion in lesions if lesion.lesion_id in {h.lesion_id for h in hits}]
        assert own.patient_id not in {lesion.patient_id for lesion in others}
        assert not any(set(own.content_hashes) & set(lesion.content_hashes) for lesion in others)
        assert len(hits) >= 80


def test_many_excluded_ids_are_no_trouble_to_the_database(catalogue: Catalogue) -> None:
    exclude = Exclusion(lesions=frozenset(f"lesion-{n:03d}" for n in range(1, 40_000)))
    (hits,) = catalogue.search(np.ones((1, DIM), np.float32), k=5, exclude=exclude)
    assert [hit.lesion_id for hit in hits] == ["lesion-000"]


def test_eligibility_asks_the_database_nothing_without_filter_and_exclusion(
    catalogue: Catalogue,
) -> None:
    asked: list[str] = []

    def listen(*call: object) -> None:
        asked.append(str(call[2]).replace("\n", " "))

    event.listen(Engine, "before_cursor_execute", listen)
    try:
        catalogue.search(np.ones((1, DIM), np.float32), k=2, where=parse_filter({}, SCHEMA, LABELS))
    finally:
        event.remove(Engine, "before_cursor_execute", listen)
    # What is left is the revision, and reading the hits: their rows and their values.
    tables = [text.split(" FROM ")[1].split()[0] for text in asked if " FROM " in text]
    assert tables == ["catalogue_info", "lesion", "field_value"]


def test_no_queries_give_no_answers(catalogue: Catalogue) -> None:
    assert catalogue.search(np.empty((0, DIM), np.float32), k=3) == []


def test_an_empty_catalogue_answers_with_no_hits(make_catalogue: MakeCatalogue) -> None:
    assert make_catalogue().search(np.ones((2, DIM), np.float32), k=3) == [[], []]


def test_the_scale_of_a_query_does_not_matter(catalogue: Catalogue) -> None:
    query = np.random.default_rng(1).normal(0, 1, (1, DIM)).astype(np.float32)
    once, larger = (catalogue.search(query * scale, k=5)[0] for scale in (1, 8))
    assert [hit.lesion_id for hit in once] == [hit.lesion_id for hit in larger]


def test_queries_that_cannot_be_searched_for_are_refused(catalogue: Catalogue) -> None:
    with pytest.raises(CatalogueError, match="k: expected 1 or more, got 0"):
        catalogue.search(np.ones((1, DIM), np.float32), k=0)
    with pytest.raises(DimensionMismatch, match=r"\(N, 6\), got \(1, 5\)"):
        catalogue.search(np.ones((1, 5), np.float32), k=1)
    with pytest.raises(DimensionMismatch):
        catalogue.search(np.ones(DIM, np.float32), k=1)
    with pytest.raises(InferenceError, match="not finite"):
        catalogue.search(np.full((1, DIM), np.inf, np.float32), k=1)
    with pytest.raises(InferenceError, match="length 0"):
        catalogue.search(np.zeros((1, DIM), np.float32), k=1)


def test_the_record_of_a_hit_may_be_changed_without_changing_another(catalogue: Catalogue) -> None:
    query = np.ones((1, DIM), np.float32)
    first, second = catalogue.search(np.repeat(query, 2, axis=0), k=1)
    first[0].record["sex"] = None
    assert second[0].record["sex"] is not None


def test_a_catalogue_is_closed_by_leaving_it(make_lesion: MakeLesion, tmp_path: Path) -> None:
    with Catalogue.create(
        tmp_path / "c", bundle_id="ab" * 32, variant="fp32", embedding_dim=DIM, schema=SCHEMA
    ) as made:
        made.add([make_lesion(1)])
    assert [file.name for file in (tmp_path / "c").iterdir()] == ["catalogue.sqlite"]
