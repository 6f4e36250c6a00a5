from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from training.encoders import TorchEncoders
from training.features import FloatArray
from training.fitted import FittedModel, open_fitted
from training.occlusion import PLACES, occlusion

SIDE = 32


class Corner(TorchEncoders):
    """Malignancy is how bright the upper right eighth of the picture is."""

    def __init__(self, of: TorchEncoders, malignant: npt.NDArray[np.bool_]) -> None:
        super().__init__(of.towers, of.classifier, None)
        self.malignant = malignant

    def embed_images(self, pixels: FloatArray) -> FloatArray:
        bright = pixels[:, :, : SIDE // 8, -SIDE // 8 :].mean((1, 2, 3))
        return np.repeat(bright[:, None], self.embedding_dim, 1)

    def classify(self, image: FloatArray, *_: FloatArray, **__: object) -> FloatArray:
        logits = np.zeros((len(image), self.classifier.labels), np.float32)
        logits[:, self.malignant] = 5 * image[:, :1]
        return logits


@pytest.fixture
def model(fitted: Path) -> FittedModel:
    model = open_fitted(fitted)
    assert isinstance(model.encoders, TorchEncoders)
    return replace(model, encoders=Corner(model.encoders, model.malignant))


def test_malignancy_rests_on_the_place_that_the_model_reads(model: FittedModel) -> None:
    pixels = np.zeros((2, 3, SIDE, SIDE), np.float32)
    # The first is bright where the model looks, the second everywhere else.
    pixels[0, :, : SIDE // 8, -SIDE // 8 :] = 1
    pixels[1] = 1 - pixels[0]
    before = pixels.copy()
    lowered = occlusion(model, pixels)
    assert lowered.shape == (2, PLACES, PLACES)
    assert lowered[0, 0, -1] == lowered[0].max() > 0.5
    assert lowered[1, 0, -1] == lowered[1].min() < -0.5
    elsewhere = np.ones((PLACES, PLACES), np.bool_)
    elsewhere[0, -1] = False
    np.testing.assert_array_equal(lowered[:, elsewhere], 0)
    np.testing.assert_array_equal(pixels, before)
