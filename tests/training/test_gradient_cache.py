from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from bundle.errors import InvalidSettings
from cohort.cohort import Cohort
from tests.training.squares import LABELS, read_metrics, tiny_config
from training.batch import Batch, Encode, encode_at_once
from training.config import read_config
from training.data import fit_schema, load_rows
from training.gradient_cache import GradientCache
from training.model import Slimp
from training.record_batches import RecordBatches
from training.trainer import pretrain

CHUNK = 5


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny checkpoint: the one kind of image tower that leaves out blocks by chance."""
    folder = tmp_path_factory.mktemp("checkpoints") / "dinov2"
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**shape, mlp_ratio=2, image_size=16, patch_size=8)).save_pretrained(
        folder
    )
    return str(folder)


def model_and_batch(cohort: Cohort, dinov2: str) -> tuple[Slimp, Batch]:
    """Return towers with dropout on and one batch, in float64."""
    image = {"source": dinov2, "drop_path": 0.4, "size_px": 16, "resize_px": 16}
    config = tiny_config(record={"dropout": 0.3}, image=image, objective={"pooling": "attention"})
    rows = load_rows(cohort, ["train"], LABELS)
    schema = fit_schema(cohort.schema, rows)
    torch.manual_seed(0)
    model = Slimp(config, schema).double().train()
    batch = RecordBatches(rows, schema, config.objective).batch(torch.arange(22))
    batch["pixels"] = torch.randn(22, 3, 16, 16)
    return model, {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def gradients(
    model: Slimp, batch: Batch, encode: Encode, cache: GradientCache | None = None
) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(1)
    terms = model(batch, encode)
    torch.autograd.backward([term.loss for term in terms.values()])
    if cache is not None:
        cache.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def encode_in_chunks(tower: torch.nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """The same chunks, all activations kept: dropout draws as it does in the cache."""
    parts = zip(*(torch.split(i, CHUNK) for i in inputs), strict=True)
    return torch.cat([tower(*part) for part in parts])


def test_the_cached_gradient_is_the_whole_batchs_with_dropout_on(
    cohort: Cohort, dinov2: str
) -> None:
    model, batch = model_and_batch(cohort, dinov2)
    expected = gradients(model, batch, encode_in_chunks)
    cache = GradientCache(CHUNK, nullcontext)
    found = gradients(model, batch, cache.encode, cache)
    assert found.keys() == expected.keys()
    assert len(expected) > 30
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-12)
    other = gradients(model, batch, encode_at_once)
    scale = "objective.patient_log_scale"
    assert not torch.allclose(other[scale], expected[scale])


def test_the_cache_leaves_the_random_numbers_where_one_pass_does(
    cohort: Cohort, dinov2: str
) -> None:
    model, batch = model_and_batch(cohort, dinov2)
    gradients(model, batch, encode_in_chunks)
    expected = torch.rand(3)
    cache = GradientCache(CHUNK, nullcontext)
    gradients(model, batch, cache.encode, cache)
    assert torch.equal(torch.rand(3), expected)


def test_a_frozen_tower_and_an_unused_feature_are_left_alone(cohort: Cohort, dinov2: str) -> None:
    model, batch = model_and_batch(cohort, dinov2)
    model.image.requires_grad_(False)
    cache = GradientCache(CHUNK, nullcontext)
    cache.encode(model.image, batch["pixels"])
    found = gradients(model, batch, cache.encode, cache)
    assert not any(name.startswith("image.") for name in found)
    assert any(name.startswith("lesion.") for name in found)


def test_a_run_in_chunks_takes_the_steps_of_a_run_in_one_piece(
    cohort: Cohort, tmp_path: Path
) -> None:
    lines = []
    for chunk in (None, 6):
        config = tiny_config(log_steps=1, batch={"chunk": chunk}, optimiser={"epochs": 2})
        out = tmp_path / f"chunk {chunk}"
        pretrain(cohort, config, out)
        lines.append(read_metrics(out))
    whole, chunked = lines
    for name in ("loss", "gradient_norm", "lesion_loss", "patient_loss"):
        assert [m[name] for m in chunked] == pytest.approx([m[name] for m in whole], rel=1e-3)


def test_chunks_under_batch_norm_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[image]\nstem = "convolutional"\n[batch]\nchunk = 8\n')
    with pytest.raises(InvalidSettings, match=r"batch\.chunk cannot be used with a convolutional"):
        read_config(file)
