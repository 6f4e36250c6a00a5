"""A fitted run or a bundle, seen alike: what answers, and what it was shown before."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from bundle.appearance import AppearanceModel
from bundle.calibration import Calibration
from bundle.encoder import Encoders, OnnxEncoders
from bundle.errors import InvalidSettings, TrainingError
from bundle.fields import FieldSchema
from bundle.images import ImageInput
from bundle.manifest import BASE_VARIANT
from bundle.novelty import NoveltyModel
from bundle.store import MANIFEST, open_bundle
from training.encoders import load_encoders
from training.processes import best_device
from training.run import SEEN, SeenGroups, read_info, read_run_config, read_seen

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FittedModel:
    """What a run and a bundle have in common.

    Attributes:
        kind: "run" or "bundle".
        id: the bundle's id; of a run, the SHA-256 over what `fit` wrote.
        variant: precision of the graphs.
        encoders: the models.
        calibration: from logits to probabilities.
        novelty: None where the bundle has none.
        appearance: None where the bundle, or an older run, has none.
        schema: the fields that it reads.
        image_input: what its image encoder reads.
        labels: its C labels, in the order of the logits.
        malignant_labels: those that count as malignant.
        seen: groups that it was shown; None where it does not say.
    """

    kind: str
    id: str
    variant: str
    encoders: Encoders
    calibration: Calibration
    novelty: NoveltyModel | None
    appearance: AppearanceModel | None
    schema: FieldSchema
    image_input: ImageInput
    labels: tuple[str, ...]
    malignant_labels: tuple[str, ...]
    seen: tuple[SeenGroups, ...] | None

    @property
    def malignant(self) -> npt.NDArray[np.bool_]:
        """(C,) bool: which labels are malignant."""
        return np.isin(self.labels, self.malignant_labels)

    @property
    def prior(self) -> FloatArray:
        """(C,) float32: the labels' shares in training."""
        return np.array([self.calibration.prevalence[k] for k in self.labels], np.float32)

    def overlap(self, groups: set[str]) -> set[str] | None:
        """Return which of these groups it was shown, None where it does not say."""
        if self.seen is None:
            return None
        return set[str]().union(*(seen.overlap(groups) for seen in self.seen))


def open_fitted(path: Path, variant: str | None = None) -> FittedModel:
    """Return the model in a run's or a bundle's folder.

    Args:
        path: the folder.
        variant: precision of a bundle's image encoder; None takes the bundle's choice. A run has
            fp32 alone.

    Raises:
        TrainingError: the folder is neither, or the run is not fitted.
        InvalidSettings: there is no such variant.
        BundleError: the bundle cannot be used.
    """
    if (path / MANIFEST).is_file():
        return _open_bundle(path, variant)
    if (path / "run.json").is_file():
        if variant not in (None, BASE_VARIANT):
            raise InvalidSettings(
                f"variant: expected {BASE_VARIANT}, which a run is computed in, got {variant}: "
                "name a bundle to measure another precision"
            )
        return _open_run(path)
    raise TrainingError(
        f"{path}: expected a fitted run (run.json) or a bundle ({MANIFEST}), got neither"
    )


def _open_bundle(path: Path, variant: str | None) -> FittedModel:
    bundle = open_bundle(path)
    manifest, encoders = bundle.manifest, OnnxEncoders(bundle, variant=variant)
    return FittedModel(
        kind="bundle",
        id=manifest.bundle_id,
        variant=encoders.variant.name,
        encoders=encoders,
        calibration=bundle.calibration,
        novelty=bundle.read_model(NoveltyModel),
        appearance=bundle.read_model(AppearanceModel),
        schema=manifest.record_schema,
        image_input=manifest.image_input,
        labels=manifest.labels,
        malignant_labels=manifest.malignant_labels,
        seen=read_seen(bundle.read(SEEN)) if bundle.has(SEEN) else None,
    )


def _open_run(path: Path) -> FittedModel:
    info = read_info(path)
    encoders = load_encoders(path, best_device())
    try:
        calibration = Calibration.model_validate_json((path / "calibration.json").read_bytes())
    except FileNotFoundError:
        raise TrainingError(f"{path}: expected calibration.json: run `slimp fit` first") from None
    except ValidationError as error:
        raise TrainingError(f"{path}/calibration.json: {error.errors()[0]['msg']}") from None
    look = path / AppearanceModel.FILE
    return FittedModel(
        kind="run",
        id=_identify(path),
        variant=BASE_VARIANT,
        encoders=encoders,
        calibration=calibration,
        novelty=NoveltyModel.from_bytes((path / NoveltyModel.FILE).read_bytes()),
        appearance=AppearanceModel.from_bytes(look.read_bytes()) if look.exists() else None,
        schema=info.record_schema,
        image_input=read_run_config(path).image.input,
        labels=info.labels,
        malignant_labels=info.malignant_labels,
        seen=info.seen,
    )


def _identify(run: Path) -> str:
    digest = hashlib.sha256()
    named = [run / name for name in ("run.json", "calibration.json", NoveltyModel.FILE)]
    for path in [*named, *sorted(run.glob("*.safetensors"))]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
