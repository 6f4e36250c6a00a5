import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel
from transformers.utils import logging

from bundle.errors import InvalidSettings
from training.config import ImageSettings
from training.image_encoder import ImageEncoder, block_of, build_image_encoder
from training.pages import attention

PATCH = 8
SIDE = 32
BLOCKS = 3
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}


@pytest.fixture(scope="module", params=["vit", "dinov2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in Hugging Face layout."""
    folder = tmp_path_factory.mktemp("checkpoints") / str(request.param)
    torch.manual_seed(0)
    if request.param == "vit":
        model = ViTModel(ViTConfig(**SHAPE, intermediate_size=32), add_pooling_layer=False)
    else:
        model = Dinov2Model(Dinov2Config(**SHAPE, mlp_ratio=2))
    model.embeddings.position_embeddings.data.normal_()
    model.save_pretrained(folder)
    return folder


def settings_of(checkpoint: Path, size_px: int = SIDE, **changes: int | str) -> ImageSettings:
    content = {"source": str(checkpoint), "size_px": size_px, "resize_px": size_px}
    return ImageSettings.model_validate({**content, **changes})


def pixels(size_px: int) -> torch.Tensor:
    return torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))


def blocks_of(encoder: ImageEncoder) -> set[float]:
    numbers = {block_of(name) for name, _ in encoder.backbone.named_parameters()}
    return {n for n in numbers if 0 <= n < math.inf}


def frozen_of(encoder: ImageEncoder) -> set[float]:
    named = encoder.backbone.named_parameters()
    return {block_of(name) for name, parameter in named if not parameter.requires_grad}


def test_a_tower_from_scratch_answers_with_its_width_less_the_centre() -> None:
    torch.manual_seed(0)
    settings = ImageSettings(size_px=16, resize_px=16, patch_px=8, width=16, blocks=2, heads=2)
    encoder = build_image_encoder(settings).eval()
    features = encoder(pixels(16))
    assert features.shape == (2, 16)
    assert blocks_of(encoder) == {0, 1}
    encoder.centre.fill_(2)
    torch.testing.assert_close(encoder(pixels(16)), features - 2)


@pytest.mark.parametrize(("views", "axes"), [(2, [(), (3,)]), (4, [(), (3,), (2,), (2, 3)])])
def test_mirror_images_answer_together_but_train_alone(
    checkpoint: Path, views: int, axes: list[tuple[int, ...]]
) -> None:
    alone = build_image_encoder(settings_of(checkpoint)).eval()
    encoder = build_image_encoder(settings_of(checkpoint, views=views)).eval()
    encoder.load_state_dict(alone.state_dict())
    encoder.centre.fill_(2)
    expected = torch.stack([alone(pixels(SIDE).flip(each)) for each in axes]).mean(0) - 2
    torch.testing.assert_close(encoder(pixels(SIDE)), expected)
    torch.testing.assert_close(encoder(pixels(SIDE).flip(axes[-1])), expected)
    torch.testing.assert_close(encoder.train()(pixels(SIDE)), alone(pixels(SIDE)) - 2)


