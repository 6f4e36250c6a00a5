"""`slimp prepare`: published files to a cohort."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def prepare(
    dataset: Annotated[
        str, Argument(help="ham10000, pad_ufes_20, slice3d, table (your own) or synthetic")
    ],
    source: Annotated[
        Path | None, Argument(help="the data set's folder; for table, the CSV file")
    ] = None,
    out: Annotated[Path, Option(help="the cohort folder to write")] = ...,  # type: ignore[assignment]
    split_seed: Annotated[int, Option(min=0, help="which of the possible splits")] = 0,
    schema: Annotated[Path | None, Option(help="table: the fields.toml")] = None,
    patients: Annotated[int, Option(min=1, help="synthetic: how many patients")] = 340,
    seed: Annotated[int, Option(min=0, help="synthetic: of the generator")] = 2024,
) -> None:
    """Read a data set as published and write a cohort: Parquet shards and cohort.json."""
    from cohort.readers import open_source
    from cohort.store import prepare as write_cohort
    from slimp.console import out as console
    from slimp.console import progress

    options: dict[str, object] = {}
    if dataset == "synthetic":
        options = {"patients": patients, "seed": seed}
    if schema is not None:
        options["schema"] = schema
    opened = open_source(dataset, source, **options)
    with progress() as report:
        info = write_cohort(
            opened,
            out,
            split_seed=split_seed,
            progress=lambda rows: report("rows read", rows, max(rows, 1)),
        )
    counts = info.counts
    console.print(
        f"{out}: {counts.rows_read} rows read, {counts.images} images of {counts.lesions} lesions, "
        f"{counts.dropped} rows dropped (named in cohort.json)"
    )
