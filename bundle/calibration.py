"""From logits to what may be said: calibrated probabilities, malignancy, prediction sets.

Fitting is `training/calibration.py`; here are the fitted numbers and how they are applied.
"""

from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bundle.errors import InvalidSettings
from bundle.quality import QualityThresholds

FloatArray = npt.NDArray[np.float32]
Condition = Literal["given", "extrapolated", "missing"]
CONDITIONS: tuple[Condition, ...] = ("given", "extrapolated", "missing")
# Shares are often written rounded.
PREVALENCE_TOLERANCE = 1e-3
Share = Annotated[float, Field(ge=0, le=1)]


class Frozen(BaseModel):
    """A fitted value: no other key, and no NaN, which would pass every threshold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Conformal(Frozen):
    """Split conformal thresholds: a label enters the set when 1 - p is at most its quantile.

    A quantile of 1 takes the label in always. `scope` says per label whether the quantile is the
    label's own (30 or more calibration lesions), that of all rarer labels' lesions together, or, in
    bundles that were made before those were joined, that of all lesions.
    """

    alpha: float = Field(gt=0, lt=1)
    quantiles: tuple[float, ...]
    scope: tuple[Literal["label", "rare", "marginal"], ...]
    lesions: int = Field(ge=0)

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if len(self.quantiles) != len(self.scope):
            raise ValueError("quantiles and scope need one entry a label each")
        return self


class ConditionCalibration(Frozen):
    """Temperature and bias of one metadata condition, with the evidence behind them."""

    temperature: float = Field(gt=0)
    bias: tuple[float, ...]
    conformal: Conformal
    expected_calibration_error: float
    lesions: int = Field(ge=0)

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if len(self.bias) != len(self.conformal.quantiles):
            raise ValueError("bias and conformal quantiles need one entry a label each")
        return self


class OperatingPoint(Frozen):
    """A threshold on malignancy at the training prevalence, with 95 % intervals."""

    name: str
    condition: Condition
    threshold: float
    sensitivity: float
    sensitivity_interval: tuple[float, float]
    specificity: float
    specificity_interval: tuple[float, float]


class Extrapolation(Frozen):
    """When neighbours may speak for a lesion's missing metadata.

    Attributes:
        neighbours: how many nearest lesions are asked.
        min_similarity: cosine below which a neighbour is too far to count.
        min_support: neighbours that must have the field.
        min_agreement: least weighted share of neighbours that must agree.
        weighting: whether nearer neighbours weigh more (by similarity) or all alike.
        weight: how far what they say moves an answer, from 0 (shown only) to 1 (as if given);
            fitted, and above 0 only where it made answers on calibration lesions better.
    """

    neighbours: int = Field(default=15, ge=1, le=200)
    min_similarity: float = Field(default=0.5, ge=-1, le=1)
    min_support: int = Field(default=3, ge=1)
    min_agreement: float = Field(default=0.5, ge=0, le=1)
    weighting: Literal["similarity", "equal"] = "similarity"
    weight: float = Field(default=1.0, ge=0, le=1)

    def weigh(self, own: FloatArray, filled: FloatArray) -> FloatArray:
        """Return (N, C) logits `weight` of the way from the own records' to the filled ones'.

        Args:
            own: (N, C) float32 logits with what is known alone.
            filled: (N, C) float32 logits with the neighbours' answers in its gaps.
        """
        return own + np.float32(self.weight) * (filled - own)


class Calibration(Frozen):
    """Everything in `calibration.json`."""

    conditions: dict[Condition, ConditionCalibration]
    prevalence: dict[str, Share]
    operating_points: tuple[OperatingPoint, ...] = ()
    quality: QualityThresholds
    novelty_threshold: float
    # None in a bundle without `appearance.npz`.
    appearance_threshold: float | None = None
    extrapolation: Extrapolation = Extrapolation()
    oddness_quantiles: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _check_sums_and_order(self) -> Self:
        if abs(sum(self.prevalence.values()) - 1) > PREVALENCE_TOLERANCE:
            raise ValueError("the labels' prevalences must sum to 1")
        if list(self.oddness_quantiles) != sorted(self.oddness_quantiles):
            raise ValueError("oddness_quantiles must rise")
        return self

    def probabilities(self, logits: FloatArray, condition: Condition) -> FloatArray:
        """Return (N, C) float32 probabilities at the training prevalence, rows summing to 1.

        Args:
            logits: (N, C) float32 from the classifier.
            condition: where the metadata came from.
        """
        fitted = self.conditions[condition]
        return softmax(logits / fitted.temperature + np.asarray(fitted.bias, np.float32))


def softmax(logits: FloatArray) -> FloatArray:
    """Return (N, C) float32 rows that sum to 1."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True)).astype(np.float32)
    share: FloatArray = raised / raised.sum(axis=1, keepdims=True)
    return share


def malignant_share(prevalence: dict[str, float], malignant_labels: tuple[str, ...]) -> float:
    """Return the training prevalence of malignancy."""
    return sum(prevalence[label] for label in malignant_labels)


def shift_odds(malignancy: float, *, trained: float, site: float) -> float:
    """Return malignancy as it is where a share `site` of lesions is malignant, not `trained`.

    Bayes' rule with the likelihood ratio unchanged: the odds are multiplied by the ratio of the
    prior odds (Saerens et al., 2002, Neural Computation 14:21).

    Raises:
        InvalidSettings: a prevalence is not inside (0, 1), so that its odds mean nothing.
    """
    odds = malignancy * _prior_odds_ratio(trained, site)
    return odds / (odds + (1 - malignancy))


def _prior_odds_ratio(trained: float, site: float) -> float:
    if not (0 < trained < 1 and 0 < site < 1):
        raise InvalidSettings(
            "a shift of prevalence needs both malignant shares between 0 and 1, got "
            f"{trained:g} in training and {site:g} at the site: leave the site's prevalence unset"
        )
    return (site / (1 - site)) * ((1 - trained) / trained)


def shift_prevalence(
    probabilities: FloatArray, malignant: npt.NDArray[np.bool_], *, trained: float, site: float
) -> FloatArray:
    """Return (N, C) probabilities with the malignant odds moved to the site's prevalence.

    Args:
        probabilities: (N, C) float32 at the training prevalence.
        malignant: (C,) bool, True for malignant labels.
        trained: malignant share in training, in (0, 1).
        site: malignant share at the site, in (0, 1).

    Raises:
        InvalidSettings: a prevalence is not inside (0, 1), so that its odds mean nothing.
    """
    ratio = _prior_odds_ratio(trained, site)
    weighted = np.where(malignant, probabilities * ratio, probabilities.astype(np.float64))
    shifted: FloatArray = (weighted / weighted.sum(axis=1, keepdims=True)).astype(np.float32)
    return shifted


def prediction_set(probabilities: FloatArray, conformal: Conformal) -> list[int]:
    """Return the label positions in the conformal set, likeliest first, never empty.

    Args:
        probabilities: (C,) float32 at the training prevalence, for which the quantiles hold.
        conformal: the condition's thresholds.
    """
    order = np.argsort(-probabilities, kind="stable")
    inside = 1 - probabilities <= np.asarray(conformal.quantiles, np.float32)
    return [int(c) for rank, c in enumerate(order) if inside[c] or rank == 0]


def log_odds(probability: npt.ArrayLike) -> FloatArray:
    """Return (N,) float32 log odds of (N,) probabilities, finite for 0 and 1 too (1e-6 away)."""
    clipped = np.clip(np.asarray(probability, np.float64), 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped)).astype(np.float32)
