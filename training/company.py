"""What a patient's other lesions add: is the malignant one among the first to be looked at."""

from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.calibration import log_odds
from bundle.fields import Record
from index.cohort_lesions import first_of
from training.conditions import answer
from training.context import LesionTable
from training.data import Rows
from training.features import record_features
from training.fit import context_answers
from training.fitted import FittedModel
from training.metrics import hit_in_top
from training.resampling import Estimate, Resampling, auroc_of, estimate, mean_of
from training.scores import null

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
LEAST_LESIONS = 15
TOPS = (1, 3, 15)


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
    model: FittedModel, table: LesionTable, *, samples: int, seed: int
) -> dict[str, Any]:
    """Return the figures of lesions alone and in their patients' company, metadata given."""
    context = context_answers(model.encoders, table)
    scores = {"alone": table.malignancy_logit, "in_context": context}
    figures: dict[str, Any] = {
        "least_lesions": LEAST_LESIONS,
        "lesions": len(table.patient),
        "lesions_malignant": int(table.malignant.sum()),
        "patients": len(np.unique(table.patient)),
    }
    for top in TOPS:
        hits = {name: _hits(s, table, top) for name, s in scores.items()}
        figures["patients_judged"] = len(hits["alone"])
        figures[f"malignant_in_top_{top}"] = _compare_hits(hits, samples=samples, seed=seed)
    groups = [str(number) for number in table.patient]
    resampling = Resampling(groups, samples=samples, seed=seed)
    draws = {k: resampling.draws(auroc_of(table.malignant, s)) for k, s in scores.items()}
    return {
        **figures,
        "malignant_auroc": {
            **{name: estimate(values) for name, values in draws.items()},
            "difference": estimate(draws["in_context"] - draws["alone"]),
        },
    }


def _hits(score: FloatArray, table: LesionTable, top: int) -> dict[int, bool]:
    return hit_in_top(score, table.malignant, table.patient, top=top, least=LEAST_LESIONS)


def _compare_hits(
    hits: dict[str, dict[int, bool]], *, samples: int, seed: int
) -> dict[str, Estimate]:
    patients = list(hits["alone"])
    if not patients:
        reason = f"no patient with {LEAST_LESIONS} lesions, one of them malignant"
        return dict.fromkeys(("alone", "in_context", "difference"), null(reason))
    resampling = Resampling([str(p) for p in patients], samples=samples, seed=seed)
    draws = {
        name: resampling.draws(mean_of(np.array([answers[p] for p in patients])))
        for name, answers in hits.items()
    }
    return {
        **{name: estimate(values) for name, values in draws.items()},
        "difference": estimate(draws["in_context"] - draws["alone"]),
    }
