"""Each method against its equation, written plainly, a head and a picture at a time, in float64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from capwright.core.errors import CapwrightError
from capwright.dense.training_free import (
    METHODS,
    contrast,
    find_method,
    naclip,
    require_switches,
    sclip,
)
from capwright.dense.training_free.last_block import last_block
from capwright.dense.training_free.layers import Layers
from capwright.dense.training_free.outliers import outlier_factor, repair
from capwright.dense.vit import open_up
from capwright.models import towers

SIZE, WIDTH, HEAD, DEPTH = (48, 64), 32, 16, 7
Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    vision = {
        "image_size": 32, "layers": DEPTH, "width": WIDTH, "head_width": HEAD, "patch_size": 8,
        "ls_init_value": 0.7,
    }  # fmt: skip
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    built = towers.build(config).eval().double()
    with torch.no_grad():  # fresh weights are so small that every attention is uniform
        for parameter in built.visual.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return built


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, *SIZE, dtype=torch.float64, generator=torch.manual_seed(1))


@pytest.fixture(scope="module")
def texts() -> Tensor:
    generator = torch.manual_seed(2)
    return F.normalize(torch.randn(5, 24, dtype=torch.float64, generator=generator), dim=-1)


class Plain:
    """One picture through the tower with numpy; blocks from 0."""

    def __init__(self, model: Any, image_3HW: Tensor) -> None:
        self.visual = model.visual
        with torch.no_grad():
            self.before: list[Array] = []
            x = Layers(open_up(model), image_3HW[None]).before(0)
            for block in self.visual.transformer.resblocks:
                self.before.append(x[0].numpy())
                x = block(x)
            self.before.append(x[0].numpy())

    def norm1(self, number: int, x_ND: Array) -> Array:
        return self._apply(self.visual.transformer.resblocks[number].ln_1, x_ND)

    def heads(self, number: int, x_ND: Array) -> list[tuple[Array, Array, Array]]:
        attn = self.visual.transformer.resblocks[number].attn
        joined = self.norm1(number, x_ND) @ attn.in_proj_weight.detach().numpy().T
        joined = joined + attn.in_proj_bias.detach().numpy()
        q, k, v = np.split(joined, 3, axis=1)
        parts = range(0, WIDTH, HEAD)
        return [(q[:, i : i + HEAD], k[:, i : i + HEAD], v[:, i : i + HEAD]) for i in parts]

    def merge(self, number: int, out: list[Array]) -> Array:
        block = self.visual.transformer.resblocks[number]
        return self._apply(lambda x: block.ls_1(block.attn.out_proj(x)), np.concatenate(out, 1))

    def mlp(self, number: int, x_ND: Array) -> Array:
        block = self.visual.transformer.resblocks[number]
        return self._apply(lambda x: block.ls_2(block.mlp(block.ln_2(x))), x_ND)

    def project(self, x_ND: Array) -> Array:
        return self._apply(self.visual.ln_post, x_ND) @ self.visual.proj.detach().numpy()

    def last(
        self, attention: Callable[[Array, Array, Array], Array], *, residual: bool, ffn: bool
    ) -> Array:
        number, x = DEPTH - 1, self.before[DEPTH - 1]
        parts = [attention(q, k, v) @ v for q, k, v in self.heads(number, x)]
        return self.finish(parts, residual=residual, ffn=ffn)

    def finish(self, parts: list[Array], *, residual: bool, ffn: bool) -> Array:
        number = DEPTH - 1
        out = self.merge(number, parts) + (self.before[number] if residual else 0)
        return self.project(out + (self.mlp(number, out) if ffn else 0))[1:]

    @staticmethod
    def _apply(layer: Any, x: Array) -> Array:
        with torch.no_grad():
            return layer(torch.from_numpy(x)).numpy()  # type: ignore[no-any-return]


def soft(logits: Array) -> Array:
    weight = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weight / weight.sum(axis=1, keepdims=True)


def scaled(one: Array, other: Array) -> Array:
    return one @ other.T / math.sqrt(HEAD)


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def window() -> Array:
    height, width = SIZE[0] // 8, SIZE[1] // 8
    places = np.array([(y, x) for y in range(height) for x in range(width)])
    found = np.zeros((len(places) + 1,) * 2)
    for i, one in enumerate(places):
        for j, other in enumerate(places):
            found[i + 1, j + 1] = math.exp(-((one - other) ** 2).sum() / (2 * 5.0**2))
    return found


def plain_gem(tower: Plain, texts: Array) -> Array:
    y = tower.before[DEPTH - 6]
    for number in range(DEPTH - 6, DEPTH):
        x = tower.before[number]
        scale = np.linalg.norm(tower.norm1(number, x), axis=1).mean() / math.sqrt(HEAD)
        out = []
        for heads in tower.heads(number, x):
            maps = []
            for part in heads:
                p = unit(part)
                p = unit(soft(scale * p @ p.T) @ p)
                maps.append(soft(scale * p @ p.T))
            out.append((maps[0] + maps[1] + maps[2]) / 3 @ heads[2])
        y = y + tower.merge(number, out)
    return tower.project(y)[1:]


def plain_resclip(
    tower: Plain, texts: Array, *, residual: bool = False, ffn: bool = False
) -> Array:
    middle = [round(block * (DEPTH - 1) / 11) for block in (5, 6, 7, 8)]
    maps = [[soft(scaled(q, k)) for q, k, _ in tower.heads(n, tower.before[n])] for n in middle]
    near, heads = window(), tower.heads(DEPTH - 1, tower.before[DEPTH - 1])
    both = []
    for a, (_, k, _) in enumerate(heads):
        mean = sum(found[a] for found in maps) / 4
        both.append(2.0 * (0.5 * soft(scaled(k, k) + near) + 0.5 * mean))
    outs = [attention @ v for attention, (_, _, v) in zip(both, heads, strict=True)]
    labels = (unit(tower.finish(outs, residual=residual, ffn=ffn)) @ texts.T).argmax(1)
    same = np.zeros_like(near)
    for i, one in enumerate(labels):
        for j, other in enumerate(labels):
            same[i + 1, j + 1] = 2.0 * (one == other) / (labels == one).sum()
    outs = [(0.4 * a + 0.6 * same) @ v for a, (_, _, v) in zip(both, heads, strict=True)]
    return tower.finish(outs, residual=residual, ffn=ffn)


def plain_factor(x: Array, neighbours: int) -> Array:
    count = len(x)
    distance = ((x[:, None] - x[None]) ** 2).sum(-1)
    order = [[j for j in np.argsort(distance[i]) if j != i][:neighbours] for i in range(count)]
    kth = [distance[i][order[i][-1]] for i in range(count)]
    density = [1 / np.mean([max(kth[j], distance[i][j]) for j in order[i]]) for i in range(count)]
    return np.array([np.mean([density[j] for j in order[i]]) / density[i] for i in range(count)])


def plain_repair(x: Array, broken: set[int]) -> Array:
    height, width = SIZE[0] // 8, SIZE[1] // 8
    fixed = x.copy()
    for i in broken:
        row, column = divmod(i, width)
        around = [
            r * width + c
            for r in range(max(0, row - 1), min(height, row + 2))
            for c in range(max(0, column - 1), min(width, column + 2))
        ]
        sound = [j for j in around if j not in broken]
        if sound:
            fixed[i] = x[sound].mean(0)
    return fixed


def plain_scclip(tower: Plain, texts: Array) -> Array:
    def after(block: int) -> Array:
        return tower.before[round(block * (DEPTH - 1) / 11) + 1]

    def gather(x: Array, r: Array) -> Array:
        kept = np.where(r < 0.4, 0, r)
        return kept / kept.sum(1, keepdims=True) @ x

    def calibrated(x: Array, whole: Array, r: Array) -> Array:
        centred = r - r.mean()
        wanted = soft(np.where(centred < 0, -np.inf, 3 * centred))
        outs = [(wanted + soft(scaled(k, k))) / 2 @ v for _, k, v in tower.heads(DEPTH - 1, x)]
        return tower.merge(DEPTH - 1, outs) + 0.3 * whole

    x = tower.before[DEPTH - 1]
    factor = plain_factor(x[1:], 30)
    broken = set(np.argsort(-factor)[: int(0.05 * len(factor))].tolist())
    middle, low = (unit(plain_repair(after(block)[1:], broken)) for block in (8, 3))
    middle, low = middle @ middle.T, low @ low.T
    single = calibrated(gather(plain_repair(x[1:], broken), middle), x[0], middle)
    blocks = {min(round(b * (DEPTH - 1) / 11), DEPTH - 2) for b in range(3, 10)}
    total = sum(tower.before[b + 1] for b in blocks)
    several = calibrated(total[1:], total[0], middle)
    return tower.project(gather(single, low) + gather(several, low))


SWITCHED: dict[str, Callable[..., Array]] = {  # methods with switches for parts of the last block
    "maskclip": lambda t, _, residual=True, ffn=True: t.last(
        lambda q, k, v: np.eye(len(v)), residual=residual, ffn=ffn
    ),
    "sclip": lambda t, _, residual=True, ffn=True: t.last(
        lambda q, k, v: soft(scaled(q, q)) + soft(scaled(k, k)), residual=residual, ffn=ffn
    ),
    "clearclip": lambda t, _, residual=False, ffn=False: t.last(
        lambda q, k, v: soft(scaled(q, q)), residual=residual, ffn=ffn
    ),
    "naclip": lambda t, _, residual=False, ffn=False: t.last(
        lambda q, k, v: soft(scaled(k, k) + window()), residual=residual, ffn=ffn
    ),
    "resclip": plain_resclip,
}
REFERENCES: dict[str, Callable[..., Array]] = {
    **SWITCHED,
    "clip": lambda t, _: t.last(lambda q, k, v: soft(scaled(q, k)), residual=True, ffn=True),
    "gem": plain_gem,
    "scclip": plain_scclip,
    "contrast": plain_gem,
}


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_a_method_is_its_equation(name: str, model: Any, images: Tensor, texts: Tensor) -> None:
    found = find_method(name).features(Layers(open_up(model), images), texts)
    for number, image in enumerate(images):
        expected = REFERENCES[name](Plain(model, image), texts.numpy())
        np.testing.assert_allclose(found[number].numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("name", SWITCHED)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("ffn", [True, False])
@torch.no_grad()
def test_parts_of_the_last_block_are_switched(
    name: str, residual: bool, ffn: bool, model: Any, images: Tensor, texts: Tensor
) -> None:
    switches = {"residual": residual, "ffn": ffn}
    found = find_method(name).features(Layers(open_up(model), images[:1]), texts, **switches)
    expected = SWITCHED[name](Plain(model, images[0]), texts.numpy(), **switches)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-9)


def test_a_switch_that_a_method_lacks_is_refused() -> None:
    require_switches(SWITCHED, ("residual", "ffn"))
    require_switches(METHODS, ())
    with pytest.raises(
        CapwrightError,
        match=r"method 'gem' has no switch for ffn: .* maskclip, sclip, clearclip, naclip, resclip",
    ):
        require_switches(("sclip", "gem"), ("ffn",))


@torch.no_grad()
def test_methods_differ(model: Any, images: Tensor, texts: Tensor) -> None:
    layers = Layers(open_up(model), images)
    modules = [find_method(name) for name in METHODS if name != "contrast"]  # it has GEM's
    found = [F.normalize(module.features(layers, texts), dim=-1) for module in modules]
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            assert (one - other).abs().max() > 1e-3


@torch.no_grad()
def test_rows_of_sclips_attention_sum_to_two(model: Any, images: Tensor) -> None:
    layers = Layers(open_up(model), images)
    q, k, _ = layers.vit.qkv(layers.last, layers.before(layers.last))
    rows = sclip.attention(q, k).sum(dim=-1)
    torch.testing.assert_close(rows, torch.full_like(rows, 2.0))


@torch.no_grad()
def test_identity_attention_is_maskclip(model: Any, images: Tensor, texts: Tensor) -> None:
    layers = Layers(open_up(model), images)

    def identity(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.eye(v.shape[-2], dtype=v.dtype) @ v

    found = last_block(layers, identity, residual=True, ffn=True)
    torch.testing.assert_close(found, find_method("maskclip").features(layers, texts))


@torch.no_grad()
def test_a_narrow_window_leaves_each_patch_to_itself(model: Any, images: Tensor) -> None:
    layers = Layers(open_up(model), images)
    _, k, _ = layers.vit.qkv(layers.last, layers.before(layers.last))
    wide, narrow = (naclip.attention(layers, 0 * k, spread) for spread in (1e9, 1e-3))
    torch.testing.assert_close(wide[..., 1:, 1:].std(), torch.zeros((), dtype=wide.dtype))
    own = narrow.diagonal(dim1=-2, dim2=-1)[..., 1:]
    assert (own / narrow[..., 1:, 0] - math.e).abs().max() < 1e-9


def test_the_outlier_is_found_and_replaced() -> None:
    x = torch.randn(2, 24, 6, dtype=torch.float64, generator=torch.manual_seed(3))
    x[0, 7] += 30
    assert outlier_factor(x, 5)[0].argmax() == 7
    for number in range(2):
        expected = plain_factor(x[number].numpy(), 5)
        np.testing.assert_allclose(outlier_factor(x, 5)[number].numpy(), expected, rtol=1e-9)
    broken = torch.zeros(2, 24, dtype=torch.bool)
    broken[0, :] = True  # no sound neighbour anywhere: everything stays
    torch.testing.assert_close(repair(x, broken, (4, 6)), x)


@pytest.mark.parametrize("background", [0, 2])
def test_contrast_decides_as_its_equation(background: int) -> None:
    generator = torch.manual_seed(4)
    logits = torch.randn(3, 6, 4, 5, dtype=torch.float64, generator=generator)
    whole = torch.randn(3, 6, dtype=torch.float64, generator=generator) / 4
    labels = contrast.settle(logits, whole, background).argmax(dim=1).numpy()
    seen = set()
    for b in range(3):
        c = logits[b].numpy() - logits[b].numpy().mean(axis=(1, 2), keepdims=True)
        deviation = c.std(ddof=1)
        for y in range(4):
            for x in range(5):
                z = c[background:, y, x] + 4 * whole[b].numpy()[background:]
                name = int(z.argmax()) + background
                stands_out = c[name, y, x] > 2 * deviation
                expected = name if stands_out or not background else 0
                assert labels[b, y, x] == expected
                seen.add(expected)
    assert len(seen) > 2


def test_an_unknown_method() -> None:
    with pytest.raises(CapwrightError, match="'scilp' is unknown: allowed are clip, maskclip"):
        find_method("scilp")
