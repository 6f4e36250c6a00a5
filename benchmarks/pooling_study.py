"""Does the mean over a patient's lesions drown the one that is malignant?

    python -m benchmarks.pooling_study FOLDER

FOLDER holds the matrix of `benchmarks/experiments.py`. Each patient's phenotype, the frozen
features of image and lesion record joined over the lesions, is asked whether the patient has a
malignant lesion and whether melanoma runs in the family, by balanced logistic regression fitted on
the train patients. Encoders that were trained under one pooling are read out by their own, by the
mean and by the maximum. AUROC on the held-out patients, mean over the seeds, intervals by
resampling patients and seeds.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.experiment_answers import frozen_features, probed
from benchmarks.experiments import VARIANTS
from cohort.cohort import Cohort
from training.data import Rows, load_rows
from training.model import Slimp
from training.report import show
from training.resampling import Draws, Resampling, auroc_of, estimate, over_seeds
from training.run import load_towers, read_info, read_run_config

FloatArray = npt.NDArray[np.float32]
Join = Callable[[FloatArray], FloatArray]
TRAINED = ("nested", "nested, max", "nested, attention")
READ_OUTS = ("own", "mean", "max")
FAMILY = "family_history_melanoma"
QUESTIONS = ("malignant lesion", "family history of melanoma")


def joins(towers: Slimp) -> dict[str, Join]:
    """Return how (L, E) features of a patient's lesions become an (E,) phenotype."""
    pooling = towers.objective.pooling
    assert isinstance(pooling, nn.Module)

    @torch.inference_mode()
    def own(lesions: FloatArray) -> FloatArray:
        joined: torch.Tensor = pooling(
            torch.from_numpy(lesions)[None], torch.ones(1, len(lesions), dtype=torch.bool)
        )
        return joined[0].numpy()

    return {"own": own, "mean": lambda lesions: lesions.mean(0), "max": lambda x: x.max(0)}


def targets_of(rows: Rows, patients: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
    """Return (P,) answers to each question: 1, 0, or -1 where nobody knows."""
    malignant, family = [], []
    for patient in patients:
        own = np.flatnonzero(rows.patient == patient)
        malignant.append(int(rows.malignant[own].max()))
        said = rows.records[int(own[0])].get(FAMILY)
        family.append(-1 if said is None else int(bool(said)))
    return dict(zip(QUESTIONS, map(np.array, (malignant, family)), strict=True))


def draws_of(run: Path, cohort: Cohort) -> dict[str, Draws]:
    """Return the (1 + samples,) draws of one run's AUROC by read-out and question."""
    towers, config = load_towers(run).eval(), read_run_config(run)
    rows = load_rows(cohort, ["train", "test"], cohort.info.labels)
    features = frozen_features(towers, cohort, rows, config, read_info(run).record_schema)
    lesion_record = features.record[:, : towers.embedding_dim]
    lesions = np.concatenate([features.image, lesion_record], axis=1)
    patients, first = np.unique(rows.patient, return_index=True)
    train, targets = rows.split[first] == "train", targets_of(rows, patients)
    draws = {}
    for name, join in joins(towers).items():
        phenotypes = np.stack([join(lesions[rows.patient == p]) for p in patients])
        for question, target in targets.items():
            known = target >= 0
            of, side = target[known], train[known]
            score = probed(phenotypes[known], of, side)[:, 1]
            resampling = Resampling([str(p) for p in patients[known][~side]])
            draws[f"{name}: {question}"] = resampling.draws(auroc_of(of[~side] == 1, score))
    return draws


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    cohort = Cohort.open(folder / "cohort")
    mean: dict[str, dict[str, Draws]] = {}
    for name in (variant.name for variant in VARIANTS if variant.name in TRAINED):
        runs = [file.parent for file in sorted((folder / name).glob("*/run.json"))]
        if not runs:
            parser.error(f"expected runs of {name}: run benchmarks.experiments first")
        seeds = [draws_of(run, cohort) for run in runs]
        mean[name] = {key: over_seeds([s[key] for s in seeds]) for key in seeds[0]}
        mean[name]["seeds"] = np.array([len(seeds)])
    for question in QUESTIONS:
        print(f"\n### {question[0].upper()}{question[1:]}: AUROC over patients\n")
        heads = [f"read out by {'its own' if n == 'own' else f'the {n}'}" for n in READ_OUTS]
        print("| trained | seeds | " + " | ".join(heads) + " | own less nested's mean |")
        print("| --- |" + " --- |" * 5)
        for name, draws in mean.items():
            cells = [show(estimate(draws[f"{read}: {question}"])) for read in READ_OUTS]
            gap = draws[f"own: {question}"] - mean["nested"][f"own: {question}"]
            print(
                f"| {name} | {int(draws['seeds'][0])} | "
                + " | ".join([*cells, show(estimate(gap))])
                + " |"
            )


if __name__ == "__main__":
    main()
