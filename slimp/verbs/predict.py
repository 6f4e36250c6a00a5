"""`slimp predict`: image files to a table of answers."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option

from slimp.options import Variant

SHOWN_NAMES = 5
# Done, and some files are listed as refused.
PASSED_OVER = 3


def predict(
    bundle: Annotated[Path, Argument(help="the bundle that answers")],
    images: Annotated[list[Path], Argument(help="image files or folders of them")],
    out: Annotated[Path, Option(help="the table to write: .csv or .parquet")],
    metadata: Annotated[
        Path | None,
        Option(help="a CSV with a column `image` (file name, suffix or not) and one a field"),
    ] = None,
    catalogue: Annotated[
        Path | None, Option(help="reference lesions, for extrapolated metadata")
    ] = None,
    variant: Variant = None,
    prevalence: Annotated[
        float | None,
        Option(
            envvar="SLIMP_PREVALENCE",
            help="share of lesions that are malignant at the site; else the training prevalence",
        ),
    ] = None,
) -> None:
    """Classify image files, each as a lesion of its own.

    A run that was interrupted goes on where it was. Files that cannot be answered are passed over
    and listed beside the table; the exit code is then 3.
    """
    from service.bulk import predict_files
    from service.bulk_table import refused_path
    from slimp.console import progress, say

    with progress() as report:
        summary = predict_files(
            bundle,
            images,
            out,
            metadata=metadata,
            catalogue=catalogue,
            variant=variant,
            prevalence=prevalence,
            report=lambda done, total: report("predict", done, total),
        )
    if summary.refused:
        say(f"{refused_path(out)}: the files that were refused, and why")
    say(f"{out}: {summary.answered} answered, {summary.refused} refused (see `error`)")
    if summary.unused:
        say(f"{metadata}: lines about no image among these: {_some(summary.unused)}")
    if summary.unnamed:
        say(f"{metadata}: images without a line, answered as missing: {_some(summary.unnamed)}")
    if summary.refused:
        raise Exit(PASSED_OVER)


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:SHOWN_NAMES])
    return f"{len(names)} ({shown}{', ...' if len(names) > SHOWN_NAMES else ''})"
