"""Continual pre-training on another cohort: none, embedding layers alone, all layers.

    python -m benchmarks.continual run FOLDER [--seeds 5]
    python -m benchmarks.continual report FOLDER

FOLDER is that of `benchmarks.experiments`, whose nested runs are moved to another synthetic cohort:
900 other patients, harder (difficulty 1.5), 405 of them held out. Probes on the frozen features
answer the held-out patients of the new cohort and, for what is forgotten, those of the old one;
beside them stands the runs' own loss on the old cohort's val split.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.experiments import (
    ANSWERS,
    FIGURES,
    FRACTIONS,
    HEADS,
    PATIENTS,
    RANKS,
    answers_of,
    figures_of,
    frozen_features,
    make_cohort,
    may_resume,
)
from cohort.cohort import Cohort
from cohort.store import prepare
from cohort.synthetic import synthetic_source
from training.adapt import adapt
from training.data import load_rows
from training.report import show
from training.resampling import estimate
from training.run import load_towers, read_info, read_run_config

# Frozen before the first run.
SEED, DIFFICULTY = 11, 1.5
WAYS = {"none": None, "embedding layers": False, "all layers": True}


def make_target(folder: Path) -> Cohort:
    """Return the new cohort, made on the first call."""
    path = folder / "target"
    if not path.exists():
        source = synthetic_source(patients=PATIENTS, seed=SEED, difficulty=DIFFICULTY)
        prepare(source, path, fractions=FRACTIONS)
    return Cohort.open(path)


def run_way(way: str, seed: int, source: Cohort, target: Cohort, folder: Path) -> None:
    """Adapt one run in one way and leave its answers on both cohorts."""
    start, out = folder / "nested" / str(seed), folder / "continual" / way / str(seed)
    full = WAYS[way]
    out.mkdir(parents=True, exist_ok=True)
    run = start if full is None else out / "run"
    if full is not None and not (run / "run.json").exists():
        adapt(start, target, run, source=source, full=full, resume=may_resume(run))
    towers, config, schema = load_towers(run), read_run_config(run), read_info(run).record_schema
    for name, cohort in (("new", target), ("old", source)):
        file = out / f"{name}.npz"
        if not file.exists():
            rows = load_rows(cohort, ["train", "test"], cohort.info.labels)
            partial = out / "partial.npz"
            features = frozen_features(towers, cohort, rows, config, schema)
            np.savez(partial, **answers_of(features, rows))
            partial.replace(file)


def report(folder: Path) -> None:
    """Print the tables of the runs that are there."""
    base = folder / "continual"
    names = [f"balanced {n}" for n in FIGURES] + [f"auroc {n}" for n in RANKS]
    heads = [f"{n.split(' ')[0]} {HEADS[n.split(' ', 1)[1]]}" for n in names]
    for where, title in (("new", "The new cohort"), ("old", "The old cohort")):
        draws = {
            way: [figures_of(p) for p in sorted((base / way).glob(f"*/{where}.npz"))]
            for way in WAYS
        }
        print(f"\n### {title}\n\n| | seeds | " + " | ".join(heads) + " |")
        print("| --- | --- |" + " --- |" * len(heads))
        for way, seeds in draws.items():
            cells = [show(estimate(np.mean([s[n] for s in seeds], axis=0))) for n in names]
            print(f"| {way} | {len(seeds)} | " + " | ".join(cells) + " |")
        for way in list(WAYS)[1:]:
            pairs = list(zip(draws[way], draws["none"], strict=False))
            gaps = [np.mean([a[n] - b[n] for a, b in pairs], axis=0) for n in names]
            cells = [show(estimate(gap)) for gap in gaps]
            print(f"| {way} less none | {len(pairs)} | " + " | ".join(cells) + " |")
    print("\n### Loss on the old cohort's val split\n\n| | before | after |\n| --- | --- | --- |")
    for way in list(WAYS)[1:]:
        infos = [read_info(f.parent) for f in sorted((base / way).glob("*/run/run.json"))]
        lost = [info.forgetting for info in infos if info.forgetting is not None]
        before, after = (np.mean([getattr(f, n) for f in lost]) for n in ("before", "after"))
        print(f"| {way} | {before:.3f} | {after:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("task", choices=["run", "report"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    if options.task == "report":
        report(options.folder)
        return
    source, target = make_cohort(options.folder), make_target(options.folder)
    for seed in range(options.seeds):
        if not (options.folder / "nested" / str(seed) / ANSWERS).exists():
            parser.error(f"expected nested run {seed}: run benchmarks.experiments first")
        for way in WAYS:
            print(f"{way}, seed {seed}", flush=True)
            run_way(way, seed, source, target, options.folder)


if __name__ == "__main__":
    main()
