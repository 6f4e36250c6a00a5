"""Fakes that a person can predict, and a tiny real bundle that answers as they do.

An image becomes its mean colour (R, G, B in [0, 1]) and a constant; a label's score is its colour:
red is "nv", green is "mel", blue is "bcc". A large lesion and a high age raise "mel". In context a
lesion's log odds rise with its colour's distance from the patient's mean colour. `write_bundle`
writes the same arithmetic as ONNX graphs, with golden vectors from `FakeEncoders`.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from bundle.appearance import LENGTH, AppearanceModel, describe_appearance
from bundle.calibration import (
    CONDITIONS,
    Calibration,
    ConditionCalibration,
    Conformal,
    OperatingPoint,
)
from bundle.fields import Field, FieldSchema, Level, Record
from bundle.golden import Case, write_golden
from bundle.images import ImageInput, content_hash, decode_image
from bundle.manifest import DataSource, Manifest
from bundle.novelty import NoveltyModel
from bundle.quality import QualityThresholds
from bundle.records import EncodedRecords, encode_records
from bundle.store import Bundle, open_bundle, seal, staged_folder
from index.catalogue import Catalogue, CatalogueLesion

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Colour = tuple[int, int, int]

RED: Colour = (200, 60, 60)
GREEN: Colour = (60, 200, 60)
BLUE: Colour = (60, 60, 200)
WHITE: Colour = (225, 225, 225)

LABELS = ("nv", "mel", "bcc")
MALIGNANT = ("mel", "bcc")
DIM = 4
CONSTANT = 0.1
LABEL_SLOPE = 6.0
RECORD_SLOPE = 1.0
CONTEXT_SLOPE = 4.0
IMAGE_INPUT = ImageInput(size_px=32, resize_px=32)

SCHEMA = FieldSchema(
    fields=(
        Field(
            name="anatom_site",
            level="lesion",
            kind="categorical",
            categories=("back", "scalp", "lower extremity"),
            aliases=("localization",),
            category_aliases={"leg": "lower extremity"},
            description="where on the body",
        ),
        Field(
            name="diameter_mm",
            level="lesion",
            kind="numeric",
            unit="mm",
            minimum=0,
            maximum=100,
            mean=5,
            std=2,
            description="longest extent",
        ),
        Field(name="itch", level="lesion", kind="boolean"),
        Field(
            name="age_years",
            level="patient",
            kind="numeric",
            unit="years",
            aliases=("age", "age_approx"),
            minimum=0,
            maximum=120,
            mean=50,
            std=20,
        ),
        Field(name="sex", level="patient", kind="categorical", categories=("female", "male")),
    )
)


def draw_image(
    colour: Colour = RED,
    *,
    seed: int = 0,
    size: int = 64,
    grain: int = 25,
    file_format: str = "PNG",
) -> bytes:
    """Return an image file of one colour with seeded grain.

    Args:
        colour: mean red, green and blue, 0 to 255.
        seed: another seed gives another picture of the same colour.
        size: side in pixels.
        grain: the grain's standard deviation; 0 is a flat picture, which is not assessable.
        file_format: Pillow's name of the format.
    """
    noise = np.random.default_rng(seed).normal(0, 1, (size, size, 1)) * grain
    pixels = np.clip(np.asarray(colour) + noise - noise.mean(), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, quality=95)
    return buffer.getvalue()


def colour_embedding(colour: Colour) -> FloatArray:
    """Return (4,) float32: what the fake image encoder makes of one flat colour."""
    return np.asarray([*(channel / 255 for channel in colour), CONSTANT], np.float32)


def _numeric_first(fields: Sequence[Field]) -> FloatArray:
    """Return (F, 4) weights that put a level's numeric field at position 0, others elsewhere."""
    weights = np.zeros((len(fields), DIM), np.float32)
    for row, field in enumerate(fields):
        weights[row, 0 if field.kind == "numeric" else 1] = 1 if field.kind == "numeric" else 0.01
    return weights


