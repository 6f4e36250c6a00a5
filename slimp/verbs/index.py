"""`slimp index`: a cohort's lesions to a catalogue."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from slimp.options import Variant

INDEX_HELP = "the vector index: auto (by size), flat (exact), or FAISS's factory text, HNSW or IVF"
RECALL_HELP = "the least share of the 10 nearest that an approximate index finds, as measured"


def index(
    bundle: Annotated[Path, Argument(help="the bundle that embeds")],
    cohort: Annotated[Path, Argument(help="a prepared cohort")],
    out: Annotated[Path, Option(help="the catalogue folder to write")],
    variant: Variant = None,
    split: Annotated[list[str] | None, Option(help="splits that go in; repeat for several")] = None,
    factory: Annotated[str, Option("--index", help=INDEX_HELP)] = "auto",
    recall: Annotated[float, Option(help=RECALL_HELP)] = 0.99,
) -> None:
    """Embed a cohort's lesions into a catalogue (by default those of its train split).

    After an interruption, or with another --index, the same command goes on from OUT.partial.
    """
    from bundle.encoder import OnnxEncoders
    from bundle.store import open_bundle
    from cohort.cohort import Cohort
    from index.build import build_catalogue, write_unreadable
    from slimp.console import progress, say

    opened = open_bundle(bundle)
    with progress() as report:
        built = build_catalogue(
            opened,
            OnnxEncoders(opened, threads=1, variant=variant),
            Cohort.open(cohort),
            out,
            splits=tuple(split or ["train"]),
            variant=variant,
            factory=factory,
            recall=recall,
            progress=lambda done, total: report("index", done, total),
        )
    if (listed := write_unreadable(out, built)) is not None:
        say(f"{listed}: the images that cannot be read, and why")
    for name, why in built.fields_left_out.items():
        say(f"{name} is left out: {why}")
    say(str(built.index or "exact index: every vector is compared"))
    say(
        f"{out}: {built.lesions} lesions, {built.images} images; "
        f"{len(built.unreadable)} unreadable, {len(built.rejected_values)} values left out"
    )
