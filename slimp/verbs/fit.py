"""`slimp fit`: heads, calibration, context model."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def fit(
    run: Annotated[Path, Argument(help="a pre-trained run")],
    cohort: Annotated[Path, Argument(help="a labelled cohort with the run's fields")],
    out: Annotated[Path, Option(help="the fitted run to write")],
    *,
    resume: Annotated[bool, Option(help="go on with a fine-tuning that was interrupted")] = False,
) -> None:
    """Fit classifier, calibration, novelty and context model on a run's encoders."""
    from cohort.cohort import Cohort
    from slimp.console import progress, say
    from training.fit import fit as fit_heads

    with progress() as report:
        fit_heads(run, Cohort.open(cohort), out, resume=resume, report=report)
    say(f"{out}: fitted")
