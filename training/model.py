"""SLIMP: three towers and the objective that pre-trains them.

The lesion tower reads lesion-level fields only and the patient tower patient-level fields only;
otherwise the outer loss would be solved by copying.
"""

from torch import nn

from bundle.fields import FieldSchema, Level
from training.batch import Batch, Encode, encode_at_once
from training.config import Config
from training.image_encoder import build_image_encoder
from training.objectives import build_objective, build_views
from training.objectives.objective import Term
from training.record_encoder import RecordEncoder


class Slimp(nn.Module):
    """Image tower, lesion-record tower, patient-record tower and what pre-training adds to them."""

    def __init__(
        self, config: Config, schema: FieldSchema, *, labels: int = 0, pretrained: bool = True
    ) -> None:
        """Build the towers.

        Args:
            config: the experiment.
            schema: fitted fields; a level without fields has no tower.
            labels: how many labels there are, for the `supervised` objective.
            pretrained: False skips the checkpoint's weights, for a run that brings its own.
        """
        super().__init__()
        self.image = build_image_encoder(config.image, pretrained=pretrained)
        dim = self.image.width
        lesion, patient = schema.at("lesion"), schema.at("patient")
        self.lesion = RecordEncoder(lesion, config.record, dim) if lesion else None
        self.patient = RecordEncoder(patient, config.record, dim) if patient else None
        self.objective_name = config.objective.name
        self.objective = build_objective(config, self.image, labels)
        self.views = build_views(config.objective, dim)

    @property
    def embedding_dim(self) -> int:
        return self.image.width

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the terms that `forward` gives."""
        beside = {} if self.views is None else self.views.weights
        return {**self.objective.weights, **beside}

    def records(self, level: Level) -> RecordEncoder | None:
        """Return the level's record tower, None where the schema has no field of it."""
        return self.lesion if level == "lesion" else self.patient

    def forward(self, batch: Batch, encode: Encode = encode_at_once) -> dict[str, Term]:
        """Return the objective's terms that this batch and schema allow.

        Under several processes the batch is this one's share, and the terms are the whole batch's.

        Args:
            batch: pixels (N, 3, H, W), and second_pixels where views are compared; lesion_values,
                lesion_present (N, F); patient_values, patient_present (P, F'); lesion_group (N,)
                and slot (N, 2) int64: which lesion an image shows, and which (patient, place) of
                the batch it has; label (N,) int64 where the objective is supervised; the raw_*
                records before column dropout, for the masks.
            encode: calls a tower on its inputs.
        """
        images = encode(self.image, batch["pixels"])
        terms = self.objective(self, images, batch, encode)
        if self.views is not None:
            terms |= self.views(self, images, batch, encode)
        return terms
