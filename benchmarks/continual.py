"""Continual pre-training on another cohort: none, embedding layers alone, all layers.

    python -m benchmarks.continual run FOLDER [--seeds 5]
    python -m benchmarks.continual report FOLDER
    python -m benchmarks.continual real FOLDER --run RUN --source COHORT --target COHORT

FOLDER is that of `benchmarks.experiments`, whose nested runs are moved to another synthetic cohort:
900 other patients, harder (difficulty 1.5), 405 of them held out. Probes on the frozen features
answer the held-out patients of the new cohort and, for what is forgotten, those of the old one;
beside them stands the runs' own loss on the old cohort's val split. `real` moves one run to a real
cohort, whose images are few: the probes are of five grouped folds of all of them, the train split
that was adapted to included, since adapting reads no label.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from accelerate.utils import set_seed
from sklearn.model_selection import StratifiedGroupKFold

from benchmarks.experiment_answers import answers_of, frozen_features
from benchmarks.experiment_report import ANSWERS, FIGURES, HEADS, RANKS, figures_of
from benchmarks.experiments import FRACTIONS, PATIENTS, make_cohort, may_resume
from cohort.cohort import Cohort
from cohort.splits import SPLITS
from cohort.store import prepare
from cohort.synthetic import synthetic_source
from training.adapt import adapt
from training.data import load_rows
from training.features import FloatArray
from training.growth import grow, join_schemas
from training.probes import probe, standardise_features
from training.report import show
from training.resampling import (
    Draws,
    Resampling,
    auroc_of,
    balanced_accuracy_of,
    estimate,
    over_seeds,
)
from training.run import load_towers, read_info, read_run_config

# Frozen before the first run.
SEED, DIFFICULTY = 11, 1.5
FOLDS = 5
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
            np.savez(partial, allow_pickle=False, **answers_of(features, rows))
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
            cells = [show(estimate(over_seeds([s[n] for s in seeds]))) for n in names]
            print(f"| {way} | {len(seeds)} | " + " | ".join(cells) + " |")
        for way in list(WAYS)[1:]:
            pairs = list(zip(draws[way], draws["none"], strict=False))
            gaps = [over_seeds([a[n] - b[n] for a, b in pairs]) for n in names]
            cells = [show(estimate(gap)) for gap in gaps]
            print(f"| {way} less none | {len(pairs)} | " + " | ".join(cells) + " |")
    print("\n### Loss on the old cohort's val split\n\n| | before | after |\n| --- | --- | --- |")
    for way in list(WAYS)[1:]:
        infos = [read_info(f.parent) for f in sorted((base / way).glob("*/run/run.json"))]
        lost = [info.forgetting for info in infos if info.forgetting is not None]
        before, after = (np.mean([getattr(f, n) for f in lost]) for n in ("before", "after"))
        print(f"| {way} | {before:.3f} | {after:.3f} |")


def folded(values: FloatArray, label: npt.NDArray[np.int64], groups: list[str]) -> FloatArray:
    """Return (N, C) probabilities of every row by balanced probes that did not see its group."""
    classes = int(label.max()) + 1
    said = np.zeros((len(label), classes), np.float32)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for train, test in folds.split(values, label, groups):
        known, asked = standardise_features(values[train], values[test])
        said[test] = probe(known, label[train], asked, classes=classes)
    return said


def real(options: argparse.Namespace) -> None:
    """Move one run to a real cohort in each way, and print the probes' tables."""
    source, target = Cohort.open(options.source), Cohort.open(options.target)
    rows = load_rows(target, SPLITS, target.info.labels)
    rows = rows.take(rows.label >= 0)
    known = rows.malignant >= 0
    told = rows.take(known)
    resampling, of_told = Resampling(rows.group_id), Resampling(told.group_id)
    draws: dict[str, dict[str, Draws]] = {}
    for way, full in WAYS.items():
        run = options.run if full is None else options.folder / way
        if full is not None and not (run / "run.json").exists():
            resume = may_resume(run)
            moved = {"source": source, "full": full, "epochs": options.epochs, "resume": resume}
            adapt(options.run, target, run, **moved)
        info, config, towers = read_info(run), read_run_config(run), load_towers(run)
        schema = info.record_schema
        if full is None:
            # Columns and categories that it never saw have tokens that nothing trained.
            set_seed(config.seed)
            joined = join_schemas(schema, target.schema, rows.take(rows.split == "train"))
            towers = grow(towers, config, schema, joined, labels=len(info.labels))
            schema = joined
        features = frozen_features(towers, target, rows, config, schema)
        both = np.concatenate([features.image, features.record], axis=1)
        seen = {"image": features.image, "record": features.record, "image + record": both}
        draws[way] = {}
        for name, values in seen.items():
            said = folded(values, rows.label, rows.group_id)
            right = balanced_accuracy_of(rows.label, said.argmax(1))
            draws[way][f"balanced {name}"] = resampling.draws(right)
            suspicion = folded(values[known], told.malignant, told.group_id)[:, 1]
            auroc = auroc_of(told.malignant == 1, suspicion)
            draws[way][f"malignant AUROC {name}"] = of_told.draws(auroc)
    names = list(draws["none"])
    groups = len(set(rows.group_id))
    print(f"{len(rows)} images of {groups} patients of {target.info.name}\n")
    print("| | " + " | ".join(names) + " |\n| --- |" + " --- |" * len(names))
    for way, own in draws.items():
        print(f"| {way} | " + " | ".join(show(estimate(own[n])) for n in names) + " |")
    for way in list(WAYS)[1:]:
        gaps = (show(estimate(draws[way][n] - draws["none"][n])) for n in names)
        print(f"| {way} less none | " + " | ".join(gaps) + " |")
    for way in list(WAYS)[1:]:
        lost = read_info(options.folder / way).forgetting
        assert lost is not None
        print(f"\n{way}: loss on {lost.cohort} {lost.before:.3f} before, {lost.after:.3f} after")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("task", choices=["run", "report", "real"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--run", type=Path, help="real: a pre-trained run")
    parser.add_argument("--source", type=Path, help="real: the run's cohort")
    parser.add_argument("--target", type=Path, help="real: the cohort that it moves to")
    parser.add_argument("--epochs", type=int, default=20, help="real: passes over it")
    options = parser.parse_args()
    if options.task == "real":
        if None in (options.run, options.source, options.target):
            parser.error("expected --run, --source and --target")
        real(options)
        return
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
