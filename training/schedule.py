"""AdamW and its learning rate, shared by pre-training, continual pre-training and fine-tuning."""

import math
from collections.abc import Callable

from torch import nn
from torch.optim import AdamW

from training.config import OptimiserSettings


def build_optimiser(model: nn.Module, settings: OptimiserSettings) -> AdamW:
    """Return AdamW: no decay on vectors and scales, a rate of its own for the image tower."""
    groups = []
    for is_image in (True, False):
        rate = settings.learning_rate * (settings.image_rate_scale if is_image else 1.0)
        for decays in (True, False):
            chosen = [
                p
                for name, p in model.named_parameters()
                if p.requires_grad
                and name.startswith("image.") == is_image
                and (p.ndim >= 2) == decays
            ]
            decay = settings.weight_decay if decays else 0.0
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return AdamW(groups, betas=(0.9, 0.98), fused=True)


def warmup_cosine(total: int, warmup: float) -> Callable[[int], float]:
    """Return the rate's factor at a step: linear from 0 to 1, then a half cosine down to 0."""
    rising = max(1, round(total * warmup))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        done = (step - rising) / max(1, total - rising)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor
