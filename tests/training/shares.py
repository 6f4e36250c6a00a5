"""What each process of a test of several processes runs: `python shares.py RANK FOLDER COHORT`.

The processes meet in a file of the folder, and read the experiments that lie there.
"""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn

from bundle.errors import TrainingError
from bundle.fields import FieldSchema
from cohort.cohort import Cohort
from training.config import Config
from training.data import Rows, fit_schema, load_rows
from training.model import Slimp
from training.objectives.supervised import Supervised
from training.processes import average_gradients, gather_rows
from training.record_batches import RecordBatches
from training.sampler import PatientBatches
from training.trainer import Trainer, pretrain
from training.validation import Validation

PROCESSES = 2
# What the gradient of one process is compared under, by name.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "nested": {},
    "nested beside views": {"image_weight": 0.5},
    "flat": {"name": "flat"},
    "clip": {"name": "clip"},
    "siglip": {"name": "siglip"},
    "simclr": {"name": "simclr"},
    "mae": {"name": "mae"},
    "supervised": {"name": "supervised"},
}
# Of a loss's terms, in their order.
WEIGHTS = (0.3, 0.7, 0.45)


def with_objective(config: Config, name: str) -> Config:
    settings = config.objective.model_copy(update=OBJECTIVES[name])
    return config.model_copy(update={"objective": settings})


def batch_of(
    config: Config, rows: Rows, schema: FieldSchema, share: tuple[int, int]
) -> dict[str, torch.Tensor]:
    """Return one process's share of a batch in float64, the same rows however it is shared."""
    batches = PatientBatches(rows.patient, patients=7, lesions=3, seed=0, share=share)
    index = torch.tensor(next(iter(batches)))
    batch = RecordBatches(rows, schema, config.objective).batch(index)
    # Some patients have no record at all, and some images no label.
    unknown = torch.from_numpy(rows.patient)[index] % 4 == 0
    batch["lesion_present"][unknown] = False
    batch["patient_present"][unknown[batch["slot"][:, 1] == 0]] = False
    if "label" in batch:
        batch["label"][index % 5 == 0] = -1
    pixels = torch.randn(2, len(rows), 3, 16, 16, generator=torch.Generator().manual_seed(1))
    batch["pixels"], batch["second_pixels"] = pixels[:, index]
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def same_for_every_row(rows: int, columns: int, **options: Any) -> torch.Tensor:
    """Stand in for `torch.rand`, so that an image's mask does not depend on who draws it."""
    return torch.linspace(0, 1, columns).expand(rows, columns)


def gradients_of(config: Config, cohort: Cohort, share: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Return the loss and its gradient on one batch, in float64, by one process's share."""
    rows = load_rows(cohort, ["train"], cohort.info.labels)
    schema = fit_schema(cohort.schema, rows)
    torch.manual_seed(0)
    model = Slimp(config, schema, labels=len(cohort.info.labels))
    if isinstance(model.objective, Supervised):
        model.objective.balance(torch.from_numpy(rows.label))
    model.double()
    batch = batch_of(config, rows, schema, share)
    with patch("torch.rand", same_for_every_row):
        terms = model(batch)
    weighted = [w * term.loss for w, term in zip(WEIGHTS, terms.values(), strict=False)]
    loss = torch.stack(weighted).sum()
    torch.autograd.backward(loss)
    average_gradients(model.parameters())
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


def val_loss_of(config: Config, cohort: Cohort, share: tuple[int, int]) -> float:
    """Return the loss on the val split by one process's share of its batches."""
    schema = fit_schema(cohort.schema, load_rows(cohort, ["train"], cohort.info.labels))
    torch.manual_seed(0)
    model = Slimp(config, schema)
    few = config.model_copy(update={"batch": config.batch.model_copy(update={"patients": 3})})
    return Validation(cohort, schema, few, share).loss(model, model.weights)


def gather_kinds(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.arange(2 + rank) + 2**40 * rank
    return gather_rows(rows), gather_rows(rows % 2 == 0)


def gradients_that_some_lack(rank: int) -> list[torch.Tensor | None]:
    """Return gradients after averaging: of all processes, of the first alone, of none."""
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    parameters[0].grad = torch.full((2,), 1.0 + rank)
    if rank == 0:
        parameters[1].grad = torch.full((2,), 4.0)
    average_gradients(parameters)
    return [parameter.grad for parameter in parameters]


def refused(config: Config, cohort: Cohort, out: Path) -> str:
    try:
        pretrain(cohort, config, out)
    except TrainingError as error:
        return str(error)
    return "not refused"


class Stopped(Exception):
    """The power went away, in all processes at once."""


def interrupted(config: Config, cohort: Cohort, out: Path) -> None:
    """Stop a run after its first checkpoint, and go on from it."""
    save = Trainer.save_state

    def save_and_stop(self: Trainer) -> None:
        save(self)
        raise Stopped

    Trainer.save_state = save_and_stop  # type: ignore[method-assign]  # on purpose
    with suppress(Stopped):
        pretrain(cohort, config, out)
    Trainer.save_state = save  # type: ignore[method-assign]
    pretrain(cohort, config, out, resume=True)


def main() -> None:
    rank, folder, cohort = int(sys.argv[1]), Path(sys.argv[2]), Cohort.open(Path(sys.argv[3]))
    still, stem = (
        Config.model_validate_json((folder / name).read_text())
        for name in ("still.json", "stem.json")
    )
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES)
    found = {
        "gradients": {
            name: gradients_of(with_objective(still, name), cohort, (rank, PROCESSES))
            for name in OBJECTIVES
        },
        "gathered": gather_kinds(rank),
        "unused": gradients_that_some_lack(rank),
        "val_loss": val_loss_of(still, cohort, (rank, PROCESSES)),
        "refused": refused(stem, cohort, folder / "stem"),
    }
    pretrain(cohort, still, folder / "run")
    in_chunks = still.model_copy(update={"batch": still.batch.model_copy(update={"chunk": 5})})
    pretrain(cohort, in_chunks, folder / "chunks")
    dropping = still.objective.model_copy(update={"column_dropout": 0.3})
    random = still.model_copy(update={"checkpoint_steps": 2, "objective": dropping})
    pretrain(cohort, random, folder / "uninterrupted")
    interrupted(random, cohort, folder / "interrupted")
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
