"""Numbers that say how good an answer is. Rows are lesion images."""

import numpy as np
import numpy.typing as npt

from training.resampling import calibration_error_of

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


def balanced_decision(probabilities: FloatArray, prior: FloatArray) -> IntArray:
    """Return (N,) int64 labels as if all were equally frequent.

    Balanced accuracy rewards exactly this decision; the most probable label at a natural
    prevalence is another question.

    Args:
        probabilities: (N, C) float32, calibrated.
        prior: (C,) float32, the prevalence they were calibrated at.
    """
    return np.argmax(probabilities / prior, axis=1).astype(np.int64)


def expected_calibration_error(probabilities: FloatArray, label: IntArray) -> float:
    """Return the mean gap between confidence and accuracy over 15 equally filled bins.

    Args:
        probabilities: (N, C) float32.
        label: (N,) int64.
    """
    every_row_once = np.ones((1, len(label)))
    return float(calibration_error_of(probabilities, label)(every_row_once)[0])


def sensitivity_in_top(
    score: FloatArray, malignant: npt.NDArray[np.bool_], patient: IntArray, *, top: int
) -> dict[int, float]:
    """Return for each patient the share of the malignant lesions among the `top` highest scores.

    Only patients with a malignant lesion and more than `top` lesions are judged: of fewer, all
    would be found whatever the scores. Ties count against the answer. With 15 the mean over
    patients is the secondary metric of the ISIC 2024 challenge.

    Args:
        score: (N,) float32, one a lesion.
        malignant: (N,) bool.
        patient: (N,) int64.
        top: how many of a patient's lesions are looked at.
    """
    shares = {}
    # Each patient's lesions by falling score, of equal ones the benign first.
    order = np.lexsort((malignant, -score, patient))
    for own in np.split(order, np.flatnonzero(np.diff(patient[order])) + 1):
        found = malignant[own]
        if len(own) > top and found.any():
            shares[int(patient[own[0]])] = float(found[:top].sum() / found.sum())
    return shares


def hit_in_top(
    score: FloatArray, malignant: npt.NDArray[np.bool_], patient: IntArray, *, top: int, least: int
) -> dict[int, bool]:
    """Return for each patient whether a malignant lesion is among the `top` highest scores.

    Only patients with a malignant lesion and at least `least` lesions are judged; ties count
    against the answer.

    Args:
        score: (N,) float32, one a lesion.
        malignant: (N,) bool.
        patient: (N,) int64.
        top: how many lesions are looked at.
        least: fewest lesions of a judged patient.
    """
    answers = {}
    for number in np.unique(patient):
        own = patient == number
        if own.sum() < least or not malignant[own].any():
            continue
        best = score[own][malignant[own]].max()
        ahead = int((score[own][~malignant[own]] >= best).sum())
        answers[int(number)] = ahead < top
    return answers
