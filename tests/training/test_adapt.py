import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bundle.errors import TrainingError
from bundle.fields import Field, FieldSchema
from cohort.cohort import Cohort
from tests.training.squares import SCHEMA, read_metrics, squares, tiny_config, write_cohort
from training.adapt import adapt
from training.data import load_rows
from training.growth import grow, join_schemas
from training.image_encoder import block_of
from training.record_encoder import RecordEncoder
from training.run import TOWERS, load_towers, read_info, read_run_config
from training.trainer import pretrain


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    images = list(squares(patients=6, benign=1))
    folder = tmp_path_factory.mktemp("others")
    return write_cohort(folder / "cohort", images, name="other squares")


def test_embedding_layers_move_and_attention_stays(
    pretrained: Path, other: Cohort, tmp_path: Path
) -> None:
    info = adapt(pretrained, other, tmp_path / "run")
    before, after = load_file(pretrained / TOWERS), load_file(tmp_path / "run" / TOWERS)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    image = {block_of(n.removeprefix("image.backbone.")) for n in moved if n.startswith("image.")}
    assert -1 in image
    assert image - {-1, math.inf} == set()
    assert not any(name.startswith(("lesion.layers.", "patient.layers.")) for name in moved)
    assert {"lesion.slope", "patient.slope"} <= moved
    earlier = read_info(pretrained)
    assert [source.name for source in info.data] == ["squares", "other squares"]
    assert info.seen[:-1] == earlier.seen
    assert info.record_schema == earlier.record_schema


MORE = Field(name="pigment_score", level="lesion", kind="numeric")
WING = Field(name="wing", level="patient", kind="categorical", categories=("east", "west"))


def grown_cohort(folder: Path) -> Cohort:
    """Squares with a column of each level that the run never saw, and a category of a known one."""
    known = next(f for f in SCHEMA.fields if f.kind == "categorical")
    wider = known.model_copy(update={"categories": ("elsewhere", *known.categories)})
    fields = [wider if f == known else f for f in SCHEMA.fields]
    images = []
    for number, image in enumerate(squares(patients=6, benign=1)):
        record = {**image.record, "pigment_score": float(number), "wing": "west"}
        if number % 3 == 0:
            record[known.name] = "elsewhere"
        images.append(dataclasses.replace(image, record=record))
    schema = FieldSchema(fields=(MORE, *fields, WING))
    return write_cohort(folder / "cohort", images, schema=schema, name="grown squares")


def test_new_columns_and_categories_get_tokens_and_old_ones_keep_theirs(
    pretrained: Path, tmp_path: Path
) -> None:
    info, config = read_info(pretrained), read_run_config(pretrained)
    cohort = grown_cohort(tmp_path)
    rows = load_rows(cohort, ["train"], cohort.info.labels)
    joined = join_schemas(info.record_schema, cohort.schema, rows)
    assert joined.names == (*info.record_schema.names, "pigment_score", "wing")
    old = load_towers(pretrained)
    new = grow(old, config, info.record_schema, joined, labels=len(info.labels))
    kept = {k: v for k, v in new.state_dict().items() if not k.startswith(("lesion.", "patient."))}
    assert kept
    assert all(torch.equal(old.state_dict()[name], value) for name, value in kept.items())
    for level in ("lesion", "patient"):
        before, after = old.records(level), new.records(level)
        assert before is not None
        assert after is not None
        fields, more = info.record_schema.at(level), joined.at(level)
        assert len(more) == len(fields) + 1
        for field in fields:
            assert torch.equal(
                tokens_of(before, fields, field, field), tokens_of(after, more, field, field)
            ), field.name
    own = next(f for f in info.record_schema.fields if f.kind == "categorical")
    wide = next(f for f in joined.fields if f.name == own.name)
    assert wide.categories == (*own.categories, "elsewhere")


def tokens_of(
    tower: RecordEncoder, fields: tuple[Field, ...], field: Field, values: Field
) -> torch.Tensor:
    """Return the column's tokens of each of its values, and of a missing one."""
    place = [f.name for f in fields].index(field.name)
    count = max(2, len(values.categories))
    encoded = torch.zeros(count + 1, len(fields))
    encoded[:count, place] = torch.arange(count).float()
    present = torch.ones(count + 1, len(fields), dtype=torch.bool)
    present[count] = False
    with torch.no_grad():
        return tower.tokens(encoded, present)[:, place]


def assert_same_towers(run: Path, other: Path) -> None:
    first, second = load_file(run / TOWERS), load_file(other / TOWERS)
    assert all(torch.equal(first[name], second[name]) for name in first)


def flat_cohort(folder: Path) -> Cohort:
    """The squares without patient ids, every field the lesion's."""
    fields = tuple(field.model_copy(update={"level": "lesion"}) for field in SCHEMA.fields)
    images = list(squares(with_ids=False))
    return write_cohort(folder / "flat", images, schema=FieldSchema(fields=fields))


