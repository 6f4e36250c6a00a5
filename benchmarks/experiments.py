"""The matrix of pre-training objectives on the synthetic cohort: a queue that can be interrupted.

    python -m benchmarks.experiments run FOLDER [--seeds 5] [--only nested lesion ...]
        [--size-px 32 --patch-px 8]
    python -m benchmarks.experiments report FOLDER
    python -m benchmarks.experiments settings

`run` makes the cohort once and then, seed by seed, one folder a cell: the pre-trained run and its
`answers.npz`, the answers of probes on the frozen features to the held-out patients. A cell that is
there is left alone; one that was cut off goes on from its last checkpoint. `report` prints the
tables from the answers: mean over the seeds, intervals by resampling patients, differences paired.
`settings` prints what all rows share that is no default, and in what they differ.
"""

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bundle.fields import FieldSchema
from bundle.images import decode_image, standardise
from cohort.cohort import Cohort
from cohort.store import prepare
from cohort.synthetic import synthetic_source
from training.config import Config, read_config
from training.data import Rows, Squares, fit_schema, in_order, load_rows
from training.metrics import hit_in_top
from training.model import Slimp
from training.probes import probe, standardise_features
from training.report import show
from training.resampling import (
    Draws,
    Resampling,
    auroc_of,
    balanced_accuracy_of,
    estimate,
    macro_auroc_of,
    mean_by_label_of,
    mean_of,
    partial_auroc_of,
)
from training.retrieval import search_lesions, vote
from training.run import load_towers, read_info
from training.trainer import last_checkpoint, pretrain

FloatArray = npt.NDArray[np.float32]
CONFIGS = Path(__file__).parents[1] / "configs" / "experiments"
# Frozen before the first run: 405 patients train, 405 are held out.
PATIENTS, SEED = 900, 7
IMAGE_PX = 64
FRACTIONS = {"train": 0.45, "val": 0.05, "cal": 0.05, "test": 0.45}
ANSWERS = "answers.npz"
TOP, LEAST_LESIONS = 3, 15
# Retrieved lesions that are judged, and the sensitivity above which ISIC 2024 takes the area.
FIRST, SENSITIVITY = 5, 0.8
# What the outer loss is about: fields of the patient's record that a look may tell.
PATIENT_FIELDS = ("fitzpatrick_skin_type", "sun_exposure", "family_history_melanoma", "sex")


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


@dataclass(frozen=True)
class Features:
    """Frozen features of N images.

    Attributes:
        image: (N, D) float32.
        record: (N, 2 D) float32, lesion and patient record; zeros where a tower is absent.
    """

    image: FloatArray
    record: FloatArray


@torch.inference_mode()
def frozen_features(
    towers: Slimp, cohort: Cohort, rows: Rows, config: Config, schema: FieldSchema
) -> Features:
    """Return the towers' features of the rows, by the preprocessing of serving.

    Args:
        towers: set to evaluation.
        cohort: the rows' cohort.
        rows: N.
        config: of the towers.
        schema: by which the towers read records: the fields as they were fitted in training.
    """
    towers.eval()
    squares = Squares(cohort, rows, config.image.input)
    encoded = {level: rows.encode(schema, level) for level in ("lesion", "patient")}
    images, records = [], []
    for part in in_order(len(rows), 128):
        pixels = torch.from_numpy(standardise(squares.read(part), squares.spec))
        images.append(towers.image(pixels).numpy())
        both = []
        for level, known in encoded.items():
            tower, own = towers.records(level), known.rows(np.array(part))
            values, present = torch.from_numpy(own.values), torch.from_numpy(own.present)
            empty = torch.zeros(len(part), towers.embedding_dim)
            both.append(empty if tower is None else tower(values, present))
        records.append(torch.cat(both, dim=1).numpy())
    return Features(np.concatenate(images), np.concatenate(records))


def in_company(features: FloatArray, patient: npt.NDArray[np.int64]) -> FloatArray:
    """Return (N, 2 D + 1) features, their gap to the patient's other lesions and its size."""
    gaps = np.zeros_like(features)
    for number in np.unique(patient):
        own = patient == number
        others = max(1, own.sum() - 1)
        gaps[own] = (features[own] - features[own].mean(0)) * own.sum() / others
    size = np.linalg.norm(gaps, axis=1, keepdims=True)
    return np.concatenate([features, gaps, size], axis=1)


def probed(features: FloatArray, target: npt.NDArray[np.int64], train: npt.NDArray[np.bool_]):
    """Return (M, C) probabilities of the held-out rows by balanced logistic regression."""
    known, asked = standardise_features(features[train], features[~train])
    return probe(known, target[train], asked, classes=int(target.max()) + 1)


