"""The matrix of pre-training objectives on the synthetic cohort: a queue that can be interrupted.

    python -m benchmarks.experiments run FOLDER [--seeds 5] [--only nested lesion ...]
        [--size-px 32 --patch-px 8]
    python -m benchmarks.experiments report FOLDER
    python -m benchmarks.experiments settings

`run` makes the cohort once and then, seed by seed, one folder a cell: the pre-trained run and its
`answers.npz`, the answers of probes on the frozen features to the held-out patients. A cell that is
there is left alone; one that was cut off goes on from its last checkpoint. `report` prints the
tables from the answers: mean over the seeds, intervals by resampling patients and seeds,
differences paired.
`settings` prints what all rows share that is no default, and in what they differ.
"""

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.experiment_answers import answers_of, frozen_features
from benchmarks.experiment_report import ANSWERS, report
from bundle.images import decode_image
from cohort.cohort import Cohort
from cohort.splits import Split
from cohort.store import prepare
from cohort.synthetic import synthetic_source
from training.config import Config, read_config
from training.data import fit_schema, load_rows
from training.model import Slimp
from training.run import load_towers, read_info
from training.trainer import last_checkpoint, pretrain

CONFIGS = Path(__file__).parents[1] / "configs" / "experiments"
# Frozen before the first run: 405 patients train, 405 are held out.
PATIENTS, SEED = 900, 7
IMAGE_PX = 64
FRACTIONS: Mapping[Split, float] = {"train": 0.45, "val": 0.05, "cal": 0.05, "test": 0.45}


@dataclass(frozen=True)
class Variant:
    """One row of the tables: an objective's file, and what differs from it."""

    name: str
    file: str
    objective: tuple[tuple[str, object], ...] = ()
    trained: bool = True

    def config(self, seed: int, size_px: int | None, patch_px: int | None) -> Config:
        """Return its file's configuration, images at another size where one is given."""
        config = read_config(CONFIGS / f"{self.file}.toml")
        sizes = {"size_px": size_px, "resize_px": size_px, "patch_px": patch_px}
        return Config.model_validate(
            {
                **config.model_dump(),
                "seed": seed,
                "image": config.image.model_dump()
                | {name: size for name, size in sizes.items() if size is not None},
                "objective": config.objective.model_dump() | dict(self.objective),
            }
        )


VARIANTS = (
    Variant("untrained", "nested", trained=False),
    *(
        Variant(name, name)
        for name in (
            "nested",
            "lesion",
            "patient",
            "flat",
            "simclr",
            "clip",
            "siglip",
            "mae",
            "supervised",
        )
    ),
    Variant("nested, max", "nested", (("pooling", "max"),)),
    Variant("nested, attention", "nested", (("pooling", "attention"),)),
    Variant("nested + views", "nested", (("image_weight", 0.5),)),
    Variant("lesion + views", "lesion", (("image_weight", 0.5),)),
)


def make_cohort(folder: Path, image_px: int = IMAGE_PX) -> Cohort:
    """Return the experiments' cohort, made on the first call; its pictures are of one size."""
    path = folder / "cohort"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        source = synthetic_source(patients=PATIENTS, seed=SEED, image_px=image_px)
        prepare(source, path, fractions=FRACTIONS)
    cohort = Cohort.open(path)
    (first,) = cohort.images([0])
    if (side := decode_image(first).width) != image_px:
        raise SystemExit(
            f"{path}: expected pictures of {image_px} pixels, got {side}: name another"
        )
    return cohort


def may_resume(run: Path) -> bool:
    """Return whether a run has a checkpoint; one cut off before its first is cleared away."""
    if last_checkpoint(run) is not None:
        return True
    if run.exists() and not (run / "run.json").exists():
        shutil.rmtree(run)
    return False


def run_cell(variant: Variant, config: Config, cohort: Cohort, out: Path) -> None:
    """Pre-train one cell and leave its answers; nothing is done where they are."""
    stored = out / "config.json"
    if stored.exists():
        was, wanted = flat(Config.model_validate_json(stored.read_bytes())), flat(config)
        if other := [name for name in wanted if was[name] != wanted[name]]:
            raise SystemExit(f"{out} was made with another {', '.join(other)}: name another folder")
    if (out / ANSWERS).exists():
        return
    rows = load_rows(cohort, ["train", "test"], cohort.info.labels)
    if variant.trained:
        if not (out / "run.json").exists():
            pretrain(cohort, config, out, resume=may_resume(out), report=say)
        towers, schema = load_towers(out), read_info(out).record_schema
    else:
        torch.manual_seed(config.seed)
        out.mkdir(parents=True, exist_ok=True)
        schema = fit_schema(cohort.schema, rows.take(rows.split == "train"))
        towers = Slimp(config, schema)
    partial = out / "answers.partial.npz"
    answers = answers_of(frozen_features(towers, cohort, rows, config, schema), rows)
    np.savez(partial, allow_pickle=False, **answers)
    partial.replace(out / ANSWERS)


def say(step: int, total: int, metrics: dict[str, float]) -> None:
    if step % 20 == 0 or step == total:
        print(f"  {step} of {total}  loss {metrics['loss']:.3f}", flush=True)


def flat(config: Config) -> dict[str, object]:
    """Return the settings of a cell by section.name: neither its seed nor those of `slimp fit`."""
    found: dict[str, object] = {}
    for name, value in config.model_dump(exclude={"seed", "fit"}).items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        found |= {f"{name}.{key}".rstrip("."): setting for key, setting in inner}
    return found


def print_settings() -> None:
    """Print every setting that is no default, and those in which the rows differ."""
    default = flat(Config())
    rows = {v.name: flat(v.config(0, None, None)) for v in VARIANTS if v.trained}
    differing = [k for k in default if len({str(row[k]) for row in rows.values()}) > 1]
    first = next(iter(rows.values()))
    shared = [k for k in default if k not in differing and first[k] != default[k]]
    print("Shared by all: " + ", ".join(f"`{k} = {first[k]}`" for k in shared) + ".\n")
    print(f"| | {' | '.join(differing)} |\n|{' --- |' * (len(differing) + 1)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(str(row[k]) for k in differing)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("task", choices=["run", "report", "settings"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size-px", type=int, help="side of the images, else the files'")
    parser.add_argument("--patch-px", type=int, help="side of a patch, else the files'")
    parser.add_argument("--only", nargs="+", default=[v.name for v in VARIANTS])
    options = parser.parse_args()
    if unknown := set(options.only) - {v.name for v in VARIANTS}:
        parser.error(f"expected {', '.join(v.name for v in VARIANTS)}, got {unknown.pop()}")
    if options.task == "settings":
        print_settings()
        return
    if options.folder is None:
        parser.error("expected a folder")
    if options.task == "report":
        report(options.folder, [variant.name for variant in VARIANTS])
        return
    # No picture is enlarged.
    cohort = make_cohort(options.folder, max(IMAGE_PX, options.size_px or 0))
    for seed in range(options.seeds):
        for variant in VARIANTS:
            if variant.name in options.only:
                print(f"{variant.name}, seed {seed}", flush=True)
                config = variant.config(seed, options.size_px, options.patch_px)
                run_cell(variant, config, cohort, options.folder / variant.name / str(seed))


if __name__ == "__main__":
    main()
