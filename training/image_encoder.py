"""The image tower: a vision transformer read out at a chosen block.

Any Hugging Face ViT or DINOv2 checkpoint, or a ViT from scratch. A middle block of a pretrained
network often transfers best, so the blocks after the readout are not even built.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
)
from transformers.utils import logging

from bundle.errors import InvalidSettings
from training.config import ImageSettings
from training.stem import ConvolutionalStem
from training.whitening import Whitening

FAMILIES = ("vit", "dinov2")
# The tower has a norm of its own after the readout, and masks no patch.
NOT_READ = ("layernorm.", "embeddings.mask_token")


class ImageEncoder(nn.Module):
    """Prepared images to features: class token or mean patch token after the last kept block.

    `centre` and `basis` are the metric that `fit` finds (training/whitening.py): a vision
    transformer's features share a large common part, which would make every cosine similarity look
    high, and much of their spread is between photographs of one lesion.
    """

    centre: torch.Tensor
    basis: torch.Tensor

    def __init__(self, backbone: PreTrainedModel, width: int, settings: ImageSettings) -> None:
        super().__init__()
        self.backbone = backbone
        self.width = width
        # The patch embedding counts as block -1: it is kept only where a block after it is.
        self.first_trainable = settings.frozen_blocks or -1
        self.readout = settings.readout
        self.views = settings.views
        self.set_trainable(True)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("basis", torch.eye(width))

    def use(self, whitening: Whitening) -> None:
        """Give features in this metric from now on."""
        self.centre.copy_(torch.from_numpy(whitening.centre))
        self.basis.copy_(torch.from_numpy(whitening.basis))

    @property
    def patch_px(self) -> int:
        side: int = self.backbone.config.patch_size
        return side

    def embed_patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (N, 1 + P, D) tokens before the first block: class token, patches row by row."""
        tokens: torch.Tensor = self.backbone.embeddings(pixels)
        return tokens

    def encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (N, T, D) tokens after the last kept block, of some tokens before the first."""
        if self.backbone.config.model_type == "dinov2":
            tokens = self.backbone.encoder(tokens).last_hidden_state
        else:
            for block in self.backbone.layers:
                tokens = block(tokens)
        encoded: torch.Tensor = self.backbone.layernorm(tokens)
        return encoded

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (N, D) features of (N, 3, H, W) prepared images.

        In evaluation mode the mean over `image.views`: a lesion has no left and no top, and what a
        network makes of its mirror images differs by chance.
        """
        views = 1 if self.training else self.views
        tokens: torch.Tensor = self.backbone(mirrored(pixels, views)).last_hidden_state
        feature = tokens[:, 0] if self.readout == "class" else tokens[:, 1:].mean(1)
        if views > 1:
            feature = feature.unflatten(0, (views, -1)).mean(0)
        return (feature - self.centre) @ self.basis

    def read_at(self, size_px: int) -> None:
        """Take images of another side from now on, by interpolating the position table.

        Raises:
            InvalidSettings: no whole number of patches fills the side.
        """
        if size_px != self.backbone.config.image_size:
            _set_input_size(self.backbone, size_px)

    def set_trainable(self, trainable: bool) -> None:
        """Let the tower train, but for the blocks that are to stay as the checkpoint has them."""
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(trainable and block_of(name) >= self.first_trainable)


def mirrored(pixels: torch.Tensor, views: int) -> torch.Tensor:
    """Return (views * N, 3, H, W): N images, their mirror images, and all of them upside down."""
    for axis in (3, 2)[: views.bit_length() - 1]:
        pixels = torch.cat([pixels, pixels.flip(axis)])
    return pixels


def block_of(parameter: str) -> float:
    """Return the block a parameter belongs to: -1 for the embeddings, infinity after the blocks."""
    if parameter.startswith("embeddings."):
        return -1
    block = re.match(r"(?:encoder\.)?layers?\.(\d+)\.", parameter)
    return math.inf if block is None else int(block[1])


