"""Label-free image augmentation, on the device that trains."""

import torch
from kornia import augmentation as K
from torch import nn

from bundle.images import ImageInput
from training.config import AugmentSettings


class Augment(nn.Module):
    """Random crop, turn and mild colour change, then the standardisation of the image input."""

    def __init__(self, settings: AugmentSettings, spec: ImageInput) -> None:
        super().__init__()
        size = (spec.size_px, spec.size_px)
        steps: list[nn.Module] = [
            K.RandomResizedCrop(size, scale=(settings.min_crop, 1.0), ratio=(0.85, 1.18))
        ]
        if settings.flip:
            steps += [K.RandomHorizontalFlip(), K.RandomVerticalFlip()]
        if settings.quarter_turns:
            # Every pixel stays; a free rotation fills the corners with black. They are rounded, so
            # that each of the four comes equally often.
            steps.append(K.RandomRotation90((-2, 2), p=1.0))
        if settings.rotate_degrees:
            steps.append(K.RandomRotation(settings.rotate_degrees, p=0.5))
        colour = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
        if any(colour):
            steps.append(K.ColorJitter(*colour, p=0.8))
        self.steps = nn.Sequential(*steps)
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1))

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (N, 3, size_px, size_px) float32.

        Args:
            pixels: (N, H, W, 3) uint8 squares of side resize_px.
        """
        images = pixels.permute(0, 3, 1, 2).float() / 255
        return (self.steps(images) - self.mean) / self.std