@dataclass(frozen=True)
class FakeEncoders:
    """The `Encoders` interface by arithmetic that can be done in the head.

    Attributes:
        has_context: whether `context` may be called.
        schema: fields of the records that it reads.
    """

    has_context: bool = True
    schema: FieldSchema = SCHEMA

    @property
    def embedding_dim(self) -> int:
        return DIM

    def embed_images(self, pixels: FloatArray) -> FloatArray:
        """Return (N, 4) float32 of (N, 3, H, W): mean red, green and blue, and a constant."""
        mean = pixels.mean(axis=(2, 3)) * np.asarray(IMAGE_INPUT.std) + np.asarray(IMAGE_INPUT.mean)
        constant = np.full((len(pixels), 1), CONSTANT)
        return np.concatenate([mean, constant], axis=1).astype(np.float32)

    def embed_records(self, records: EncodedRecords, level: Level) -> FloatArray:
        """Return (N, 4) float32; position 0 is the standardised size or age, 0 when missing."""
        weights = _numeric_first(self.schema.at(level))
        return (np.where(records.present, records.values, 0) @ weights).astype(np.float32)

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
        """Return (N, 3) logits: red, green and blue; size and age are added to green."""
        logits = LABEL_SLOPE * image[:, :3] * image_present[:, None]
        logits[:, 1] += RECORD_SLOPE * lesion_record[:, 0] * lesion_present
        logits[:, 1] += RECORD_SLOPE * patient_record[:, 0] * patient_present
        return logits.astype(np.float32)

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
        """Return (L,) the lesions' own log odds, raised by the distance from their mean colour."""
        away = np.linalg.norm(image - image.mean(axis=0), axis=1)
        return np.asarray(malignancy_logit + CONTEXT_SLOPE * away, np.float32)


def make_calibration(**overrides: Any) -> Calibration:
    """Return a calibration that leaves the fake's logits as they are."""
    condition = ConditionCalibration(
        temperature=1.0,
        bias=(0.0,) * len(LABELS),
        conformal=Conformal(
            alpha=0.1, quantiles=(0.9,) * 3, scope=("label", "label", "rare"), lesions=90
        ),
        expected_calibration_error=0.02,
        lesions=90,
    )
    content: dict[str, Any] = {
        "conditions": dict.fromkeys(CONDITIONS, condition),
        "prevalence": {"nv": 0.8, "mel": 0.15, "bcc": 0.05},
        "operating_points": (
            OperatingPoint(
                name="sensitivity_95",
                condition="missing",
                threshold=0.2,
                sensitivity=0.95,
                sensitivity_interval=(0.9, 0.98),
                specificity=0.7,
                specificity_interval=(0.65, 0.75),
            ),
        ),
        "quality": QualityThresholds(
            min_side_px=32,
            sharpness_min=0.01,
            brightness_min=0.05,
            brightness_max=0.97,
            contrast_min=0.01,
        ),
        "novelty_threshold": 1.5,
    }
    return Calibration(**{**content, **overrides})


def make_appearance() -> AppearanceModel:
    """Return a model of training pictures that look like a red lesion, and no other."""
    described = describe_appearance(decode_image(draw_image(RED)))
    return AppearanceModel(
        centre=described,
        scale=np.full(LENGTH, 0.01, np.float32),
        weights=np.ones(1, np.float32),
        means=np.zeros((1, LENGTH), np.float32),
        whitening=np.eye(LENGTH, dtype=np.float32)[None],
    )


def make_novelty() -> NoveltyModel:
    """Return a model of training lesions that are red, green or blue: white is unlike them."""
    centre = np.asarray([0.5, 0.5, 0.5, CONSTANT], np.float32)
    means = np.stack([colour_embedding(colour) for colour in (RED, GREEN, BLUE)])
    scales = np.full(3, 0.2, np.float32)
    return NoveltyModel(
        centre=centre,
        components=np.eye(3, DIM, dtype=np.float32),
        scales=scales,
        label_means=(means - centre)[:, :3] / scales,
        residual_scale=np.ones(1, np.float32),
    )


def manifest_content(**overrides: Any) -> dict[str, Any]:
    """Return a manifest's values but for identity and files."""
    content: dict[str, Any] = {
        "software_version": "0.1.0",
        "run_config_sha256": "0" * 64,
        "objective": "nested",
        "image_input": IMAGE_INPUT.model_dump(mode="json"),
        "record_schema": SCHEMA.model_dump(mode="json"),
        "embedding_dim": DIM,
        "labels": LABELS,
        "malignant_labels": MALIGNANT,
        "parity": (),
        "metrics": {},
        "split_recipe": "by patient, seed 0",
        "data": [
            DataSource(
                name="coloured squares",
                licence="CC0-1.0",
                citation="drawn by the tests",
                images=30,
                lesions=30,
                patients=10,
            ).model_dump()
        ],
        "limits": ("knows three colours",),
    }
    return {**content, **overrides}


def make_manifest(**overrides: Any) -> Manifest:
    """Return a manifest for use in memory; its id is a constant."""
    identity = {"bundle_id": "ab" * 32, "created_at": "2026-01-01T00:00:00+00:00", "files": {}}
    return Manifest.model_validate({**manifest_content(), **identity, **overrides})


