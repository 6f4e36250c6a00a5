"""A loaded bundle: its models and fitted numbers, checked before anything is answered."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.appearance import AppearanceModel
from bundle.calibration import CONDITIONS, Calibration, FloatArray, malignant_share
from bundle.devices import Device, Wanted
from bundle.encoder import Encoders, OnnxEncoders
from bundle.errors import CorruptBundle, InferenceError, InvalidSettings
from bundle.fields import Field, FieldSchema, Level, Record
from bundle.golden import check_golden
from bundle.manifest import BASE_VARIANT, Manifest
from bundle.novelty import NoveltyModel
from bundle.records import encode_records
from bundle.store import open_bundle


@dataclass(frozen=True)
class Models:
    """What answers are made with.

    Attributes:
        manifest: the bundle's description of itself.
        calibration: its fitted numbers.
        encoders: its graphs, or a fake in tests.
        narrow: the same with one thread an inference, to run side by side; None where not wanted.
        novelty: what training lesions look like; None in a bundle without `novelty.npz`.
        appearance: what training pictures look like; None in one without `appearance.npz`.
        variant: precision of the image encoder.
        device: what runs it.
        decoding: held while pictures are decoded; bounds how many are in memory at full size.
    """

    manifest: Manifest
    calibration: Calibration
    encoders: Encoders
    novelty: NoveltyModel | None
    appearance: AppearanceModel | None = None
    variant: str = BASE_VARIANT
    device: Device = "cpu"
    decoding: AbstractContextManager[Any] = field(default_factory=nullcontext)
    narrow: Encoders | None = None

    def __post_init__(self) -> None:
        """Refuse a calibration that could not answer every request.

        Raises:
            CorruptBundle: a metadata condition is not calibrated, or the pictures' appearance
                has a model and no threshold, or the reverse.
        """
        if missing := [name for name in CONDITIONS if name not in self.calibration.conditions]:
            raise CorruptBundle(f"calibration.json: the condition {missing[0]!r} is not calibrated")
        if (self.appearance is None) != (self.calibration.appearance_threshold is None):
            raise CorruptBundle(
                "expected appearance.npz and appearance_threshold in calibration.json, or neither"
            )

    @property
    def schema(self) -> FieldSchema:
        return self.manifest.record_schema

    @property
    def labels(self) -> tuple[str, ...]:
        return self.manifest.labels

    @property
    def malignant(self) -> npt.NDArray[np.bool_]:
        """Return (C,) bool, True for malignant labels."""
        return np.asarray([label in self.manifest.malignant_labels for label in self.labels])

    @property
    def trained_prevalence(self) -> float:
        return malignant_share(self.calibration.prevalence, self.manifest.malignant_labels)

    def fields(self, level: Level) -> tuple[Field, ...]:
        return self.schema.at(level)

    def check_prevalence(self, site: float | None) -> None:
        """Refuse a site's prevalence that the training prevalence cannot be shifted to.

        Raises:
            InvalidSettings: training saw only malignant or only benign lesions.
        """
        if site is not None and not 0 < self.trained_prevalence < 1:
            raise InvalidSettings(
                f"SLIMP_PREVALENCE: expected unset, as {self.trained_prevalence:.0%} of this "
                f"bundle's training lesions are malignant, got {site:g}"
            )


def load_models(
    path: Path,
    *,
    threads: int,
    variant: str | None = None,
    device: Wanted = "auto",
    engines: Path | None = None,
    side_by_side: bool = False,
) -> Models:
    """Return the bundle's models once its hashes and golden vectors hold.

    Running the golden vectors is the warm-up: every graph has answered once.

    Args:
        path: the bundle folder.
        threads: threads within one inference; 0 takes all processors that are this process's.
        variant: precision of the image encoder; None takes the one that the bundle chose.
        device: what runs the image encoder.
        engines: folder where TensorRT keeps the engines that it made.
        side_by_side: whether a second image encoder of one thread is wanted, where the processor
            runs it and there are several threads.

    Raises:
        InvalidSettings: the bundle has no such variant.
        BundleError: the bundle is corrupt, too new, or answers differently on this machine.
    """
    bundle = open_bundle(path)
    encoders = OnnxEncoders(
        bundle, threads=threads, variant=variant, device=device, engines=engines
    )
    check_golden(bundle, encoders)
    narrow = None
    if side_by_side and encoders.device == "cpu" and encoders.threads > 1:
        narrow = encoders.with_threads(1)
        check_golden(bundle, narrow)
    return Models(
        bundle.manifest,
        bundle.calibration,
        encoders,
        bundle.read_model(NoveltyModel),
        bundle.read_model(AppearanceModel),
        variant=encoders.variant.name,
        device=encoders.device,
        narrow=narrow,
    )


def finite(numbers: FloatArray, what: str) -> FloatArray:
    """Return the numbers as they are.

    Args:
        numbers: float32, any shape, from a model.
        what: names them in the error.

    Raises:
        InferenceError: one of them is NaN or infinite.
    """
    if not np.isfinite(numbers).all():
        raise InferenceError(
            f"the {what} holds a number that is not finite: this image cannot be judged by this "
            "bundle; send another image of the lesion"
        )
    return numbers


def embed_known(
    models: Models, records: Sequence[Record], level: Level
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Return what the models make of records at one level, and which of them say anything.

    Args:
        models: the loaded bundle.
        records: N canonical records; fields of the other level are passed over.
        level: whose fields are read.

    Returns:
        (N, D) float32 features and (N,) bool, True where a field of the level is known.
    """
    encoded = encode_records(records, models.fields(level))
    features = models.encoders.embed_records(encoded, level)
    known = np.asarray(encoded.present.any(axis=1), np.bool_)
    return finite(features, f"{level} record's embedding"), known
