"""What captioners that run on this machine share: in which precision, which weights."""

import hashlib
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from capwright.core.errors import CapwrightError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

LONGEST = 16  # sides of a picture; beyond it models resize to absurd sizes
HEAD_BYTES = 1 << 20  # of a weights file; the first matrices tell two trainings apart


def pick_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """ "auto" is bf16 (or fp16) on a GPU and fp32 elsewhere."""
    if precision != "auto":
        return DTYPES[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def folder_revision(folder: Path) -> str:
    """Twelve digits for the files of a model folder: names, sizes and the start of each."""
    state = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin", ".json", ".txt", ".jinja"):
            state.update(f"{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                state.update(file.read(HEAD_BYTES))
    return state.hexdigest()[:12]


def not_too_narrow(image: Image.Image) -> Image.Image:
    """The picture, or the middle of one that is over `LONGEST` times longer than wide.

    A strip of 1 × 60,000 pixels would otherwise be resized to 224 × 13 million.
    """
    width, height = image.size
    wide, high = min(width, LONGEST * height), min(height, LONGEST * width)
    if (wide, high) == (width, height):
        return image
    left, top = (width - wide) // 2, (height - high) // 2
    return image.crop((left, top, left + wide, top + high))


def out_of_memory(batch_size: int, error: Exception) -> CapwrightError:
    """What to say when a batch does not fit the GPU."""
    return CapwrightError(
        f"the GPU's memory does not hold batch_size={batch_size} ({type(error).__name__}): "
        f"try a smaller one, such as --set batch_size={max(1, batch_size // 2)}"
    )