def write_bundle(
    out: Path,
    *,
    context: bool = True,
    novelty: bool = True,
    calibration: Calibration | None = None,
    golden: Mapping[str, Case] | None = None,
    **overrides: Any,
) -> Bundle:
    """Write a real bundle that answers as `FakeEncoders` does, and return it opened.

    Args:
        out: a folder that does not exist yet.
        context: whether it has a context model.
        novelty: whether it knows what training lesions look like.
        calibration: None takes `make_calibration()`.
        golden: replaces golden vectors of single graphs, to make a bundle that is refused.
        **overrides: manifest values.
    """
    fitted = make_calibration() if calibration is None else calibration
    graphs = make_graphs(context=context)
    cases = {name: case for name, case in golden_cases().items() if name in graphs}
    with staged_folder(out) as folder:
        for name, graph in graphs.items():
            (folder / f"{name}.onnx").write_bytes(graph.SerializeToString())
        (folder / "calibration.json").write_text(fitted.model_dump_json())
        (folder / "golden.npz").write_bytes(write_golden({**cases, **(golden or {})}))
        (folder / "MODEL_CARD.md").write_text("# Three colours\n")
        if novelty:
            (folder / "novelty.npz").write_bytes(make_novelty().to_bytes())
        seal(folder, manifest_content(**overrides))
    return open_bundle(out)


def golden_cases() -> dict[str, Case]:
    """Return synthetic inputs of every graph and what `FakeEncoders` answers to them."""
    fake, rng = FakeEncoders(), np.random.default_rng(0)
    size = IMAGE_INPUT.size_px
    pixels = rng.normal(0, 1, (2, 3, size, size)).astype(np.float32)
    heads = {
        "image": rng.normal(0, 1, (2, DIM)).astype(np.float32),
        "lesion_record": rng.normal(0, 1, (2, DIM)).astype(np.float32),
        "patient_record": rng.normal(0, 1, (2, DIM)).astype(np.float32),
    }
    some = np.asarray([True, False])
    flags = {"image_present": some, "lesion_present": some, "patient_present": some}
    classified = fake.classify(
        heads["image"],
        heads["lesion_record"],
        heads["patient_record"],
        image_present=some,
        lesion_present=some,
        patient_present=some,
    )
    beside: Case = {
        "image": heads["image"],
        "lesion_record": heads["lesion_record"],
        "lesion_present": np.asarray([True, False]),
        "malignancy_logit": np.asarray([0.5, -1.0], np.float32),
        "patient_record": heads["patient_record"][0],
    }
    logits = fake.context(**beside, patient_present=True)
    batched = {name: array[None] for name, array in beside.items()}
    more = {"mask": np.ones((1, 2), np.bool_), "patient_present": np.asarray([True])}
    cases: dict[str, Case] = {
        "image_encoder": {"pixels": pixels, "output": fake.embed_images(pixels)},
        "classifier": {**heads, **flags, "output": classified},
        "context": {**batched, **more, "output": logits[None]},
    }
    levels: tuple[tuple[str, Level], ...] = (
        ("metadata_encoder", "lesion"),
        ("patient_encoder", "patient"),
    )
    for name, level in levels:
        records: list[Record] = [{"age_years": 70.0, "diameter_mm": 8.0, "sex": "male"}, {}]
        encoded = encode_records(records, SCHEMA.at(level))
        cases[name] = {
            "values": encoded.values,
            "present": encoded.present,
            "output": fake.embed_records(encoded, level),
        }
    return cases


def make_graphs(*, context: bool = True) -> dict[str, onnx.ModelProto]:
    """Return the bundle's graphs, the arithmetic of `FakeEncoders` in ONNX."""
    graphs = {
        "image_encoder": _image_graph(),
        "metadata_encoder": _record_graph("lesion"),
        "patient_encoder": _record_graph("patient"),
        "classifier": _classifier_graph(),
    }
    return {**graphs, "context": _context_graph()} if context else graphs


def _model(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[int | str]]],
    output: list[int | str],
    constants: Mapping[str, npt.NDArray[Any]],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "fake",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _image_graph() -> onnx.ModelProto:
    size = IMAGE_INPUT.size_px
    weights = np.zeros((3, DIM), np.float32)
    weights[:, :3] = np.diag(IMAGE_INPUT.std)
    return _model(
        [
            helper.make_node("ReduceMean", ["pixels", "sides"], ["channels"], keepdims=0),
            helper.make_node("Gemm", ["channels", "weights", "shift"], ["output"]),
        ],
        {"pixels": (TensorProto.FLOAT, ["N", 3, size, size])},
        ["N", DIM],
        {
            "sides": np.asarray([2, 3]),
            "weights": weights,
            "shift": np.asarray([*IMAGE_INPUT.mean, CONSTANT], np.float32),
        },
    )


def _record_graph(level: Level) -> onnx.ModelProto:
    fields = SCHEMA.at(level)
    return _model(
        [
            helper.make_node("Where", ["present", "values", "zero"], ["known"]),
            helper.make_node("MatMul", ["known", "weights"], ["output"]),
        ],
        {
            "values": (TensorProto.FLOAT, ["N", len(fields)]),
            "present": (TensorProto.BOOL, ["N", len(fields)]),
        },
        ["N", DIM],
        {"zero": np.zeros((), np.float32), "weights": _numeric_first(fields)},
    )


def _classifier_graph() -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []
    inputs: dict[str, tuple[int, list[int | str]]] = {}
    weights = {
        "image": LABEL_SLOPE * np.eye(DIM, 3, dtype=np.float32),
        "lesion_record": np.zeros((DIM, 3), np.float32),
        "patient_record": np.zeros((DIM, 3), np.float32),
    }
    weights["lesion_record"][0, 1] = weights["patient_record"][0, 1] = RECORD_SLOPE
    parts = {"image": "image", "lesion_record": "lesion", "patient_record": "patient"}
    for part, flag in parts.items():
        nodes += [
            helper.make_node("Cast", [f"{flag}_present"], [f"{part}_on"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", [f"{part}_on", "last"], [f"{part}_column"]),
            helper.make_node("MatMul", [part, f"{part}_weights"], [f"{part}_score"]),
            helper.make_node("Mul", [f"{part}_score", f"{part}_column"], [f"{part}_said"]),
        ]
        inputs[part] = (TensorProto.FLOAT, ["N", DIM])
        inputs[f"{flag}_present"] = (TensorProto.BOOL, ["N"])
    said = [f"{part}_said" for part in weights]
    nodes.append(helper.make_node("Sum", said, ["output"]))
    constants: dict[str, npt.NDArray[Any]] = {f"{p}_weights": w for p, w in weights.items()}
    return _model(nodes, inputs, ["N", 3], {**constants, "last": np.asarray([1])})


def _context_graph() -> onnx.ModelProto:
    return _model(
        [
            helper.make_node("Cast", ["mask"], ["counted"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["counted", "last"], ["column"]),
            helper.make_node("Mul", ["image", "column"], ["shown"]),
            helper.make_node("ReduceSum", ["shown", "lesions"], ["total"], keepdims=1),
            helper.make_node("ReduceSum", ["column", "lesions"], ["number"], keepdims=1),
            helper.make_node("Div", ["total", "number"], ["mean"]),
            helper.make_node("Sub", ["image", "mean"], ["away"]),
            helper.make_node("ReduceL2", ["away", "last"], ["distance"], keepdims=0),
            helper.make_node("Mul", ["distance", "slope"], ["raised"]),
            helper.make_node("Add", ["malignancy_logit", "raised"], ["output"]),
        ],
        {
            "image": (TensorProto.FLOAT, [1, "L", DIM]),
            "lesion_record": (TensorProto.FLOAT, [1, "L", DIM]),
            "lesion_present": (TensorProto.BOOL, [1, "L"]),
            "malignancy_logit": (TensorProto.FLOAT, [1, "L"]),
            "mask": (TensorProto.BOOL, [1, "L"]),
            "patient_record": (TensorProto.FLOAT, [1, DIM]),
            "patient_present": (TensorProto.BOOL, [1]),
        },
        [1, "L"],
        {
            "last": np.asarray([2]),
            "lesions": np.asarray([1]),
            "slope": np.asarray(CONTEXT_SLOPE, np.float32),
        },
    )


def make_lesion(
    lesion_id: str, colour: Colour = RED, *, seed: int = 1000, **overrides: Any
) -> CatalogueLesion:
    """Return a reference lesion whose one image is `draw_image(colour, seed=seed)`."""
    image = decode_image(draw_image(colour, seed=seed))
    thumbnail = io.BytesIO()
    image.save(thumbnail, "WEBP")
    content: dict[str, Any] = {
        "lesion_id": lesion_id,
        "patient_id": f"patient of {lesion_id}",
        "record": {},
        "label": LABELS[int(np.argmax(colour))],
        "malignant": LABELS[int(np.argmax(colour))] in MALIGNANT,
        "source": "coloured squares",
        "embedding": colour_embedding(colour),
        "content_hashes": (content_hash(image),),
        "thumbnail": thumbnail.getvalue(),
    }
    return CatalogueLesion(**{**content, **overrides})


def write_catalogue(
    out: Path, lesions: Sequence[CatalogueLesion], *, bundle_id: str = "ab" * 32
) -> Catalogue:
    """Write a real catalogue of these lesions and return it open."""
    catalogue = Catalogue.create(
        out, bundle_id=bundle_id, variant="fp32", embedding_dim=DIM, schema=SCHEMA
    )
    catalogue.add(lesions)
    catalogue.save()
    return catalogue
