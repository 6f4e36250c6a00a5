"""What a random split pretends: the same frozen features, asked under two kinds of split.

    python -m benchmarks.split_study COHORT FEATURES...

FEATURES are .npy files of (N, D) features of all images of the cohort, in its order; pre-trained
runs; or checkpoints in Hugging Face layout, read out as `benchmarks/frozen_anchor.py` does. Ten
nearest neighbours and balanced logistic regression answer a fifth of the images, five times: whole
patients (lesions where there are no patient ids) apart, or images drawn at random. Mean over the
folds and the files; intervals resample patients and files.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier

from benchmarks.experiment_answers import frozen_features
from benchmarks.frozen_anchor import frozen_features as checkpoint_features
from cohort.cohort import Cohort
from cohort.splits import SPLITS
from training.data import Rows, load_rows
from training.features import FloatArray
from training.probes import probe, standardise_features
from training.report import show
from training.resampling import Draws, Resampling, balanced_accuracy_of, estimate, over_seeds
from training.run import load_towers, read_info, read_run_config

FOLDS = 5
WAYS = ("patients apart", "images at random")


def features_of(path: Path, cohort: Cohort, rows: Rows) -> FloatArray:
    """Return (N, D) float32 features of the rows."""
    if path.suffix == ".npy":
        stored: FloatArray = np.load(path)
        return stored[rows.position]
    if not (path / "run.json").exists():
        return checkpoint_features(str(path), cohort, rows)
    config, schema = read_run_config(path), read_info(path).record_schema
    return frozen_features(load_towers(path), cohort, rows, config, schema).image


def decided(features: FloatArray, rows: Rows, way: str) -> dict[str, np.ndarray]:
    """Return (N,) int64 labels of every row by each asker, from the folds that it is not in."""
    grouped = way == WAYS[0]
    kind = StratifiedGroupKFold if grouped else StratifiedKFold
    folds = kind(FOLDS, shuffle=True, random_state=0)
    groups = np.array(rows.group_id) if grouped else None
    answers = {name: np.zeros(len(rows), np.int64) for name in ("linear", "neighbours")}
    classes = int(rows.label.max()) + 1
    for known, asked in folds.split(features, rows.label, groups):
        train, test = standardise_features(features[known], features[asked])
        linear = probe(train, rows.label[known], test, classes=classes)
        answers["linear"][asked] = linear.argmax(1)
        nearest = KNeighborsClassifier(10, metric="cosine").fit(train, rows.label[known])
        answers["neighbours"][asked] = nearest.predict(test)
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cohort", type=Path)
    parser.add_argument("features", type=Path, nargs="+")
    options = parser.parse_args()
    cohort = Cohort.open(options.cohort)
    rows = load_rows(cohort, SPLITS, cohort.info.labels)
    rows = rows.take(rows.label >= 0)
    resampling = Resampling(rows.group_id)
    draws: dict[tuple[str, str], list[Draws]] = {}
    for path in options.features:
        features = features_of(path, cohort, rows)
        for way in WAYS:
            for name, answers in decided(features, rows, way).items():
                drawn = resampling.draws(balanced_accuracy_of(rows.label, answers))
                draws.setdefault((name, way), []).append(drawn)
    print(
        "| balanced accuracy | " + " | ".join(WAYS) + " | difference |\n| --- | --- | --- | --- |"
    )
    for name in ("linear", "neighbours"):
        apart, random = (over_seeds(draws[name, way]) for way in WAYS)
        cells = [show(estimate(values)) for values in (apart, random, random - apart)]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
