"""`slimp evaluate`: tables and plots."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from slimp.options import Variant


def evaluate(
    model: Annotated[Path, Argument(help="a fitted run or a bundle")],
    cohort: Annotated[Path, Argument(help="a prepared cohort")],
    out: Annotated[Path, Option(help="the folder to write")],
    split: Annotated[
        Literal["test", "val", "all"], Option(help="which groups; all where none was trained on")
    ] = "test",
    catalogue: Annotated[
        Path | None, Option(help="reference lesions, for extrapolated metadata")
    ] = None,
    against: Annotated[
        Path | None, Option(help="another model's probabilities (.npz), compared in pairs")
    ] = None,
    variant: Variant = None,
    allow_seen: Annotated[
        bool, Option("--allow-seen", help="evaluate on groups that training saw; marks the tables")
    ] = False,
    without_seen: Annotated[
        bool, Option("--without-seen", help="leave out the groups that training saw")
    ] = False,
) -> None:
    """Measure a model on a cohort: metrics.json, report.md and plots."""
    from cohort.cohort import Cohort
    from slimp.console import progress, say
    from training.evaluation import evaluate as measure

    with progress() as report:
        measure(
            model,
            Cohort.open(cohort),
            out,
            splits=(split,),
            catalogue=catalogue,
            against=against,
            allow_seen=allow_seen,
            without_seen=without_seen,
            variant=variant,
            report=report,
        )
    say((out / "report.md").read_text(encoding="utf-8"))
