"""`slimp adapt`: continual pre-training."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def adapt(
    run: Annotated[Path, Argument(help="a pre-trained run")],
    cohort: Annotated[Path, Argument(help="the new cohort; it may bring fields of its own")],
    out: Annotated[Path, Option(help="the run folder to write")],
    source: Annotated[
        Path | None, Option(help="the run's own cohort, to measure what is forgotten of it")
    ] = None,
    full: Annotated[
        bool, Option("--full", help="train attention layers too, but for frozen blocks")
    ] = False,
    epochs: Annotated[
        int | None, Option(min=1, help="passes over the new cohort; else as the run made")
    ] = None,
    learning_rate: Annotated[float | None, Option(help="peak; else the run's")] = None,
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
            source=None if source is None else Cohort.open(source),
            full=full,
            epochs=epochs,
            learning_rate=learning_rate,
            resume=resume,
            report=lambda step, total, metrics: report(
                "adapt", step, total, training_note(metrics)
            ),
        )
    forgotten = "forgetting was not measured (--source)"
    if info.forgetting is not None:
        lost = info.forgetting
        forgotten = f"loss on {lost.cohort} {lost.before:.3f} before, {lost.after:.3f} after"
    say(f"{out}: {info.objective} run, {info.seconds} s, {forgotten}")
