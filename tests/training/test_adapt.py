import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bundle.errors import TrainingError
from bundle.fields import Field, FieldSchema
from cohort.cohort import Cohort
from tests.training.squares import SCHEMA, squares, write_cohort
from training.adapt import adapt
from training.image_encoder import block_of
from training.run import TOWERS, read_info


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


def test_a_field_that_the_towers_cannot_read_is_refused(pretrained: Path, tmp_path: Path) -> None:
    more = Field(name="pigment_score", level="lesion", kind="numeric")
    schema = FieldSchema(fields=(*SCHEMA.fields, more))
    cohort = write_cohort(tmp_path / "cohort", list(squares(patients=3)), schema=schema)
    with pytest.raises(TrainingError, match=r"pigment_score: expected the run's own fields"):
        adapt(pretrained, cohort, tmp_path / "run")
    assert not (tmp_path / "run").exists()
