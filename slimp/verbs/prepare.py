"""`slimp prepare`: published files to a cohort."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def prepare(
    dataset: Annotated[
        str,
        Argument(
            help="ham10000, pad_ufes_20, slice3d, isic2019, isic2020, hiba, ph2, derm7pt, milk10k, "
            "table (your own) or synthetic"
        ),
    ],
    source: Annotated[
        Path | None, Argument(help="the data set's folder; for table, the CSV or its folder")
    ] = None,
    *,
    out: Annotated[Path, Option(help="the cohort folder to write")],
    split_seed: Annotated[int, Option(min=0, help="which of the possible splits")] = 0,
    set_: Annotated[
        list[str] | None,
        Option("--set", help="NAME=VALUE, what the data set's reader takes, as measured=false"),
    ] = None,
    without_label: Annotated[
        list[str] | None,
        Option(help="a label too rare to learn: its images stay, unlabelled; may be repeated"),
    ] = None,
    schema: Annotated[Path | None, Option(help="table: the fields.toml")] = None,
    patients: Annotated[
        int | None, Option(min=1, help="synthetic: how many patients; else the demo's")
    ] = None,
    seed: Annotated[
        int | None, Option(min=0, help="synthetic: of the generator; else the demo's")
    ] = None,
) -> None:
    """Read a data set as published and write a cohort: Parquet shards and cohort.json."""
    from cohort.readers import open_source, parse_options
    from cohort.rows import without_labels
    from cohort.store import prepare as write_cohort
    from cohort.synthetic.settings import DEMO_SETTINGS
    from slimp.console import progress, say

    options: dict[str, object] = {"schema": schema, "patients": patients, "seed": seed}
    given = {name: value for name, value in options.items() if value is not None}
    given |= parse_options(set_ or ())
    if dataset == "synthetic":
        given = {**DEMO_SETTINGS, **given}
    opened = without_labels(open_source(dataset, source, **given), without_label or ())
    with progress() as report:
        info = write_cohort(
            opened,
            out,
            split_seed=split_seed,
            progress=lambda rows: report("rows read", rows, None),
        )
    counts = info.counts
    say(
        f"{out}: {counts.rows_read} rows read, {counts.images} images of {counts.lesions} lesions, "
        f"{counts.dropped} rows dropped, {counts.unlabelled} unlabelled (cohort.json says more)"
    )
    for field, errors in info.value_errors_by_field.items():
        say(f"{field}: {errors} values were not understood and are missing (named in cohort.json)")
