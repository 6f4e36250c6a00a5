"""The objective's own loss on the val split: a measure for early stopping that reads no label.

(Under `supervised`, whose loss is of labels, it reads them.) The same batches every time, without
augmentation, column dropout or corruption; what an objective must draw, two views or a mask, it
draws from a seed of its own, and the run's random numbers go on as if nothing had happened.
"""

import torch

from bundle.errors import TrainingError
from bundle.fields import FieldSchema
from bundle.images import standardise
from cohort.cohort import Cohort
from training.augment import Augment
from training.config import Config
from training.data import Squares, load_rows
from training.model import Slimp
from training.processes import add_up
from training.record_batches import RecordBatches
from training.sampler import PatientBatches

UNDISTURBED = {"column_dropout": 0.0, "column_corruption": 0.0}


class Validation:
    """Fixed batches of the val split.

    Attributes:
        group_id: groups of its N images.
    """

    def __init__(
        self, cohort: Cohort, schema: FieldSchema, config: Config, share: tuple[int, int]
    ) -> None:
        """Prepare the batches.

        Args:
            cohort: its val split is read.
            schema: the fitted fields.
            config: the experiment.
            share: which part of every batch this process takes, and of how many.

        Raises:
            TrainingError: the val split cannot fill a batch.
        """
        rows = load_rows(cohort, ["val"], cohort.info.labels)
        batches = PatientBatches(
            rows.patient,
            patients=config.batch.patients,
            lesions=config.batch.lesions,
            seed=config.seed,
            share=share,
        )
        self.batches = list(batches) if len(rows) else []
        if not self.batches:
            raise TrainingError(
                "expected images in the cohort's val split for optimiser.patience and keep_best, "
                "got none: prepare the cohort with a val split, or leave both out"
            )
        self.group_id = rows.group_id
        self.config = config
        objective = config.objective.model_copy(update=UNDISTURBED)
        self.records = RecordBatches(rows, schema, objective)
        kept = config.batch.keep_mib
        self.squares = Squares(cohort, rows, config.image.input, keep_mib=kept)
        self.augment = Augment(config.augment, config.image.input)

    @torch.no_grad()
    def loss(self, model: Slimp, weights: dict[str, float]) -> float:
        """Return the mean loss of the batches, weighed by their images.

        It is that of all processes' images, the same number in each: they must decide alike.
        """
        device = next(model.parameters()).device
        total = count = 0.0
        model.eval()
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.config.seed)
            for index in self.batches:
                batch = self.records.batch(torch.tensor(index))
                pixels = self.squares.read(index)
                batch["pixels"] = torch.from_numpy(standardise(pixels, self.squares.spec))
                if self.config.objective.compares_views:
                    squares = torch.from_numpy(pixels)
                    batch["pixels"] = self.augment(squares)
                    batch["second_pixels"] = self.augment(squares)
                terms = model({name: part.to(device) for name, part in batch.items()})
                loss = sum(weights[name] * term.loss.item() for name, term in terms.items())
                total += loss * len(index)
                count += len(index)
        model.train()
        total, count = add_up(torch.tensor([total, count], dtype=torch.double, device=device))
        return total / count
