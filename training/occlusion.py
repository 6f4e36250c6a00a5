"""What an answer rests on: how it changes as a part of the picture is covered.

Occlusion sensitivity (Zeiler & Fergus, 2014, arXiv 1311.2901) asks the model alone, so that runs
and bundles of any precision are seen alike. It says what the answer needs, not why.
"""

from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bundle.calibration import log_odds
from training.conditions import absent, answer
from training.data import Rows, Squares
from training.features import FloatArray
from training.fitted import FittedModel
from training.pages import laid_over_page

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

    def lay(axes: Any, lowered: FloatArray, side: int) -> None:
        most = float(np.abs(lowered).max())
        # The middle of the first cover to that of the last.
        margin = side * (SPAN - 1) / 2 / (PLACES + SPAN - 1)
        far = side - margin
        axes.set_title(f"at most {most:.1f}", fontsize=7)
        axes.imshow(
            lowered,
            cmap="RdBu_r",
            alpha=0.6,
            vmin=-most,
            vmax=most,
            extent=(margin, far, far, margin),
            interpolation="bilinear",
        )

    title = "Covering a place lowers (red) or raises (blue) the log odds of malignancy"
    return laid_over_page(squares, rows, partial(occlusion, model), lay, title)
