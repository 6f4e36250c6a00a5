"""The run folder: what a training writes and the next step reads.

config.json          the resolved configuration
run.json             what the run is: fields, labels, data, groups seen; written last
towers.safetensors   the encoders and their projections
classifier.safetensors  context.safetensors (with patient ids)  } after `fit`
calibration.json        novelty.npz  appearance.npz             }
metrics.jsonl        one line a log step
state/               what --resume needs
"""

import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

from bundle.errors import TrainingError
from bundle.fields import FieldSchema
from bundle.manifest import DataSource
from cohort.cohort import Cohort, group_hashes
from training.config import Config
from training.model import Slimp

TOWERS = "towers.safetensors"
SEEN = "seen.json"
M = TypeVar("M", bound=BaseModel)


class SeenGroups(BaseModel):
    """Salted hashes of the patients or lesions that training, fitting or calibration saw."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    salt: str
    hashes: tuple[str, ...]

    @classmethod
    def of(cls, group_ids: set[str]) -> "SeenGroups":
        salt = secrets.token_hex(16)
        return cls(salt=salt, hashes=tuple(sorted(group_hashes(sorted(group_ids), salt))))

    def overlap(self, group_ids: set[str]) -> set[str]:
        """Return the groups that were seen."""
        seen = set(self.hashes)
        ids = sorted(group_ids)
        return {g for g, h in zip(ids, group_hashes(ids, self.salt), strict=True) if h in seen}


SEEN_LIST = TypeAdapter(tuple[SeenGroups, ...])


def write_seen(path: Path, seen: tuple[SeenGroups, ...]) -> None:
    """Write the groups seen where a bundle carries them."""
    path.write_bytes(SEEN_LIST.dump_json(seen) + b"\n")


def read_seen(data: bytes) -> tuple[SeenGroups, ...]:
    """Return what `write_seen` wrote.

    Raises:
        TrainingError: the bytes are something else.
    """
    try:
        return SEEN_LIST.validate_json(data)
    except ValidationError as error:
        raise TrainingError(f"{SEEN}: {error.errors()[0]['msg']}") from None


class Forgetting(BaseModel):
    """What an adaptation cost on the cohort that the run came from.

    Attributes:
        cohort: its name.
        before: the run's own loss on its val split before the adaptation; no label is read.
        after: the same after it. Negatives are those of the same batches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cohort: str
    before: float
    after: float


class RunInfo(BaseModel):
    """What `run.json` says; `forgetting` is None where it was not measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: str
    record_schema: FieldSchema
    labels: tuple[str, ...]
    malignant_labels: tuple[str, ...]
    embedding_dim: int
    data: tuple[DataSource, ...]
    seen: tuple[SeenGroups, ...]
    split_recipe: str
    parameters: int
    seconds: float
    forgetting: Forgetting | None = None


def describe_data(cohort: Cohort) -> DataSource:
    """Return what a run says of a cohort."""
    counts = cohort.info.counts
    return DataSource(
        name=cohort.info.name,
        licence=cohort.info.licence,
        citation=cohort.info.citation,
        images=counts.images,
        lesions=counts.lesions,
        patients=counts.patients,
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write through a temporary name, so that a reader never sees half a file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def write_run(out: Path, model: Slimp, info: RunInfo) -> None:
    """Write the towers and, last, `run.json`, which makes the run complete."""
    save_file({k: v.contiguous().cpu() for k, v in model.state_dict().items()}, out / TOWERS)
    for weights in out.rglob("*.safetensors"):
        # safetensors writes files that only their owner can read.
        shutil.copymode(out / "config.json", weights)
    write_json(out / "run.json", info.model_dump(mode="json"))


def read_info(run: Path) -> RunInfo:
    """Return a finished run's description.

    Raises:
        TrainingError: the folder is no run, or the run did not finish.
    """
    return _read(run, "run.json", RunInfo)


def read_run_config(run: Path) -> Config:
    """Return the run's resolved configuration.

    Raises:
        TrainingError: the folder is no run.
    """
    return _read(run, "config.json", Config)


def _read(run: Path, name: str, model: type[M]) -> M:
    path = run / name
    if not path.is_file():
        raise TrainingError(f"{run}: expected a finished run with {name}; finish it with --resume")
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise TrainingError(f"{path}: {error.errors()[0]['msg']}") from None


def load_towers(run: Path) -> Slimp:
    """Return a finished run's towers in evaluation mode."""
    info = read_info(run)
    config = read_run_config(run)
    model = Slimp(config, info.record_schema, labels=len(info.labels), pretrained=False)
    model.load_state_dict(load_file(run / TOWERS))
    return model.eval()


def load_module(module: torch.nn.Module, path: Path) -> torch.nn.Module:
    """Return the module with a safetensors file's weights, in evaluation mode.

    Raises:
        TrainingError: the file is missing.
    """
    if not path.is_file():
        raise TrainingError(f"{path} is missing: run `slimp fit` first")
    module.load_state_dict(load_file(path))
    return module.eval()
