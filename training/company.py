"""Are a patient's malignant lesions among the first to be looked at: alone, and in company."""

from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.calibration import log_odds
from bundle.encoder import Encoders
from bundle.fields import Record
from index.cohort_lesions import first_of
from training.conditions import answer
from training.context import LesionTable
from training.data import Rows
from training.features import record_features
from training.fit import context_answers
from training.fitted import FittedModel
from training.metrics import sensitivity_in_top
from training.resampling import Draws, Estimate, Resampling, auroc_of, estimate, mean_of
from training.scores import null

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
TOPS = (1, 3, 15)
NO_CONTEXT = "the model has no context model"


def lesion_table(
    model: FittedModel, rows: Rows, embeddings: FloatArray, records: list[Record]
) -> LesionTable:
    """Return one row a lesion whose malignancy is known: mean features, first known values.

    Args:
        model: the run or bundle.
        rows: N images.
        embeddings: (N, D) float32 image features.
        records: N records as the model reads them.
    """
    known = np.flatnonzero(rows.malignant >= 0)
    order = known[np.argsort(rows.lesion[known], kind="stable")]
    cuts = np.flatnonzero(np.diff(rows.lesion[order])) + 1
    lesions = np.split(order, cuts) if len(order) else []
    first = np.array([own[0] for own in lesions], np.int64)
    image = np.array([embeddings[own].mean(0) for own in lesions], np.float32).reshape(
        len(lesions), embeddings.shape[1]
    )
    merged = [first_of(rows.lesion_id[own[0]], [records[i] for i in own])[0] for own in lesions]
    empty: list[Record] = [{} for _ in merged]

    def alone(seen: list[Record]) -> FloatArray:
        answers = answer(model, image, seen, "given")
        return log_odds(answers.probabilities[:, model.malignant].sum(1))

    return LesionTable(
        image=image,
        records=record_features(model.encoders, merged, model.schema),
        malignancy_logit=alone(merged),
        image_logit=alone(empty),
        malignant=rows.malignant[first] == 1,
        patient=rows.patient[first],
    )


def judge_company(
    encoders: Encoders, table: LesionTable, *, samples: int, seed: int
) -> dict[str, Any]:
    """Return the figures of lesions alone and in their patients' company, metadata given.

    Beside them stands the AUROC of how few lesions a patient has.

    Args:
        encoders: the models; without a context model there are the figures of lesions alone.
        table: the lesions.
        samples: resamplings of the patients.
        seed: of the resampling.
    """
    scores = {"alone": table.malignancy_logit}
    if encoders.has_context:
        scores["in_context"] = context_answers(encoders, table)
    figures: dict[str, Any] = {
        "lesions": len(table.patient),
        "lesions_malignant": int(table.malignant.sum()),
        "patients": len(np.unique(table.patient)),
    }
    for top in TOPS:
        shares = {
            name: sensitivity_in_top(score, table.malignant, table.patient, top=top)
            for name, score in scores.items()
        }
        figures[f"sensitivity_in_top_{top}"] = {
            "patients": len(shares["alone"]),
            **_mean_shares(shares, top, samples=samples, seed=seed),
        }
    groups = [str(number) for number in table.patient]
    resampling = Resampling(groups, samples=samples, seed=seed)
    draws = {k: resampling.draws(auroc_of(table.malignant, s)) for k, s in scores.items()}
    # What a context model could answer by without looking at anything.
    fewest = resampling.draws(auroc_of(table.malignant, -table.company))
    return {**figures, "malignant_auroc": {**_beside(draws), "lesion_count": estimate(fewest)}}


def _mean_shares(
    shares: dict[str, dict[int, float]], top: int, *, samples: int, seed: int
) -> dict[str, Estimate]:
    patients = list(shares["alone"])
    if not patients:
        reason = f"no patient with more than {top} lesions, one of them malignant"
        return dict.fromkeys(("alone", "in_context", "difference"), null(reason))
    resampling = Resampling([str(p) for p in patients], samples=samples, seed=seed)
    return _beside(
        {
            name: resampling.draws(mean_of(np.array([own[p] for p in patients])))
            for name, own in shares.items()
        }
    )


def _beside(draws: dict[str, Draws]) -> dict[str, Estimate]:
    figures = {name: estimate(values) for name, values in draws.items()}
    if "in_context" not in draws:
        return {**figures, **dict.fromkeys(("in_context", "difference"), null(NO_CONTEXT))}
    return {**figures, "difference": estimate(draws["in_context"] - draws["alone"])}
