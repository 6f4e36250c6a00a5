"""Pictures that came before: found again, bounded, forgotten, never another model's."""

import io
import random
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from bundle.calibration import FloatArray
from index.catalogue import Catalogue
from service.embeddings import MIB, EmbeddingCache, Model, Seen
from service.ledger.erasures import Erasures
from service.runtime import Runtime, load_runtime
from service.settings import Settings
from tests.fakes import (
    BLUE,
    GREEN,
    RED,
    FakeEncoders,
    draw_image,
    make_lesion,
    make_manifest,
    write_bundle,
    write_catalogue,
)
from tests.service.asking import answer

MODEL = Model("bundle", "fp32")


@dataclass(frozen=True)
class CountingEncoders(FakeEncoders):
    """Fakes that know how many images they were shown, in how many batches."""

    batches: list[int] = field(default_factory=list)

    def embed_images(self, pixels: FloatArray) -> FloatArray:
        self.batches.append(len(pixels))
        return super().embed_images(pixels)


def batches_of(runtime: Runtime) -> list[int]:
    encoders = runtime.models.encoders
    assert isinstance(encoders, CountingEncoders)
    return encoders.batches


@pytest.fixture
def runtime(make_runtime: Callable[..., Runtime]) -> Runtime:
    return make_runtime(encoders=CountingEncoders(), cache=EmbeddingCache(1), catalogue=None)


def stored_as(data: bytes, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).save(buffer, kind, lossless=True)
    return buffer.getvalue()


def seen(number: int, dim: int = 384) -> Seen:
    scores = {"min_side_px": 64.0, "sharpness": 0.1 * number, "brightness": 0.5, "contrast": 0.2}
    return Seen(f"{number:064x}", scores, np.full(dim, number, np.float32))


def keep(cache: EmbeddingCache, one: Seen, model: Model = MODEL) -> None:
    cache.keep(model, f"file:{one.content}", one, cache.era)


def find(cache: EmbeddingCache, number: int, model: Model = MODEL) -> Seen | None:
    return cache.by_content(model, f"{number:064x}")


