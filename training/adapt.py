"""Continual pre-training: a run's encoders move to a new cohort without its labels.

As arXiv 2505.23709 describes it: the embedding layers of the image and metadata towers train, their
attention layers stay. Projections and pooling, which no bundle holds, train too. Columns that the
run never saw get tokens of their own (`training/growth.py`). What the encoders forget of the cohort
that they come from is measured where that cohort is given.
"""

from pathlib import Path

from accelerate import PartialState
from accelerate.utils import set_seed

from bundle.errors import TrainingError
from bundle.fields import FieldSchema
from cohort.cohort import Cohort
from training.config import Config
from training.data import load_rows
from training.growth import grow, join_schemas
from training.image_encoder import block_of
from training.model import Slimp
from training.progress import StepReport, silent
from training.run import Forgetting, RunInfo, load_towers, read_info, read_run_config, write_run
from training.trainer import choose_objective, pretrain
from training.validation import Validation


def adapt(
    run: Path,
    cohort: Cohort,
    out: Path,
    *,
    source: Cohort | None = None,
    full: bool = False,
    epochs: int | None = None,
    learning_rate: float | None = None,
    resume: bool = False,
    report: StepReport = silent,
) -> RunInfo:
    """Continue a run's pre-training on a cohort and write a new run.

    Args:
        run: a finished run; not changed.
        cohort: the new data; its fields may be the run's, fewer, or more.
        out: the new run folder.
        source: the cohort that the run comes from; its val split tells what is forgotten.
        full: train the attention layers too, but for blocks that the run froze.
        epochs: passes over the new data; None takes as many as the run made, or as many steps.
        learning_rate: peak; None takes the run's.
        resume: go on from the folder's last checkpoint.
        report: called after each step with step, total and the step's metrics.

    Raises:
        TrainingError: the run reads labels, a field of the cohort contradicts the run's, or there
            is nothing to train on.
    """
    info, config = read_info(run), read_run_config(run)
    if config.objective.name == "supervised" or config.batch.malignant_patients is not None:
        raise TrainingError(
            f"{run}: expected a run that learns without labels, it was trained with "
            "objective.name supervised or batch.malignant_patients, which read them: pre-train "
            "another, or train on the new cohort itself"
        )
    changed: dict[str, object] = {"adapt_attention": full}
    if epochs is not None:
        changed |= {"epochs": epochs, "steps": None}
    if learning_rate is not None:
        changed["learning_rate"] = learning_rate
    optimiser = config.optimiser.model_copy(update=changed)
    config = config.model_copy(update={"optimiser": optimiser})
    before = load_towers(run)
    rows = load_rows(cohort, ["train"], cohort.info.labels)
    schema = join_schemas(info.record_schema, cohort.schema, rows)
    lost = None if source is None else _loss(source, before, info.record_schema, config)
    # New tokens are drawn alike when an adaptation is started and when it is resumed.
    set_seed(config.seed)
    towers = grow(before, config, info.record_schema, schema, labels=len(info.labels))
    if not full:
        keep_attention(towers)
    adapted = pretrain(
        cohort,
        config,
        out,
        resume=resume,
        report=report,
        start=towers,
        schema=schema,
        history=info,
    )
    if source is None or lost is None:
        return adapted
    after = load_towers(out)
    forgetting = Forgetting(
        cohort=source.info.name, before=lost, after=_loss(source, after, schema, config)
    )
    adapted = adapted.model_copy(update={"forgetting": forgetting})
    process = PartialState()
    if process.is_main_process:
        write_run(out, after, adapted)
    process.wait_for_everyone()
    return adapted


def _loss(cohort: Cohort, towers: Slimp, schema: FieldSchema, config: Config) -> float:
    """Return the run's own objective on a cohort's val split, without labels."""
    rows = load_rows(cohort, ["val"], cohort.info.labels)
    _, weights = choose_objective(cohort, rows, schema, towers)
    trains = towers.training
    loss = Validation(cohort, schema, config, (0, 1)).loss(towers, weights)
    towers.train(trains)
    return loss


def keep_attention(towers: Slimp) -> None:
    """Freeze the attention layers of all towers; their embedding layers and norms train."""
    for name, parameter in towers.image.backbone.named_parameters():
        parameter.requires_grad_(not 0 <= block_of(name) < float("inf"))
    for tower in (towers.lesion, towers.patient):
        if tower is not None:
            tower.layers.requires_grad_(False)
