"""Label-free encoders of HAM10000 against the untouched checkpoint, over grouped folds.

    python -m benchmarks.ham10000_folds run COHORT --source FOLDER --out FOLDER [--pretrain]
    python -m benchmarks.ham10000_folds report --out FOLDER

Folds are scikit-learn's StratifiedGroupKFold(5, shuffle, seed 0) by lesion. The untouched
checkpoint is its class token after block 8 at 224 px. Against it stand the same features in the
metric of the lesion (`training/whitening.py`, fitted on the other four folds without labels), in
the one that these folds choose without labels among it and others (`choose_metric`) and, with
--pretrain, an encoder pre-trained on them as `configs/experiments/ham10000_images.toml` says,
images alone, and frozen, with and without those metrics. All are asked by
`training/representation.py`: linear probe, 10 nearest neighbours, retrieval, few labels. `run`
leaves one file a fold and goes on where it was cut off; `report` prints the mean over the folds,
with intervals by resampling the lesions of each, and paired differences from the untouched
checkpoint.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

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
from training.trainer import last_checkpoint, pretrain
from training.whitening import Whitening, even_out, fit_whitening, spread_within

FloatArray = npt.NDArray[np.float32]
CONFIG = Path(__file__).parents[1] / "configs" / "experiments" / "ham10000_images.toml"
FOLDS = 5
UNTOUCHED = "untouched"
POWERS = (0.25, 0.5, 0.75, 1.0)


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


def pretrained_features(
    fold: int, cohort: Cohort, config: Config, rows: Rows, out: Path
) -> FloatArray:
    """Return (N, D) float32 features of an encoder pre-trained on the fold's train rows."""
    run = out / f"run {fold}"
    if not (run / "run.json").exists():
        resume = last_checkpoint(run) is not None
        pretrain(cohort, config, run, resume=resume, report=say)
    return image_features(load_towers(run), cohort, rows, config)


def run_fold(fold: int, cohort: Cohort, config: Config | None, rows: Rows, out: Path) -> None:
    """Ask one fold's encoders; nothing is done where its file is."""
    file = out / f"fold {fold}.npz"
    if file.exists():
        return
    under = cohort.with_splits(fold_splits(rows, fold))
    chosen = load_rows(under, ["train", "test"], cohort.info.labels)
    train, test = chosen.take(chosen.split == "train"), chosen.take(chosen.split == "test")
    task = Task(cohort.info.labels, cohort.info.malignant_labels, Side.of(train), Side.of(test))
    encoders = {UNTOUCHED: np.load(out / "untouched.npy")[chosen.position]}
    if config is not None:
        encoders["pre-trained"] = pretrained_features(fold, under, config, chosen, out)
    draws = {"images": np.array(len(test))}
    for name, features in encoders.items():
        known, asked = (features[chosen.split == side] for side in ("train", "test"))
        worth = choose_metric(known, train.lesion_id)
        best = max(worth, key=lambda each: worth[each])
        print(f"  {name}: {best} is chosen; " + ", ".join(f"{k} {v:.3f}" for k, v in worth.items()))
        metrics = {
            name: Whitening.none(known.shape[1]),
            f"{name}, metric": fit_whitening(known, train.lesion_id),
            f"{name}, chosen metric": candidates(known, train.lesion_id)[best],
        }
        for shown, metric in metrics.items():
            found = evaluate_representation(metric.apply(known), metric.apply(asked), task)
            draws |= {f"{shown}: {figure}": values for figure, values in found.draws.items()}
    partial = out / "fold.partial.npz"
    np.savez(partial, allow_pickle=False, **draws)
    partial.replace(file)


def candidates(features: FloatArray, lesion: Sequence[str]) -> dict[str, Whitening]:
    """Return the maps to choose from: which spread is evened out, and how far."""
    spreads = {
        "all pictures": ledoit_wolf(features - features.mean(0))[0],
        "pictures of one lesion": spread_within(features, lesion),
    }
    made = {"none": Whitening.none(features.shape[1], features.mean(0))}
    for name, spread in spreads.items():
        for power in POWERS:
            made[f"{name}, {power:g}"] = even_out(features, spread, power)
    return made


def choose_metric(features: FloatArray, lesion: Sequence[str]) -> dict[str, float]:
    """Return each candidate's worth: how soon another picture of the same lesion is found.

    Mean reciprocal rank by cosine among the pictures of lesions that the map was not fitted on,
    over two halves of the lesions. No label is read.

    Args:
        features: (N, D) float32.
        lesion: N lesion ids.
    """
    groups = np.array(lesion)
    worth: dict[str, list[float]] = {}
    for known, asked in GroupKFold(2).split(features, groups=groups):
        for name, metric in candidates(features[known], groups[known]).items():
            worth.setdefault(name, []).append(
                same_lesion_rank(metric.apply(features[asked]), groups[asked])
            )
    return {name: float(np.mean(halves)) for name, halves in worth.items()}


def same_lesion_rank(features: FloatArray, lesion: npt.NDArray[np.str_]) -> float:
    """Return the mean of 1 / rank of the nearest other picture of a picture's own lesion."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    same = lesion[:, None] == lesion[None]
    np.fill_diagonal(same, False)
    best = np.where(same, cosines, -np.inf).max(1, keepdims=True)
    ranks = 1 + (cosines > best).sum(1)
    return float((1 / ranks[same.any(1)]).mean())


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
        run_fold(fold, cohort, config if options.pretrain else None, rows, options.out)


def report(out: Path) -> None:
    """Print every encoder's figures over the folds that are there, paired with the untouched."""
    folds = [dict(np.load(file)) for file in sorted(out.glob("fold ?.npz"))]
    images = sum(int(fold.pop("images")) for fold in folds)
    shared = set.intersection(*(set(fold) for fold in folds))
    keys = [key for key in folds[0] if key in shared]
    mean = {key: np.mean([fold[key] for fold in folds], axis=0) for key in keys}
    print(f"Folds: {len(folds)} of {FOLDS}; {images} held-out images.\n")
    names = list(dict.fromkeys(key.partition(": ")[0] for key in mean))
    others = [name for name in names if name != UNTOUCHED]
    header = [*names, *(f"{name}, difference" for name in others)]
    print("| | " + " | ".join(header) + " |\n| --- |" + " --- |" * len(header))
    for figure in [k.partition(": ")[2] for k in mean if k.startswith(f"{UNTOUCHED}: ")]:
        own = {name: mean[f"{name}: {figure}"] for name in names}
        cells = [*own.values(), *(own[name] - own[UNTOUCHED] for name in others)]
        shown = " | ".join(show(estimate(draws)) for draws in cells)
        print(f"| {figure.replace('_', ' ')} | {shown} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    tasks = parser.add_subparsers(dest="task", required=True)
    running = tasks.add_parser("run")
    running.add_argument("cohort", type=Path)
    running.add_argument("--source", required=True, help="Hugging Face folder or hub id")
    running.add_argument("--config", type=Path, default=CONFIG)
    running.add_argument("--pretrain", action="store_true", help="hours on two cores")
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
