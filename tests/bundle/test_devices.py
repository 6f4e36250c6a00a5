from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from bundle.devices import PROVIDERS, Device, Wanted, device_providers, started_device
from bundle.errors import BundleError

CPU, CUDA, TENSORRT = (PROVIDERS[name] for name in ("cpu", "cuda", "tensorrt"))


def knowing(monkeypatch: pytest.MonkeyPatch, *providers: str) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(providers))


@pytest.mark.parametrize(
    ("wanted", "known", "taken"),
    [
        ("auto", ("AzureExecutionProvider", CPU), [CPU]),
        ("auto", (TENSORRT, CUDA, CPU), [CUDA, CPU]),
        ("cpu", (TENSORRT, CUDA, CPU), [CPU]),
        ("cuda", (TENSORRT, CUDA, CPU), [CUDA, CPU]),
        ("tensorrt", (TENSORRT, CUDA, CPU), [TENSORRT, CUDA, CPU]),
    ],
)
def test_a_device_brings_those_that_do_what_it_cannot(
    monkeypatch: pytest.MonkeyPatch, wanted: Wanted, known: tuple[str, ...], taken: list[str]
) -> None:
    knowing(monkeypatch, *known)
    assert [name for name, _ in device_providers(wanted, size_px=32)] == taken


@pytest.mark.parametrize("wanted", ["cuda", "tensorrt"])
def test_a_device_that_the_build_does_not_know_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, wanted: Wanted
) -> None:
    knowing(monkeypatch, CPU)
    with pytest.raises(BundleError) as caught:
        device_providers(wanted, size_px=32)
    assert str(caught.value) == (
        f"expected an ONNX Runtime that knows {wanted}, got CPUExecutionProvider: "
        "pip install 'slimp[gpu]' in the place of 'slimp[cpu]', or set SLIMP_DEVICE=cpu"
    )


def test_tensorrt_makes_engines_for_the_pictures_that_come_and_keeps_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    knowing(monkeypatch, TENSORRT, CUDA, CPU)
    (_, plain), *others = device_providers("tensorrt", size_px=168)
    assert plain == {
        "trt_fp16_enable": "False",
        "trt_profile_min_shapes": "pixels:1x3x168x168",
        "trt_profile_opt_shapes": "pixels:8x3x168x168",
        "trt_profile_max_shapes": "pixels:32x3x168x168",
    }
    assert others == [(CUDA, {}), (CPU, {})]
    (_, kept), *_ = device_providers("tensorrt", size_px=168, is_half=True, engines=tmp_path)
    assert kept["trt_fp16_enable"] == "True"
    assert kept["trt_engine_cache_enable"] == "True"
    assert kept["trt_engine_cache_path"] == str(tmp_path)


class Started:
    """Stands for a session."""

    def __init__(self, *providers: str) -> None:
        self.providers = providers

    def get_providers(self) -> list[str]:
        return list(self.providers)


@pytest.mark.parametrize(
    ("wanted", "providers", "runs"),
    [
        ("auto", (CUDA, CPU), "cuda"),
        ("auto", (CPU,), "cpu"),
        ("cpu", (CPU,), "cpu"),
        ("tensorrt", (TENSORRT, CUDA, CPU), "tensorrt"),
    ],
)
def test_what_started_is_told(wanted: Wanted, providers: tuple[str, ...], runs: Device) -> None:
    session: Any = Started(*providers)
    assert started_device(wanted, session) == runs


@pytest.mark.parametrize(
    ("wanted", "providers", "runs"),
    [("cuda", (CPU,), "cpu"), ("tensorrt", (CUDA, CPU), "cuda")],
)
def test_a_device_that_did_not_start_is_no_other_one(
    wanted: Wanted, providers: tuple[str, ...], runs: str
) -> None:
    session: Any = Started(*providers)
    with pytest.raises(BundleError, match=f"to start {wanted}, it runs on {runs}: a driver"):
        started_device(wanted, session)
