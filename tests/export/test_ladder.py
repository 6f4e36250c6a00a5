"""Lower precisions: measured on held-out images, chosen only where they are worth their cost."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from sklearn.metrics import recall_score, roc_auc_score

import export.pack
from bundle import openvino_session
from bundle.encoder import OnnxEncoders
from bundle.errors import SeenGroups
from bundle.golden import check_golden
from bundle.manifest import AccuracyCost, Agreement, Speed, Variant
from bundle.store import Bundle, open_bundle
from cohort.cohort import Cohort
from export.held_out import accuracy_costs, agreement, held_out
from export.ladder import PICTURES, choose, measure_speeds, write_int8
from export.pack import export_run
from tests.export.conftest import Exported
from training.data import Squares
from training.features import classify_rows, embed_rows, record_features
from training.run import read_info

FloatArray = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def laddered(
    exported: Exported, cohort: Cohort, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bundle]:
    out = tmp_path_factory.mktemp("ladder") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        # Where there is no bfloat16, the same path runs in float32.
        is_capable = any(flag in _flags() for flag in ("amx_bf16", "avx512_bf16"))
        if not is_capable:
            patch.setattr(openvino_session, "PRECISION", "f32")
            patch.setattr(openvino_session, "CAPABILITY", "FP32")
        with pytest.MonkeyPatch.context() as graphs:
            graphs.setattr(export.pack, "to_onnx", lambda graph: exported.graphs[graph.name])
            export_run(exported.run, out, cohort=cohort)
        yield open_bundle(out)


def _flags() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def test_every_rung_is_measured_and_the_choice_is_among_them(
    laddered: Bundle, exported: Exported
) -> None:
    manifest = laddered.manifest
    assert [variant.name for variant in manifest.variants] == ["fp32", "int8", "bf16"]
    assert manifest.variant in ("fp32", "int8", "bf16")
    base = manifest.variants[0]
    assert base.agreement is not None
    assert base.agreement.neighbours_shared == 1
    assert base.agreement.cosine_lowest == pytest.approx(1, abs=1e-6)
    for variant in manifest.variants:
        assert [cost.split for cost in variant.costs] == ["cal", "test"]
        assert [speed.batch for speed in variant.speeds] == [1, 8]
        assert variant.machine.endswith("processors")
        check_golden(laddered, OnnxEncoders(laddered, threads=1, variant=variant.name))
    assert len(manifest.variants[1].parity) == 5
    assert manifest.parity == exported.manifest.parity
    card = laddered.read("MODEL_CARD.md").decode()
    assert f"Served unless the site says otherwise: {manifest.variant}." in card
    assert all(f"\n| {name} | " in card for name in ("fp32", "int8", "bf16"))


def test_pictures_of_one_batch_do_not_change_each_others_8_bit_features(laddered: Bundle) -> None:
    encoders = OnnxEncoders(laddered, threads=1, variant="int8")
    side = laddered.manifest.image_input.size_px
    pixels = np.random.default_rng(0).normal(size=(5, 3, side, side)).astype(np.float32)
    # A picture of large numbers would take the batch's scale.
    pixels[3] *= 50
    together = encoders.embed_images(pixels)
    alone = [encoders.embed_images(picture[None])[0] for picture in pixels]
    np.testing.assert_array_equal(together, np.stack(alone))
    raw = encoders.run("image_encoder", {"pixels": pixels})
    assert not np.allclose(raw, together, rtol=1e-3)


def test_without_held_out_images_there_is_fp32_alone(bundle: Bundle) -> None:
    assert bundle.manifest.variants == ()
    assert bundle.manifest.variant == "fp32"


def test_a_rung_that_cannot_run_here_is_left_out_with_the_reason(
    exported: Exported, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.pack, "to_onnx", lambda graph: exported.graphs[graph.name])
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(openvino_session, "PRECISION", "bf16")
    broken = Path.write_bytes
    monkeypatch.setattr(
        export.pack, "write_int8", lambda graph, path: broken(path, b"no graph") and None
    )
    manifest = export_run(exported.run, tmp_path / "bundle", cohort=cohort)
    assert [variant.name for variant in manifest.variants] == ["fp32"]
    assert manifest.variant == "fp32"
    assert "image_encoder.int8.onnx" not in manifest.files
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert "bf16 is not in the bundle: the variant bf16 needs OpenVINO" in card
    assert "int8 is not in the bundle: image_encoder.int8.onnx cannot be loaded" in card
    assert "fp16 is not in the bundle: the variant fp16 needs a GPU" in card


def test_a_rung_that_answers_otherwise_than_torch_is_left_out_with_the_reason(
    exported: Exported, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.pack, "to_onnx", lambda graph: exported.graphs[graph.name])
    monkeypatch.setitem(sys.modules, "openvino", None)

    def wreck(graph: bytes, path: Path) -> None:
        model = onnx.load_from_string(graph)
        for weights in model.graph.initializer:
            values = onnx.numpy_helper.to_array(weights)
            if values.dtype == np.float32 and values.ndim > 1:
                weights.CopyFrom(onnx.numpy_helper.from_array(-9 * values, weights.name))
        onnx.save(model, path)

    monkeypatch.setattr(export.pack, "write_int8", wreck)
    manifest = export_run(exported.run, tmp_path / "bundle", cohort=cohort)
    assert [variant.name for variant in manifest.variants] == ["fp32"]
    assert "image_encoder.int8.onnx" not in manifest.files
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert "int8 is not in the bundle: image_encoder, " in card
    assert "ONNX and torch differ by" in card


class OnGpu:
    """Stands for a session on a GPU: the processor computes, and it says otherwise."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_on_a_gpu_float16_is_a_rung(
    exported: Exported, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnxruntime.InferenceSession

    def session(data: bytes, options: Any, providers: list[tuple[str, Any]]) -> Any:
        made = real(data, options, providers=["CPUExecutionProvider"])
        return OnGpu(made) if providers[0][0].startswith("CUDA") else made

    known = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: known)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(export.pack, "to_onnx", lambda graph: exported.graphs[graph.name])
    monkeypatch.setitem(sys.modules, "openvino", None)
    manifest = export_run(exported.run, tmp_path / "bundle", cohort=cohort)
    half = manifest.find_variant("fp16")
    assert half.runtime == "cuda"
    assert half.agreement is not None
    assert half.agreement.cosine_lowest > 0.999
    assert 0 < max(case.max_abs_difference for case in half.parity) < 0.05
    model = onnx.load(tmp_path / "bundle" / "image_encoder.fp16.onnx")
    onnx.checker.check_model(model)
    kinds = {weights.data_type for weights in model.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert onnx.TensorProto.FLOAT not in kinds
    assert [
        value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)
    ] == [
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT,
    ]


