"""What the encoders are pre-trained on: the nested loss of SLIMP, its parts and the baselines.

Read `objective` (what each of them is), `nested` (SLIMP), then the others.
"""

from training.config import Config, ObjectiveSettings
from training.image_encoder import ImageEncoder
from training.objectives.masked_images import MaskedImages
from training.objectives.nested import Nested
from training.objectives.objective import Objective
from training.objectives.supervised import Supervised
from training.objectives.views import Views
from training.objectives.whole_record import WholeRecord


def build_objective(config: Config, image: ImageEncoder, labels: int) -> Objective:
    """Return the objective that the configuration names.

    Args:
        config: the experiment.
        image: the tower whose features are contrasted.
        labels: how many labels there are; only `supervised` reads them.
    """
    settings, dim = config.objective, image.width
    if settings.name in ("flat", "clip", "siglip"):
        return WholeRecord(settings, dim)
    if settings.name == "simclr":
        return Views(settings, dim)
    if settings.name == "mae":
        return MaskedImages(config, dim, image.patch_px)
    if settings.name == "supervised":
        return Supervised(config.fit, dim, labels)
    return Nested(settings, dim)


def build_views(settings: ObjectiveSettings, dim: int) -> Views | None:
    """Return the image self-supervision beside the objective, None where it has no weight."""
    return Views(settings, dim, weight=settings.image_weight) if settings.image_weight else None
