"""A tiny CLIP on the disk, and a folder of coloured pictures in classes, for tests of MUST."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from capwright.core.files import write_json
from capwright.models import towers

SIDE, PATCH = 16, 4
VIT = {"image_size": SIDE, "patch_size": PATCH, "width": 16, "layers": 2, "head_width": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
COLOURS = {"blue": (30, 40, 210), "green": (40, 190, 50), "red": (210, 40, 30)}


def tiny_model(vision: dict[str, Any] | None = None) -> Any:
    torch.manual_seed(0)
    return towers.build({"embed_dim": 12, "vision_cfg": vision or VIT, "text_cfg": TEXT})


def write_checkpoint(folder: Path) -> Path:
    model = tiny_model()
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    config = towers.model_config({"embed_dim": 12, "vision_cfg": VIT, "text_cfg": TEXT})
    save_file(model.state_dict(), folder / towers.WEIGHTS_FILE)
    described = {"model_cfg": config, "preprocess_cfg": towers.preprocess_config(config)}
    write_json(folder / towers.CONFIG_FILE, described)
    return folder


def write_pictures(folder: Path, counts: dict[str, dict[str, int]], side: int = 20) -> Path:
    """FOLDER/SPLIT/CLASS/*.png: so many of each class, of a colour with noise."""
    rng = np.random.default_rng(0)
    for split, classes in counts.items():
        for name, count in classes.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(-30, 30, (side, side + 2, 3))
                pixels = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder
