"""`slimp predict`: image files to a CSV of answers."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

SHOWN_NAMES = 5


def predict(
    bundle: Annotated[Path, Argument(help="the bundle that answers")],
    images: Annotated[list[Path], Argument(help="image files or folders of them")],
    out: Annotated[Path, Option(help="the CSV file to write")],
    metadata: Annotated[
        Path | None, Option(help="a CSV with a column `image` (file name) and one a field")
    ] = None,
    catalogue: Annotated[
        Path | None, Option(help="reference lesions, for extrapolated metadata")
    ] = None,
) -> None:
    """Classify image files, each as a lesion of its own; bad files are listed, not skipped."""
    from service.bulk import predict_files
    from slimp.console import progress, say

    with progress() as report:
        summary = predict_files(
            bundle,
            images,
            out,
            metadata=metadata,
            catalogue=catalogue,
            report=lambda done, total: report("predict", done, total),
        )
    say(f"{out}: {summary.answered} answered, {summary.refused} refused (see `error`)")
    if summary.unused:
        say(
            f"{metadata}: {len(summary.unused)} lines are about no image among these: "
            f"{', '.join(summary.unused[:SHOWN_NAMES])}"
            + (", ..." if len(summary.unused) > SHOWN_NAMES else "")
        )
