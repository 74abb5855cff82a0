"""DepthCLIP against plain sums in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from capwright.adapt.mirror_depth.config import ZeroShotSettings
from capwright.adapt.mirror_depth.depthclip import DepthClip, metres
from capwright.core.errors import CapwrightError
from capwright.evaluate.encoder import Encoder, load_encoder

SETTINGS = ZeroShotSettings(
    sentences=("near", "far", "out of sight"), bins_m=(1.0, 4.0, 9.0), scale=10.0, temperature=0.5
)


def test_the_mean_of_the_distances_against_loops() -> None:
    cosines = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = metres(cosines, torch.tensor(SETTINGS.bins_m), SETTINGS)
    for b, y, x in np.ndindex(2, 4, 5):
        weights = np.exp(cosines[b, :, y, x].double().numpy() * 10.0 / 0.5)
        expected = (weights / weights.sum()) @ np.array(SETTINGS.bins_m)
        assert float(found[b, 0, y, x]) == pytest.approx(expected, rel=1e-5)


def test_patches_and_sentences_by_hand(encoder: Encoder) -> None:
    """With CLIP's own patches: the final norm and the projection of every token."""
    model = DepthClip(encoder, replace(SETTINGS, method="clip"))
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(images)
        visual, trunk = encoder.model.visual, encoder.model.visual.trunk
        tokens = trunk.forward_features(images)[:, trunk.num_prefix_tokens :]
        patches = visual.head(trunk.fc_norm(tokens))[0].double().numpy()
        texts = encoder.model.encode_text(encoder.tokenizer(list(SETTINGS.sentences)))
    rows = texts.double().numpy()
    patches /= np.linalg.norm(patches, axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    weights = np.exp(patches @ rows.T * 10.0 / 0.5)
    grid = (weights @ np.array(SETTINGS.bins_m) / weights.sum(axis=1)).reshape(1, 1, 4, 4)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(grid), size=(32, 32), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("height, width", [(37, 50), (3, 5)])
def test_pictures_of_any_size(encoder: Encoder, height: int, width: int) -> None:
    with torch.no_grad():
        found = DepthClip(encoder, SETTINGS)(torch.randn(2, 3, height, width))
    assert found.shape == (2, 1, height, width)
    assert found.isfinite().all() and (found >= 1).all() and (found <= 9).all()


def test_nothing_learns(encoder: Encoder) -> None:
    model = DepthClip(encoder, SETTINGS)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_tower_without_patches_that_meet_texts(plan: object) -> None:
    encoder = load_encoder(None, model="nano-mci", seed=0)
    with pytest.raises(CapwrightError, match=r"leave the arm depthclip out"):
        DepthClip(encoder, SETTINGS)


def test_each_sentence_has_a_distance() -> None:
    with pytest.raises(CapwrightError, match="2 sentences and 3 distances"):
        replace(SETTINGS, sentences=("near", "far"))
    with pytest.raises(CapwrightError, match=r"temperature 0\.0"):
        replace(SETTINGS, temperature=0.0)
