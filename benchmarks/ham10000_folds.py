"""Label-free pre-training on HAM10000 against the untouched checkpoint, over grouped folds.

    python -m benchmarks.ham10000_folds run COHORT --source FOLDER --out FOLDER [--folds 0 1 ...]
    python -m benchmarks.ham10000_folds report --out FOLDER

Folds are scikit-learn's StratifiedGroupKFold(5, shuffle, seed 0) by lesion. For each of them the
encoder is pre-trained as `configs/experiments/ham10000_images.toml` says on the other four, images
alone, and frozen; the untouched checkpoint is its class token after block 8 at 224 px. Both are
asked by `training/representation.py`: linear probe, 10 nearest neighbours, retrieval, few labels.
`run` leaves one file a fold and goes on where it was cut off; `report` prints the mean over the
folds, with intervals by resampling the lesions of each, and paired differences.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import StratifiedGroupKFold

from benchmarks.frozen_anchor import frozen_features
from bundle.images import standardise
from cohort.cohort import Cohort
from cohort.splits import Split
from training.config import Config, read_config
from training.data import Rows, Squares, in_order, load_rows
from training.model import Slimp
from training.report import show
from training.representation import evaluate_representation
from training.resampling import estimate
from training.run import load_towers
from training.task import Side, Task
from training.trainer import pretrain

FloatArray = npt.NDArray[np.float32]
CONFIG = Path(__file__).parents[1] / "configs" / "experiments" / "ham10000_images.toml"
FOLDS = 5


def fold_splits(rows: Rows, fold: int) -> dict[str, Split]:
    """Return the split of every lesion: `test` is the fold, every other lesion trains."""
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    parts = list(folds.split(rows.label, rows.label, rows.lesion))
    held_out = {rows.group_id[i] for i in parts[fold][1]}
    return {group: "test" if group in held_out else "train" for group in rows.group_id}


@torch.inference_mode()
def image_features(towers: Slimp, cohort: Cohort, rows: Rows, config: Config) -> FloatArray:
    """Return (N, D) float32 features by the preprocessing of serving."""
    squares, parts = Squares(cohort, rows, config.image.input), []
    for part in in_order(len(rows), 64):
        pixels = torch.from_numpy(standardise(squares.read(part), squares.spec))
        parts.append(towers.image(pixels).numpy())
    return np.concatenate(parts)


def run_fold(fold: int, cohort: Cohort, config: Config, rows: Rows, out: Path) -> None:
    """Pre-train and ask one fold; nothing is done where its file is."""
    file = out / f"fold {fold}.npz"
    if file.exists():
        return
    run = out / f"run {fold}"
    under = cohort.with_splits(fold_splits(rows, fold))
    if not (run / "run.json").exists():
        resume = (run / "state" / "progress.json").exists()
        pretrain(under, config, run, resume=resume, report=say)
    chosen = load_rows(under, ["train", "test"], cohort.info.labels)
    train, test = chosen.split == "train", chosen.split == "test"
    task = Task(
        cohort.info.labels,
        cohort.info.malignant_labels,
        Side.of(chosen.take(train)),
        Side.of(chosen.take(test)),
    )
    encoders = {
        "untouched": np.load(out / "untouched.npy")[chosen.position],
        "pre-trained": image_features(load_towers(run), cohort, chosen, config),
    }
    draws = {
        f"{name}: {figure}": values
        for name, features in encoders.items()
        for figure, values in evaluate_representation(
            features[train], features[test], task
        ).draws.items()
    }
    partial = out / "fold.partial.npz"
    np.savez(partial, images=test.sum(), **draws)
    partial.replace(file)


def say(step: int, total: int, metrics: dict[str, float]) -> None:
    if step % 10 == 0 or step == total:
        figures = "  ".join(
            f"{k} {v:.3f}" for k, v in metrics.items() if k.endswith(("loss", "accuracy"))
        )
        rate = metrics["images_per_second"]
        print(f"  {step} of {total}  {figures}  {rate:.1f} images/s", flush=True)


def run(options: argparse.Namespace) -> None:
    cohort = Cohort.open(options.cohort)
    config = read_config(options.config)
    image = config.image.model_copy(update={"source": options.source})
    config = config.model_copy(update={"image": image})
    rows = load_rows(cohort, ["train", "val", "cal", "test"], cohort.info.labels)
    options.out.mkdir(parents=True, exist_ok=True)
    untouched = options.out / "untouched.npy"
    if not untouched.exists():
        partial = options.out / "untouched.partial.npy"
        np.save(partial, frozen_features(options.source, cohort, rows))
        partial.replace(untouched)
    for fold in options.folds:
        print(f"fold {fold}", flush=True)
        run_fold(fold, cohort, config, rows, options.out)


def report(out: Path) -> None:
    """Print both encoders' figures over the folds that are there, and their paired difference."""
    folds = [dict(np.load(file)) for file in sorted(out.glob("fold ?.npz"))]
    images = sum(int(fold.pop("images")) for fold in folds)
    mean = {name: np.mean([fold[name] for fold in folds], axis=0) for name in folds[0]}
    print(f"Folds: {len(folds)} of {FOLDS}; {images} held-out images.\n")
    print("| | untouched | pre-trained | difference |\n| --- | --- | --- | --- |")
    for name in [key.partition(": ")[2] for key in mean if key.startswith("untouched: ")]:
        first, second = mean[f"untouched: {name}"], mean[f"pre-trained: {name}"]
        cells = [show(estimate(draws)) for draws in (first, second, second - first)]
        print(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    tasks = parser.add_subparsers(dest="task", required=True)
    running = tasks.add_parser("run")
    running.add_argument("cohort", type=Path)
    running.add_argument("--source", required=True, help="Hugging Face folder or hub id")
    running.add_argument("--config", type=Path, default=CONFIG)
    running.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)))
    for task in (running, tasks.add_parser("report")):
        task.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.task == "run":
        run(options)
    else:
        report(options.out)


if __name__ == "__main__":
    main()
