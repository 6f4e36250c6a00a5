import json
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import TrainingError
from training.comparison import compare_evaluations


def write_evaluation(folder: Path, value: float, *, ids: str = "a") -> Path:
    figure = {"value": value, "low": value - 0.1, "high": value + 0.1}
    metrics: dict[str, Any] = {
        "model": {"id": "0123456789abcdef"},
        "cohort": {
            "name": "squares",
            "splits": ["test"],
            "images": 10,
            "image_ids_sha256": ids,
            "groups": 5,
            "group": "patient",
        },
        "seen": {"mark": None},
        "conditions": {
            "image": {"calibrated_as": "missing", "balanced_accuracy": figure},
            "extrapolated": {"value": None, "reason": "no catalogue"},
        },
    }
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_every_condition_that_was_measured_has_a_row(tmp_path: Path) -> None:
    folders = [write_evaluation(tmp_path / name, v) for name, v in (("a", 0.5), ("b", 0.7))]
    text = compare_evaluations(folders)
    rows = [line for line in text.splitlines() if "| image |" in line]
    assert len(rows) == 2
    assert "0.500 (0.400 to 0.600)" in rows[0]
    assert "0.700 (0.600 to 0.800)" in rows[1]
    assert "extrapolated" not in text
    assert "squares, test; 10 images of 5 patients" in text
    assert "different images" not in text


def test_evaluations_of_different_images_are_marked(tmp_path: Path) -> None:
    """As many of each: another split of the same cohort."""
    folders = [write_evaluation(tmp_path / ids, 0.5, ids=ids) for ids in "ab"]
    assert "of different images: do not compare" in compare_evaluations(folders)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_folder_without_an_evaluation_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(TrainingError, match="expected a folder that slimp evaluate wrote"):
        compare_evaluations([tmp_path])
