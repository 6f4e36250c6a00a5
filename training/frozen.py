"""The part of an evaluation that asks the encoders alone, with the cohort's own train split.

The classifier takes no part: probes, neighbours and retrieval learn from the train rows' frozen
features and answer for the evaluated rows. Train and evaluated pictures are compared on the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.fields import Record
from cohort.cohort import Cohort
from training.conditions import accept_records
from training.data import Rows, Squares, load_rows
from training.duplicates import describe_near_duplicates, find_near_duplicates, thumbnails
from training.features import embed_rows, record_features
from training.fitted import FittedModel
from training.progress import StageReport
from training.representation import MEANING, Representation, evaluate_representation
from training.retrieval import Nearest, directions, nearest_lesions
from training.scores import Labelled
from training.task import Side, Task

FloatArray = npt.NDArray[np.float32]
# Memory for the train split's squares, which are looked at twice.
KEEP_MIB = 2048


@dataclass(frozen=True)
class Frozen:
    """What frozen features are worth.

    Attributes:
        figures: ready for JSON.
        reference: the R train rows.
        nearest: the lesions nearest to each evaluated row, as rows of `reference`.
        image: of the picture's features, for plots; None where nothing can be measured.
    """

    figures: dict[str, Any]
    reference: Rows
    nearest: Nearest | None
    image: Representation | None


class FrozenFeatures:
    """Asks one model's encoders about the evaluated rows of one cohort."""

    def __init__(
        self, fitted: FittedModel, cohort: Cohort, rows: Rows, report: StageReport
    ) -> None:
        self.fitted, self.cohort, self.rows, self.report = fitted, cohort, rows, report
        own = set(rows.group_id)
        train = load_rows(cohort, ["train"], fitted.labels)
        # Where the train split itself is evaluated, it cannot be learned from.
        self.reference = train.take(np.array([g not in own for g in train.group_id], np.bool_))

    def measure(
        self,
        squares: Squares,
        embeddings: FloatArray,
        records: Sequence[Record],
        labelled: Labelled | str,
    ) -> Frozen | str:
        """Return every figure, or why there is none.

        Args:
            squares: the N evaluated pictures.
            embeddings: (N, D) float32, their image features.
            records: their N canonical records.
            labelled: what is known of their labels, or why nothing can be asked of them.
        """
        if not len(self.reference):
            return "the cohort has no train split beside the evaluated images"
        fitted, reference = self.fitted, self.reference
        pictures = Squares(self.cohort, reference, fitted.image_input, keep_mib=KEEP_MIB)
        known = embed_rows(fitted.encoders, pictures, report=partial(self.report, "embed train"))
        task = Task(
            fitted.labels,
            fitted.malignant_labels,
            Side.of(reference),
            Side.of(self.rows),
            refused=labelled if isinstance(labelled, str) else None,
        )
        image = evaluate_representation(known, embeddings, task)
        self.report("frozen features", 1, 2)
        accepted = accept_records(reference.records, self.cohort.schema, fitted.schema).records
        both = evaluate_representation(
            self._with_record(known, accepted), self._with_record(embeddings, records), task
        )
        self.report("frozen features", 2, 2)
        found = find_near_duplicates(thumbnails(squares), thumbnails(pictures))
        figures = {
            "meaning": MEANING,
            "reference": {
                "split": "train",
                "images": len(reference),
                "lesions": len(set(reference.lesion_id)),
            },
            "image": image.figures,
            "image and record": both.figures,
            "near_duplicates": describe_near_duplicates(
                found, self.rows.image_id, reference.image_id, "train"
            ),
        }
        nearest = nearest_lesions(
            embeddings, self.rows.group_id, known, reference.group_id, reference.lesion_id
        )
        return Frozen(figures, reference, nearest, image if image.draws else None)

    def _with_record(self, images: FloatArray, records: Sequence[Record]) -> FloatArray:
        """Return (N, 3 D) float32: picture and records, each of length 1, zeros where absent."""
        features = record_features(self.fitted.encoders, records, self.fitted.schema)
        present = (features.lesion_present, features.patient_present)
        parts = [directions(images, np.zeros(images.shape[1], np.float32))]
        for values, said in zip((features.lesion, features.patient), present, strict=True):
            parts.append(directions(values * said[:, None], np.zeros_like(values[0])))
        return np.concatenate(parts, axis=1)
