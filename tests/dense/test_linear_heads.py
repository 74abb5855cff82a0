"""Linear probes of the last map, against plain float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._device import _device_constructors

from capwright.dense.linear_heads import ENLARGED, LEAST_SHARE, LinearDepth, LinearHead


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def enlarge(map_Chw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear with pixel centres at half numbers, edges repeated."""
    _, h, w = map_Chw.shape

    def places(count: int, have: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = ((np.arange(count) + 0.5) * have / count - 0.5).clip(0)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, have - 1), at - low

    y0, y1, fy = places(size[0], h)
    x0, x1, fx = places(size[1], w)
    rows = map_Chw[:, y0] * (1 - fy)[None, :, None] + map_Chw[:, y1] * fy[None, :, None]
    return rows[:, :, x0] * (1 - fx) + rows[:, :, x1] * fx


def test_depth_equals_a_plain_rewriting() -> None:
    head = LinearDepth((5,), least_m=0.5, most_m=8.0, bins=7).eval()
    torch.nn.init.normal_(head.predict.weight)
    torch.nn.init.normal_(head.predict.bias)  # type: ignore[arg-type]
    head.norm.running_mean = torch.randn(5)
    head.norm.running_var = torch.rand(5) + 0.5
    map_1Dhw = torch.randn(1, 5, 3, 4)
    found = head([map_1Dhw], (20, 31))[0].detach().numpy()

    large = enlarge(map_1Dhw[0].double().numpy(), (3 * ENLARGED, 4 * ENLARGED))
    mean, var = head.norm.running_mean.numpy(), head.norm.running_var.numpy()
    normed = (large - mean[:, None, None]) / np.sqrt(var + head.norm.eps)[:, None, None]
    weight, bias = head.predict.weight.detach().numpy()[:, :, 0, 0], head.predict.bias
    values = np.einsum("kd,dhw->khw", weight, normed) + bias.detach().numpy()[:, None, None]  # type: ignore[union-attr]
    shares = np.maximum(values, 0) + LEAST_SHARE
    shares /= shares.sum(axis=0)
    metres = (shares * np.linspace(0.5, 8.0, 7)[:, None, None]).sum(axis=0)
    np.testing.assert_allclose(found, enlarge(metres[None], (20, 31)), rtol=1e-5)
    assert np.ptp(found) > 0.1


def test_metres_stay_exact_under_autocast() -> None:
    head = LinearDepth((5,), least_m=0.001, most_m=80.0).eval()
    torch.nn.init.normal_(head.predict.weight)
    map_1Dhw = torch.randn(1, 5, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = head([map_1Dhw], (12, 16))
        large = F.interpolate(map_1Dhw, scale_factor=ENLARGED, mode="bilinear")
        values = head.predict(head.norm(large))
    assert (values.dtype, found.dtype) == (torch.bfloat16, torch.float32)
    shares = values[0].detach().double().numpy().clip(0) + LEAST_SHARE
    metres = (shares * np.linspace(0.001, 80, 256)[:, None, None]).sum(axis=0) / shares.sum(axis=0)
    np.testing.assert_allclose(found[0, 0].detach().numpy(), metres, rtol=1e-5)


def test_depth_stays_between_its_least_and_its_most_and_begins_in_the_middle() -> None:
    head = LinearDepth((5,), least_m=1.0, most_m=9.0)
    torch.nn.init.zeros_(head.predict.weight)
    torch.testing.assert_close(
        head([torch.randn(2, 5, 3, 3)], (6, 6)), torch.full((2, 1, 6, 6), 5.0)
    )
    torch.nn.init.normal_(head.predict.weight, std=100)
    metres = head([torch.randn(2, 5, 3, 3)], (6, 6))
    assert 1 <= metres.min() < metres.max() <= 9


def test_linear_head_is_a_linear_map_of_normed_features() -> None:
    head = LinearHead((5,), 3).eval()
    torch.nn.init.normal_(head.predict.bias)  # type: ignore[arg-type]
    first, other = torch.randn(1, 5, 3, 4), torch.randn(1, 5, 3, 4)
    at = (12, 16)
    mixed = head([0.25 * first + 0.75 * other], at)
    torch.testing.assert_close(mixed, 0.25 * head([first], at) + 0.75 * head([other], at))


def test_the_bins_are_where_the_head_is_after_transformers_built_a_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It exchanges `linspace` for a while, which may be when torch lists its constructors."""
    listed, linspace = _device_constructors, torch.linspace
    listed.cache_clear()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(torch, "linspace", lambda *a, **k: linspace(*a, **k))
            with torch.device("meta"):
                torch.zeros(1)  # the list is made now
        with torch.device("meta"):
            assert not torch.linspace(0, 1, 3).is_meta
            assert LinearDepth([4], least_m=0.1, most_m=10.0).centres_K.is_meta
    finally:
        listed.cache_clear()
