"""`slimp demo`: the whole pipeline on synthetic lesions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

if TYPE_CHECKING:
    from cohort.splits import Split

# A larger test share than usual: 40 held-out patients must have a malignant lesion among many.
FRACTIONS: dict["Split", float] = {"train": 0.52, "val": 0.04, "cal": 0.16, "test": 0.28}


def demo(out: Annotated[Path, Option(help="the folder to write")]) -> None:
    """Make a synthetic cohort and take it through train, fit, export and index."""
    from importlib.resources import as_file, files

    from bundle.encoder import OnnxEncoders
    from bundle.store import open_bundle
    from cohort.cohort import Cohort
    from cohort.store import prepare
    from cohort.synthetic import DEMO_SETTINGS, synthetic_source
    from export.pack import export_run
    from index.build import build_catalogue
    from slimp.console import progress, say
    from slimp.verbs.training_note import training_note
    from training.config import read_config
    from training.fit import fit
    from training.trainer import pretrain

    with as_file(files("configs") / "demo.toml") as path:
        config = read_config(path)
    with progress() as report:
        source = synthetic_source(**DEMO_SETTINGS)
        prepare(
            source,
            out / "cohort",
            fractions=FRACTIONS,
            progress=lambda rows: report("cohort", rows, None),
        )
        cohort = Cohort.open(out / "cohort")
        pretrain(
            cohort,
            config,
            out / "run",
            report=lambda step, total, m: report("pre-train", step, total, training_note(m)),
        )
        fit(out / "run", cohort, out / "fit", report=report)
        export_run(out / "fit", out / "bundle", report=report)
        bundle = open_bundle(out / "bundle")
        build_catalogue(
            bundle,
            OnnxEncoders(bundle, threads=1),
            cohort,
            out / "catalogue",
            progress=lambda done, total: report("index", done, total),
        )
    say(f"serve it: slimp serve {out / 'bundle'} {out / 'catalogue'}")
