import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from capwright.core.errors import CapwrightError
from capwright.dense.layerwise import layered_parameters
from capwright.evaluate.encoder import load_encoder, samples_seen
from capwright.models import towers


def test_pixels_are_normalised_with_the_towers_own_statistics(encoder) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    wanted = (pixels / 255 - np.array(encoder.mean)) / np.array(encoder.std)
    np.testing.assert_allclose(encoder.normalised(pixels).permute(0, 2, 3, 1), wanted, atol=1e-5)


def test_fresh_towers_are_a_function_of_the_seed(tiny) -> None:
    one, same, other = (
        load_encoder(None, model=tiny, seed=s).model.state_dict() for s in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_gives_the_features_of_the_model_that_was_saved(
    encoder, tiny, tmp_path: Path
) -> None:
    config = towers.model_config(tiny)
    content = {"model_cfg": config, "preprocess_cfg": towers.preprocess_config(config)}
    (tmp_path / towers.CONFIG_FILE).write_text(json.dumps(content))
    save_file(encoder.model.state_dict(), tmp_path / towers.WEIGHTS_FILE)
    torch.save({"samples_seen": 512}, tmp_path / "training_state.pt")

    loaded = load_encoder(tmp_path)

    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    images = encoder.normalised(pixels)
    assert torch.equal(loaded.dense(images), encoder.dense(images))
    assert (loaded.image_size, loaded.samples_seen) == (32, 512)
    assert loaded.name == encoder.name == "capwright_vit_nano_s8"
    assert (loaded.pretrained, encoder.pretrained) == (str(tmp_path), "random")
    vectors = loaded.text_embeddings(["a red apple", "a blue berry"])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def test_samples_seen_are_found_in_a_run_folder_and_unknown_elsewhere(tmp_path: Path) -> None:
    assert samples_seen(tmp_path) is None
    folder = tmp_path / "checkpoints" / "last"
    folder.mkdir(parents=True)
    torch.save({"samples_seen": 768}, folder / "training_state.pt")
    assert samples_seen(tmp_path) == 768


def test_learning_rates_fall_from_the_top_block_to_the_stem(encoder) -> None:
    visual: nn.Module = encoder.model.visual
    groups = layered_parameters(visual, learning_rate=1.0, decay=0.5, weight_decay=0.1)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(rates) == sum(1 for _ in visual.parameters())
    found = {name: rates[id(p)] for name, p in visual.named_parameters()}
    assert found["trunk.blocks.5.mlp.fc1.weight"] == (0.5, 0.1)
    assert found["trunk.blocks.0.mlp.fc1.weight"] == (0.5**6, 0.1)
    assert found["trunk.blocks.0.mlp.fc1.bias"] == (0.5**6, 0.0)
    assert found["head.proj.weight"] == (1.0, 0.1)
    assert found["trunk.pos_embed"][0] == 0.5**7
    stem = next(name for name in found if name.startswith("trunk.patch_embed"))
    assert found[stem][0] == 0.5**7


def test_a_missing_checkpoint_is_named() -> None:
    with pytest.raises(CapwrightError, match="no checkpoint at 'nowhere'"):
        load_encoder("nowhere")
