"""`slimp train`: nested pre-training."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def train(
    cohort: Annotated[Path, Argument(help="a prepared cohort")],
    config: Annotated[Path, Option(help="the experiment, a TOML file")],
    out: Annotated[Path, Option(help="the run folder to write")],
    resume: Annotated[bool, Option("--resume", help="go on from the last checkpoint")] = False,
) -> None:
    """Pre-train SLIMP encoders on a cohort's train split; no label takes part."""
    from cohort.cohort import Cohort
    from slimp.console import progress, say
    from slimp.verbs.training_note import training_note
    from training.config import read_config
    from training.processes import this_process
    from training.trainer import pretrain

    with progress() as report:
        info = pretrain(
            Cohort.open(cohort),
            read_config(config),
            out,
            resume=resume,
            report=lambda step, total, metrics: report(
                "pre-train", step, total, training_note(metrics)
            ),
        )
    if this_process().is_main_process:
        say(f"{out}: {info.objective} run, {info.parameters:,} parameters, {info.seconds} s")