def test_a_cohort_whose_test_split_was_shown_is_refused(exported: Exported, cohort: Cohort) -> None:
    info = read_info(exported.run)
    groups = set(cohort.table()["patient_id"].to_pylist())
    shown = info.model_copy(update={"seen": (info.seen[0].of(groups),)})
    with pytest.raises(SeenGroups, match="prepared with the same --split-seed"):
        held_out(shown, cohort, lambda rows: pytest.fail("no image may be read"))


def test_only_matrix_products_but_the_last_become_8_bit(exported: Exported, tmp_path: Path) -> None:
    write_int8(exported.graphs["image_encoder"], tmp_path / "int8.onnx")
    before = onnx.load_from_string(exported.graphs["image_encoder"]).graph.node
    after = onnx.load(tmp_path / "int8.onnx").graph.node
    products = [n for n in before if n.op_type in ("MatMul", "Gemm")]
    weighed = sum(n.op_type == "MatMulInteger" for n in after)
    assert 0 < weighed < len(products)
    (*_, last) = [n for n in after if n.op_type in ("MatMul", "Gemm", "MatMulInteger")]
    assert last.op_type in ("MatMul", "Gemm")
    assert sum(n.op_type == "Conv" for n in after) == sum(n.op_type == "Conv" for n in before)


def test_costs_are_those_of_scikit_learn_on_each_split(
    exported: Exported, cohort: Cohort, onnx_encoders: OnnxEncoders, bundle: Bundle
) -> None:
    info, spec = read_info(exported.run), bundle.manifest.image_input
    held = held_out(info, cohort, lambda rows: Squares(cohort, rows, spec))
    base = embed_rows(onnx_encoders, held.squares)
    noise = np.random.default_rng(3).normal(0, base.std() * 3, base.shape)
    answers = {"fp32": base, "noisy": (base + noise).astype(np.float32)}
    costs = accuracy_costs(onnx_encoders, bundle.calibration, held, answers, "noisy")
    records = record_features(onnx_encoders, [{}] * len(held.rows), info.record_schema)
    logits = classify_rows(onnx_encoders, answers["noisy"], records, "image")
    probabilities = bundle.calibration.probabilities(logits, "missing")
    prior = np.array([bundle.calibration.prevalence[label] for label in info.labels])
    for cost in costs:
        inside = held.rows.split == cost.split
        label = held.rows.label[inside]
        present = np.unique(label)
        expected = [roc_auc_score(label == at, probabilities[inside, at]) for at in present]
        assert cost.macro_auroc == pytest.approx(np.mean(expected))
        decided = (probabilities[inside] / prior).argmax(1)
        recalls = recall_score(label, decided, labels=present, average=None)
        assert list(cost.recalls.values()) == pytest.approx(recalls.tolist())
        assert sum(cost.images.values()) == inside.sum()
        assert cost.macro_auroc_fp32 > cost.macro_auroc


