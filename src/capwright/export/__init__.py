"""Checkpoints in the forms that other libraries read: `capwright export`.

Reads what `models.towers.load` takes, or a `.pt` file of open_clip's training with the name of its
model. Writes one folder, whole or not at all. Each form is a file here with one function
`write(source, folder) -> Written`, which loads what it wrote with the library it is meant for and
measures how far the embeddings are from the checkpoint's; a folder that is further off than
`TOLERANCE` is not kept.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path

from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path

FORMATS = {  # --to: the module here
    "open_clip": "open_clip_folder",
    "huggingface": "hugging_face",
    "timm": "timm_tower",
    "onnx": "onnx",
}
TOLERANCE = 1e-4  # of an embedding's entry; relative to the largest entry where that exceeds 1


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """One checkpoint to one folder."""

    checkpoint: str  # folder, run folder, hf-hub:ORG/REPOSITORY, MODEL/TAG, or a .pt file
    to: str  # one of FORMATS
    out: Path  # folder to write; must not exist or be empty
    model: str | None = None  # of a .pt file: an open_clip name, "nano", or a JSON configuration

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise CapwrightError(f"format {self.to!r} is unknown: choose {', '.join(FORMATS)}")
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise CapwrightError(
                f"{self.out} exists already and is no empty folder: "
                "export never overwrites, so name a new folder or remove this one"
            )
        if (self.model is not None) != self.checkpoint.endswith(".pt"):
            raise CapwrightError(
                f"checkpoint {self.checkpoint!r} with model {self.model!r} does not go together: "
                "a .pt file needs --model NAME and nothing else takes it"
            )


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a form's `write` says about its folder."""

    load: str  # Python that loads it, with DIR for the folder
    largest_difference: float  # of an embedding to the checkpoint's; see TOLERANCE
    notes: tuple[str, ...] = ()  # what a reader must know before using it


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What was written."""

    checkpoint: str
    to: str
    out: Path
    files: tuple[str, ...]
    size_bytes: int
    parameters: int  # of the checkpoint's model
    largest_difference: float
    load: str
    notes: tuple[str, ...]


def run(config: ExportConfig) -> Summary:
    """Write the folder; raises CapwrightError for what the form cannot hold."""
    from capwright.export.source import load_source

    module = importlib.import_module(f"{__name__}.{FORMATS[config.to]}")
    if hasattr(module, "require"):
        module.require()
    source = load_source(config.checkpoint, config.model)
    with atomic_path(config.out) as temporary:
        temporary.mkdir()
        written: Written = module.write(source, temporary)
        if not written.largest_difference <= TOLERANCE:
            raise CapwrightError(
                f"the exported model differs from {config.checkpoint} by "
                f"{written.largest_difference:.2g}, more than {TOLERANCE}: nothing was written, "
                "please report it with the model's configuration"
            )
        load = written.load.replace("DIR", config.out.name)
        _write_readme(temporary, config, load, written)
    files = sorted(path for path in config.out.rglob("*") if path.is_file())
    return Summary(
        checkpoint=config.checkpoint,
        to=config.to,
        out=config.out,
        files=tuple(str(path.relative_to(config.out)) for path in files),
        size_bytes=sum(path.stat().st_size for path in files),
        parameters=sum(parameter.numel() for parameter in source.model.parameters()),
        largest_difference=written.largest_difference,
        load=written.load.replace("DIR", str(config.out)),
        notes=written.notes,
    )


def _write_readme(folder: Path, config: ExportConfig, load: str, written: Written) -> None:
    lines = [
        f"# {config.out.name}",
        "",
        f"Written by `capwright export {config.checkpoint} --to {config.to}`.",
        f"Largest difference to the checkpoint's embeddings: {written.largest_difference:.2g}.",
        "",
        "```python",
        load,
        "```",
        *(f"\n- {note}" for note in written.notes),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
