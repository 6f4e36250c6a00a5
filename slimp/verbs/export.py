"""`slimp export`: a fitted run to a bundle."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def export(
    run: Annotated[Path, Argument(help="a fitted run")],
    out: Annotated[Path, Option(help="the bundle folder to write")],
    held_out: Annotated[
        Path | None,
        Option(help="the cohort it was fitted on: measures lower precisions and chooses one"),
    ] = None,
) -> None:
    """Write a fitted run as ONNX graphs that passed the parity ladder."""
    from cohort.cohort import Cohort
    from export.pack import export_run
    from slimp.console import progress, say

    with progress() as report:
        cohort = None if held_out is None else Cohort.open(held_out)
        manifest = export_run(run, out, cohort=cohort, report=report)
    say(
        f"{out}: bundle {manifest.bundle_id[:12]}, {len(manifest.parity)} parity cases, "
        f"{manifest.variant} is served"
    )