def retrieved(
    features: FloatArray, rows: Rows, train: npt.NDArray[np.bool_]
) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    """Return what the train rows nearest to each held-out row say, by cosine.

    Every lesion of this cohort has one picture, so that rows are lesions.

    Returns:
        (M, C) shares of the labels among the ten nearest, and (M,) the share of the row's own
        label among the first `FIRST`.
    """
    known, asked = rows.take(train), rows.take(~train)
    reference, query = features[train], features[~train]
    shares = vote(
        query,
        asked.group_id,
        reference,
        known.group_id,
        known.label,
        classes=int(rows.label.max()) + 1,
    )
    found = search_lesions(
        query, asked.group_id, asked.label, reference, known.group_id, known.label
    )
    return shares, found.precision[FIRST]


def of_patients(features: FloatArray, patient: npt.NDArray[np.int64]) -> FloatArray:
    """Return (P, D), the mean over each patient's images, patients in rising order."""
    number = np.unique(patient, return_inverse=True)[1]
    sums = np.zeros((number.max() + 1, features.shape[1]))
    np.add.at(sums, number, features)
    means: FloatArray = (sums / np.bincount(number)[:, None]).astype(np.float32)
    return means


def patient_answers(features: Features, rows: Rows) -> dict[str, npt.NDArray[np.generic]]:
    """Return probes of the patient's own record, asked of the mean of the patient's images.

    A field that a patient lacks is -1 among the true values.
    """
    first = rows.take(np.unique(rows.patient, return_index=True)[1])
    train = first.split == "train"
    means = of_patients(features.image, rows.patient)
    answers: dict[str, npt.NDArray[np.generic]] = {"patients": first.patient[~train]}
    for name in PATIENT_FIELDS:
        said = [record.get(name) for record in first.records]
        words = sorted({str(value) for value in said if value is not None})
        code = np.array([-1 if v is None else words.index(str(v)) for v in said], np.int64)
        known = train & (code >= 0)
        reference, query = standardise_features(means[known], means[~train])
        answers[f"record, {name}"] = probe(reference, code[known], query, classes=len(words))
        answers[f"true record, {name}"] = code[~train]
    return answers


def answers_of(features: Features, rows: Rows) -> dict[str, npt.NDArray[np.generic]]:
    """Return the probes' answers to the held-out images, and what is true of them."""
    train = rows.split == "train"
    both = np.concatenate([features.image, features.record], axis=1)
    seen = {"image": features.image, "record": features.record, "both": both}
    answers: dict[str, npt.NDArray[np.generic]] = {
        f"label, {name}": probed(values, rows.label, train) for name, values in seen.items()
    }
    for name in NEAREST:
        answers[f"neighbours, {name}"], answers[f"precision, {name}"] = retrieved(
            seen[name], rows, train
        )
        company = in_company(seen[name], rows.patient)
        answers[f"malignant, {name}"] = probed(seen[name], rows.malignant, train)[:, 1]
        answers[f"malignant in company, {name}"] = probed(company, rows.malignant, train)[:, 1]
    held_out = rows.take(~train)
    return {
        **answers,
        **patient_answers(features, rows),
        "true label": held_out.label,
        "malignant": held_out.malignant == 1,
        "patient": held_out.patient,
    }


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
        # The settings of `slimp fit` take no part in a cell.
        was = Config.model_validate_json(stored.read_bytes()).model_copy(update={"fit": config.fit})
        if was != config:
            pixels = f"{was.image.size_px} pixels, this one of {config.image.size_px}"
            raise SystemExit(f"{out} is of other settings ({pixels}): name another folder")
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
    np.savez(partial, **answers_of(frozen_features(towers, cohort, rows, config, schema), rows))
    partial.replace(out / ANSWERS)


def say(step: int, total: int, metrics: dict[str, float]) -> None:
    if step % 20 == 0 or step == total:
        print(f"  {step} of {total}  loss {metrics['loss']:.3f}", flush=True)


FIGURES = {
    "image": "image",
    "record": "record",
    "both": "image + record",
}
RANKS = {
    "malignant, image": "image",
    "malignant in company, image": "image, in company",
    "malignant, both": "image + record",
    "malignant in company, both": "image + record, in company",
}
# Every other row is compared with these.
OURS = ("nested", "nested + views")
NEAREST = {"image": "image", "both": "image + record"}
LIKENESS = {
    f"{kind}, {name}": f"{head}, {seen}"
    for name, seen in NEAREST.items()
    for kind, head in (("neighbours", "vote's AUROC"), ("precision", f"precision at {FIRST}"))
}
HEADS = {**FIGURES, **RANKS, **LIKENESS, **{name: name for name in PATIENT_FIELDS}}


