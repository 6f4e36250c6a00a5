"""Continual pre-training: a run's encoders move to a new cohort without its labels.

As arXiv 2505.23709 describes it: the embedding layers of the image and metadata towers train, their
attention layers stay. Projections and pooling, which no bundle holds, train too.
"""

from pathlib import Path

from bundle.errors import TrainingError
from cohort.cohort import Cohort
from training.image_encoder import block_of
from training.model import Slimp
from training.progress import StepReport, silent
from training.run import RunInfo, load_towers, read_info, read_run_config
from training.trainer import pretrain


def adapt(
    run: Path, cohort: Cohort, out: Path, *, resume: bool = False, report: StepReport = silent
) -> RunInfo:
    """Continue a run's pre-training on a cohort and write a new run.

    Args:
        run: a finished run; not changed.
        cohort: the new data; every field of it must be one of the run's.
        out: the new run folder.
        resume: go on from the folder's last checkpoint.
        report: called after each step with step, total and the step's metrics.

    Raises:
        TrainingError: the cohort has fields that the run's towers cannot read.
    """
    info = read_info(run)
    known = {field.name: field for field in info.record_schema.fields}
    for field in cohort.schema.fields:
        source = known.get(field.name)
        if source is None or (source.kind, source.level) != (field.kind, field.level):
            raise TrainingError(
                f"{field.name}: expected the run's own fields ({', '.join(known)}); leave the "
                "column out of the cohort, or pre-train on it"
            )
    towers = load_towers(run)
    keep_attention(towers)
    return pretrain(
        cohort,
        read_run_config(run),
        out,
        resume=resume,
        report=report,
        start=towers,
        schema=info.record_schema,
        history=info,
    )


def keep_attention(towers: Slimp) -> None:
    """Freeze the attention layers of all towers; their embedding layers and norms train."""
    for name, parameter in towers.image.backbone.named_parameters():
        parameter.requires_grad_(not 0 <= block_of(name) < float("inf"))
    for tower in (towers.lesion, towers.patient):
        if tower is not None:
            tower.layers.requires_grad_(False)