def test_a_run_adapts_to_new_columns_and_says_what_it_forgot(
    pretrained: Path, cohort: Cohort, tmp_path: Path
) -> None:
    grown = grown_cohort(tmp_path)
    info = adapt(pretrained, grown, tmp_path / "run", source=cohort)
    assert info.record_schema.names[-2:] == ("pigment_score", "wing")
    assert info.forgetting is not None
    assert info.forgetting.cohort == cohort.info.name
    assert info.forgetting.before != info.forgetting.after
    assert read_info(tmp_path / "run") == info
    again = adapt(pretrained, grown, tmp_path / "again", source=cohort)
    assert again.forgetting == info.forgetting
    assert_same_towers(tmp_path / "run", tmp_path / "again")


def test_full_adaptation_moves_attention_too(
    pretrained: Path, other: Cohort, tmp_path: Path
) -> None:
    adapt(pretrained, other, tmp_path / "run", full=True)
    before, after = load_file(pretrained / TOWERS), load_file(tmp_path / "run" / TOWERS)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("lesion.layers.") for name in moved)
    assert any(block_of(n.removeprefix("image.backbone.")) == 0 for n in moved)
    assert read_info(tmp_path / "run").forgetting is None


def test_the_new_cohort_is_passed_over_as_often_as_asked(
    pretrained: Path, other: Cohort, tmp_path: Path
) -> None:
    adapt(pretrained, other, tmp_path / "once", epochs=1)
    adapt(pretrained, other, tmp_path / "thrice", epochs=3, learning_rate=1e-2)
    once, thrice = (read_metrics(tmp_path / name)[-1] for name in ("once", "thrice"))
    assert thrice["step"] == 3 * once["step"]
    assert read_run_config(tmp_path / "thrice").optimiser.learning_rate == 1e-2


def test_a_word_for_a_known_category_becomes_one_where_the_cohort_tells_them_apart(
    cohort: Cohort,
) -> None:
    site = next(f for f in SCHEMA.fields if f.name == "anatom_site")
    own = site.model_copy(update={"category_aliases": {"neck": "scalp", "loin": "back"}})
    other = site.model_copy(update={"categories": ("back", "neck", "scalp")})
    rows = load_rows(cohort, ["train"], cohort.info.labels)
    joined = join_schemas(FieldSchema(fields=(own,)), FieldSchema(fields=(other,)), rows)
    assert joined.fields[0].categories == ("back", "scalp", "neck")
    assert joined.fields[0].category_aliases == {"loin": "back"}


def test_a_run_with_patients_moves_to_a_cohort_without(
    pretrained: Path, lesion_cohort: Cohort, tmp_path: Path
) -> None:
    """What is the patient's in the run stays so, where the cohort holds it of its lesions."""
    cohort = flat_cohort(tmp_path)
    adapted = adapt(pretrained, cohort, tmp_path / "run")
    assert adapted.record_schema == read_info(pretrained).record_schema
    expected = adapt(pretrained, lesion_cohort, tmp_path / "same")
    assert adapted.record_schema == expected.record_schema
    assert_same_towers(tmp_path / "run", tmp_path / "same")


def test_a_run_without_patients_moves_to_a_cohort_with_them(cohort: Cohort, tmp_path: Path) -> None:
    flat = flat_cohort(tmp_path)
    pretrain(flat, tiny_config(), tmp_path / "source")
    adapted = adapt(tmp_path / "source", cohort, tmp_path / "run")
    assert {field.level for field in adapted.record_schema.fields} == {"lesion"}


@pytest.mark.parametrize(
    ("change", "said"),
    [({"kind": "boolean"}, "kind"), ({"level": "lesion"}, "level"), ({"unit": "cm"}, "unit")],
)
def test_a_field_that_contradicts_the_runs_is_refused(
    pretrained: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    level = "patient" if said == "level" else "lesion"
    known = next(f for f in SCHEMA.fields if f.kind == "numeric" and f.level == level)
    other = Field(**{**known.model_dump(), "minimum": None, "maximum": None, **change})
    if other.kind != "numeric":
        other = Field(name=known.name, level=known.level, kind="boolean")
    schema = FieldSchema(fields=tuple(other if f == known else f for f in SCHEMA.fields))
    images = [
        dataclasses.replace(
            image, record={k: v for k, v in image.record.items() if k != known.name}
        )
        for image in squares(patients=3)
    ]
    cohort = write_cohort(tmp_path / "cohort", images, schema=schema)
    with pytest.raises(TrainingError, match=f"{known.name}: expected {said}"):
        adapt(pretrained, cohort, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings",
    [{"objective": {"name": "supervised"}}, {"batch": {"malignant_patients": 0.5}}],
)
def test_a_run_that_reads_labels_is_not_adapted(
    cohort: Cohort, other: Cohort, tmp_path: Path, settings: dict[str, dict[str, Any]]
) -> None:
    pretrain(cohort, tiny_config(**settings), tmp_path / "run")
    with pytest.raises(TrainingError, match="learns without labels"):
        adapt(tmp_path / "run", other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
