from pathlib import Path
from typing import Any

import pytest

from bundle.errors import InvalidSettings
from bundle.images import ImageInput
from training.config import Config, read_config

DEMO = Path(__file__).parents[2] / "configs" / "demo.toml"


def test_a_file_names_what_differs_from_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text("seed = 3\n[image]\nsize_px = 64\nresize_px = 72\n")
    config = read_config(file)
    assert config.seed == 3
    assert config.image.input == ImageInput(size_px=64, resize_px=72)
    assert config.record == Config().record


def test_the_demos_file_is_accepted() -> None:
    assert read_config(DEMO).image.size_px == 64


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("sead = 3", "sead"),
        ("[image]\nsize = 64", r"image\.size"),
        ("[objective]\nlesion_weight = 1.5", r"objective\.lesion_weight"),
        ("[objective]\npooling = 'median'", r"objective\.pooling"),
        ("[optimiser]\nepochs = 0", r"optimiser\.epochs"),
        ("[fit]\nalpha = 'small'", r"fit\.alpha"),
        ("precision = 'fp8'", "precision"),
        ("[batch]\npatients = 4\nmalignant_patients = 0.9", "leave 1 to 3 .* got 4"),
        ("[batch]\npatients = 8\nmalignant_patients = 0.05", "leave 1 to 7 .* got 0"),
        ("[image]\nsize_px = 300", r"image\.resize_px"),
    ],
)
def test_a_refusal_names_the_file_and_the_key(tmp_path: Path, content: str, key: str) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(content)
    with pytest.raises(InvalidSettings, match=rf"experiment\.toml: .*{key}"):
        read_config(file)


def test_a_file_that_is_absent_or_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="cannot be read"):
        read_config(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("seed = = 3")
    with pytest.raises(InvalidSettings, match="not TOML"):
        read_config(tmp_path / "broken.toml")


@pytest.mark.parametrize("change", [{"seed": 1}, {"fit": {"alpha": 0.2}}])
def test_the_hash_names_the_settings(change: dict[str, Any]) -> None:
    assert Config().sha256() == Config(seed=0).sha256()
    assert Config.model_validate(change).sha256() != Config().sha256()


def test_a_file_may_extend_another_beside_it(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("seed = 3\n[image]\nsize_px = 64\nresize_px = 72\n")
    (tmp_path / "c.toml").write_text('extends = "base.toml"\n[image]\nresize_px = 80\n')
    config = read_config(tmp_path / "c.toml")
    assert config.seed == 3
    assert config.image.input == ImageInput(size_px=64, resize_px=80)


def test_a_file_that_extends_itself_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "b.toml"')
    (tmp_path / "b.toml").write_text('extends = "a.toml"')
    with pytest.raises(InvalidSettings, match="extends itself"):
        read_config(tmp_path / "a.toml")
    (tmp_path / "c.toml").write_text("extends = 3")
    with pytest.raises(InvalidSettings, match="expected a file name, got 3"):
        read_config(tmp_path / "c.toml")


@pytest.mark.parametrize("file", sorted(DEMO.parent.rglob("*.toml")), ids=lambda f: f.stem)
def test_every_experiment_that_we_ship_is_accepted(file: Path) -> None:
    config = read_config(file)
    if file.parent.name == "experiments" and "_" not in file.stem and file.stem != "synthetic":
        assert config.objective.name == file.stem
