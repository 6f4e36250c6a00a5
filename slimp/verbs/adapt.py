"""`slimp adapt`: continual pre-training."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def adapt(
    run: Annotated[Path, Argument(help="a pre-trained run")],
    cohort: Annotated[Path, Argument(help="the new cohort; its fields must be the run's")],
    out: Annotated[Path, Option(help="the run folder to write")],
    resume: Annotated[bool, Option("--resume", help="go on from the last checkpoint")] = False,
) -> None:
    """Go on pre-training on a new cohort: embedding layers learn, attention layers stay."""
    from cohort.cohort import Cohort
    from slimp.console import progress, say
    from slimp.verbs.training_note import training_note
    from training.adapt import adapt as continue_on

    with progress() as report:
        info = continue_on(
            run,
            Cohort.open(cohort),
            out,
            resume=resume,
            report=lambda step, total, metrics: report(
                "adapt", step, total, training_note(metrics)
            ),
        )
    say(f"{out}: {info.objective} run, {info.seconds} s")