def test_a_checkpoint_keeps_its_weights_and_its_answers_before_the_readout(
    checkpoint: Path,
) -> None:
    encoder = build_image_encoder(settings_of(checkpoint)).eval()
    model = ViTModel if checkpoint.name == "vit" else Dinov2Model
    options = {"add_pooling_layer": False} if checkpoint.name == "vit" else {}
    original = model.from_pretrained(checkpoint, **options).eval()
    hidden = original(pixels(SIDE), output_hidden_states=True).hidden_states[-1][:, 0]
    # A new norm has unit scale and no shift.
    centred = hidden - hidden.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + 1e-12).sqrt()
    torch.testing.assert_close(encoder(pixels(SIDE)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size_px", [16, 48])
def test_the_position_table_is_interpolated_to_another_size(checkpoint: Path, size_px: int) -> None:
    own = build_image_encoder(settings_of(checkpoint))
    other = build_image_encoder(settings_of(checkpoint, size_px)).eval()
    table = own.backbone.get_parameter("embeddings.position_embeddings").detach()
    resized = other.backbone.get_parameter("embeddings.position_embeddings").detach()
    side = size_px // PATCH
    assert resized.shape == (1, 1 + side**2, 16)
    assert torch.equal(resized[:, 0], table[:, 0])
    grid = table[0, 1:].T.reshape(1, 16, 4, 4)
    expected = interpolate(grid, (side, side), mode="bicubic", antialias=side < 4)
    torch.testing.assert_close(resized[0, 1:], expected[0].reshape(16, -1).T)
    assert other(pixels(size_px)).shape == (2, 16)


def test_a_tower_that_reads_another_size_from_now_on_is_one_that_was_built_for_it(
    checkpoint: Path,
) -> None:
    built = build_image_encoder(settings_of(checkpoint, 48)).eval()
    grown = build_image_encoder(settings_of(checkpoint)).eval()
    grown.backbone.layernorm.load_state_dict(built.backbone.layernorm.state_dict())
    before = {k: v.clone() for k, v in grown.state_dict().items()}
    grown.read_at(SIDE)
    assert all(torch.equal(v, before[k]) for k, v in grown.state_dict().items())
    grown.read_at(48)
    torch.testing.assert_close(grown(pixels(48)), built(pixels(48)))


def test_the_blocks_after_the_readout_are_not_built(checkpoint: Path) -> None:
    whole = build_image_encoder(settings_of(checkpoint))
    middle = build_image_encoder(settings_of(checkpoint, readout_block=2))
    assert blocks_of(whole) == {0, 1, 2}
    assert blocks_of(middle) == {0, 1}


def test_a_run_that_brings_its_own_weights_gets_the_architecture_alone(checkpoint: Path) -> None:
    torch.manual_seed(0)
    settings = settings_of(checkpoint, 16, readout_block=1)
    trained = build_image_encoder(settings)
    bare = build_image_encoder(settings, pretrained=False)
    table = "embeddings.position_embeddings"
    assert not torch.equal(
        bare.backbone.get_parameter(table), trained.backbone.get_parameter(table)
    )
    bare.load_state_dict(trained.state_dict())
    assert torch.equal(bare.eval()(pixels(16)), trained.eval()(pixels(16)))


def test_frozen_blocks_get_no_gradient_and_keep_none_after_a_pause(checkpoint: Path) -> None:
    encoder = build_image_encoder(settings_of(checkpoint, frozen_blocks=2))
    assert frozen_of(encoder) == {-1, 0, 1}
    encoder(pixels(SIDE)).square().sum().backward()
    grown = {
        block_of(name)
        for name, parameter in encoder.backbone.named_parameters()
        if parameter.grad is not None
    }
    assert grown == {2, math.inf}
    encoder.set_trainable(False)
    assert frozen_of(encoder) == {-1, 0, 1, 2, math.inf}
    encoder.set_trainable(True)
    assert frozen_of(encoder) == {-1, 0, 1}


def test_without_frozen_blocks_everything_trains(checkpoint: Path) -> None:
    assert frozen_of(build_image_encoder(settings_of(checkpoint))) == set()


def test_a_readout_beyond_the_last_block_is_refused(checkpoint: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"image\.readout_block.* 3 blocks, block 4"):
        build_image_encoder(settings_of(checkpoint, readout_block=4))


def test_what_a_tower_from_scratch_does_not_have_is_refused() -> None:
    with pytest.raises(InvalidSettings, match=r"image\.drop_path: expected 0.* vit from scratch"):
        build_image_encoder(ImageSettings(drop_path=0.2))
    with pytest.raises(InvalidSettings, match=r"image\.readout_block: .* image\.blocks, 2, got 8"):
        build_image_encoder(ImageSettings(blocks=2, readout_block=8))


def test_a_side_that_no_patches_fill_is_refused(checkpoint: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"image\.size_px.*: expected multiples.* 8, got 20"):
        build_image_encoder(settings_of(checkpoint, 20))


def test_a_checkpoint_of_another_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InvalidSettings, match=r"image\.source: expected .*vit or dinov2.* is bert"):
        build_image_encoder(settings_of(tmp_path))


def test_a_folder_that_holds_no_checkpoint_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    told = r"image\.source: expected scratch, or a checkpoint's folder .*cannot be read .*spelling"
    with pytest.raises(InvalidSettings, match=told):
        build_image_encoder(settings_of(tmp_path / "mistyped"))
    with pytest.raises(InvalidSettings, match=told):
        build_image_encoder(settings_of(tmp_path))
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    with pytest.raises(InvalidSettings, match=told):
        build_image_encoder(settings_of(tmp_path))
    whole = (checkpoint / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidSettings, match=told):
        build_image_encoder(settings_of(tmp_path))


def without(checkpoint: Path, folder: Path, *names: str, **changed: torch.Tensor) -> Path:
    """Return a copy of a checkpoint without the weights whose names end so."""
    shutil.copytree(checkpoint, folder)
    file = folder / "model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if not k.endswith(names)}
    save_file({**kept, **changed}, file, metadata={"format": "pt"})
    return folder


def test_a_checkpoint_that_lacks_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    name = "embeddings.cls_token"
    told = rf"image\.source: expected all weights of a {checkpoint.name}.* lacks 1 .*, {name} first"
    lacking = without(checkpoint, tmp_path / "lacking", "cls_token")
    with pytest.raises(InvalidSettings, match=told):
        build_image_encoder(settings_of(lacking))
    other = without(checkpoint, tmp_path / "other", **{name: torch.zeros(1, 1, 8)})
    with pytest.raises(InvalidSettings, match=told):
        build_image_encoder(settings_of(other))


def test_weights_that_the_tower_does_not_read_may_be_absent(
    checkpoint: Path, tmp_path: Path
) -> None:
    unread = ("mask_token", "layernorm.weight", "layernorm.bias")
    bare = without(checkpoint, tmp_path / "bare", *unread)
    whole, without_them = (
        build_image_encoder(settings_of(path)).eval() for path in (checkpoint, bare)
    )
    assert torch.equal(whole(pixels(SIDE)), without_them(pixels(SIDE)))


def test_blocks_left_out_on_purpose_are_not_reported(
    checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    verbosity = logging.get_verbosity()
    logging.enable_progress_bar()
    try:
        build_image_encoder(settings_of(checkpoint, readout_block=1))
        assert capfd.readouterr() == ("", "")
        assert logging.get_verbosity() == verbosity
        assert logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        build_image_encoder(settings_of(checkpoint, readout_block=1))
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.enable_progress_bar()


def test_attention_is_shared_among_the_patches(checkpoint: Path) -> None:
    tower = build_image_encoder(settings_of(checkpoint, readout_block=2)).eval()
    before = tower.backbone.config._attn_implementation
    shares = attention(tower, pixels(SIDE).numpy())
    assert shares.shape == (2, SIDE // PATCH, SIDE // PATCH)
    np.testing.assert_allclose(shares.sum((1, 2)), 1, rtol=1e-5)
    assert shares.std() > 0
    assert tower.backbone.config._attn_implementation == before
    mean = build_image_encoder(settings_of(checkpoint, readout_block=2, readout="mean")).eval()
    assert not np.allclose(attention(mean, pixels(SIDE).numpy()), shares)
