"""What each process of a test of several processes runs: `python shares.py RANK FOLDER COHORT`.

The processes meet in a file of the folder, and read the experiments that lie there.
"""

import sys
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from bundle.errors import TrainingError
from cohort.cohort import Cohort
from training.config import Config
from training.data import fit_schema, load_rows
from training.model import Slimp
from training.processes import average_gradients, gather_rows
from training.record_batches import RecordBatches
from training.sampler import PatientBatches
from training.trainer import Trainer, pretrain

PROCESSES = 2


def gradients_of(config: Config, cohort: Cohort, share: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Return the loss and its gradient on one batch, in float64, by one process's share."""
    rows = load_rows(cohort, ["train"], cohort.info.labels)
    schema = fit_schema(cohort.schema, rows)
    torch.manual_seed(0)
    model = Slimp(config, schema).double()
    index = next(iter(PatientBatches(rows.patient, patients=7, lesions=3, seed=0, share=share)))
    pixels = torch.randn(len(rows), 3, 16, 16, generator=torch.Generator().manual_seed(1))
    batch = RecordBatches(rows, schema, config.objective).batch(torch.tensor(index))
    batch["pixels"] = pixels[index]
    terms = model({k: v.double() if v.is_floating_point() else v for k, v in batch.items()})
    loss = 0.3 * terms["lesion"].loss + 0.7 * terms["patient"].loss
    torch.autograd.backward(loss)
    average_gradients(model.parameters())
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


def gather_kinds(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.arange(2 + rank) + 2**40 * rank
    return gather_rows(rows), gather_rows(rows % 2 == 0)


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
        "gradients": gradients_of(still, cohort, (rank, PROCESSES)),
        "gathered": gather_kinds(rank),
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
