import shutil
from pathlib import Path

import pytest
import torch

from bundle.errors import TrainingError
from tests.training.squares import tiny_config
from training.encoders import load_encoders
from training.precision import is_bf16
from training.run import SEEN, SeenGroups, read_info, read_run_config, read_seen, write_seen
from training.schedule import build_optimiser, warmup_cosine


def test_a_folder_without_a_finished_run_is_refused(pretrained: Path, tmp_path: Path) -> None:
    shutil.copy(pretrained / "config.json", tmp_path)
    assert read_run_config(tmp_path) == tiny_config()
    with pytest.raises(TrainingError, match=r"expected a finished run with run\.json"):
        read_info(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"run\.json: Field required"):
        read_info(tmp_path)


def test_heads_are_missing_before_they_are_fitted(pretrained: Path) -> None:
    with pytest.raises(TrainingError, match=r"classifier\.safetensors is missing: run `slimp fit`"):
        load_encoders(pretrained)


def test_every_file_of_a_run_can_be_read_by_those_who_may_read_the_others(fitted: Path) -> None:
    weights = list(fitted.rglob("*.safetensors"))
    assert {path.name for path in weights} > {"towers.safetensors", "classifier.safetensors"}
    for path in (*weights, *(fitted.parent / "pretrained").rglob("*.safetensors")):
        assert path.stat().st_mode == (fitted / "run.json").stat().st_mode


def test_the_groups_seen_travel_without_their_names(tmp_path: Path) -> None:
    seen = (SeenGroups.of({"ann", "bob"}), SeenGroups.of({"cid"}))
    write_seen(tmp_path / SEEN, seen)
    data = (tmp_path / SEEN).read_bytes()
    assert b"ann" not in data
    read = read_seen(data)
    assert read == seen
    assert read[0].overlap({"ann", "cid", "bob2"}) == {"ann"}
    assert read[1].overlap({"ann", "cid"}) == {"cid"}
    assert SeenGroups.of({"ann"}).hashes != SeenGroups.of({"ann"}).hashes
    with pytest.raises(TrainingError, match=r"seen\.json: "):
        read_seen(b'[{"salt": 3}]')


def test_the_rate_rises_and_falls_to_zero() -> None:
    factor = warmup_cosine(100, 0.1)
    assert [factor(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(10) == 1
    assert factor(55) == pytest.approx(0.5)
    assert factor(100) == factor(200) == pytest.approx(0)
    assert warmup_cosine(1, 0.0)(0) == 1


def test_vectors_do_not_decay_and_the_image_tower_has_its_own_rate() -> None:
    class Towers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = torch.nn.Linear(2, 3)
            self.other = torch.nn.Linear(2, 3)
            self.frozen = torch.nn.Linear(2, 3).requires_grad_(False)

    settings = tiny_config(
        optimiser={"learning_rate": 0.1, "image_rate_scale": 0.5, "weight_decay": 0.2}
    ).optimiser
    towers = Towers()
    groups = build_optimiser(towers, settings).param_groups
    found = {
        id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    assert found == {
        id(towers.image.weight): (0.05, 0.2),
        id(towers.image.bias): (0.05, 0),
        id(towers.other.weight): (0.1, 0.2),
        id(towers.other.bias): (0.1, 0),
    }


def test_the_precision_that_is_asked_for_is_taken_and_auto_asks_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert is_bf16("bf16", cpu)
    assert not is_bf16("fp32", cuda)
    for able in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able, **options: able)
        assert is_bf16("auto", cuda) is able
