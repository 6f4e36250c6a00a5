"""A bundle's ONNX graphs behind plain array functions.

`Encoders` is the interface that evaluation, indexing and serving use; `OnnxEncoders` runs a bundle,
training has a torch twin, tests have a fake that a person can predict.
"""

from importlib.metadata import PackageNotFoundError, distribution
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from bundle.errors import BundleError, CorruptBundle, InferenceError
from bundle.fields import Level
from bundle.records import EncodedRecords
from bundle.store import Bundle

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

GRAPHS = {
    "image_encoder": ("pixels",),
    "metadata_encoder": ("values", "present"),
    "patient_encoder": ("values", "present"),
    "classifier": (
        "image",
        "lesion_record",
        "patient_record",
        "image_present",
        "lesion_present",
        "patient_present",
    ),
    "context": (
        "image",
        "lesion_record",
        "lesion_present",
        "malignancy_logit",
        "mask",
        "patient_record",
        "patient_present",
    ),
}
RECORD_GRAPHS: dict[Level, str] = {"lesion": "metadata_encoder", "patient": "patient_encoder"}


class Encoders(Protocol):
    """The models of a bundle or run. D is the embedding width, C the number of labels."""

    @property
    def embedding_dim(self) -> int: ...

    @property
    def has_context(self) -> bool: ...

    def embed_images(self, pixels: FloatArray) -> FloatArray:
        """Return (N, D) float32 features of (N, 3, H, W) float32 prepared images."""

    def embed_records(self, records: EncodedRecords, level: Level) -> FloatArray:
        """Return (N, D) float32 features of N encoded records of one level."""

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
        """Return (N, C) float32 logits of (N, D) features; presence flags are (N,) bool."""

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
        """Return (L,) float32 malignancy log odds in the context of one patient's L lesions.

        Args:
            image: (L, D) float32.
            lesion_record: (L, D) float32.
            lesion_present: (L,) bool, whether the lesion's record was given.
            malignancy_logit: (L,) float32 calibrated log odds of each lesion alone.
            patient_record: (D,) float32.
            patient_present: whether the patient's record was given.
        """


class OnnxEncoders:
    """Runs a verified bundle's graphs on ONNX Runtime.

    Sessions may be used from several threads at once.
    """

    def __init__(
        self, bundle: Bundle, *, threads: int = 0, providers: tuple[str, ...] | None = None
    ) -> None:
        """Load the graphs.

        Args:
            bundle: the verified bundle; graphs are read through it, so that what runs was checked.
            threads: threads within one inference; 0 takes all cores.
            providers: ONNX Runtime execution providers, best first; None takes all available.

        Raises:
            BundleError: both the CPU and the GPU build of ONNX Runtime are installed.
            CorruptBundle: a graph cannot be loaded or has other inputs than the contract's.
        """
        refuse_two_builds("onnxruntime", "onnxruntime-gpu")
        self.manifest = bundle.manifest
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        chosen = providers or tuple(ort.get_available_providers())
        self._sessions = {
            name: _load_graph(bundle, name, options, chosen)
            for name in GRAPHS
            if bundle.has(f"{name}.onnx")
        }

    @property
    def embedding_dim(self) -> int:
        return self.manifest.embedding_dim

    @property
    def has_context(self) -> bool:
        return "context" in self._sessions

    @property
    def graphs(self) -> tuple[str, ...]:
        return tuple(self._sessions)

    def run(self, graph: str, inputs: dict[str, npt.NDArray[Any]]) -> FloatArray:
        """Return a graph's one output, checked to be finite.

        Raises:
            InferenceError: the output holds NaN or infinity.
        """
        (output,) = self._sessions[graph].run(None, inputs)
        if not np.isfinite(output).all():
            raise InferenceError(f"{graph}: the model answered with a number that is not finite")
        return np.asarray(output, np.float32)

    def embed_images(self, pixels: FloatArray) -> FloatArray:
        return self.run("image_encoder", {"pixels": pixels})

    def embed_records(self, records: EncodedRecords, level: Level) -> FloatArray:
        """Return (N, D) float32; zeros where the bundle has no fields of this level."""
        graph = RECORD_GRAPHS[level]
        if graph not in self._sessions:
            return np.zeros((len(records), self.embedding_dim), np.float32)
        return self.run(graph, {"values": records.values, "present": records.present})

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
        return self.run(
            "classifier",
            {
                "image": image,
                "lesion_record": lesion_record,
                "patient_record": patient_record,
                "image_present": image_present,
                "lesion_present": lesion_present,
                "patient_present": patient_present,
            },
        )

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
        output = self.run(
            "context",
            {
                "image": image[None],
                "lesion_record": lesion_record[None],
                "lesion_present": lesion_present[None],
                "malignancy_logit": malignancy_logit[None],
                "mask": np.ones((1, len(image)), np.bool_),
                "patient_record": patient_record[None],
                "patient_present": np.asarray([patient_present]),
            },
        )
        logits: FloatArray = output[0]
        return logits


def _load_graph(
    bundle: Bundle, name: str, options: ort.SessionOptions, providers: tuple[str, ...]
) -> ort.InferenceSession:
    data = bundle.read(f"{name}.onnx")
    try:
        session = ort.InferenceSession(data, options, providers=list(providers))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CorruptBundle(f"{name}.onnx cannot be loaded: {reason}") from None
    inputs = tuple(item.name for item in session.get_inputs())
    if set(inputs) != set(GRAPHS[name]) or len(session.get_outputs()) != 1:
        raise CorruptBundle(
            f"{name}.onnx: expected inputs {GRAPHS[name]} and one output, got {inputs}"
        )
    return session


def refuse_two_builds(*distributions: str) -> None:
    """Refuse to start where two distributions that share one module name are both installed.

    Raises:
        BundleError: naming them and what to uninstall.
    """
    found = []
    for name in distributions:
        try:
            distribution(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    if len(found) > 1:
        raise BundleError(
            f"{' and '.join(found)} are installed together and overwrite each other: "
            f"uninstall both, then install one (pip install 'slimp[cpu]' or 'slimp[gpu]')"
        )


def unit_norm(embeddings: FloatArray) -> FloatArray:
    """Return (N, D) float32 rows of unit L2 length.

    Raises:
        InferenceError: a row has no direction (length 0).
    """
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if (lengths == 0).any():
        raise InferenceError("an embedding has length 0: it has no direction to compare")
    directions: FloatArray = (embeddings / lengths).astype(np.float32)
    return directions