def figures_of(path: Path) -> dict[str, Draws]:
    """Return the (1 + samples,) draws of every figure of one cell."""
    with np.load(path) as file:
        answers = {name: file[name] for name in file.files}
    patient = answers["patient"]
    resampling = Resampling([str(p) for p in patient])
    label = answers["true label"]
    draws: dict[str, Draws] = {}
    for name in FIGURES:
        probabilities = answers[f"label, {name}"]
        decided = probabilities.argmax(1)
        draws[f"balanced {name}"] = resampling.draws(balanced_accuracy_of(label, decided))
        draws[f"auroc {name}"] = resampling.draws(macro_auroc_of(label, probabilities))
    for name in RANKS:
        score = answers[name]
        asked = answers["malignant"], score
        draws[f"auroc {name}"] = resampling.draws(auroc_of(*asked))
        draws[f"partial {name}"] = resampling.draws(partial_auroc_of(*asked, above=SENSITIVITY))
        hits = hit_in_top(score, answers["malignant"], patient, top=TOP, least=LEAST_LESIONS)
        judged = Resampling([str(p) for p in hits])
        draws[f"top {name}"] = judged.draws(mean_of(np.array(list(hits.values()))))
    for name in NEAREST:
        voted = macro_auroc_of(label, answers[f"neighbours, {name}"])
        draws[f"likeness neighbours, {name}"] = resampling.draws(voted)
        precision = mean_by_label_of(label, answers[f"precision, {name}"])
        draws[f"likeness precision, {name}"] = resampling.draws(precision)
    return draws | patient_figures(answers)


def patient_figures(answers: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Draws]:
    """Return the draws of the macro AUROC of each field of the patients' records."""
    draws = {}
    for name in PATIENT_FIELDS:
        code, said = answers[f"true record, {name}"], answers[f"record, {name}"]
        known = code >= 0
        resampling = Resampling([str(p) for p in answers["patients"][known]])
        code, said = code[known], said[known]
        draws[f"record {name}"] = resampling.draws(macro_auroc_of(code, said))
    return draws


def report(folder: Path) -> None:
    """Print the tables of the cells that are there."""
    cells = {
        variant.name: [figures_of(p) for p in sorted(folder.glob(f"{variant.name}/*/{ANSWERS}"))]
        for variant in VARIANTS
    }
    cells = {name: seeds for name, seeds in cells.items() if seeds}
    mean = {
        name: {figure: np.mean([s[figure] for s in seeds], axis=0) for figure in seeds[0]}
        for name, seeds in cells.items()
    }
    tables = (
        ("Balanced accuracy over the labels", [f"balanced {n}" for n in FIGURES]),
        ("Macro AUROC over the labels", [f"auroc {n}" for n in FIGURES]),
        (f"Malignant lesion in the patient's top {TOP}", [f"top {n}" for n in RANKS]),
        ("Malignant AUROC", [f"auroc {n}" for n in RANKS]),
        (
            f"Malignant, area above a sensitivity of {SENSITIVITY:.0%} (at most 0.2)",
            [f"partial {n}" for n in RANKS],
        ),
        (
            "The nearest train rows: macro AUROC of their vote, precision averaged over labels",
            [f"likeness {n}" for n in LIKENESS],
        ),
        (
            "The patient's record from the mean of the patient's images, macro AUROC",
            [f"record {n}" for n in PATIENT_FIELDS],
        ),
    )
    for title, names in tables:
        heads = [HEADS[n.split(" ", 1)[1]] for n in names]
        print(f"\n### {title}\n\n| | seeds | " + " | ".join(heads) + " |")
        print("| --- | --- | " + " | ".join("---" for _ in heads) + " |")
        for variant, figures in mean.items():
            cellsof = [show(estimate(figures[n])) for n in names]
            print(f"| {variant} | {len(cells[variant])} | " + " | ".join(cellsof) + " |")
        for ours in OURS:
            if ours in cells:
                _differences(ours, cells, names, heads)


def _differences(
    ours: str, cells: dict[str, list[dict[str, Draws]]], names: list[str], heads: list[str]
) -> None:
    print(f"\n| {ours} minus | " + " | ".join(heads) + " |")
    print("| --- | " + " | ".join("---" for _ in heads) + " |")
    for variant in cells:
        if variant in OURS[: OURS.index(ours) + 1]:
            continue
        shared = min(len(cells[ours]), len(cells[variant]))
        gaps = [
            np.mean([cells[ours][i][n] - cells[variant][i][n] for i in range(shared)], axis=0)
            for n in names
        ]
        print(f"| {variant} | " + " | ".join(show(estimate(gap)) for gap in gaps) + " |")


def flat(config: Config) -> dict[str, object]:
    """Return the settings by section.name, the seed left out."""
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
        report(options.folder)
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
