"""What metadata does to answers: given, missing, guessed by neighbours, or anybody's.

    python -m benchmarks.metadata_study run COHORT RUN... --out FOLDER
    python -m benchmarks.metadata_study report --out FOLDER

On the frozen features of each pre-trained RUN (one a seed) the heads are fitted twice: as `slimp
fit` does, and for the image-only twin on the same cohort without any record. Both answer the test
split. `run` leaves one file a run; `report` prints the mean over the runs with intervals by
resampling runs and patients (lesions where there are no patient ids), and paired differences.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import set_seed

from bundle.fields import Field, Record
from bundle.records import FieldColumn
from cohort.cohort import Cohort
from training.conditions import Answers, absent, answer, hide_values
from training.data import Rows, Squares, load_rows
from training.encoders import TorchEncoders
from training.extrapolation_study import believing, marginal, shuffled
from training.features import FloatArray, embed_rows
from training.fit import Fitting
from training.fitted import FittedModel
from training.metrics import balanced_decision, expected_calibration_error
from training.neighbours import Neighbours
from training.report import show
from training.resampling import Draws, Resampling, estimate, mean_of, over_seeds
from training.run import load_towers, read_info, read_run_config
from training.scores import Labelled, label_draws

EPOCHS = 12
# Of the columns, as nearly as whole columns come to.
HIDDEN = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
SEED = 0


class ImagesAlone(Cohort):
    """A cohort of which no record is known."""

    def records(self, rows: Any) -> list[Record]:
        return [{} for _ in rows]

    def column(self, field: Field, rows: Any) -> FieldColumn:
        return FieldColumn(np.zeros(len(rows)), np.zeros(len(rows), np.bool_))


def fit_heads(run: Path, cohort: Cohort) -> FittedModel:
    """Return a run's towers, as they are, with heads fitted on the cohort."""
    info, config = read_info(run), read_run_config(run)
    heads = config.fit.model_copy(update={"tune_image": False, "epochs": EPOCHS})
    config = config.model_copy(update={"fit": heads})
    set_seed(config.seed)
    fitting = Fitting(load_towers(run), info.record_schema, config, cohort, silent)
    fitting.fit(in_context=False)
    return FittedModel(
        kind="run",
        id=str(run),
        variant="fp32",
        encoders=TorchEncoders(fitting.towers, fitting.classifier, None),
        calibration=fitting.calibration,
        novelty=fitting.novelty,
        appearance=fitting.appearance,
        schema=info.record_schema,
        image_input=config.image.input,
        labels=cohort.info.labels,
        malignant_labels=cohort.info.malignant_labels,
        seen=(),
    )


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def ask(
    model: FittedModel, cohort: Cohort, rows: Rows, train: Rows
) -> tuple[dict[str, Answers], float]:
    """Return the model's answers by what they know of a lesion, and the share of fields guessed."""

    def embed(chosen: Rows) -> FloatArray:
        return embed_rows(model.encoders, Squares(cohort, chosen, model.image_input))

    own, names = embed(rows), [field.name for field in model.schema.fields]
    settings = model.calibration.extrapolation
    reference = Neighbours(train, embed(train))
    guessed = reference.extrapolated(rows, own, model.schema, settings)
    guessed = [{k: v for k, v in record.items() if v is not None} for record in guessed]
    others = {
        "neighbours": guessed,
        "shuffled": shuffled(guessed, seed=SEED),
        "marginal": marginal(guessed, train.records, names, seed=SEED),
    }
    answers = {
        "image": answer(model, own, absent(guessed), "missing"),
        "given": answer(model, own, rows.records, "given"),
        "extrapolated": answer(model, own, guessed, "extrapolated"),
        **{k: answer(believing(model), own, v, "extrapolated") for k, v in others.items()},
    }
    for share in sorted({round(share * len(names)) / len(names) for share in HIDDEN}):
        seen = hide_values(rows.records, names, share, seed=SEED)
        answers[f"hidden {share:g}"] = answer(model, own, seen, "given")
    return answers, float(np.mean([len(record) / len(names) for record in guessed]))


def ask_twin(model: FittedModel, cohort: Cohort, rows: Rows) -> Answers:
    """Return the answers of the model that never saw a record."""
    own = embed_rows(model.encoders, Squares(cohort, rows, model.image_input))
    return answer(model, own, absent([{}] * len(rows)), "missing")


