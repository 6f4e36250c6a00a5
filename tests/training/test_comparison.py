import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.arrays import write_arrays
from bundle.errors import TrainingError
from training.comparison import compare_evaluations

ROWS = np.random.default_rng(0).random(50)


def write_evaluation(folder: Path, value: float, *, ids: str = "a", spread: float = 0.1) -> Path:
    """An evaluation whose resamples lie around its value, the same ones wherever ids agree."""
    figure = {"value": value, "low": value - 0.1, "high": value + 0.1}
    metrics: dict[str, Any] = {
        "model": {"id": "0123456789abcdef", "labels": ["a", "b"]},
        "cohort": {
            "name": "squares",
            "splits": ["test"],
            "images": 10,
            "image_ids_sha256": ids,
            "groups": 5,
            "group": "patient",
            "labels": ["a", "b"],
        },
        "seen": {"mark": None},
        "bootstrap": {"samples": len(ROWS), "seed": 0, "interval": "95 % percentile"},
        "conditions": {
            "image": {"calibrated_as": "missing", "balanced_accuracy": figure},
            "extrapolated": {"value": None, "reason": "no catalogue"},
        },
    }
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    draws = np.concatenate([[value], value + spread * (ROWS - 0.5)])
    (folder / "draws.npz").write_bytes(write_arrays({"image/balanced_accuracy": draws}))
    return folder


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_condition_that_was_measured_has_a_row(tmp_path: Path) -> None:
    folders = [str(write_evaluation(tmp_path / name, v)) for name, v in (("a", 0.5), ("b", 0.7))]
    text = compare_evaluations(folders)
    rows = [cells(line) for line in text.splitlines() if "| image |" in line]
    assert [row[0] for row in rows] == [*folders, folders[1]]
    assert rows[0][4] == "0.500 (0.400 to 0.600)"
    assert rows[1][4] == "0.700 (0.600 to 0.800)"
    assert "extrapolated" not in text
    assert "squares, test; 10 images of 5 patients" in text
    assert "different images" not in text


def test_a_difference_is_that_of_the_same_resamples(tmp_path: Path) -> None:
    """Both move together, so that nothing is left of their spread, and half of another's is."""
    spreads = {"a": 0.1, "b": 0.1, "c": 0.2}
    folders = [str(write_evaluation(tmp_path / k, 0.5, spread=v)) for k, v in spreads.items()]
    text = compare_evaluations(folders).partition(f"Less {folders[0]}")[2]
    same, other = (cells(line) for line in text.splitlines() if "| image |" in line)
    assert same[:3] == [folders[1], "image", "0.000 (0.000 to 0.000)"]
    low, high = np.quantile(0.1 * (ROWS - 0.5), [0.025, 0.975])
    assert other[2] == f"0.000 ({low:.3f} to {high:.3f})"


def test_seeds_are_one_row_with_their_mean_and_their_range(tmp_path: Path) -> None:
    first, *seeds = [write_evaluation(tmp_path / f"{v}", v) for v in (0.5, 0.6, 0.8)]
    text = compare_evaluations([str(first), f"ours={','.join(map(str, seeds))}"])
    rows = [cells(line) for line in text.splitlines() if line.startswith("| ours")]
    assert rows[0][2] == "2"
    assert re.fullmatch(r"0\.700 \(0\.\d+ to 0\.\d+\); seeds 0\.600 to 0\.800", rows[0][4])
    assert rows[1][2] == "0.200 (0.100 to 0.300)"


def test_a_figure_that_a_seed_does_not_have_is_none_of_the_experiment(tmp_path: Path) -> None:
    seeds = [write_evaluation(tmp_path / f"{v}", v) for v in (0.5, 0.6)]
    metrics = json.loads((seeds[1] / "metrics.json").read_text())
    metrics["conditions"]["image"]["balanced_accuracy"] = {"value": None, "reason": "one side"}
    (seeds[1] / "metrics.json").write_text(json.dumps(metrics))
    text = compare_evaluations([f"ours={seeds[0]},{seeds[1]}"])
    assert "none: one side" in text


def test_evaluations_of_different_images_are_marked(tmp_path: Path) -> None:
    """As many of each: another split of the same cohort."""
    folders = [str(write_evaluation(tmp_path / ids, 0.5, ids=ids)) for ids in "ab"]
    text = compare_evaluations(folders)
    assert "of different images: do not compare" in text
    assert "Less" not in text
    with pytest.raises(TrainingError, match="ours: expected seeds of one experiment"):
        compare_evaluations([f"ours={','.join(folders)}"])


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_folder_without_an_evaluation_is_refused(tmp_path: Path, content: str | None) -> None:
    folder = write_evaluation(tmp_path / "a", 0.5)
    (folder / "metrics.json").unlink()
    if content is not None:
        (folder / "metrics.json").write_text(content)
    with pytest.raises(TrainingError, match="expected a folder that slimp evaluate wrote"):
        compare_evaluations([str(folder)])


def test_an_evaluation_without_its_draws_is_refused(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "a", 0.5)
    (folder / "draws.npz").write_bytes(b"not an archive")
    with pytest.raises(TrainingError, match=r"with metrics.json and draws.npz"):
        compare_evaluations([str(folder)])
