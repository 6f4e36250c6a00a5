"""The ugly duckling: how unlike a patient's other lesions one lesion looks.

Grob and Bonerandi (1998, Arch Dermatol 134:103): a patient's naevi resemble one another, and the
one that does not is suspect.
"""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

# Below this a lesion has no company that it could be unlike.
MIN_LESIONS = 3


def oddness(directions: FloatArray) -> FloatArray:
    """Return (L,) float32: each lesion's median cosine distance to the patient's others, 0 to 2.

    The median, because one other odd lesion must not make the ordinary ones look odd.

    Args:
        directions: (L, D) float32 unit rows, one patient's lesions, L at least 2.
    """
    distances = 1 - directions @ directions.T
    others = distances[~np.eye(len(directions), dtype=bool)].reshape(len(directions), -1)
    median: FloatArray = np.median(others, axis=1).astype(np.float32)
    return median


def percentile(value: float, reference: npt.ArrayLike) -> float:
    """Return the share of the reference below the value, ties counted half, in [0, 1].

    Args:
        value: as `oddness` gives it.
        reference: (M,) oddness of reference lesions, M at least 1, in any order.
    """
    known = np.asarray(reference, np.float64)
    return float(np.mean(known < value) + np.mean(known == value) / 2)