def build_image_encoder(settings: ImageSettings, *, pretrained: bool = True) -> ImageEncoder:
    """Return the image tower that the settings describe.

    Args:
        settings: `source` chooses between scratch and a checkpoint.
        pretrained: False builds the architecture alone, for weights that are loaded afterwards.

    Raises:
        InvalidSettings: the checkpoint cannot be read, is of another family, has fewer blocks than
            the readout or lacks weights; or a setting that this kind of tower does not have is set.
    """
    if settings.source == "scratch":
        return _from_scratch(settings)
    with _reading(settings.source):
        config = AutoConfig.from_pretrained(settings.source)
    if config.model_type not in FAMILIES:
        raise InvalidSettings(
            f"image.source: expected a checkpoint of {' or '.join(FAMILIES)}, "
            f"{settings.source} is {config.model_type}"
        )
    blocks = settings.readout_block or config.num_hidden_layers
    if blocks > config.num_hidden_layers:
        raise InvalidSettings(
            f"image.readout_block: {settings.source} has {config.num_hidden_layers} blocks, "
            f"block {blocks} was asked for"
        )
    config.num_hidden_layers = blocks
    if settings.drop_path and config.model_type != "dinov2":
        raise _no_drop_path(config.model_type)
    config.drop_path_rate = settings.drop_path
    options = {"add_pooling_layer": False} if config.model_type == "vit" else {}
    if pretrained:
        backbone = _read_weights(settings.source, config, options)
    else:
        backbone = AutoModel.from_config(config, **options)
    _set_input_size(backbone, settings.size_px)
    _reset_readout(backbone)
    return ImageEncoder(backbone, config.hidden_size, settings)


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Keep transformers from listing the blocks that are left out, and name what it cannot read."""
    verbosity, is_showing = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidSettings(
            f"image.source: expected scratch, or a checkpoint's folder or hub name, got {source}, "
            f"which cannot be read ({reason}): check its spelling and that config.json and "
            "model.safetensors are in it"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
        if is_showing:
            logging.enable_progress_bar()


def _read_weights(
    source: str, config: PretrainedConfig, options: dict[str, bool]
) -> PreTrainedModel:
    with _reading(source):
        backbone, found = AutoModel.from_pretrained(
            source, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    lacking = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    needed = sorted(name for name in lacking if not name.startswith(NOT_READ))
    if needed:
        raise InvalidSettings(
            f"image.source: expected all weights of a {config.model_type}, {source} lacks "
            f"{len(needed)} or has them in another shape, {needed[0]} first: name a complete one"
        )
    return backbone


def _no_drop_path(family: str) -> InvalidSettings:
    return InvalidSettings(
        f"image.drop_path: expected 0, since only a dinov2 can leave blocks out, got a {family}"
    )


def _from_scratch(settings: ImageSettings) -> ImageEncoder:
    if settings.drop_path:
        raise _no_drop_path("vit from scratch")
    if settings.readout_block is not None and settings.readout_block > settings.blocks:
        raise InvalidSettings(
            f"image.readout_block: expected at most image.blocks, {settings.blocks}, got "
            f"{settings.readout_block}"
        )
    config = ViTConfig(
        hidden_size=settings.width,
        num_hidden_layers=settings.readout_block or settings.blocks,
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.width,
        image_size=settings.size_px,
        patch_size=settings.patch_px,
    )
    backbone = ViTModel(config, add_pooling_layer=False)
    if settings.stem == "convolutional":
        patches = backbone.embeddings.patch_embeddings
        patches.projection = ConvolutionalStem(settings.patch_px, settings.width)
    return ImageEncoder(backbone, settings.width, settings)


def _set_input_size(backbone: PreTrainedModel, size_px: int) -> None:
    """Interpolate the position table once, so that the graph holds it as a constant."""
    patch_px = backbone.config.patch_size
    if size_px % patch_px:
        raise InvalidSettings(
            f"image.size_px and fit.size_px: expected multiples of the patch side {patch_px}, got "
            f"{size_px}"
        )
    table: torch.Tensor = backbone.embeddings.position_embeddings.data
    side, old = size_px // patch_px, round((table.shape[1] - 1) ** 0.5)
    grid = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(
        grid, size=(side, side), mode="bicubic", align_corners=False, antialias=side < old
    )
    patches = resized.permute(0, 2, 3, 1).reshape(1, side * side, -1)
    backbone.embeddings.position_embeddings = nn.Parameter(torch.cat([table[:, :1], patches], 1))
    backbone.config.image_size = size_px
    # Each family checks the side in another place.
    backbone.embeddings.image_size = (size_px, size_px)
    backbone.embeddings.patch_embeddings.image_size = (size_px, size_px)


def _reset_readout(backbone: PreTrainedModel) -> None:
    """Give the readout a norm of its own: the checkpoint's belongs to its last block."""
    backbone.layernorm = nn.LayerNorm(backbone.config.hidden_size, backbone.config.layer_norm_eps)
