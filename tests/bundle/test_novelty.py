"""Distance of an embedding to the training lesions."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bundle.arrays import read_arrays, write_arrays
from bundle.errors import CorruptBundle
from bundle.novelty import NoveltyModel

FloatArray = npt.NDArray[np.float32]

# N rows, D wide, R components, C labels: all different, so that a swapped axis cannot pass.
N, D, R, C = 11, 7, 3, 4


def make_model(seed: int = 0) -> NoveltyModel:
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(D, R)))
    return NoveltyModel(
        centre=rng.normal(size=D).astype(np.float32),
        components=basis.T.astype(np.float32),
        scales=rng.uniform(0.5, 2, R).astype(np.float32),
        label_means=rng.normal(size=(C, R)).astype(np.float32),
        residual_scale=np.asarray([0.7], np.float32),
    )


MODEL = make_model()


def score_slowly(model: NoveltyModel, embedding: FloatArray) -> float:
    centred = [float(e) - float(c) for e, c in zip(embedding, model.centre, strict=True)]
    along = [
        sum(x * float(d) for x, d in zip(centred, direction, strict=True))
        for direction in model.components
    ]
    explained = [
        sum(a * float(model.components[r][i]) for r, a in enumerate(along)) for i in range(D)
    ]
    leftover = [x - e for x, e in zip(centred, explained, strict=True)]
    residual = sum(x * x for x in leftover) / D / float(model.residual_scale[0]) ** 2
    distances = []
    for mean in model.label_means:
        gaps = [a / float(s) - float(m) for a, s, m in zip(along, model.scales, mean, strict=True)]
        distances.append(sum(g * g for g in gaps) / R)
    return float(((min(distances) + residual) / 2) ** 0.5)


def test_scores_agree_with_the_slow_oracle() -> None:
    embeddings = np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)
    scores = MODEL.score(embeddings)
    assert scores.shape == (N,)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [score_slowly(MODEL, e) for e in embeddings], rtol=1e-4)


def test_small_scales_are_scales_too() -> None:
    small = replace(
        MODEL,
        scales=np.full(R, 1e-3, np.float32),
        residual_scale=np.asarray([1e-3], np.float32),
    )
    np.testing.assert_array_equal(NoveltyModel.from_bytes(small.to_bytes()).scales, small.scales)


def test_no_embeddings_have_no_scores() -> None:
    assert MODEL.score(np.zeros((0, D), np.float32)).shape == (0,)


def test_a_label_mean_itself_has_score_0_and_one_deviation_a_known_one() -> None:
    own = MODEL.centre + (MODEL.label_means[2] * MODEL.scales) @ MODEL.components
    away = own + MODEL.scales[0] * MODEL.components[0] * 1e-3
    scores = MODEL.score(np.stack([own, away]).astype(np.float32))
    assert scores[0] == pytest.approx(0, abs=1e-5)
    assert scores[1] == pytest.approx(1e-3 / np.sqrt(2 * R), rel=0.05)


def test_what_the_components_do_not_explain_counts_too() -> None:
    own = MODEL.centre + (MODEL.label_means[0] * MODEL.scales) @ MODEL.components
    outside = np.random.default_rng(2).normal(size=D)
    outside -= (outside @ MODEL.components.T) @ MODEL.components
    outside *= 0.7 * np.sqrt(D) / np.linalg.norm(outside)  # its root mean square is 0.7
    score = MODEL.score((own + outside)[None].astype(np.float32))
    assert score[0] == pytest.approx(np.sqrt(0.5), rel=1e-3)


def test_a_training_like_sample_scores_about_1() -> None:
    rng = np.random.default_rng(4)
    label = rng.integers(0, C, 4000)
    codes = (MODEL.label_means[label] + rng.normal(size=(4000, R))) * MODEL.scales
    noise = rng.normal(size=(4000, D)) * 0.7 * np.sqrt(D / (D - R))
    noise -= noise @ MODEL.components.T @ MODEL.components
    scores = MODEL.score((MODEL.centre + codes @ MODEL.components + noise).astype(np.float32))
    assert 0.7 < np.median(scores) < 1.1


def test_a_model_comes_back_from_its_bytes() -> None:
    again = NoveltyModel.from_bytes(MODEL.to_bytes())
    for field in fields(NoveltyModel):
        array, expected = getattr(again, field.name), getattr(MODEL, field.name)
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == np.float32


def test_an_object_array_is_refused_unread() -> None:
    import io

    buffer = io.BytesIO()
    arrays: dict[str, Any] = {**MODEL.__dict__, "scales": np.asarray([None] * R, dtype=object)}
    np.savez(buffer, **arrays)
    with pytest.raises(CorruptBundle, match=r"novelty\.npz: expected an archive of arrays"):
        NoveltyModel.from_bytes(buffer.getvalue())


@pytest.mark.parametrize("name", [field.name for field in fields(NoveltyModel)])
def test_a_missing_or_an_unknown_array_is_refused(name: str) -> None:
    arrays = read_arrays(MODEL.to_bytes(), "x")
    rest = {key: array for key, array in arrays.items() if key != name}
    with pytest.raises(CorruptBundle, match=r"novelty\.npz: expected \['centre', .*\], got \["):
        NoveltyModel.from_bytes(write_arrays(rest))
    with pytest.raises(CorruptBundle, match="extra"):
        NoveltyModel.from_bytes(write_arrays({**arrays, "extra": arrays[name]}))


@pytest.mark.parametrize("name", [field.name for field in fields(NoveltyModel)])
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused(name: str, odd: float) -> None:
    broken = getattr(MODEL, name).copy()
    broken.flat[0] = odd
    with pytest.raises(CorruptBundle, match=r"^novelty\.npz: expected finite float32 arrays$"):
        NoveltyModel.from_bytes(replace(MODEL, **{name: broken}).to_bytes())


def test_another_dtype_is_refused() -> None:
    deep: Any = MODEL.centre.astype(np.float64)
    with pytest.raises(CorruptBundle, match=r"^novelty\.npz: expected finite float32 arrays$"):
        NoveltyModel.from_bytes(replace(MODEL, centre=deep).to_bytes())


@pytest.mark.parametrize(
    "change",
    [
        {"centre": np.zeros(D + 1, np.float32)},
        {"centre": np.zeros((1, D), np.float32)},
        {"components": np.zeros((R + 1, D), np.float32)},
        {"components": np.zeros((D, R), np.float32)},
        {"scales": np.ones(R + 1, np.float32)},
        {"label_means": np.zeros((C, R + 1), np.float32)},
        {"label_means": np.zeros((0, R), np.float32)},
        {"residual_scale": np.ones(2, np.float32)},
        {"residual_scale": np.ones((), np.float32)},
    ],
)
def test_shapes_that_do_not_fit_together_are_refused(change: dict[str, FloatArray]) -> None:
    with pytest.raises(
        CorruptBundle, match=r"^novelty\.npz: the arrays' shapes do not fit together$"
    ):
        NoveltyModel.from_bytes(replace(MODEL, **change).to_bytes())


@pytest.mark.parametrize(
    "change",
    [
        {"scales": np.asarray([1, 0, 1], np.float32)},
        {"scales": np.asarray([1, -1, 1], np.float32)},
        {"residual_scale": np.zeros(1, np.float32)},
        {"residual_scale": np.asarray([-1], np.float32)},
    ],
)
def test_a_scale_that_divides_by_nothing_is_refused(change: dict[str, FloatArray]) -> None:
    with pytest.raises(CorruptBundle, match=r"^novelty\.npz: expected scales above 0$"):
        NoveltyModel.from_bytes(replace(MODEL, **change).to_bytes())
