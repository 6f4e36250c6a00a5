"""A bundle's ONNX graphs behind plain array functions.

`Encoders` is the interface that evaluation, indexing and serving use; `OnnxEncoders` runs a bundle,
training has a torch twin, tests have a fake that a person can predict.
"""

import copy
import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from bundle.cpus import available_cpus
from bundle.devices import ON_CPU, Device, Providers, Wanted, device_providers, started_device
from bundle.errors import BundleError, CorruptBundle, InferenceError
from bundle.fields import Level
from bundle.openvino_session import OpenVinoSession
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
IMAGE_ENCODER = "image_encoder"
RECORD_GRAPHS: dict[Level, str] = {"lesion": "metadata_encoder", "patient": "patient_encoder"}

# What ONNX Runtime raises: its own errors share no base.
ORT_ERRORS = (
    RuntimeError,
    ValueError,
    ort_state.EPFail,
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)


class Encoders(Protocol):
    """The models of a bundle or run. D is the embedding width, C the number of labels."""

    @property
    def embedding_dim(self) -> int:
        """Return D."""

    @property
    def has_context(self) -> bool:
        """Return whether `context` may be called."""

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
        self,
        bundle: Bundle,
        *,
        threads: int = 0,
        variant: str | None = None,
        device: Wanted = "auto",
        engines: Path | None = None,
    ) -> None:
        """Load the graphs.

        Args:
            bundle: the verified bundle; graphs are read through it, so that what runs was checked.
            threads: threads within one inference of the image encoder; 0 takes all processors that
                are this process's.
            variant: precision of the image encoder; None takes the one that the manifest chose.
            device: what runs the image encoder; the other graphs are too small to be worth the way
                to another device.
            engines: folder where TensorRT keeps the engines that it made.

        Raises:
            BundleError: both the CPU and the GPU build of ONNX Runtime are installed, or this
                machine cannot run the variant on the device.
            InvalidSettings: the bundle has no such variant.
            CorruptBundle: a graph cannot be loaded, has other inputs than the contract's, or is
                missing though the schema has fields for it.
        """
        refuse_two_builds("onnxruntime", "onnxruntime-gpu")
        self.manifest = bundle.manifest
        self._bundle = bundle
        self.variant = bundle.manifest.find_variant(variant)
        self.threads = threads or available_cpus()
        self._wanted, self._engines = device, engines
        # The other graphs take less than it takes to wake a second thread.
        small = _session_options(1)
        self._sessions = {
            name: _load_graph(bundle, name, small, ON_CPU)
            for name in GRAPHS
            if bundle.has(f"{name}.onnx") and name != IMAGE_ENCODER
        }
        self.device, self._sessions[IMAGE_ENCODER] = self._load_image_encoder()
        for level, graph in RECORD_GRAPHS.items():
            if bundle.manifest.record_schema.at(level) and graph not in self._sessions:
                raise CorruptBundle(f"{graph}.onnx: the schema has {level} fields, the file is not")

    def _load_image_encoder(self) -> tuple[Device, Any]:
        variant, wanted = self.variant, self._wanted
        if variant.runtime == "openvino":
            if wanted not in ("auto", "cpu"):
                raise BundleError(
                    f"the variant {variant.name} runs on the processor, {wanted} was asked for: "
                    "choose another (SLIMP_VARIANT=fp32)"
                )
            data = self._bundle.read(variant.file)
            return "cpu", OpenVinoSession(IMAGE_ENCODER, data, threads=self.threads)
        providers = device_providers(
            wanted,
            size_px=self.manifest.image_input.size_px,
            is_half=variant.runtime == "cuda",
            engines=self._engines,
        )
        options = _session_options(self.threads)
        session = _load_graph(self._bundle, IMAGE_ENCODER, options, providers, variant.file)
        device = started_device(wanted, session)
        if variant.runtime == "cuda" and device == "cpu":
            raise BundleError(
                f"the variant {variant.name} needs a GPU, and ONNX Runtime found none: choose "
                "another (SLIMP_VARIANT=fp32)"
            )
        return device, session

    def with_threads(self, threads: int) -> Self:
        """Return the same encoders with an image encoder of its own that uses so many threads."""
        twin = copy.copy(self)
        twin.threads = threads
        twin.device, session = twin._load_image_encoder()
        twin._sessions = {**self._sessions, IMAGE_ENCODER: session}
        return twin

    @property
    def embedding_dim(self) -> int:
        return self.manifest.embedding_dim

    @property
    def has_context(self) -> bool:
        return "context" in self._sessions

    @property
    def graphs(self) -> tuple[str, ...]:
        """Return the names of the loaded graphs, in the order of `GRAPHS`."""
        return tuple(name for name in GRAPHS if name in self._sessions)

    def run(self, graph: str, inputs: dict[str, npt.NDArray[Any]]) -> FloatArray:
        """Return a graph's one output as float32 of the graph's shape, (N, D) for an encoder.

        Args:
            graph: one of `graphs`.
            inputs: an array for each of the graph's inputs, of its shape and dtype.

        Raises:
            InferenceError: the inputs are not the graph's, or the output holds NaN or infinity.
        """
        try:
            (output,) = self._sessions[graph].run(None, inputs)
        except ORT_ERRORS as error:
            raise InferenceError(f"{graph}: the model cannot run: {_first_line(error)}") from None
        if not np.isfinite(output).all():
            raise InferenceError(f"{graph}: the model answered with a number that is not finite")
        return np.asarray(output, np.float32)

    def embed_images(self, pixels: FloatArray) -> FloatArray:
        """Return (N, D) float32 features of (N, 3, H, W) float32 prepared images."""
        if self.variant.is_batched or len(pixels) < 2:
            return self.run(IMAGE_ENCODER, {"pixels": pixels})
        return np.concatenate([self.run(IMAGE_ENCODER, {"pixels": one[None]}) for one in pixels])

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
        """Return (N, C) float32 logits of (N, D) features; presence flags are (N,) bool."""
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
        """Return (L,) float32 malignancy log odds, as `Encoders.context` says.

        Raises:
            BundleError: this bundle has no context model; ask `has_context` first.
        """
        if not self.has_context:
            raise BundleError("expected a bundle with context.onnx: this one has no context model")
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


def _session_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Between runs, threads that wait awake take the processors from decoding and answering.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # A graph may name weight files beside it, which ONNX Runtime seeks in the working directory.
    # Nothing lies below the null device: only weights within the hashed graph can be loaded.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    return options


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _load_graph(
    bundle: Bundle,
    name: str,
    options: ort.SessionOptions,
    providers: Providers,
    file: str | None = None,
) -> ort.InferenceSession:
    file = file or f"{name}.onnx"
    data = bundle.read(file)
    try:
        session = ort.InferenceSession(data, options, providers=providers)
    except ORT_ERRORS as error:
        raise CorruptBundle(f"{file} cannot be loaded: {_first_line(error)}") from None
    inputs = tuple(item.name for item in session.get_inputs())
    if set(inputs) != set(GRAPHS[name]) or len(session.get_outputs()) != 1:
        raise CorruptBundle(f"{file}: expected inputs {GRAPHS[name]} and one output, got {inputs}")
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
