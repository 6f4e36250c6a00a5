"""What a user has without SLIMP: a frozen pretrained ViT and balanced logistic regression.

    python -m benchmarks.frozen_anchor COHORT --source FOLDER --out anchor.npz [--metadata]
    python -m benchmarks.frozen_anchor COHORT --features untouched.npy --out anchor.npz [--metadata]

Class token after block 8, 224 px, and with --metadata the record beside it (one column a category,
numbers as they are, one column for whether a field is given); standardised features, C 0.01. Fitted
on the cohort's train split, and the probabilities of the test split written down for a paired
comparison (`slimp evaluate ... --against anchor.npz`).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction import DictVectorizer
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from transformers import AutoConfig, AutoModel

from bundle.images import ImageInput, decode_image, prepare_image
from cohort.cohort import Cohort
from training.data import Rows, in_order, load_rows
from training.probes import probe, standardise_features

SPEC = ImageInput(size_px=224, resize_px=224)
BLOCK = 8


@torch.inference_mode()
def frozen_features(source: str, cohort: Cohort, rows: Rows) -> np.ndarray:
    """Return (N, D) float32: the class token after block 8, as the checkpoint gives it."""
    config = AutoConfig.from_pretrained(source)
    config.num_hidden_layers = BLOCK
    model = AutoModel.from_pretrained(source, config=config).eval()
    model.layernorm = torch.nn.Identity()
    parts = []
    for part in in_order(len(rows), 32):
        files = cohort.images([int(rows.position[i]) for i in part])
        pixels = np.stack([prepare_image(decode_image(data), SPEC) for data in files])
        parts.append(model(torch.from_numpy(pixels)).last_hidden_state[:, 0].numpy())
        print(f"\r{part[-1] + 1} of {len(rows)} images", end="", flush=True)
    print()
    return np.concatenate(parts)


def record_columns(rows: Rows) -> np.ndarray:
    """Return (N, F) float32 columns of the rows' records; what is missing is 0 in each."""
    known = [{k: v for k, v in record.items() if v is not None} for record in rows.records]
    given = [{**record, **{f"{k} given": 1 for k in record}} for record in known]
    columns: np.ndarray = DictVectorizer(sparse=False).fit_transform(given)
    return columns.astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--source", help="Hugging Face folder or hub id")
    parser.add_argument(
        "--features", type=Path, help="the same features of all images, once made (.npy)"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--metadata", action="store_true", help="the record beside the image")
    options = parser.parse_args()
    if (options.source is None) == (options.features is None):
        parser.error("expected one of --source and --features")
    cohort = Cohort.open(options.cohort)
    rows = load_rows(cohort, ["train", "test"], cohort.info.labels)
    if options.features is None:
        features = frozen_features(options.source, cohort, rows)
    else:
        features = np.load(options.features)[rows.position]
    if options.metadata:
        features = np.concatenate([features, record_columns(rows)], axis=1)
    train, test = rows.split == "train", rows.split == "test"
    known, asked = standardise_features(features[train], features[test])
    classes = len(cohort.info.labels)
    probabilities = probe(known, rows.label[train], asked, classes=classes)
    label = rows.label[test]
    decided = probabilities.argmax(1)
    print(f"balanced accuracy {balanced_accuracy_score(label, decided):.3f}")
    print(f"macro AUROC {roc_auc_score(label, probabilities, multi_class='ovr'):.3f}")
    np.savez(
        options.out,
        image_id=np.array(rows.image_id)[test],
        probabilities=probabilities,
        labels=np.array(cohort.info.labels),
    )


if __name__ == "__main__":
    main()
