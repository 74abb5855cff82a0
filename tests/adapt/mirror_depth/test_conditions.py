"""What gives gamma and beta, against the text tower's parts called by hand in float64."""

import copy
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor

from capwright.adapt.mirror_depth.conditions import Constants, FilmOf, Mirror, Prompts
from capwright.core.errors import CapwrightError
from capwright.evaluate.encoder import Encoder

CHANNELS = (6, 9)


def z_by_hand(encoder: Encoder, mirror: Mirror) -> Tensor:
    """Start, mirror, end; positions; blocks with a causal mask; read at the end; float64."""
    tower = copy.deepcopy(encoder.model.text).double()
    start, end = encoder.tokenizer([""])[0, :2]
    rows = tower.token_embedding.weight
    x = torch.cat([rows[start][None], mirror.texts.prefix_MD.double(), rows[end][None]])
    x = x + tower.positional_embedding[: len(x)]
    mask = torch.full((len(x), len(x)), float("-inf"), dtype=torch.float64).triu(1)
    x = tower.transformer(x[None], attn_mask=mask)[0]
    z = tower.ln_final(x)[-1] @ tower.text_projection
    return z / z.norm()


@pytest.mark.parametrize("tokens", [1, 5, 14])
def test_z_is_the_towers_answer_at_the_end_behind_the_mirror(encoder: Encoder, tokens: int) -> None:
    mirror = Mirror(encoder, tokens, CHANNELS, seed=1)
    found = mirror.z_E().double()
    torch.testing.assert_close(found, z_by_hand(encoder, mirror), atol=1e-6, rtol=0)


def test_every_vector_of_the_mirror_reaches_z(encoder: Encoder) -> None:
    mirror = Mirror(encoder, 5, CHANNELS, seed=1)
    mirror.z_E()[0].backward()
    grad_MD = mirror.texts.prefix_MD.grad
    assert grad_MD is not None and (grad_MD.abs().sum(dim=1) > 0).all()


def test_the_mirror_begins_as_the_paper_says(encoder: Encoder) -> None:
    values = torch.cat(
        [Mirror(encoder, 14, CHANNELS, seed=n).texts.prefix_MD.detach() for n in range(40)]
    )
    assert float(values.std()) == pytest.approx(0.02, rel=0.05)
    assert abs(float(values.mean())) < 0.001
    assert not torch.equal(values[:14], values[14:28])


def test_a_context_too_short_for_the_mirror(encoder: Encoder) -> None:
    with pytest.raises(
        CapwrightError, match=r"a mirror of 15 vectors does not fit into the 16 .* set tokens=14"
    ):
        Mirror(encoder, 15, CHANNELS, seed=0)


def test_clip_s_77_tokens_hold_the_papers_64(encoder: Encoder) -> None:
    torch.manual_seed(0)
    vision = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    clip = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()
    openai = replace(encoder, model=clip, tokenizer=open_clip.SimpleTokenizer(context_length=77))
    mirror = Mirror(openai, 64, CHANNELS, seed=0)
    z = mirror.z_E()
    z[0].backward()
    grad_MD = mirror.texts.prefix_MD.grad
    assert z.shape == (16,) and z.isfinite().all() and grad_MD is not None
    assert (grad_MD.abs().sum(dim=1) > 0).all()


def test_film_is_linear_in_z_and_begins_near_the_identity() -> None:
    torch.manual_seed(0)
    film, z_E = FilmOf(16, CHANNELS), torch.randn(16)
    z = (z_E / z_E.norm()).double().numpy()
    for found, gamma, beta in zip(film(z_E / z_E.norm()), film.gammas, film.betas, strict=True):
        for value, linear, start in zip(found, (gamma, beta), (1, 0), strict=True):
            weight = linear.weight.detach().double().numpy()
            bias = linear.bias.detach().double().numpy()
            np.testing.assert_allclose(value.detach(), weight @ z + bias, atol=1e-6)
            assert np.abs(bias - start).max() == 0


def test_constants_begin_at_the_identity() -> None:
    for (gamma, beta), depth in zip(Constants(CHANNELS)(), CHANNELS, strict=True):
        assert torch.equal(gamma, torch.ones(depth)) and torch.equal(beta, torch.zeros(depth))


def test_the_z_of_sentences_is_the_mean_of_their_unit_vectors(encoder: Encoder) -> None:
    sentences = ("a far thing", "close")
    with torch.no_grad():
        raw = encoder.model.encode_text(encoder.tokenizer(list(sentences))).double().numpy()
    mean = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).mean(axis=0)
    prompts = Prompts(encoder, sentences, CHANNELS)
    np.testing.assert_allclose(prompts.z_E, mean / np.linalg.norm(mean), atol=1e-6)
    assert all(name.startswith("film.") for name, _ in prompts.named_parameters())
