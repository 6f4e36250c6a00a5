"""Label-free pre-training on HAM10000 against the untouched checkpoint, over grouped folds.

    python -m benchmarks.ham10000_folds run COHORT --source FOLDER --out FOLDER [--folds 0 1 ...]
    python -m benchmarks.ham10000_folds report --out FOLDER

Folds are scikit-learn's StratifiedGroupKFold(5, shuffle, seed 0) by lesion. For each of them the
encoder is pre-trained as `configs/experiments/ham10000_images.toml` says on the other four, images
alone, and frozen; the untouched checkpoint is its class token after block 8 at 224 px. Both are
asked by the same probes: 10 nearest neighbours (cosine, centred), the share of the 5 nearest that
have the image's label, and balanced logistic regression (C 0.01). `run` leaves one file a fold and
goes on where it was cut off; `report` puts the folds together and compares in pairs, resampling
lesions.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.frozen_anchor import frozen_features
from bundle.encoder import unit_norm
from bundle.images import standardise
from cohort.cohort import Cohort
from cohort.splits import Split
from training.config import Config, read_config
from training.data import Rows, Squares, in_order, load_rows
from training.model import Slimp
from training.report import show
from training.resampling import (
    Draws,
    Resampling,
    auroc_of,
    balanced_accuracy_of,
    estimate,
    mean_of,
    mean_of_known,
)
from training.run import load_towers
from training.trainer import pretrain

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
CONFIG = Path(__file__).parents[1] / "configs" / "experiments" / "ham10000_images.toml"
FOLDS = 5
NEIGHBOURS, NEAREST = 10, 5


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


def nearest(train: FloatArray, test: FloatArray) -> tuple[FloatArray, IntArray]:
    """Return (M, 10) cosine similarities and (M, 10) places of the nearest, best first."""
    centre = train.mean(0)
    similarity = unit_norm(test - centre) @ unit_norm(train - centre).T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS]
    return np.take_along_axis(similarity, order, axis=1), order


def ask(features: FloatArray, label: IntArray, test: npt.NDArray[np.bool_]) -> dict[str, IntArray]:
    """Return what the probes say of the test rows."""
    similarity, order = nearest(features[~test], features[test])
    neighbours = label[~test][order]
    votes = np.zeros((test.sum(), label.max() + 1))
    for k in range(NEIGHBOURS):
        np.add.at(votes, (np.arange(len(votes)), neighbours[:, k]), similarity[:, k])
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000)
    )
    probe.fit(features[~test], label[~test])
    return {
        "knn": votes.argmax(1),
        "same": (neighbours[:, :NEAREST] == label[test][:, None]).mean(1),
        "probe": probe.predict_proba(features[test]),
    }


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
    test = chosen.split == "test"
    ours = image_features(load_towers(run), cohort, chosen, config)
    untouched = np.load(out / "untouched.npy")[chosen.position]
    answers = {
        f"{name} {key}": value
        for name, features in (("ours", ours), ("untouched", untouched))
        for key, value in ask(features, chosen.label, test).items()
    }
    partial = out / "fold.partial.npz"
    np.savez(
        partial,
        label=chosen.label[test],
        lesion=np.array(chosen.lesion_id)[test],
        **answers,
    )
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


def draws_of(answers: dict[str, npt.NDArray[np.generic]], name: str) -> dict[str, Draws]:
    """Return the draws of one encoder's figures."""
    label, resampling = answers["label"], Resampling(answers["lesion"].tolist())
    probe = answers[f"{name} probe"]
    aurocs = [resampling.draws(auroc_of(label == k, probe[:, k])) for k in np.unique(label)]
    return {
        "kNN balanced accuracy": resampling.draws(
            balanced_accuracy_of(label, answers[f"{name} knn"])
        ),
        "P@5": resampling.draws(mean_of(answers[f"{name} same"])),
        "probe balanced accuracy": resampling.draws(balanced_accuracy_of(label, probe.argmax(1))),
        "probe macro AUROC": mean_of_known(aurocs),
    }


def report(out: Path) -> None:
    """Print both encoders' figures over the folds that are there, and their paired difference."""
    files = sorted(out.glob("fold ?.npz"))
    parts = [dict(np.load(file)) for file in files]
    answers = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    ours, untouched = (draws_of(answers, name) for name in ("ours", "untouched"))
    print(f"Folds: {len(files)} of {FOLDS}; {len(answers['label'])} held-out images.\n")
    print("| | untouched | pre-trained | difference |\n| --- | --- | --- | --- |")
    for name in ours:
        gap = ours[name] - untouched[name]
        cells = [show(estimate(untouched[name])), show(estimate(ours[name])), show(estimate(gap))]
        print(f"| {name} | " + " | ".join(cells) + " |")


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
