"""Building blocks of a picture: smooth noise, soft dots, hairs and vessels. No knowledge of skin.

Fields of values are (px, px) float32; positions are in [-1, 1], x to the right and y down.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Plane = NDArray[np.float32]
LINE_OVERSAMPLING = 3


@lru_cache(maxsize=64)
def grid(px: int) -> tuple[Plane, Plane]:
    """Return the x and y of every pixel centre, each (px, px) in (-1, 1)."""
    axis = ((np.arange(px) + 0.5) / px * 2.0 - 1.0).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


@lru_cache(maxsize=256)
def _spline(px: int, cells: int) -> Plane:
    """Return the (px, cells + 3) cubic B-spline weights of each pixel row for a grid of cells."""
    place = (np.arange(px) + 0.5) / px * cells
    cell = np.minimum(place.astype(int), cells - 1)
    t = place - cell
    weights = np.stack(
        [
            (1 - t) ** 3 / 6,
            (3 * t**3 - 6 * t**2 + 4) / 6,
            (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
            t**3 / 6,
        ]
    )
    matrix = np.zeros((px, cells + 3), dtype=np.float32)
    for offset in range(4):
        matrix[np.arange(px), cell + offset] = weights[offset]
    return matrix


def smooth_noise(rng: np.random.Generator, px: int, cells: int) -> Plane:
    """Return (px, px) smooth noise of about unit spread, with `cells` bumps along each side."""
    matrix = _spline(px, cells)
    knots = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    return np.asarray(2.1 * (matrix @ knots @ matrix.T), dtype=np.float32)


def dots(
    px: int,
    centres: NDArray[np.float64],
    radii: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> Plane:
    """Return a (px, px) sum of round soft dots.

    Args:
        px: side of the plane.
        centres: (N, 2) x and y in [-1, 1].
        radii: (N,) radius at which a dot has fallen to 0.61 of its weight, same unit.
        weights: (N,) height of each dot.
    """
    axis = (np.arange(px) + 0.5) / px * 2.0 - 1.0
    across, down = (
        np.exp(-0.5 * ((axis - centres[:, side, None]) / radii[:, None]) ** 2) for side in (0, 1)
    )
    return np.asarray((weights[:, None] * down).T @ across, dtype=np.float32)


def scatter(rng: np.random.Generator, count: int, radius: float) -> NDArray[np.float64]:
    """Return (count, 2) points spread evenly over a disc about the centre."""
    distance = radius * np.sqrt(rng.random(count))
    angle = rng.uniform(0.0, 2.0 * math.pi, count)
    return np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1)


def strokes(px: int, paths: list[NDArray[np.float64]], widths: list[float]) -> Plane:
    """Return (px, px) coverage in [0, 1] of lines drawn through each path.

    Args:
        px: side of the plane.
        paths: each (N, 2) x and y in [-1, 1].
        widths: of each line, in pixels of the plane.
    """
    side = px * LINE_OVERSAMPLING
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    for path, width in zip(paths, widths, strict=True):
        points = [tuple(point) for point in ((path + 1.0) * side / 2.0).tolist()]
        draw.line(points, fill=255, width=max(1, round(width * LINE_OVERSAMPLING)), joint="curve")
    return np.asarray(canvas.reduce(LINE_OVERSAMPLING), dtype=np.float32) / 255.0


def curve(
    rng: np.random.Generator, start: NDArray[np.float64], length: float
) -> NDArray[np.float64]:
    """Return (9, 2) points of a gently bent line from the start, in a random direction."""
    bend = rng.normal(0.0, 0.08) + rng.normal(0.0, 0.08, 8)
    angle = rng.uniform(0.0, 2.0 * math.pi) + np.cumsum(bend)
    steps = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (length / 8.0)
    return np.vstack([start, start + np.cumsum(steps, axis=0)])
