"""What a smaller input costs: accuracy and time of one encoder at several input sizes.

    python -m benchmarks.input_size fit COHORT --source FOLDER --out FOLDER [--sizes 224 168 112 84]
    python -m benchmarks.input_size time --source FOLDER --out FOLDER [--sizes ...]
    python -m benchmarks.input_size report --out FOLDER

`fit` takes the checkpoint's own weights, cut at block 8 (one step of pre-training that leaves the
image tower as it is, so that there is a run), fits the heads on the frozen features as `slimp fit`
does, exports the bundle and writes down its answers to the test split from the image alone; the
shorter side is scaled to 8/7 of the input. A size that is there is left alone. `time` exports the
same image encoders and runs them on ONNX Runtime with all threads, one round of all sizes after the
other. `report` prints the table of the sizes that are there: differences are from the largest one,
in pairs, by resampling lesions.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from bundle.cpus import available_cpus
from cohort.cohort import Cohort
from export.graphs import Graph, to_onnx
from export.pack import export_run
from training.conditions import absent, answer
from training.config import Config, read_config
from training.data import Squares, load_rows
from training.features import embed_rows
from training.fit import fit
from training.fitted import open_fitted
from training.image_encoder import build_image_encoder
from training.metrics import balanced_decision
from training.report import show
from training.resampling import Draws, Resampling, auroc_of, balanced_accuracy_of, estimate
from training.trainer import pretrain

CONFIG = Path(__file__).parents[1] / "configs" / "ham10000.toml"
SIZES = (224, 168, 112, 84)
BATCHES = (1, 8)
ROUNDS = 15


def config_at(size: int, source: str) -> Config:
    """Return the configuration of an encoder that stays as its checkpoint is."""
    config = read_config(CONFIG)
    image = {"source": source, "size_px": size, "resize_px": size * 8 // 7, "views": 1}
    still = {"steps": 1, "image_rate_scale": 0.0, "weight_decay": 0.0}
    heads = {"tune_image": False, "size_px": None, "epochs": 30}
    return config.model_copy(
        update={
            "precision": "fp32",
            "image": config.image.model_copy(update=image),
            "optimiser": config.optimiser.model_copy(update=still),
            "fit": config.fit.model_copy(update=heads),
        }
    )


def run_size(size: int, cohort: Cohort, source: str, out: Path) -> None:
    """Leave the run, the fitted run, its bundle and its answers in `out`."""
    steps: Mapping[str, Callable[[Path], object]] = {
        "run": lambda folder: pretrain(cohort, config_at(size, source), folder),
        "fitted": lambda folder: fit(out / "run", cohort, folder),
        "bundle": lambda folder: export_run(out / "fitted", folder),
        "answers.npz": lambda file: write_answers(out / "bundle", cohort, file),
    }
    for name, step in steps.items():
        if not (out / name).exists():
            print(f"{size} px: {name}", flush=True)
            step(out / name)


def write_answers(bundle: Path, cohort: Cohort, file: Path) -> None:
    model = open_fitted(bundle)
    rows = load_rows(cohort, ["test"], model.labels)
    embeddings = embed_rows(model.encoders, Squares(cohort, rows, model.image_input))
    said = answer(model, embeddings, absent(rows.records), "missing")
    np.savez(
        file,
        probabilities=said.probabilities,
        label=rows.label,
        lesion=np.array(rows.lesion_id),
        prior=model.prior,
        labels=np.array(model.labels),
        malignant=model.malignant,
    )


def fit_sizes(options: argparse.Namespace) -> None:
    cohort = Cohort.open(options.cohort)
    for size in options.sizes:
        folder = options.out / str(size)
        folder.mkdir(parents=True, exist_ok=True)
        run_size(size, cohort, options.source, folder)


def load_encoder(size: int, source: str) -> ort.InferenceSession:
    """Return the exported image encoder of one size."""
    tower = build_image_encoder(config_at(size, source).image)
    graph = Graph("image_encoder", tower, lambda n, _: (torch.randn(n, 3, size, size),))
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    # All sizes are loaded: threads of those that are not asked must not wait awake.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(to_onnx(graph), options, providers=["CPUExecutionProvider"])


def time_sizes(options: argparse.Namespace) -> None:
    """Write the milliseconds an image of every encoder, the medians of the rounds."""
    encoders = {size: load_encoder(size, options.source) for size in options.sizes}
    seed = np.random.default_rng(0)
    taken: dict[str, list[float]] = {}
    for _ in range(ROUNDS + 1):
        for size, encoder in encoders.items():
            for batch in BATCHES:
                pixels = seed.standard_normal((batch, 3, size, size), np.float32)
                # Once before: another encoder's weights are in the caches.
                encoder.run(None, {"pixels": pixels})
                start = time.perf_counter()
                encoder.run(None, {"pixels": pixels})
                spent = (time.perf_counter() - start) / batch * 1000
                taken.setdefault(f"{size} px, batch {batch}", []).append(spent)
    # The first round warms up.
    medians = {name: float(np.median(times[1:])) for name, times in taken.items()}
    (options.out / "times.json").write_text(json.dumps(medians, indent=1) + "\n")
    for name, spent in medians.items():
        print(f"{name}: {spent:.1f} ms an image")


def draws_of(file: Path) -> dict[str, Draws]:
    """Return the resampled figures of one size's answers."""
    found = np.load(file)
    own, label, labels = found["probabilities"], found["label"], found["labels"].tolist()
    resampling = Resampling(found["lesion"].tolist())
    aurocs = [resampling.draws(auroc_of(label == i, own[:, i])) for i in range(len(labels))]
    malignant = found["malignant"]
    decided = balanced_decision(own, found["prior"])
    return {
        "balanced accuracy": resampling.draws(balanced_accuracy_of(label, decided)),
        "macro AUROC": np.mean(aurocs, axis=0),
        "melanoma AUROC": aurocs[labels.index("mel")],
        "malignant AUROC": resampling.draws(
            auroc_of(malignant[label], own[:, malignant].sum(axis=1))
        ),
    }


def report(out: Path) -> None:
    sizes = sorted((int(path.parent.name) for path in out.glob("*/answers.npz")), reverse=True)
    times: dict[str, float] = json.loads((out / "times.json").read_text())
    draws = {size: draws_of(out / str(size) / "answers.npz") for size in sizes}
    head = ["input", *draws[sizes[0]], *(f"ms, batch {batch}" for batch in BATCHES)]
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for size in sizes:
        spent = [f"{times[f'{size} px, batch {batch}']:.1f}" for batch in BATCHES]
        shown = [show(estimate(values)) for values in draws[size].values()]
        print(f"| {size} px | {' | '.join([*shown, *spent])} |")
    for size in sizes[1:]:
        less = [show(estimate(v - draws[sizes[0]][name])) for name, v in draws[size].items()]
        print(f"| {size} px, difference | {' | '.join(less)} | | |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    tasks = parser.add_subparsers(dest="task", required=True)
    fitting, timing = tasks.add_parser("fit"), tasks.add_parser("time")
    fitting.add_argument("cohort", type=Path)
    for task in (fitting, timing):
        task.add_argument("--source", required=True, help="Hugging Face folder or hub id")
        task.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    for task in (fitting, timing, tasks.add_parser("report")):
        task.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.task == "fit":
        fit_sizes(options)
    elif options.task == "time":
        time_sizes(options)
    else:
        report(options.out)


if __name__ == "__main__":
    main()
