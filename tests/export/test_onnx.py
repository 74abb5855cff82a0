"""ONNX files give the checkpoint's embeddings under onnxruntime, for any batch."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from click.testing import CliRunner

from capwright.cli import group
from capwright.core.errors import CapwrightError
from capwright.export import ExportConfig, onnx, run
from capwright.models import towers

Make = Callable[..., Path]


def embeddings(folder: Path, kind: str, inputs: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / f"{kind}.onnx")
    name = {"image": "images", "text": "tokens"}[kind]
    (found,) = session.run(None, {name: inputs.numpy()})
    return torch.from_numpy(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"quick_gelu": True, "words": True}, {"text": {"no_causal_mask": True}}],
    ids=["plain", "words", "not causal"],
)
def test_both_towers_for_any_batch(options: dict[str, Any], make: Make, tmp_path: Path) -> None:
    checkpoint, out = make(**options), tmp_path / "out"
    command = ["export", str(checkpoint), "--to", "onnx", "--out", str(out)]
    result = CliRunner().invoke(group, command)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)  # nothing else on stdout
    assert 0 < summary["largest_difference"] < 1e-4
    model, _, tokenizer = towers.load(checkpoint)
    assert any(f"{float(model.logit_scale.exp().detach()):.6g}" in n for n in summary["notes"])
    texts = ["a", "the old man", "a photo of two dogs on a wooden table in the red bus", "bus", "a"]
    tokens = open_clip.get_tokenizer(f"local-dir:{out}")(texts)
    assert torch.equal(tokens, tokenizer(texts))
    for count in (1, 5):
        images = torch.randn(count, 3, 16, 16)
        with torch.no_grad():
            image, text = model.encode_image(images), model.encode_text(tokens[:count])
        assert torch.allclose(embeddings(out, "image", images), image, rtol=0, atol=1e-4)
        assert torch.allclose(embeddings(out, "text", tokens[:count]), text, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_branches_of_mobile_towers_are_fused(make: Make, tmp_path: Path) -> None:
    vision = {"timm_model_name": "fastvit_t8", "image_size": 64, "timm_proj": "linear"}
    checkpoint = make(vision=vision)
    summary = run(ExportConfig(checkpoint=str(checkpoint), to="onnx", out=tmp_path / "out"))
    assert summary.largest_difference < 1e-4
    assert any("reparameterised" in note for note in summary.notes)
    graph = (tmp_path / "out" / "image.onnx").read_bytes()
    assert not re.search(rb"BatchNormalization", graph)
    model, _, _ = towers.load(checkpoint)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        image = model.encode_image(images)
    found = embeddings(tmp_path / "out", "image", images)
    assert torch.allclose(found, image, rtol=0, atol=1e-4 * max(1, float(image.abs().max())))


def test_missing_packages_are_named(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "NEEDED", ("onnx", "no_such_package"))
    with pytest.raises(CapwrightError, match=r"needs no_such_package, not installed: pip install"):
        run(ExportConfig(checkpoint=str(plain), to="onnx", out=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []
