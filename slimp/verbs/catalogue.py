"""`slimp catalogue`: whether a catalogue is sound, and its vectors anew."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option, Typer

from slimp.verbs.index import INDEX_HELP, RECALL_HELP

app = Typer(no_args_is_help=True, help="Verify a catalogue, or make its vectors anew.")
Folder = Annotated[Path, Argument(help="a catalogue's folder")]


@app.command()
def verify(catalogue: Folder) -> None:
    """Compare rows, vectors and checksums; nothing is changed. Exit code 1 names the faults."""
    from index.upkeep import verify as compare
    from slimp.console import say

    state = compare(catalogue)
    for fault in state.faults:
        say(f"fault: {fault}")
    cache = "no vectors on disk"
    if state.vectors is not None:
        cache = f"{state.vectors} vectors on disk (revision {state.cache_revision})"
    say(
        f"{catalogue}: revision {state.identity.revision}, {state.lesions} lesions, {cache}, "
        f"{len(state.faults)} faults"
    )
    if state.faults:
        raise Exit(1)


@app.command()
def rebuild(
    catalogue: Folder,
    factory: Annotated[str, Option("--index", help=INDEX_HELP)] = "auto",
    recall: Annotated[float, Option(help=RECALL_HELP)] = 0.99,
) -> None:
    """Write the database compactly and make the vectors from it; stop services on it first."""
    from index.catalogue import Catalogue
    from index.upkeep import rebuild as compact
    from index.upkeep import verify as compare
    from slimp.console import say

    compact(catalogue)
    identity = compare(catalogue).identity
    with Catalogue.open(
        catalogue, bundle_id=identity.bundle_id, variant=identity.variant
    ) as opened:
        measured = opened.choose_index(factory=factory, recall=recall)
        opened.save()
        say(f"{catalogue}: {len(opened)} vectors made from the database")
        say(str(measured or "exact index: every vector is compared"))
