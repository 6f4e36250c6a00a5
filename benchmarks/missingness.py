"""Do gaps in PAD-UFES-20's records give the class away, and does the classifier learn them?

    python -m benchmarks.missingness FOLDER

FOLDER holds the published `metadata.csv`. Pictures take no part: each row gets the same blank one,
so that all rows count, those whose picture is elsewhere too. Patients are parted at random, 70 %
to train, five times. A logistic regression sees only which fields are missing; classifiers see the
record, trained with and without `fit.balance_missing`, and are asked about held-out patients'
records as they are and, where a record is complete, blanked to the commonest gaps.
"""

import argparse
import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from bundle.fields import Record
from bundle.records import encode_records
from cohort.cohort import Cohort
from cohort.lines import read_csv
from cohort.pad_ufes_20 import pad_ufes_20_source
from cohort.rows import DroppedRow
from cohort.splits import Split
from cohort.store import prepare
from training.classifier import ConditionRecords, classify, feature_table, train_classifier
from training.config import Config, FitSettings, RecordSettings
from training.data import Rows, fit_schema, load_rows
from training.features import LEVELS
from training.heads import Classifier
from training.missingness import presence
from training.model import Slimp
from training.probes import probe

DRAWS = 5
TRAIN_SHARE = 0.7
CONFIG = Config(
    record=RecordSettings(width=48, layers=2, heads=4),
    fit=FitSettings(epochs=30, batch=64, hidden=64),
)


def make_cohort(folder: Path, work: Path) -> Cohort:
    """Return all rows of the table as a cohort of blank pictures."""
    pictures = work / "source" / "imgs_part_1"
    pictures.mkdir(parents=True)
    shutil.copy(folder / "metadata.csv", work / "source")
    blank = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(blank, "PNG")
    for row in read_csv(folder / "metadata.csv", ("img_id",)):
        if not isinstance(row, DroppedRow):
            (pictures / row[1]["img_id"]).write_bytes(blank.getvalue())
    prepare(pad_ufes_20_source(work / "source"), work / "cohort")
    return Cohort.open(work / "cohort")


def parted(cohort: Cohort, seed: int) -> tuple[Rows, Rows]:
    """Return train and held-out rows of different patients."""
    splits: tuple[Split, ...] = ("train", "val", "cal", "test")
    groups = sorted(set(load_rows(cohort, splits, ()).group_id))
    drawn = np.random.default_rng(seed).random(len(groups)) < TRAIN_SHARE
    own: dict[str, Split] = {
        g: "train" if d else "test" for g, d in zip(groups, drawn, strict=True)
    }
    under = cohort.with_splits(own)
    rows = load_rows(under, ("train", "test"), cohort.info.labels)
    rows = rows.take(rows.label >= 0)
    return rows.take(rows.split == "train"), rows.take(rows.split == "test")


def train(rows: Rows, cohort: Cohort, seed: int, *, balance: bool) -> tuple[Slimp, Classifier]:
    """Return towers and a classifier that saw records and no picture."""
    torch.manual_seed(seed)
    schema = fit_schema(cohort.schema, rows)
    config = CONFIG.model_copy(
        update={
            "image": CONFIG.image.model_copy(
                update={"width": 96, "heads": 3, "blocks": 1, "size_px": 32, "resize_px": 32}
            )
        }
    )
    towers = Slimp(config, schema)
    labels = len(cohort.info.labels)
    classifier = Classifier(
        towers.embedding_dim, labels, hidden=config.fit.hidden, dropout=config.fit.dropout
    )
    blind = np.zeros((len(rows), towers.embedding_dim), np.float32)
    train_classifier(
        towers,
        classifier,
        feature_table(blind, config.fit.batch, seed),
        rows,
        ConditionRecords.of(rows, [{}] * len(rows), schema, balance_missing=balance),
        config.fit,
        tune=False,
        steps_per_epoch=-(-len(rows) // config.fit.batch),
        seed=seed,
    )
    return towers, classifier


@torch.no_grad()
def probabilities(
    model: tuple[Slimp, Classifier], cohort: Cohort, rows: Rows, records: list[Record]
) -> np.ndarray:
    """Return (N, C) float32 at the train prevalence, of records alone."""
    schema = fit_schema(cohort.schema, rows)
    encoded = {level: encode_records(records, schema.at(level)) for level in LEVELS}
    blind = torch.zeros(len(records), model[0].embedding_dim)
    logits = classify(*model, blind, encoded, np.zeros(len(records), np.bool_))
    prior = np.bincount(rows.label, minlength=logits.shape[1]) / len(rows)
    return (logits + torch.from_numpy(np.log(prior))).softmax(1).numpy()


def measure(cohort: Cohort, seed: int) -> dict[str, float]:
    """Return the figures of one draw of patients."""
    known, held_out = parted(cohort, seed)
    fields, malignant = cohort.schema.fields, held_out.malignant == 1
    dangerous = np.isin(cohort.info.labels, cohort.info.malignant_labels)
    flags = presence(held_out.records, fields)
    said = probe(
        presence(known.records, fields).astype(np.float32),
        known.label,
        flags.astype(np.float32),
        classes=len(dangerous),
    )
    figures = {"gaps alone: AUROC": float(roc_auc_score(malignant, said[:, dangerous].sum(1)))}
    patterns, count = np.unique(flags[~flags.all(1)], axis=0, return_counts=True)
    pattern = patterns[count.argmax()]
    whole: np.ndarray = np.asarray(flags.all(1))
    kept = {field.name for field, stays in zip(fields, pattern, strict=True) if stays}
    complete = [r for r, is_whole in zip(held_out.records, whole, strict=True) if is_whole]
    gaps: list[Record] = [{k: v for k, v in r.items() if k in kept} for r in complete]
    for name, balance in (("plain", False), ("balanced", True)):
        model = train(known, cohort, seed, balance=balance)

        def malignancy(
            records: list[Record], model: tuple[Slimp, Classifier] = model
        ) -> np.ndarray:
            said = probabilities(model, cohort, known, records)
            return np.asarray(said[:, dangerous].sum(1))

        moved = malignancy(gaps) - malignancy(complete)
        answers = malignancy(held_out.records)
        figures |= {
            f"{name}: AUROC, all records": float(roc_auc_score(malignant, answers)),
            f"{name}: AUROC, complete records": float(
                roc_auc_score(malignant[whole], answers[whole])
            ),
            f"{name}: mean change when blanked": float(moved.mean()),
            f"{name}: mean size of change": float(np.abs(moved).mean()),
        }
    return {**figures, "complete held-out records": float(whole.sum())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        cohort = make_cohort(options.folder, Path(work))
        draws = [measure(cohort, seed) for seed in range(DRAWS)]
    print(f"{len(cohort)} records; mean and standard deviation over {DRAWS} draws of patients\n")
    print("| | mean | sd |\n| --- | --- | --- |")
    for name in draws[0]:
        values = [figures[name] for figures in draws]
        print(f"| {name} | {np.mean(values):.3f} | {np.std(values):.3f} |")


if __name__ == "__main__":
    main()
