"""Pre-training reads no label: under other labels it ends with the same weights, bit by bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cohort.cohort import Cohort
from tests.training.squares import LABELS, read_metrics, squares, tiny_config, write_cohort
from training.data import load_rows
from training.run import TOWERS
from training.trainer import pretrain

# A rate at which some epochs are worse than the one before.
UNSTEADY = {"epochs": 6, "learning_rate": 0.05, "warmup": 1.0}


@pytest.fixture(scope="module")
def relabelled(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """The same images, records and splits; labels and malignancy dealt anew, each by itself."""
    images = list(squares())
    labels, malignant = (np.random.default_rng(s).permutation(len(images)) for s in (0, 1))
    dealt = [
        replace(image, label=images[a].label, malignant=images[b].malignant)
        for image, a, b in zip(images, labels, malignant, strict=True)
    ]
    other = write_cohort(tmp_path_factory.mktemp("squares") / "relabelled", dealt)
    # A preparation spreads labels evenly over the splits: here it must not move anybody.
    table = cohort.table()
    return other.with_splits(
        dict(zip(table["patient_id"].to_pylist(), table["split"].to_pylist(), strict=True))
    )


def image_tower(cohort: Cohort, run: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """Return the weights of a run's image tower after pre-training."""
    pretrain(cohort, tiny_config(log_steps=1, **settings), run)
    tensors = load_file(run / TOWERS)
    return {name: tensor for name, tensor in tensors.items() if name.startswith("image.")}


def test_other_labels_change_the_labels_of_all_splits_and_nothing_else(
    cohort: Cohort, relabelled: Cohort
) -> None:
    for split in ("train", "val"):
        rows, others = (load_rows(c, [split], LABELS) for c in (cohort, relabelled))
        assert rows.image_id == others.image_id
        assert rows.records == others.records
        assert (rows.label != others.label).any()
        assert (rows.malignant != others.malignant).any()


def test_nested_weights_do_not_depend_on_labels(
    cohort: Cohort, relabelled: Cohort, tmp_path: Path
) -> None:
    runs = tmp_path / "run", tmp_path / "other"
    for data, run in zip((cohort, relabelled), runs, strict=True):
        pretrain(data, tiny_config(), run)
    weights, others = (load_file(run / TOWERS) for run in runs)
    assert weights.keys() == others.keys()
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []


@pytest.mark.parametrize("chosen_by", [{"keep_best": True}, {"keep_best": True, "patience": 1}])
def test_weights_that_the_val_split_chose_do_not_depend_on_labels(
    cohort: Cohort, relabelled: Cohort, tmp_path: Path, chosen_by: dict[str, Any]
) -> None:
    runs = tmp_path / "run", tmp_path / "other"
    settings = {**UNSTEADY, **chosen_by}
    weights, others = (
        image_tower(data, run, optimiser=settings)
        for data, run in zip((cohort, relabelled), runs, strict=True)
    )
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []
    losses, again = ([m["val_loss"] for m in read_metrics(r) if "val_loss" in m] for r in runs)
    assert losses == again
    # The choice was one: the last epoch is not the best.
    assert losses[-1] > min(losses)
    assert (len(losses) < UNSTEADY["epochs"]) == ("patience" in chosen_by)


@pytest.mark.parametrize(
    "settings", [{"objective": {"name": "supervised"}}, {"batch": {"malignant_patients": 0.5}}]
)
def test_weights_that_are_said_to_depend_on_labels_do(
    cohort: Cohort, relabelled: Cohort, tmp_path: Path, settings: dict[str, Any]
) -> None:
    weights, others = (
        image_tower(data, tmp_path / name, **settings, optimiser={"epochs": 1})
        for data, name in ((cohort, "run"), (relabelled, "other"))
    )
    assert not all(torch.equal(weights[name], others[name]) for name in weights)
