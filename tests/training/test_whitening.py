"""The embedding's metric: what changes within lesions weighs little, and nothing else is lost."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from training.config import ImageSettings
from training.heads import Classifier
from training.image_encoder import build_image_encoder
from training.whitening import Whitening, even_out, fit_whitening, spread_within

FloatArray = npt.NDArray[np.float32]
WIDTH = 8


def photographs(*, lesions: int = 300, seed: int = 0) -> tuple[FloatArray, list[str]]:
    """Return three pictures a lesion; between them, only the first two directions change much."""
    rng = np.random.default_rng(seed)
    lesion = np.repeat(np.arange(lesions), 3)
    nuisance = rng.normal(size=(len(lesion), WIDTH)) * ([6, 4] + [0.5] * (WIDTH - 2))
    features = rng.normal(size=(lesions, WIDTH))[lesion] + nuisance + 7
    return features.astype(np.float32), [f"l{i}" for i in lesion]


def test_pictures_of_one_lesion_differ_alike_in_all_directions() -> None:
    features, lesion = photographs()
    mapped = fit_whitening(features, lesion).apply(features)
    within = np.concatenate(
        [mapped[i : i + 3] - mapped[i : i + 3].mean(0) for i in range(0, 900, 3)]
    )
    spread = np.cov(within.T)
    np.testing.assert_allclose(spread / spread[0, 0], np.eye(WIDTH), atol=0.2)
    np.testing.assert_allclose(mapped.mean(0), 0, atol=1e-4)


def test_the_mean_variance_stays() -> None:
    features, lesion = photographs()
    mapped = fit_whitening(features, lesion).apply(features)
    assert mapped.var(0).mean() == pytest.approx(features.var(0).mean(), rel=1e-3)


def test_another_picture_of_the_lesion_is_found_first() -> None:
    features, lesion = photographs()

    def found(values: FloatArray) -> float:
        centred = values - values.mean(0)
        unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        near = unit @ unit.T
        np.fill_diagonal(near, -1)
        return float(np.mean([lesion[i] == lesion[j] for i, j in enumerate(near.argmax(1))]))

    held_out, _ = photographs(seed=1)
    assert found(fit_whitening(features, lesion).apply(held_out)) > 2 * found(held_out)


def test_without_several_pictures_of_a_lesion_features_are_centred_alone() -> None:
    features, _ = photographs(lesions=5)
    whitening = fit_whitening(features, [str(i) for i in range(len(features))])
    np.testing.assert_array_equal(whitening.basis, np.eye(WIDTH))
    np.testing.assert_allclose(whitening.apply(features), features - features.mean(0), atol=1e-5)


def test_few_pictures_give_a_rounder_metric() -> None:
    def ratio(lesions: int) -> float:
        values = np.linalg.eigvalsh(fit_whitening(*photographs(lesions=lesions)).basis)
        return float(values.max() / values.min())

    assert 1 < ratio(3) < ratio(300)
    # One lesion of several pictures is enough for a map that can be undone.
    features, lesion = photographs(lesions=1)
    assert np.isfinite(np.linalg.inv(fit_whitening(features, lesion).basis)).all()


def test_equal_pictures_are_centred_alone() -> None:
    whitening = fit_whitening(np.ones((4, WIDTH), np.float32), ["a", "a", "b", "b"])
    np.testing.assert_array_equal(whitening.basis, np.eye(WIDTH))


def test_a_classifier_reads_on_what_it_was_trained_on() -> None:
    features, lesion = photographs()
    now = fit_whitening(features, lesion)
    trained = Whitening.none(WIDTH, features[0])
    torch.manual_seed(0)
    classifier = Classifier(WIDTH, 3, hidden=16, dropout=0.0).eval()

    def answers(values: FloatArray) -> torch.Tensor:
        image = torch.from_numpy(values)
        nothing, yes = torch.zeros_like(image), torch.ones(len(values), dtype=torch.bool)
        logits: torch.Tensor = classifier(image, nothing, nothing, yes, ~yes, ~yes)
        return logits

    before = answers(trained.apply(features))
    classifier.read_from(now, trained)
    torch.testing.assert_close(answers(now.apply(features)), before, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(answers(trained.apply(features)), before, atol=1e-2)


def test_a_tower_gives_its_features_in_the_metric() -> None:
    settings = ImageSettings(size_px=16, resize_px=16, patch_px=8, width=WIDTH, blocks=1, heads=2)
    tower = build_image_encoder(settings).eval()
    pixels = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw = tower(pixels).numpy()
        whitening = fit_whitening(raw, ["a", "a", "b", "b", "c"])
        tower.use(whitening)
        np.testing.assert_allclose(tower(pixels).numpy(), whitening.apply(raw), atol=1e-4)


def test_a_power_between_evens_a_part_of_the_spread_out() -> None:
    features, lesion = photographs()
    spread = spread_within(features, lesion)
    assert spread is not None
    ratios = []
    for power in (0, 0.5, 1):
        basis = even_out(features, spread, power).basis.astype(np.float64)
        left = np.linalg.eigvalsh(basis.T @ spread @ basis)
        ratios.append(left[-1] / left[0])
    original = np.linalg.eigvalsh(spread)
    assert ratios == pytest.approx(
        [original[-1] / original[0], (original[-1] / original[0]) ** 0.5, 1], rel=1e-3
    )