def test_agreement_counts_neighbours_one_by_one() -> None:
    random = np.random.default_rng(0)
    base = random.normal(size=(23, 7)).astype(np.float32)
    other = base + random.normal(0, 0.4, base.shape).astype(np.float32)
    found = agreement(other, base)

    def nearest(rows: FloatArray, at: int) -> set[int]:
        units = [row / np.linalg.norm(row) for row in rows]
        others = [i for i in range(len(rows)) if i != at]
        return set(sorted(others, key=lambda i: -float(units[i] @ units[at]))[:10])

    shared = [len(nearest(other, i) & nearest(base, i)) / 10 for i in range(23)]
    assert found.neighbours_shared == pytest.approx(np.mean(shared))
    cosines = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in zip(base, other, strict=True)
    ]
    assert found.cosine_lowest == pytest.approx(min(cosines), abs=1e-6)
    assert found.cosine_mean == pytest.approx(np.mean(cosines), abs=1e-6)
    assert found.images == 23


def variant(name: str, rates: tuple[float, float], **changes: object) -> Variant:
    """Return a variant that costs nothing, unless changes say otherwise."""
    cost: dict[str, object] = {
        "split": "cal",
        "macro_auroc": 0.9,
        "macro_auroc_fp32": 0.9,
        "recalls": {"nv": 0.8, "df": 0.5},
        "recalls_fp32": {"nv": 0.8, "df": 0.5},
        "images": {"nv": 100, "df": 99},
    }
    near = Agreement(images=9, cosine_lowest=0.99, cosine_mean=1, neighbours_shared=1)
    cost |= {k: v for k, v in changes.items() if k in cost}
    return Variant(
        name=name,
        tolerance=0.1,
        agreement=near.model_copy(update={k: v for k, v in changes.items() if k not in cost}),
        costs=(AccuracyCost.model_validate(cost),),
        speeds=tuple(
            Speed(batch=b, images_per_second=r) for b, r in zip((1, 8), rates, strict=True)
        ),
    )


BASE = variant("fp32", (10, 10))


def chosen(*others: Variant) -> str:
    return choose({each.name: each for each in (BASE, *others)})


def test_the_fastest_rung_at_the_largest_batch_that_costs_little_is_chosen() -> None:
    assert chosen() == "fp32"
    assert chosen(variant("int8", (12, 16)), variant("bf16", (15, 15.9))) == "int8"
    assert chosen(variant("int8", (12, 17)), variant("bf16", (15, 20))) == "bf16"
    assert chosen(variant("int8", (11.9, 30))) == "fp32"
    assert chosen(variant("int8", (30, 15.9))) == "fp32"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"macro_auroc": 0.8975}, "int8"),
        ({"macro_auroc": 0.8965}, "fp32"),
        ({"recalls": {"nv": 0.785, "df": 0.5}}, "int8"),
        ({"recalls": {"nv": 0.775, "df": 0.5}}, "fp32"),
        ({"recalls": {"nv": 0.8, "df": 0.2}}, "int8"),
        ({"cosine_lowest": 0.89}, "fp32"),
        ({"split": "cal", "macro_auroc": 0.95}, "int8"),
    ],
)
def test_a_rung_that_costs_too_much_is_not_chosen(changes: dict[str, object], name: str) -> None:
    assert chosen(variant("int8", (20, 20), **changes)) == name


def test_speeds_are_taken_in_turns_and_the_first_round_is_left_out(
    onnx_encoders: OnnxEncoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        """Takes so many seconds an image by its own clock, ten times that in the first round."""

        def __init__(self, seconds: float) -> None:
            self.seconds, self.pictures = seconds, 0

        def embed_images(self, pixels: FloatArray) -> None:
            turns.append(self.seconds)
            self.pictures += len(pixels)
            # A turn that is not timed and one that is, at each of two batches.
            now[0] += self.seconds * len(pixels) * (10 if self.pictures <= 4 * PICTURES else 1)

    now, turns = [0.0], list[float]()
    monkeypatch.setattr("export.ladder.time.perf_counter", lambda: now[0])
    speeds = measure_speeds({"a": Slow(0.5), "b": Slow(2.0)}, 8)  # type: ignore[dict-item]
    assert speeds["a"] == (
        Speed(batch=1, images_per_second=2),
        Speed(batch=8, images_per_second=2),
    )
    assert [speed.images_per_second for speed in speeds["b"]] == [0.5, 0.5]
    # Each as many pictures without being timed as for the clock, then the other.
    one_by_one, by_eight = 2 * PICTURES, 2 * PICTURES // 8
    expected = [0.5] * one_by_one + [2.0] * one_by_one + [0.5] * by_eight + [2.0] * by_eight
    assert turns[: len(expected)] == expected
