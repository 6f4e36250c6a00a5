"""Compiled towers against plain ones.

torch's last stage, C++ code, takes minutes for three tiny towers and is left out: what is compared
are the graphs that it would be made from, and their derivatives.
"""

from collections.abc import Iterator
from functools import partialmethod
from typing import Any

import pytest
import torch
from torch import nn

from cohort.cohort import Cohort
from tests.training.squares import LABELS, tiny_config
from training.data import fit_schema, load_rows
from training.model import Slimp
from training.record_batches import RecordBatches
from training.trainer import compile_towers


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The graphs that were compiled; no C++ is made of them."""
    seen: list[Any] = []
    differentiated = torch._dynamo.lookup_backend("aot_eager")

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(graph)
        return differentiated(graph, inputs)

    in_part = partialmethod(nn.Module.compile, backend=backend)
    monkeypatch.setattr(nn.Module, "compile", in_part)
    yield seen
    torch._dynamo.reset()


def gradients(cohort: Cohort, *, compiled: bool) -> dict[str, torch.Tensor]:
    """Return the nested loss's gradient on one batch."""
    config = tiny_config(objective={"column_dropout": 0.0})
    rows = load_rows(cohort, ["train"], LABELS)
    schema = fit_schema(cohort.schema, rows)
    torch.manual_seed(0)
    model = Slimp(config, schema)
    if compiled:
        compile_towers(model)
    batch = RecordBatches(rows, schema, config.objective).batch(torch.arange(20))
    batch["pixels"] = torch.randn(20, 3, 16, 16)
    torch.autograd.backward([term.loss for term in model(batch).values()])
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_compiled_towers_have_the_gradients_of_plain_ones(
    cohort: Cohort, graphs: list[Any]
) -> None:
    expected, found = (gradients(cohort, compiled=by) for by in (False, True))
    assert len(graphs) >= 3
    assert len(expected) > 30
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        off = (found[name] - gradient).abs().max()
        assert off <= 1e-5 * gradient.abs().max() + 1e-7, name
