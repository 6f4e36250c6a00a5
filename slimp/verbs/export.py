"""`slimp export`: a fitted run to a bundle."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def export(
    run: Annotated[Path, Argument(help="a fitted run")],
    out: Annotated[Path, Option(help="the bundle folder to write")],
) -> None:
    """Write a fitted run as ONNX graphs that passed the parity ladder."""
    from export.pack import export_run
    from slimp.console import progress, say

    with progress() as report:
        manifest = export_run(run, out, report=report)
    say(f"{out}: bundle {manifest.bundle_id[:12]}, {len(manifest.parity)} parity cases")
