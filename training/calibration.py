"""Fitting what `bundle/calibration.py` applies, on groups that neither heads nor encoders saw."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import binomtest, rankdata
from sklearn.mixture import GaussianMixture
from torch.nn.functional import cross_entropy

from bundle.appearance import AppearanceModel
from bundle.calibration import (
    Condition,
    ConditionCalibration,
    Conformal,
    Extrapolation,
    OperatingPoint,
    softmax,
)
from bundle.novelty import NoveltyModel
from bundle.quality import QualityThresholds
from training.metrics import expected_calibration_error
from training.resampling import Resampling, estimate, mean_of

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# A label's own conformal quantile needs at least this many calibration lesions.
MIN_LABEL_LESIONS = 30
# Of pictures' measurements in their standard deviations: an axis along which all are alike would
# make every other picture impossible.
LEAST_SCALE, LEAST_VARIANCE = 1e-3, 0.01
GAUSSIANS, PICTURES_A_GAUSSIAN = (1, 2, 4, 8), 100
# Evidence is measured on each fold by what was fitted on the others.
FOLDS = 5
# How far guessed metadata may move an answer.
GUESS_WEIGHTS = tuple(i / 10 for i in range(11))
# Pulls the bias of a label with few calibration lesions towards its prior, in units of lesions.
BIAS_STRENGTH = 1.0


def group_folds(groups: Sequence[str], malignant: BoolArray, seed: int) -> IntArray:
    """Return the (N,) int64 fold of every lesion, 0 to 4.

    Groups stay whole. Those with a malignant lesion are dealt out after the others, so that every
    fold has its share of them.

    Args:
        groups: N patients (or lesions).
        malignant: (N,) bool.
        seed: of the order.
    """
    _, number = np.unique(np.asarray(groups), return_inverse=True)
    afflicted = np.bincount(number, weights=malignant) > 0
    shuffled = np.random.default_rng(seed).permutation(len(afflicted))
    dealt = shuffled[np.argsort(afflicted[shuffled], kind="stable")]
    fold = np.empty(len(dealt), np.int64)
    fold[dealt] = np.arange(len(dealt)) % FOLDS
    return fold[number]


def out_of_fold(
    logits: FloatArray, label: IntArray, prior: FloatArray, fold: IntArray
) -> FloatArray:
    """Return (N, C) float32 probabilities as `fit_condition` calibrates, by the other folds alone.

    Args:
        logits: (N, C) float32 on calibration lesions.
        label: (N,) int64.
        prior: (C,) float32, label shares at natural prevalence.
        fold: (N,) int64.
    """
    probabilities = np.empty_like(logits)
    for own in (fold == number for number in np.unique(fold)):
        temperature, bias = _scale(logits[~own], label[~own], prior)
        probabilities[own] = softmax(logits[own] / np.float32(temperature) + bias)
    return probabilities


def fit_condition(
    logits: FloatArray, unseen: FloatArray, label: IntArray, prior: FloatArray, *, alpha: float
) -> ConditionCalibration:
    """Return temperature, bias and conformal thresholds of one metadata condition.

    Temperature scaling (Guo et al., 2017, arXiv 1706.04599) with a bias a label that starts at the
    label's log prior, since the classifier's logits are those of equally frequent labels.

    Args:
        logits: (N, C) float32 on calibration lesions, one row each.
        unseen: (N, C) float32 probabilities by `out_of_fold`, on which the error is measured and
            the conformal thresholds are found: a threshold promises nothing on lesions that
            taught the probabilities themselves.
        label: (N,) int64.
        prior: (C,) float32, label shares at natural prevalence.
        alpha: conformal miss rate.
    """
    temperature, bias = _scale(logits, label, prior)
    return ConditionCalibration(
        temperature=temperature,
        bias=tuple(float(b) for b in bias),
        conformal=fit_conformal(unseen, label, alpha=alpha),
        expected_calibration_error=expected_calibration_error(unseen, label),
        lesions=len(label),
    )


def _scale(logits: FloatArray, label: IntArray, prior: FloatArray) -> tuple[float, FloatArray]:
    scores, target = torch.from_numpy(logits).double(), torch.from_numpy(label)
    log_prior = torch.from_numpy(prior).double().log()
    log_temperature = torch.zeros((), dtype=torch.double, requires_grad=True)
    shift = torch.zeros(logits.shape[1], dtype=torch.double, requires_grad=True)
    # Without a line search, steps beyond a sharp optimum never find back.
    optimiser = torch.optim.LBFGS(
        [log_temperature, shift], max_iter=200, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        scaled = scores / log_temperature.exp() + log_prior + shift
        penalty = BIAS_STRENGTH * shift.square().sum() / len(label)
        loss = cross_entropy(scaled, target) + penalty
        loss.backward()
        return loss

    optimiser.step(closure)
    temperature = float(log_temperature.detach().clamp(-3, 3).exp())
    return temperature, (log_prior + shift.detach()).float().numpy()


def fit_guess_weight(
    own: FloatArray,
    filled: FloatArray,
    label: IntArray,
    prior: FloatArray,
    groups: Sequence[str],
) -> float:
    """Return how far guessed metadata may move an answer: 0 unless it is shown to make it better.

    Guesses are a function of the image, and a head that has learned to believe given values
    believes them too. The weight with the least log loss after calibration is taken where its gain
    over the image alone is above 0 at the lower end of the 95 % interval over groups.

    Args:
        own: (N, C) float32 logits of calibration lesions without metadata.
        filled: (N, C) float32 logits with guessed metadata.
        label: (N,) int64.
        prior: (C,) float32, label shares at natural prevalence.
        groups: N patients (or lesions), resampled for the interval.
    """
    losses = {
        weight: _log_losses(Extrapolation(weight=weight).weigh(own, filled), label, prior)
        for weight in GUESS_WEIGHTS
    }
    best = min(losses, key=lambda weight: float(losses[weight].mean()))
    gain = estimate(Resampling(groups).draws(mean_of(losses[0.0] - losses[best])))
    low = gain.get("low")
    return best if low is not None and low > 0 else 0.0


def _log_losses(logits: FloatArray, label: IntArray, prior: FloatArray) -> FloatArray:
    temperature, bias = _scale(logits, label, prior)
    probabilities = softmax(logits / np.float32(temperature) + bias)
    return -np.log(probabilities[np.arange(len(label)), label].clip(min=1e-12))


def fit_conformal(probabilities: FloatArray, label: IntArray, *, alpha: float) -> Conformal:
    """Return split conformal thresholds, a label's own where it has lesions enough.

    Rare labels share the quantile of their lesions together (Mondrian conformal prediction, Vovk et
    al., 2005): that of all lesions is made by the frequent ones, and left rare labels out of nearly
    every set.

    Args:
        probabilities: (N, C) float32, calibrated.
        label: (N,) int64.
        alpha: miss rate.
    """
    misfit = 1 - probabilities[np.arange(len(label)), label]
    is_rare = np.bincount(label, minlength=probabilities.shape[1]) < MIN_LABEL_LESIONS
    together = conformal_quantile(misfit[is_rare[label]], alpha)
    return Conformal(
        alpha=alpha,
        quantiles=tuple(
            together if rare else conformal_quantile(misfit[label == number], alpha)
            for number, rare in enumerate(is_rare)
        ),
        scope=tuple("rare" if rare else "label" for rare in is_rare),
        lesions=len(label),
    )


def conformal_quantile(misfit: FloatArray, alpha: float) -> float:
    """Return the ceil((n + 1)(1 - alpha))-th smallest misfit, or 1 where n is too small.

    Vovk et al. (2005), Algorithmic Learning in a Random World.

    Args:
        misfit: (n,) float32, 1 minus the probability of the true label.
        alpha: miss rate.
    """
    rank = int(np.ceil((len(misfit) + 1) * (1 - alpha)))
    return float(np.sort(misfit)[rank - 1]) if rank <= len(misfit) else 1.0


def operating_points(
    malignancy: FloatArray,
    unseen: FloatArray,
    malignant: BoolArray,
    fold: IntArray,
    condition: Condition,
) -> tuple[OperatingPoint, ...]:
    """Return the thresholds with 95 % sensitivity and with 95 % specificity, with Wilson intervals.

    What a threshold keeps is measured on each fold by the threshold of the others; there are no
    points where malignant or benign lesions lie in one fold alone.

    Args:
        malignancy: (N,) float32 on calibration lesions.
        unseen: (N,) float32, the same by calibration on the other folds.
        malignant: (N,) bool.
        fold: (N,) int64.
        condition: where the metadata came from.
    """
    if min(len(np.unique(fold[side])) for side in (malignant, ~malignant)) < 2:
        return ()
    thresholds = _thresholds(malignancy, malignant)
    called = {name: np.zeros(len(malignant), np.bool_) for name in thresholds}
    for own in (fold == number for number in np.unique(fold)):
        for name, others in _thresholds(unseen[~own], malignant[~own]).items():
            called[name][own] = unseen[own] >= others
    points = []
    for name, threshold in thresholds.items():
        sensitivity = _share(called[name][malignant])
        specificity = _share(~called[name][~malignant])
        points.append(
            OperatingPoint(
                name=name,
                condition=condition,
                threshold=threshold,
                sensitivity=sensitivity[0],
                sensitivity_interval=sensitivity[1],
                specificity=specificity[0],
                specificity_interval=specificity[1],
            )
        )
    return tuple(points)


def _thresholds(malignancy: FloatArray, malignant: BoolArray) -> dict[str, float]:
    sensitive = float(np.quantile(malignancy[malignant], 0.05, method="lower"))
    # Just above the quantile: a score that equals the threshold is called malignant.
    highest = np.quantile(malignancy[~malignant], 0.95, method="higher")
    specific = float(np.nextafter(np.float32(highest), np.float32(2)))
    return {"sensitivity_95": sensitive, "specificity_95": specific}


def _share(right: BoolArray) -> tuple[float, tuple[float, float]]:
    test = binomtest(int(right.sum()), len(right))
    low, high = test.proportion_ci(method="wilson")
    return float(right.mean()), (float(low), float(high))


def fit_quality(measurements: Sequence[dict[str, float]], size_px: int) -> QualityThresholds:
    """Return thresholds that lie clearly outside what the calibration pictures show.

    A picture is refused only where it is worse than nearly all of them by a margin: half the
    0.5 % quantile for sharpness and contrast, and a tenth of the scale for brightness.
    """
    columns = {k: np.array([m[k] for m in measurements]) for k in measurements[0]}
    low = {name: float(np.quantile(values, 0.005)) for name, values in columns.items()}
    brightest = float(np.quantile(columns["brightness"], 0.995))
    return QualityThresholds(
        min_side_px=min(size_px // 2, int(columns["min_side_px"].min())),
        sharpness_min=low["sharpness"] / 2,
        brightness_min=max(0.0, low["brightness"] - 0.1),
        brightness_max=min(1.0, brightest + 0.1),
        contrast_min=low["contrast"] / 2,
    )


def fit_novelty(
    embeddings: FloatArray, label: IntArray, *, explained: float = 0.9, most: int = 64
) -> NoveltyModel:
    """Return what the training lesions' features look like.

    Args:
        embeddings: (N, D) float32 image features.
        label: (N,) int64.
        explained: share of the variance that the components keep.
        most: components at most.
    """
    centre = embeddings.mean(0)
    _, singular, axes = np.linalg.svd(embeddings - centre, full_matrices=False)
    shares = np.cumsum(singular**2) / np.sum(singular**2)
    rank = min(most, int(np.searchsorted(shares, explained)) + 1)
    components = axes[:rank].astype(np.float32)
    projected = (embeddings - centre) @ components.T
    leftover = (embeddings - centre) - projected @ components
    known = np.unique(label)
    means = np.stack([projected[label == k].mean(0) for k in known])
    spread = projected - means[np.searchsorted(known, label)]
    scales = spread.std(0).clip(min=1e-6)
    return NoveltyModel(
        centre=centre.astype(np.float32),
        components=components,
        scales=scales.astype(np.float32),
        label_means=(means / scales).astype(np.float32),
        residual_scale=np.array([max(float(np.sqrt(np.mean(leftover**2))), 1e-6)], np.float32),
    )


def fit_appearance(described: FloatArray) -> AppearanceModel:
    """Return what the training pictures' plain measurements are like.

    As many Gaussians, a power of two, as the Bayesian information criterion favours.

    Args:
        described: (N, F) float32 of `bundle.appearance.describe_appearance`, N at least 2.
    """
    centre, scale = described.mean(0), described.std(0).clip(min=LEAST_SCALE)
    standard = ((described - centre) / scale).astype(np.float64)
    mixtures = [
        GaussianMixture(count, reg_covar=LEAST_VARIANCE, random_state=0).fit(standard)
        for count in GAUSSIANS
        if count * PICTURES_A_GAUSSIAN <= len(standard) or count == 1
    ]
    best = min(mixtures, key=lambda mixture: mixture.bic(standard))
    return AppearanceModel(
        centre=centre.astype(np.float32),
        scale=scale.astype(np.float32),
        weights=best.weights_.astype(np.float32),
        means=best.means_.astype(np.float32),
        whitening=best.precisions_cholesky_.astype(np.float32),
    )


def joint_thresholds(scores: Sequence[FloatArray], share: float) -> list[float]:
    """Return a threshold for each score, so that a share of the rows lies beyond one or another.

    Each is the same quantile of its score.

    Args:
        scores: arrays of (N,) float32, over the same rows.
        share: in (0, 1).
    """
    ranks = [rankdata(score, method="max") / len(score) for score in scores]
    level = np.quantile(np.max(ranks, axis=0), 1 - share)
    return [float(np.quantile(score, level)) for score in scores]
