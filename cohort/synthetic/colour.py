"""Colour of skin and lesion as optical density: what melanin and blood take from white light.

Densities add, so that a pigment darkens light and dark skin alike:
`srgb = 255 * exp(-density)`, per channel, in the picture's own (gamma-encoded) values.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

SKIN_SRGB = np.array(
    [
        [241, 214, 199],
        [230, 194, 172],
        [212, 170, 143],
        [181, 135, 106],
        [148, 104, 78],
        [112, 77, 59],
    ],
    dtype=np.float64,
)
WARM_MELANIN = np.array([0.42, 0.95, 1.35])
COOL_MELANIN = np.array([0.86, 0.92, 0.82])
BLOOD = np.array([0.15, 1.00, 0.80])

SRGB_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)
WHITE_XYZ = np.array([0.9505, 1.0, 1.089])


def tint(colour: NDArray[Any], plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the (3, px, px) density of a colour, shape (3,), in amounts of shape (px, px)."""
    return np.asarray(colour, dtype=np.float32)[:, None, None] * plane


def skin_density(skin_type: int, shade: float) -> NDArray[np.float64]:
    """Return the (3,) optical density of bare skin; a positive shade is darker."""
    return -np.log(SKIN_SRGB[skin_type] / 255.0) * (1.0 + shade)


def melanin(coolness: float) -> NDArray[np.float64]:
    """Return the (3,) density of one unit of melanin: brown at -3, grey-blue at +3."""
    cool = 1.0 / (1.0 + np.exp(-1.2 * (coolness - 0.3)))
    return np.asarray(WARM_MELANIN + cool * (COOL_MELANIN - WARM_MELANIN))


def lab(srgb: NDArray[Any]) -> NDArray[np.float64]:
    """Return CIELAB (D65), shape (..., 3), of sRGB values 0 to 255 of shape (..., 3)."""
    values = np.asarray(srgb, dtype=np.float64) / 255.0
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    ratio = linear @ SRGB_TO_XYZ.T / WHITE_XYZ
    root = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16.0 / 116.0)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], axis=-1)
