"""Work that says which process did it; worker processes must be able to import it."""

import os
from pathlib import Path

import torch


def note(folder: Path, name: str) -> None:
    """The process and the number of its threads, in a file."""
    (folder / name).write_text(f"{os.getpid()} {torch.get_num_threads()}")
