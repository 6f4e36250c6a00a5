"""One ONNX graph a tower, with a dynamic batch and a dynamic number of lesions."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx
import torch
from torch import nn
from torch.export import Dim

from bundle.encoder import GRAPHS
from bundle.fields import FieldSchema
from bundle.images import ImageInput
from training.encoders import TorchEncoders

# Numbers of the example batch; none may be 0 or 1, which the exporter takes for constants.
ROWS, LESIONS = 3, 5
OPSET = 20


@dataclass(frozen=True)
class Graph:
    """A torch module and how to call it.

    Attributes:
        name: as in `bundle.encoder.GRAPHS`, whose input names and order the module's are.
        module: in evaluation mode.
        example: makes inputs for a batch of rows, or for one patient's lesions.
        dynamic: the axis that varies: 0 for rows; for the context graph, 1 for lesions.
    """

    name: str
    module: nn.Module
    example: Callable[[int, torch.Generator], tuple[torch.Tensor, ...]]
    dynamic: int = 0


def graphs_of(encoders: TorchEncoders, schema: FieldSchema, spec: ImageInput) -> list[Graph]:
    """Return the graphs that a run's modules and fields call for."""
    towers, dim = encoders.towers, encoders.embedding_dim

    def pixels(count: int, random: torch.Generator) -> tuple[torch.Tensor, ...]:
        return (torch.randn(count, 3, spec.size_px, spec.size_px, generator=random),)

    graphs = [Graph("image_encoder", towers.image, pixels)]
    for name, tower, fields in (
        ("metadata_encoder", towers.lesion, schema.at("lesion")),
        ("patient_encoder", towers.patient, schema.at("patient")),
    ):
        if tower is not None:
            graphs.append(Graph(name, tower, _record_example(len(fields))))
    graphs.append(Graph("classifier", encoders.classifier, _classifier_example(dim)))
    if encoders.context_model is not None:
        graphs.append(Graph("context", encoders.context_model, _context_example(dim), dynamic=1))
    return graphs


def _record_example(
    fields: int,
) -> Callable[[int, torch.Generator], tuple[torch.Tensor, ...]]:
    def example(count: int, random: torch.Generator) -> tuple[torch.Tensor, ...]:
        present = torch.rand(count, fields, generator=random) < 0.7
        values = torch.randn(count, fields, generator=random)
        return torch.where(present, values, 0), present

    return example


def _classifier_example(
    dim: int,
) -> Callable[[int, torch.Generator], tuple[torch.Tensor, ...]]:
    def example(count: int, random: torch.Generator) -> tuple[torch.Tensor, ...]:
        features = (torch.randn(count, dim, generator=random) for _ in range(3))
        flags = (torch.rand(count, generator=random) < 0.7 for _ in range(3))
        return (*features, *flags)

    return example


def _context_example(
    dim: int,
) -> Callable[[int, torch.Generator], tuple[torch.Tensor, ...]]:
    def example(count: int, random: torch.Generator) -> tuple[torch.Tensor, ...]:
        return (
            torch.randn(1, count, dim, generator=random),
            torch.randn(1, count, dim, generator=random),
            torch.rand(1, count, generator=random) < 0.7,
            torch.randn(1, count, generator=random),
            torch.ones(1, count, dtype=torch.bool),
            torch.randn(1, dim, generator=random),
            torch.ones(1, dtype=torch.bool),
        )

    return example


def to_onnx(graph: Graph) -> bytes:
    """Return the graph as a checked ONNX model, weights inside.

    Raises:
        torch.onnx.OnnxExporterError: the module holds an operation that has no ONNX form.
    """
    context = graph.name == "context"
    count = LESIONS if context else ROWS
    inputs = graph.example(count, torch.Generator().manual_seed(0))
    axis = Dim("lesions" if context else "rows", min=1)
    names = GRAPHS[graph.name]
    # What does not vary with the lesions (the patient's own inputs) keeps its shape.
    shapes = tuple(
        {graph.dynamic: axis} if i.shape[graph.dynamic :][:1] == (count,) else {} for i in inputs
    )
    with _quiet():
        program = torch.onnx.export(
            graph.module.eval(),
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(names),
            output_names=["output"],
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter returned no program")
    model = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's running commentary off the terminal; its errors still come through."""
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        noisy.setLevel(level)
