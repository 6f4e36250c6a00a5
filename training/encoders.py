"""A run's torch modules behind the same interface as a bundle's ONNX graphs."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bundle.fields import Level
from bundle.records import EncodedRecords
from training.heads import Classifier, ContextModel
from training.model import Slimp
from training.run import load_module, load_towers, read_info, read_run_config

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
PROCESSOR = torch.device("cpu")


class TorchEncoders:
    """Implements `bundle.encoder.Encoders` with a run's modules, in float32, where they are."""

    def __init__(self, towers: Slimp, classifier: Classifier, context: ContextModel | None) -> None:
        self.towers = towers.eval()
        self.classifier = classifier.eval()
        self.context_model = None if context is None else context.eval()

    @property
    def device(self) -> torch.device:
        return next(self.towers.parameters()).device

    def _tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    @property
    def embedding_dim(self) -> int:
        return self.towers.embedding_dim

    @property
    def has_context(self) -> bool:
        return self.context_model is not None

    @torch.inference_mode()
    def embed_images(self, pixels: FloatArray) -> FloatArray:
        return self.towers.image(self._tensor(pixels)).cpu().numpy()

    @torch.inference_mode()
    def embed_records(self, records: EncodedRecords, level: Level) -> FloatArray:
        tower = self.towers.records(level)
        if tower is None:
            return np.zeros((len(records), self.embedding_dim), np.float32)
        return tower(self._tensor(records.values), self._tensor(records.present)).cpu().numpy()

    @torch.inference_mode()
    def classify(
        self,
        image: FloatArray,
        lesion_record: FloatArray,
        patient_record: FloatArray,
        *,
        image_present: BoolArray,
        lesion_present: BoolArray,
        patient_present: BoolArray,
    ) -> FloatArray:
        parts = (
            image,
            lesion_record,
            patient_record,
            image_present,
            lesion_present,
            patient_present,
        )
        return self.classifier(*map(self._tensor, parts)).cpu().numpy()

    @torch.inference_mode()
    def context(
        self,
        image: FloatArray,
        lesion_record: FloatArray,
        *,
        lesion_present: BoolArray,
        malignancy_logit: FloatArray,
        patient_record: FloatArray,
        patient_present: bool,
    ) -> FloatArray:
        if self.context_model is None:
            raise RuntimeError("this run has no context model")
        parts = (image, lesion_record, lesion_present, malignancy_logit)
        answer = self.context_model(
            *(self._tensor(part)[None] for part in parts),
            torch.ones(1, len(image), dtype=torch.bool, device=self.device),
            self._tensor(patient_record)[None],
            torch.tensor([patient_present], device=self.device),
        )
        return answer[0].cpu().numpy()


def build_heads(run: Path) -> tuple[Classifier, ContextModel]:
    """Return untrained heads of the run's shapes."""
    info, settings = read_info(run), read_run_config(run).fit
    dim = info.embedding_dim
    classifier = Classifier(dim, len(info.labels), hidden=settings.hidden, dropout=settings.dropout)
    context = ContextModel(dim, width=settings.context_width, dropout=settings.dropout)
    return classifier, context


def load_encoders(run: Path, device: torch.device = PROCESSOR) -> TorchEncoders:
    """Return a fitted run's encoders.

    Args:
        run: its folder.
        device: where they answer.

    Raises:
        TrainingError: the run is not finished or not fitted.
    """
    classifier, context = build_heads(run)
    load_module(classifier, run / "classifier.safetensors")
    path = run / "context.safetensors"
    if path.is_file():
        load_module(context, path)
    known = context.to(device) if path.is_file() else None
    return TorchEncoders(load_towers(run).to(device), classifier.to(device), known)
