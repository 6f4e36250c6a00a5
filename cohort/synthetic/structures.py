"""What shows inside a lesion: its naevus pattern, and the structures of each other label.

Each drawer changes the (3, px, px) optical density in place.
"""

import math

import numpy as np
from numpy.typing import NDArray

from cohort.synthetic.appearance import Appearance
from cohort.synthetic.colour import BLOOD, COOL_MELANIN, tint
from cohort.synthetic.lesions import Lesion
from cohort.synthetic.outline import Outline
from cohort.synthetic.phenotype import PATTERNS
from cohort.synthetic.texture import Plane, curve, dots, grid, scatter, smooth_noise, strokes

Density = NDArray[np.float32]


def add_structures(
    density: Density,
    lesion: Lesion,
    look: Appearance,
    outline: Outline,
    own_pattern: int,
    rng: np.random.Generator,
    field_of_view_mm: float,
) -> None:
    """Add the lesion to the density of bare skin."""
    mm = 2.0 / field_of_view_mm
    px = density.shape[-1]
    amount = 1.0 + look.variegation * _asymmetric_noise(rng, px, outline)
    if lesion.label != "vascular_lesion":
        amount += look.structure * _pattern(PATTERNS[lesion.pattern], outline, rng, px, mm)
    amount = np.maximum(amount, 0.12) * outline.mask
    flush = np.maximum(1.0 + 0.8 * look.variegation * smooth_noise(rng, px, 5), 0.0) * outline.mask
    density += tint(look.pigment, amount) + tint(look.blood, flush)
    drawer = OWN_STRUCTURES.get(lesion.label)
    if drawer is not None:
        drawer(density, lesion.structure, outline, rng, mm)


def _asymmetric_noise(rng: np.random.Generator, px: int, outline: Outline) -> Plane:
    """Return unit noise with a slope across the lesion: one side differs from the other."""
    turn = rng.uniform(0.0, 2.0 * math.pi)
    slope = np.cos(outline.angle - np.float32(turn)) * np.minimum(outline.distance, 1.0)
    return np.asarray(smooth_noise(rng, px, 7) + 1.1 * slope, dtype=np.float32)


def _pattern(name: str, outline: Outline, rng: np.random.Generator, px: int, mm: float) -> Plane:
    """Return the relative change of pigment that the named naevus pattern makes, about 0."""
    if name == "reticular":
        return _network(rng, px, mm)
    if name == "globular":
        count = max(6, int(22 * (outline.radius / (2.0 * mm)) ** 2))
        radii = rng.uniform(0.14, 0.24, count) * mm
        return 1.8 * dots(px, scatter(rng, count, outline.radius), radii, np.ones(count)) - 0.4
    if name == "targetoid":
        return np.asarray(1.6 * np.exp(-5.0 * outline.distance**2) - 0.5, dtype=np.float32)
    return np.asarray(0.3 - 0.5 * outline.distance, dtype=np.float32)


def _network(rng: np.random.Generator, px: int, mm: float) -> Plane:
    """Return a mesh of dark lines about 0.9 mm apart, light in its holes."""
    x, y = grid(px)
    bend_x, bend_y = 0.9 * smooth_noise(rng, px, 7), 0.9 * smooth_noise(rng, px, 7)
    turn = rng.uniform(0.0, math.pi)
    wave = math.pi / (0.95 * mm)
    along = np.abs(np.sin(wave * (math.cos(turn) * x + math.sin(turn) * y) + bend_x))
    across = np.abs(np.sin(wave * (math.cos(turn) * y - math.sin(turn) * x) + bend_y))
    mesh = 0.8 - 1.8 * np.minimum(along, across)
    return np.asarray(mesh * (1.0 + 0.3 * smooth_noise(rng, px, 4)), dtype=np.float32)


def _add_keratosis(
    density: Density, shown: float, outline: Outline, rng: np.random.Generator, mm: float
) -> None:
    """Waxy, stuck on: a sharp rim, a rough surface, dark plugs and pale cysts."""
    px = density.shape[-1]
    sharp = np.clip((1.0 - outline.distance) * 9.0 + 0.5, 0.0, 1.0)
    rough = 0.22 * smooth_noise(rng, px, max(6, px // 5))
    wax = np.array([0.06, 0.12, 0.20])
    plugs, cysts = (
        dots(px, scatter(rng, n, 0.85 * outline.radius), rng.uniform(*span, n) * mm, np.ones(n))
        for n, span in ((int(rng.integers(5, 11)), (0.12, 0.22)), (4, (0.10, 0.18)))
    )
    relief = np.float32(shown) * sharp * (rough + 0.9 * plugs - 0.35 * cysts)
    density += relief + tint(shown * wax, sharp)


def _add_vascular(
    density: Density, shown: float, outline: Outline, rng: np.random.Generator, mm: float
) -> None:
    """Round red to purple lagoons."""
    px = density.shape[-1]
    count = int(rng.integers(4, 10))
    radii = rng.uniform(0.25, 0.45, count) * outline.radius
    lagoons = dots(px, scatter(rng, count, 0.8 * outline.radius), radii, np.ones(count))
    lagoons = np.minimum(lagoons, 1.5) * outline.mask * np.float32(shown)
    density += tint(0.35 * BLOOD + rng.uniform(0.0, 0.15) * COOL_MELANIN, lagoons)


def _add_carcinoma(
    density: Density, shown: float, outline: Outline, rng: np.random.Generator, mm: float
) -> None:
    """Pearly pink with branching vessels and, at times, grey globules."""
    px = density.shape[-1]
    shine = np.maximum(smooth_noise(rng, px, 8) - 0.4, 0.0)
    starts = scatter(rng, 4, 1.1 * outline.radius)
    paths = [curve(rng, start, 1.6 * outline.radius) for start in starts]
    paths += [curve(rng, path[4], 0.9 * outline.radius) for path in paths]
    vessels = strokes(px, paths, [0.9 * px / 64.0] * len(paths))
    near = np.clip(2.2 - 1.6 * outline.distance, 0.0, 1.0)
    count = int(rng.integers(0, 4))
    radii = rng.uniform(0.25, 0.45, count) * mm
    globules = dots(px, scatter(rng, count, 0.8 * outline.radius), radii, np.ones(count))
    density += tint(shown * 0.75 * BLOOD, vessels * near)
    density += tint(shown * 0.55 * COOL_MELANIN, globules * outline.mask)
    density -= np.float32(shown * 0.16) * shine * outline.mask


def _add_melanoma(
    density: Density, shown: float, outline: Outline, rng: np.random.Generator, mm: float
) -> None:
    """A blue-white veil on one side, streaks at the rim, a scar-like pale patch."""
    px = density.shape[-1]
    side = scatter(rng, 2, 0.55 * outline.radius)
    radii = np.array([0.45, 0.38]) * outline.radius
    veil, scar = (
        dots(px, side[i : i + 1], radii[i : i + 1], np.ones(1)) * outline.mask for i in (0, 1)
    )
    rays = np.maximum(np.cos(float(rng.integers(11, 17)) * outline.angle), 0.0)
    rim = np.exp(-(((outline.distance - 1.0) / 0.16) ** 2))
    veil_tint = np.array([0.55, 0.22, -0.12])
    density += tint(shown * veil_tint, veil)
    density += np.float32(shown) * (0.45 * rays * rim - 0.40 * scar * (1.0 - veil))


OWN_STRUCTURES = {
    "seborrheic_keratosis": _add_keratosis,
    "vascular_lesion": _add_vascular,
    "basal_cell_carcinoma": _add_carcinoma,
    "melanoma": _add_melanoma,
}
