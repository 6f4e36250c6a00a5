"""Is it the neighbours' metadata that helps, or would any do?

Beside the neighbours' answers stand those of another row (shuffled: the same values and gaps, of
somebody else) and values drawn field by field from the catalogue (marginal: the same gaps, what is
common). All three are taken as if they were given, at weight 1 and under the calibration of given
records: only the records differ. `extrapolated` is what is served: neighbours' answers at the
weight, and under the calibration, that were fitted for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bundle.fields import Field, Record, Value
from training.conditions import Answers, answer
from training.features import FloatArray
from training.fitted import FittedModel
from training.harm import harm_and_help
from training.resampling import Draws, Estimate, calibration_error_of, estimate
from training.scores import Labelled, Truth, label_draws, null


def shuffled(guessed: Sequence[Record], *, seed: int) -> list[Record]:
    """Return every row's record given to another row."""
    order = np.random.default_rng(seed).permutation(len(guessed))
    # Along one cycle no row keeps its own.
    given = np.empty(len(order), np.int64)
    given[order] = np.roll(order, 1)
    return [guessed[i] for i in given.tolist()]


def marginal(
    guessed: Sequence[Record], known: Sequence[Record], names: Sequence[str], *, seed: int
) -> list[Record]:
    """Return records filled where these are, with values drawn field by field from known ones."""
    rng = np.random.default_rng(seed)
    drawn: list[Record] = [{} for _ in guessed]
    for name in names:
        pool = [record[name] for record in known if record.get(name) is not None]
        filled = [i for i, record in enumerate(guessed) if record.get(name) is not None]
        for i, place in zip(filled, rng.integers(0, max(1, len(pool)), len(filled)), strict=True):
            drawn[i][name] = pool[place]
    return drawn


def study(
    model: FittedModel,
    embeddings: FloatArray,
    answers: Mapping[str, Answers],
    guessed: Sequence[Record],
    known: Sequence[Record],
    truth: Truth,
    *,
    seed: int,
) -> dict[str, Any]:
    """Return the served weight and figures by pseudo-metadata, paired with the image alone.

    Args:
        model: the run or bundle.
        embeddings: (N, D) float32 image features.
        answers: of the N rows; `image` and `extrapolated` among them.
        guessed: N records of neighbours' answers.
        known: the catalogue's records.
        truth: what is known of the rows.
        seed: of the shuffling and the draws.
    """
    if isinstance(truth.labelled, str):
        return null(truth.labelled)
    names = [field.name for field in model.schema.fields]
    others = {
        "neighbours": guessed,
        "shuffled": shuffled(guessed, seed=seed),
        "marginal": marginal(guessed, known, names, seed=seed),
    }
    trusting = believing(model)
    asked = {name: answers[name] for name in ("image", "extrapolated")} | {
        name: answer(trusting, embeddings, records, "extrapolated")
        for name, records in others.items()
    }
    draws = {
        name: label_draws(own.probabilities, truth.labelled, truth.prior)
        for name, own in asked.items()
    }
    harm = harm_and_help(asked, truth)
    figures = {
        name: {
            **{k: estimate(draws[name][k]) for k in ("balanced_accuracy", "macro_auroc")},
            "minus_image": _difference(draws[name], draws["image"]),
            "minus_neighbours": _difference(draws[name], draws["neighbours"]),
            "expected_calibration_error": _calibration_error(asked[name], truth.labelled),
            **harm.get(name, {}),
        }
        for name in asked
    }
    return {"weight": model.calibration.extrapolation.weight, "answers": figures}


def believing(model: FittedModel) -> FittedModel:
    """Return the model as it would be if it took guesses for given values."""
    fitted = model.calibration
    extrapolation = fitted.extrapolation.model_copy(update={"weight": 1.0})
    # That of extrapolated records was fitted to answers at the fitted weight, often 0.
    conditions = {**fitted.conditions, "extrapolated": fitted.conditions["given"]}
    calibration = fitted.model_copy(
        update={"extrapolation": extrapolation, "conditions": conditions}
    )
    return replace(model, calibration=calibration)


def _difference(first: Mapping[str, Draws], second: Mapping[str, Draws]) -> dict[str, Any]:
    return {
        name: estimate(first[name] - second[name]) for name in ("balanced_accuracy", "macro_auroc")
    }


def _calibration_error(own: Answers, labelled: Labelled) -> Estimate:
    error = calibration_error_of(own.probabilities[labelled.rows], labelled.label)
    return estimate(labelled.resampling.draws(error))


def guess_accuracy(
    fields: Sequence[Field], given: Sequence[Record], known: Sequence[Record]
) -> dict[str, float | None]:
    """Return by field how often the catalogue's commonest value is right, None if none is known.

    Of a number it is the median, right within one standard deviation.

    Args:
        fields: the fields.
        given: the rows' own records.
        known: the catalogue's records.
    """
    return {field.name: _commonest_is_right(field, given, known) for field in fields}


def _commonest_is_right(
    field: Field, given: Sequence[Record], known: Sequence[Record]
) -> float | None:
    pool = _values(field, known)
    own = _values(field, given)
    if not pool or not own:
        return None
    if field.kind == "numeric" and field.std is not None:
        middle = float(np.median([float(v) for v in pool]))
        return float(np.mean([abs(float(v) - middle) <= field.std for v in own]))
    commonest = max(sorted(set(pool), key=str), key=pool.count)
    return float(np.mean([v == commonest for v in own]))


def _values(field: Field, records: Sequence[Mapping[str, Value]]) -> list[Any]:
    return [record[field.name] for record in records if record.get(field.name) is not None]
