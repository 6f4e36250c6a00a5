"""What an answer rests on: how it changes as a part of the picture is covered.

Occlusion sensitivity (Zeiler & Fergus, 2014, arXiv 1311.2901) asks the model alone, so that runs
and bundles of any precision are seen alike. It says what the answer needs, not why.
"""

import numpy as np
from matplotlib.figure import Figure

from bundle.calibration import log_odds
from bundle.images import standardise
from training.conditions import absent, answer
from training.data import Rows, Squares
from training.features import FloatArray
from training.fitted import FittedModel
from training.pages import LOOKED_AT, SEED, tile

# Places a side, and how many of them a cover spans.
PLACES, SPAN = 7, 2


def occlusion(model: FittedModel, pixels: FloatArray) -> FloatArray:
    """Return (N, PLACES, PLACES) float32: by how much covering a place lowers malignancy.

    In log odds of the malignant labels together, by the image alone; negative where covering
    raises it. A cover is a square of the picture's mean colour.

    Args:
        model: the run or bundle; it has a malignant label.
        pixels: (N, 3, H, W) float32 prepared images.
    """
    whole = _malignancy(model, pixels)
    edges = np.linspace(0, pixels.shape[2], PLACES + SPAN).round().astype(int)
    mean = pixels.mean((2, 3), keepdims=True)
    lowered = np.zeros((len(pixels), PLACES, PLACES), np.float32)
    for row in range(PLACES):
        for column in range(PLACES):
            covered = pixels.copy()
            down, across = (slice(edges[at], edges[at + SPAN]) for at in (row, column))
            covered[:, :, down, across] = mean
            lowered[:, row, column] = whole - _malignancy(model, covered)
    return lowered


def _malignancy(model: FittedModel, pixels: FloatArray) -> FloatArray:
    embeddings = model.encoders.embed_images(pixels)
    blank = absent([{}] * len(pixels))
    answers = answer(model, embeddings, blank, "missing").probabilities
    return log_odds(answers[:, model.malignant].sum(1))


def occlusion_page(model: FittedModel, squares: Squares, rows: Rows) -> Figure:
    """Return pictures with what their malignancy rests on laid over them.

    Args:
        model: the run or bundle; it has a malignant label.
        squares: the N pictures.
        rows: the N rows.
    """
    chosen = np.random.default_rng(SEED).permutation(len(rows))[:LOOKED_AT].tolist()
    pictures = squares.read(chosen)
    maps = occlusion(model, standardise(pictures, squares.spec))
    figure = Figure(figsize=(2 * len(chosen), 4.4), layout="constrained")
    grid = figure.subplots(2, len(chosen), squeeze=False)
    for i, (picture, lowered) in enumerate(zip(pictures, maps, strict=True)):
        tile(grid[0, i], picture, rows.image_id[chosen[i]], "black")
        most = float(np.abs(lowered).max())
        tile(grid[1, i], picture, f"at most {most:.1f}", "black")
        # The middle of the first cover to that of the last.
        margin = picture.shape[0] * (SPAN - 1) / 2 / (PLACES + SPAN - 1)
        far = picture.shape[0] - margin
        grid[1, i].imshow(
            lowered,
            cmap="RdBu_r",
            alpha=0.6,
            vmin=-most,
            vmax=most,
            extent=(margin, far, far, margin),
            interpolation="bilinear",
        )
    figure.suptitle(
        "Covering a place lowers (red) or raises (blue) the log odds of malignancy", fontsize=10
    )
    return figure