def study(run: Path, cohort: Cohort, file: Path) -> None:
    """Fit, ask and leave one file; nothing is done where it is."""
    if file.exists():
        return
    labels = cohort.info.labels
    rows, train = (load_rows(cohort, [split], labels) for split in ("test", "train"))
    model = fit_heads(run, cohort)
    answers, filled = ask(model, cohort, rows, train)
    blank = ImagesAlone(cohort.path, cohort.info)
    answers["twin"] = ask_twin(fit_heads(run, blank), cohort, rows)
    known = np.flatnonzero(rows.label >= 0)
    resampling = Resampling([rows.group_id[i] for i in known])
    labelled = Labelled(known, rows.label[known], resampling)
    draws: dict[str, Draws] = {
        "filled": np.array([filled]),
        "weight": np.array([model.calibration.extrapolation.weight]),
    }
    right = {}
    for name, answered in answers.items():
        figures = label_draws(answered.probabilities, labelled, model.prior)
        draws |= {f"{name}: {k}": figures[k] for k in ("balanced_accuracy", "macro_auroc")}
        own = answered.probabilities[known]
        error = expected_calibration_error(own, labelled.label)
        draws[f"{name}: calibration error"] = np.array([error])
        right[name] = balanced_decision(own, model.prior) == labelled.label
    for name in ("extrapolated", "neighbours", "shuffled", "marginal", "given"):
        draws[f"{name}: harmed"] = resampling.draws(mean_of(right["image"] & ~right[name]))
        draws[f"{name}: helped"] = resampling.draws(mean_of(~right["image"] & right[name]))
    partial = file.with_suffix(".partial.npz")
    np.savez(partial, allow_pickle=False, **draws)
    partial.replace(file)


def report(out: Path) -> None:
    """Print the tables of the runs that are there."""
    runs = [dict(np.load(file)) for file in sorted(out.glob("run *.npz"))]
    mean = {key: over_seeds([run[key] for run in runs]) for key in runs[0]}
    weights = ", ".join(f"{float(run['weight'][0]):g}" for run in runs)
    print(f"Runs: {len(runs)}. Fields filled: {100 * float(mean['filled'][0]):.0f} %.")
    print(f"Weight of guesses as fitted on the calibration split, by run: {weights}.\n")
    print("| | balanced accuracy | less the image's | macro AUROC | less the image's ", end="")
    print("| harmed | helped | calibration error |\n| --- |" + " --- |" * 7)
    for name in ("twin", "image", "given", "extrapolated", "neighbours", "shuffled", "marginal"):
        cells = []
        for figure in ("balanced_accuracy", "macro_auroc"):
            own = mean[f"{name}: {figure}"]
            cells += [show(estimate(own)), show(estimate(own - mean[f"image: {figure}"]))]
        for figure in ("harmed", "helped"):
            key = f"{name}: {figure}"
            cells.append(show(estimate(mean[key])) if key in mean else "")
        cells.append(f"{float(mean[f'{name}: calibration error'][0]):.3f}")
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| neighbours less | balanced accuracy | macro AUROC |\n| --- | --- | --- |")
    for name in ("shuffled", "marginal"):
        gaps = [
            mean[f"neighbours: {figure}"] - mean[f"{name}: {figure}"]
            for figure in ("balanced_accuracy", "macro_auroc")
        ]
        print(f"| {name} | " + " | ".join(show(estimate(gap)) for gap in gaps) + " |")
    print(
        "\n| metadata hidden | balanced accuracy | less the twin's | macro AUROC | less the ",
        end="",
    )
    print("twin's |\n| --- | --- | --- | --- | --- |")
    shares = {key.split(":")[0].split()[1] for key in mean if key.startswith("hidden ")}
    for share in sorted(map(float, shares)):
        cells = []
        for figure in ("balanced_accuracy", "macro_auroc"):
            own = mean[f"hidden {share:g}: {figure}"]
            cells += [show(estimate(own)), show(estimate(own - mean[f"twin: {figure}"]))]
        print(f"| {100 * share:.0f} % | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    tasks = parser.add_subparsers(dest="task", required=True)
    running = tasks.add_parser("run")
    running.add_argument("cohort", type=Path)
    running.add_argument("runs", type=Path, nargs="+")
    for task in (running, tasks.add_parser("report")):
        task.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.task == "report":
        report(options.out)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    cohort = Cohort.open(options.cohort)
    for number, run in enumerate(options.runs):
        print(f"run {number}: {run}", flush=True)
        study(run, cohort, options.out / f"run {number}.npz")


if __name__ == "__main__":
    main()
