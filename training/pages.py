"""Pages of pictures: what a search finds, where the network looks, and how few labels do."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from bundle.fields import Record, Value
from bundle.images import standardise
from cohort.cohort import Cohort
from training.conditions import Answers
from training.data import Rows, Squares
from training.frozen import Frozen
from training.image_encoder import ImageEncoder
from training.metrics import balanced_decision
from training.representation import Representation
from training.retrieval import Nearest
from training.scores import Truth

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Picture = npt.NDArray[np.uint8]
HIT, MISS = "#009e73", "#d55e00"
QUERIES, TILE = 10, 1.35
LOOKED_AT = 6
SEED = 0


def frozen_pages(
    frozen: Frozen, cohort: Cohort, rows: Rows, squares: Squares, labels: Sequence[str]
) -> dict[str, Figure]:
    """Return the pages of frozen features, by file name."""
    pages: dict[str, Figure] = {}
    if frozen.image is not None:
        pages["low_shot.png"] = low_shot(frozen.image)
    if frozen.nearest is not None and (rows.label >= 0).any():
        reference = Squares(cohort, frozen.reference, squares.spec)
        pages["retrieval.png"] = retrieval_page(
            frozen.nearest, squares, rows, reference, frozen.reference, labels
        )
    return pages


def low_shot(image: Representation) -> Figure:
    """Return balanced accuracy over how many labelled images a linear probe had."""
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    few = image.figures["low_shot"]
    series = (
        ("so many a label", "#0072b2", [k for k in few if k.endswith("label")]),
        ("a share of the patients or lesions", "#d55e00", [k for k in few if k.endswith("%")]),
    )
    for title, colour, names in series:
        points = [few[k]["images"] for k in names]
        figures = [few[k]["balanced_accuracy"] for k in names]
        values, spread = [f["value"] for f in figures], [f["sd"] for f in figures]
        axes.errorbar(points, values, spread, color=colour, marker="o", capsize=3, label=title)
        for name, x, y in zip(names, points, values, strict=True):
            short = name.partition(" per")[0]
            axes.annotate(short, (x, y), xytext=(4, 5), textcoords="offset points", fontsize=8)
    axes.legend(loc="lower right")
    whole = image.figures["linear"]["balanced_accuracy"]["value"]
    axes.axhline(whole, color="0.6", linewidth=1, linestyle="--")
    axes.set(
        title="Linear probe of frozen image features",
        xlabel="labelled train images",
        ylabel="balanced accuracy, sd over draws",
        xscale="log",
    )
    axes.margins(y=0.12)
    place = (axes.get_xlim()[0], whole)
    axes.annotate("all labels", place, xytext=(6, 4), textcoords="offset points", fontsize=8)
    return figure


def retrieval_page(
    nearest: Nearest,
    squares: Squares,
    rows: Rows,
    reference: Squares,
    reference_rows: Rows,
    labels: Sequence[str],
) -> Figure:
    """Return queries with the lesions found for them: framed green where the label is theirs.

    Half of the queries are drawn among those whose first lesion has their label, half among those
    whose first has not, so that the page shows how it fails and not how often.

    Args:
        nearest: the lesions nearest to each of the N rows, as rows of `reference_rows`.
        squares: the N pictures.
        rows: the N rows.
        reference: the R reference pictures.
        reference_rows: their rows.
        labels: names of the labels.
    """
    right = reference_rows.label[nearest.row] == rows.label[:, None]
    chosen = _some_of_each(right[:, 0], rows.label >= 0)
    columns = 1 + nearest.row.shape[1]
    figure = Figure(figsize=(TILE * columns, (TILE + 0.25) * len(chosen)), layout="constrained")
    grid = figure.subplots(len(chosen), columns, squeeze=False)
    for line, i in zip(grid, chosen, strict=True):
        found = nearest.row[i].tolist()
        _tile(line[0], squares.read([i])[0], labels[rows.label[i]], "black")
        for axes, row, cosine, hit in zip(
            line[1:], found, nearest.cosine[i], right[i], strict=True
        ):
            label = int(reference_rows.label[row])
            name = labels[label] if label >= 0 else "no label"
            picture = reference.read([row])[0]
            _tile(axes, picture, f"{name} {cosine:.2f}", HIT if hit else MISS)
    figure.suptitle("Query, and the lesions nearest to it (cosine)", fontsize=10)
    return figure


def _some_of_each(right: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]) -> list[int]:
    rng = np.random.default_rng(SEED)
    chosen: list[int] = []
    for side in (right & known, ~right & known):
        places = np.flatnonzero(side)
        chosen.extend(rng.permutation(places)[: QUERIES // 2].tolist())
    return chosen


def _tile(axes: Any, picture: Picture, title: str, colour: str) -> None:
    axes.imshow(picture)
    axes.set_title(title, fontsize=7, color=colour)
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set(color=colour, linewidth=2)


def harm_page(
    rows: IntArray,
    squares: Squares,
    answers: Mapping[str, Answers],
    guessed: Sequence[Record],
    truth: Truth,
    *,
    weight: float,
) -> Figure:
    """Return the pictures that neighbours' metadata made wrong, with what it said of them.

    Args:
        rows: (M,) int64, which of the N.
        squares: the N pictures.
        answers: of the N rows; `image` among them, and `neighbours`, whose metadata is taken as if
            given.
        guessed: N records of neighbours' answers.
        truth: what is known of the rows.
        weight: how far the model lets such metadata move a served answer.
    """
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.6 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    decided = {
        name: balanced_decision(answers[name].probabilities, truth.prior)
        for name in ("image", "neighbours")
    }
    for axes, i in zip(grid.flat, rows.tolist(), strict=False):
        axes.imshow(squares.read([i])[0])
        before, after = (truth.labels[decided[name][i]] for name in ("image", "neighbours"))
        said = ", ".join(f"{k} {_short(v)}" for k, v in guessed[i].items() if v is not None)
        axes.set_title(f"{before}, with guesses {after}\n{textwrap.fill(said, 44)}", fontsize=7)
    figure.suptitle(
        "Right by the image, wrong with neighbours' metadata taken as if given\n"
        f"(served answers move {weight:.0%} of the way there)",
        fontsize=10,
    )
    return figure


def _short(value: Value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def laid_over_page(
    squares: Squares,
    rows: Rows,
    maps_of: Callable[[FloatArray], FloatArray],
    lay: Callable[[Any, FloatArray, int], None],
    title: str,
) -> Figure:
    """Return some pictures, and below each of them the picture again with a map laid over it.

    Args:
        squares: the N pictures.
        rows: the N rows.
        maps_of: gives (M, S, S) float32 maps of (M, 3, H, W) float32 prepared images.
        lay: draws a map on the axes of a picture of so many pixels a side.
        title: of the page.
    """
    chosen = np.random.default_rng(SEED).permutation(len(rows))[:LOOKED_AT].tolist()
    pictures = squares.read(chosen)
    maps = maps_of(standardise(pictures, squares.spec))
    figure = Figure(figsize=(2 * len(chosen), 4.4), layout="constrained")
    grid = figure.subplots(2, len(chosen), squeeze=False)
    for i, (picture, laid) in enumerate(zip(pictures, maps, strict=True)):
        _tile(grid[0, i], picture, rows.image_id[chosen[i]], "black")
        _tile(grid[1, i], picture, "", "black")
        lay(grid[1, i], laid, picture.shape[0])
    figure.suptitle(title, fontsize=10)
    return figure


def attention_page(tower: ImageEncoder, squares: Squares, rows: Rows) -> Figure:
    """Return pictures with the attention of the last kept block laid over them.

    Args:
        tower: the image encoder.
        squares: the N pictures.
        rows: the N rows.
    """

    def lay(axes: Any, looked: FloatArray, side: int) -> None:
        axes.imshow(
            looked, cmap="inferno", alpha=0.6, extent=(0, side, side, 0), interpolation="bilinear"
        )

    title = "Attention of the last block, mean over its heads"
    return laid_over_page(squares, rows, partial(attention, tower), lay, title)


@torch.inference_mode()
def attention(tower: ImageEncoder, pixels: FloatArray) -> FloatArray:
    """Return (N, S, S) float32: the share of attention on each patch, S patches a side.

    It is what the last kept block's class token looks at, or all patches together where the mean
    of the patches is read out; heads weigh alike.

    Args:
        tower: the image encoder.
        pixels: (N, 3, H, W) float32 prepared images.
    """
    backbone = tower.backbone
    device = next(tower.parameters()).device
    chosen = backbone.config._attn_implementation
    backbone.set_attn_implementation("eager")
    try:
        said = backbone(torch.from_numpy(pixels).to(device), output_attentions=True)
    finally:
        backbone.set_attn_implementation(chosen)
    weights = said.attentions[-1].mean(1)
    looked = weights[:, 0, 1:] if tower.readout == "class" else weights[:, 1:, 1:].mean(1)
    side = math.isqrt(looked.shape[1])
    shares: FloatArray = (looked / looked.sum(1, keepdim=True)).cpu().numpy()
    return shares.reshape(-1, side, side)