def test_a_file_that_came_before_is_neither_decoded_nor_embedded_again(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = draw_image(RED)
    first = runtime.classify([picture])
    monkeypatch.setattr("service.pictures.decode_image", None)
    assert runtime.classify([picture]) == first
    assert runtime.embed([picture]).embedding == runtime.embed([picture]).embedding
    assert batches_of(runtime) == [1]


def test_the_same_pixels_in_another_file_are_not_embedded_again(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = runtime.embed([draw_image(RED)])
    assert runtime.embed([stored_as(draw_image(RED), "WEBP")]) == first
    assert batches_of(runtime) == [1]
    with monkeypatch.context() as patch:
        # Both files are known now, and neither is decoded again.
        patch.setattr("service.pictures.decode_image", None)
        assert runtime.embed([stored_as(draw_image(RED), "WEBP")]) == first
        assert runtime.embed([draw_image(RED)]) == first
    assert runtime.embed([draw_image(RED, file_format="JPEG")]) != first
    assert batches_of(runtime) == [1, 1]


def test_of_several_pictures_only_new_ones_are_embedded_and_their_order_stays(
    runtime: Runtime,
) -> None:
    red, green, blue = (draw_image(colour) for colour in (RED, GREEN, BLUE))
    runtime.embed([green])
    answers = runtime.risk([red, green, blue])
    assert batches_of(runtime) == [1, 2]
    assert [lesion.label for lesion in answers.lesions] == ["nv", "mel", "bcc"]
    assert runtime.cache is not None
    assert (runtime.cache.hits, runtime.cache.misses) == (1, 3)


def test_without_a_cache_every_picture_is_looked_at(make_runtime: Callable[..., Runtime]) -> None:
    runtime = make_runtime(encoders=CountingEncoders(), cache=None)
    assert runtime.embed([draw_image(RED)]) == runtime.embed([draw_image(RED)])
    assert batches_of(runtime) == [1, 1]


def test_those_asked_for_least_recently_go_first_and_the_memory_is_bounded() -> None:
    tracemalloc.start()
    cache = EmbeddingCache(1)
    before, _ = tracemalloc.get_traced_memory()
    for number in range(2000):
        keep(cache, seen(number))
        assert find(cache, 0) is not None
        assert cache.size_bytes <= MIB
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.5 * MIB < used <= MIB
    assert find(cache, 1) is None
    assert cache.by_file(MODEL, f"file:{1:064x}") is None
    kept = find(cache, 1999)
    assert kept is not None
    assert kept.embedding.tolist() == [1999.0] * 384


def test_a_cache_of_no_memory_keeps_nothing() -> None:
    cache = EmbeddingCache(0)
    keep(cache, seen(1))
    assert (len(cache), cache.size_bytes) == (0, 0)


@pytest.mark.parametrize("other", [Model("bundle", "int8"), Model("another", "fp32")])
def test_another_bundle_or_variant_never_gets_it(other: Model) -> None:
    cache = EmbeddingCache(1)
    keep(cache, seen(1))
    assert find(cache, 1, other) is None
    assert cache.by_file(other, f"file:{1:064x}") is None
    keep(cache, Seen(seen(1).content, {}, np.zeros(3, np.float32)), other)
    mine = find(cache, 1)
    assert mine is not None
    assert mine.embedding.tolist() == [1.0] * 384


def test_two_runtimes_of_different_bundles_may_share_one(
    make_runtime: Callable[..., Runtime],
) -> None:
    cache = EmbeddingCache(1)
    both = [
        make_runtime(
            encoders=CountingEncoders(), cache=cache, manifest=make_manifest(bundle_id=f"{n}" * 64)
        )
        for n in range(2)
    ]
    assert both[0].bundle_id != both[1].bundle_id
    for runtime in both:
        runtime.embed([draw_image(RED)])
        assert batches_of(runtime) == [1]


def test_what_was_begun_before_the_memory_was_emptied_is_not_kept() -> None:
    cache = EmbeddingCache(1)
    era = cache.era
    cache.clear()
    cache.keep(MODEL, "file:a", seen(1), era)
    assert len(cache) == 0


@pytest.mark.parametrize("path", ["/lesions/red-0", "/patients/red"])
def test_an_erasure_empties_it(
    tmp_path: Path,
    make_app: Callable[..., FastAPI],
    make_runtime: Callable[..., Runtime],
    path: str,
) -> None:
    cache, erasures = EmbeddingCache(1), Erasures(tmp_path / "ledger")
    lesions = [make_lesion("red-0", RED, seed=0, patient_id="red"), make_lesion("blue-0", BLUE)]
    with write_catalogue(tmp_path / "catalogue", lesions) as catalogue:
        runtime = make_runtime(catalogue=catalogue, erasures=erasures, cache=cache)
        with TestClient(make_app(runtime)) as client:
            # A second picture of the lesion was asked about and never added.
            answer(client, "/embed", draw_image(RED, seed=0))
            answer(client, "/embed", draw_image(RED, seed=1))
            assert len(cache) == 4
            assert client.delete(path).status_code == 200
            assert (len(cache), cache.size_bytes) == (0, 0)
    erasures.close()


def test_an_erasure_by_another_process_empties_it_when_the_vectors_follow(
    tmp_path: Path, make_runtime: Callable[..., Runtime]
) -> None:
    lesions = [make_lesion("red-0", RED, seed=0), make_lesion("blue-0", BLUE)]
    with write_catalogue(tmp_path / "catalogue", lesions) as catalogue:
        runtime = make_runtime(catalogue=catalogue, cache=EmbeddingCache(1))
        assert runtime.cache is not None
        runtime.embed([draw_image(RED, seed=0)])
        with Catalogue.open(
            catalogue.path, bundle_id=catalogue.bundle_id, variant=catalogue.variant
        ) as other:
            other.add([make_lesion("green-0", GREEN)])
            runtime.similar([draw_image(RED, seed=0)])
            assert len(runtime.cache) == 2
            other.remove("red-0")
        runtime.similar([draw_image(BLUE, seed=0)])
        assert runtime.embed([draw_image(RED, seed=0)])
        assert runtime.cache.misses == 3


def test_many_threads_use_it_at_once() -> None:
    cache = EmbeddingCache(1)

    def work(worker: int) -> None:
        chance = random.Random(worker)
        for _ in range(400):
            number = chance.randrange(1000)
            found = find(cache, number)
            assert found is None or found.embedding.tolist() == [float(number)] * 384
            keep(cache, seen(number))
            if chance.random() < 0.01:
                cache.clear()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert cache.hits + cache.misses == 8 * 400
    assert 0 <= cache.size_bytes <= MIB
    cache.clear()
    assert cache.size_bytes == 0


def test_its_figures_are_among_the_metrics(
    make_app: Callable[..., FastAPI], make_runtime: Callable[..., Runtime]
) -> None:
    with TestClient(make_app(make_runtime(cache=EmbeddingCache(1)))) as client:
        for _ in range(3):
            answer(client, "/embed", draw_image(RED))
        text = client.get("/metrics").text
    assert "slimp_embedding_cache_hits_total 2.0" in text
    assert "slimp_embedding_cache_misses_total 1.0" in text
    assert "slimp_embedding_cache_bytes 2516.0" in text


@pytest.mark.parametrize(("mib", "is_there"), [(0, False), (3, True)])
def test_its_size_is_a_setting_and_zero_switches_it_off(
    tmp_path: Path, mib: int, is_there: bool
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    lesions = [make_lesion("a")]
    write_catalogue(tmp_path / "catalogue", lesions, bundle_id=bundle.manifest.bundle_id).close()
    given: dict[str, Any] = {"bundle": bundle.path, "catalogue": tmp_path / "catalogue"}
    runtime = load_runtime(Settings(embedding_cache_mib=mib, **given))
    assert (runtime.cache is not None) is is_there
    runtime.close()
