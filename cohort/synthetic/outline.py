"""Where a lesion ends: an ellipse with waves, and the coordinates that its structures follow."""

import math
from dataclasses import dataclass

import numpy as np

from cohort.synthetic.appearance import Appearance
from cohort.synthetic.texture import Plane, grid, smooth_noise

WAVES = np.arange(2, 8)
STEPS = np.linspace(-math.pi, math.pi, 181)


@dataclass(frozen=True)
class Outline:
    """A lesion's outline on the picture.

    Attributes:
        mask: (px, px) float32, 1 inside, 0 outside, soft at the border.
        distance: (px, px) float32, 0 at the centre, 1 on the border.
        angle: (px, px) float32, radians about the centre.
        radius: of the mean circle, where half the picture is 1.
    """

    mask: Plane
    distance: Plane
    angle: Plane
    radius: float


def draw_outline(
    look: Appearance, rng: np.random.Generator, px: int, field_of_view_mm: float
) -> Outline:
    """Return an outline near the middle of the picture, turned at random."""
    x, y = grid(px)
    radius = look.radius_mm / (field_of_view_mm / 2.0)
    right, down = rng.normal(0.0, 0.05, 2).tolist()
    turn = rng.uniform(0.0, math.pi)
    along, across = math.cos(turn), math.sin(turn)
    u = along * (x - right) + across * (y - down)
    v = (along * (y - down) - across * (x - right)) * (1.0 / look.axis_ratio)
    angle = np.arctan2(v, u)
    heights = rng.standard_normal(WAVES.size) / WAVES**1.1
    phases = rng.uniform(0.0, 2.0 * math.pi, WAVES.size)
    waves = heights @ np.cos(WAVES[:, None] * STEPS + phases[:, None])
    edge = np.maximum(1.0 + look.border * 2.4 * waves, 0.4)
    edge = np.interp(angle, STEPS, edge).astype(np.float32)
    edge *= 1.0 + 0.7 * look.border * smooth_noise(rng, px, 10)
    distance = np.hypot(u, v) / (radius * np.maximum(edge, 0.2))
    sharpness = (4.0 + 10.0 * rng.random() * min(1.0, radius)) * (0.6 + radius)
    mask = 1.0 / (1.0 + np.exp(np.clip((distance - 1.0) * sharpness, -20.0, 20.0)))
    return Outline(mask=mask, distance=distance, angle=angle, radius=radius)
