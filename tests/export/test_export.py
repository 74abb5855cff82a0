"""open_clip folders, `.pt` files, the command and its faults."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from click.testing import CliRunner

from capwright.cli import group
from capwright.core.errors import CapwrightError
from capwright.export import ExportConfig, run
from capwright.models import towers

Make = Callable[..., Path]


def export(checkpoint: Path, out: Path, **options: Any) -> Any:
    fields = {"checkpoint": str(checkpoint), "to": "open_clip", "out": out}
    return run(ExportConfig(**(fields | options)))


@pytest.mark.parametrize("words", [False, True])
def test_an_open_clip_folder_is_the_same_model(words: bool, make: Make, tmp_path: Path) -> None:
    checkpoint, out = make(words=words, preprocess={"resize_mode": "squash"}), tmp_path / "out"
    summary = export(checkpoint, out)
    assert summary.largest_difference == 0
    assert ("tokenizer.json" in summary.files) == words
    (model, _, tokenizer), (again, _, tokenizer_again) = towers.load(checkpoint), towers.load(out)
    images, texts = torch.randn(2, 3, 16, 16), ["a red bus", "Dogs!"]
    assert torch.equal(model.encode_image(images), again.encode_image(images))
    assert torch.equal(tokenizer(texts), tokenizer_again(texts))
    assert again.visual.preprocess_cfg["resize_mode"] == "squash"
    assert summary.size_bytes == sum(path.stat().st_size for path in out.iterdir())
    assert (out / "README.md").read_text().count("open_clip.create_model_and_transforms") == 1


def test_a_run_folder_is_taken_at_its_last_checkpoint(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last").symlink_to(plain)
    assert export(tmp_path / "run", tmp_path / "out").largest_difference == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "ours"])
def test_another_process_reads_it(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    summary = export(request.getfixturevalue(kind), tmp_path / "out")
    ours = kind == "ours"
    assert any("import capwright.models" in note for note in summary.notes) == ours
    code = summary.load + (
        f"\nimport sys\nassert any('capwright' in m for m in sys.modules) == {ours}\n"
        "print(model.encode_text(tokenizer(['a red bus'])).shape[1])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "16\n", result.stderr


def training_file(path: Path, model: Any, **more: Any) -> Path:
    """What open_clip_train saves: names with `module.` under several processes."""
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": state} | more, path)
    return path


def test_a_training_file_of_open_clip(plain: Path, tmp_path: Path) -> None:
    config = json.loads((plain / towers.CONFIG_FILE).read_text())["model_cfg"]
    parts = {k: v for k, v in config.items() if k != "custom_text"}
    torch.manual_seed(1)
    model = open_clip.CLIP(**parts).eval()  # the class that open_clip trains for such a config
    optimizer = torch.optim.AdamW(model.parameters())
    file = training_file(tmp_path / "epoch_1.pt", model, optimizer=optimizer.state_dict())
    (tmp_path / "tiny.json").write_text(json.dumps(parts))
    export(file, tmp_path / "out", model=str(tmp_path / "tiny.json"))
    again, _, tokenizer = towers.load(tmp_path / "out")
    images, tokens = torch.randn(2, 3, 16, 16), tokenizer(["a", "two dogs"])
    assert torch.equal(model.encode_image(images), again.encode_image(images))
    assert torch.equal(model.encode_text(tokens), again.encode_text(tokens))


def test_a_training_file_that_does_not_fit(plain: Path, tmp_path: Path) -> None:
    model, _, _ = towers.load(plain)
    file = training_file(tmp_path / "a.pt", model)
    with pytest.raises(CapwrightError, match=r"a\.pt does not fit the model nano .* --model that"):
        export(file, tmp_path / "out", model="nano")
    with pytest.raises(CapwrightError, match=r"b\.pt does not exist"):
        export(tmp_path / "b.pt", tmp_path / "out", model="nano")


class Boobytrap:
    def __reduce__(self) -> Any:
        return (open, ("trodden", "w"))


def test_no_code_runs_from_a_training_file(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, _, _ = towers.load(plain)
    file = training_file(tmp_path / "a.pt", model, trap=Boobytrap())
    with pytest.raises(CapwrightError, match="holds more than weights, and code from a file is"):
        export(file, tmp_path / "out", model="nano")
    assert not (tmp_path / "trodden").exists()


def test_the_command_prints_one_json(plain: Path, tmp_path: Path) -> None:
    arguments = ["export", str(plain), "--to", "open_clip", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["to"] == "open_clip"
    assert summary["files"] == ["README.md", "open_clip_config.json", "open_clip_model.safetensors"]
    assert summary["parameters"] > 0
    again = CliRunner().invoke(group, arguments)
    assert again.exit_code == 2
    assert "exists already and is no empty folder" in again.stderr
    assert again.stdout == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "tensorflow"}, "format 'tensorflow' is unknown: choose open_clip, huggingface"),
        ({"checkpoint": "a.pt"}, "checkpoint 'a.pt' with model None does not go together"),
        ({"model": "nano"}, "with model 'nano' does not go together"),
    ],
)
def test_a_wrong_plan(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match=message):
        ExportConfig(**({"checkpoint": "a", "to": "timm", "out": tmp_path / "out"} | options))


def test_an_export_that_differs_is_not_kept(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capwright.export import open_clip_folder

    right = open_clip_folder.save_file
    monkeypatch.setattr(
        open_clip_folder,
        "save_file",
        lambda tensors, path: right(tensors | {"visual.proj": tensors["visual.proj"] * 1.01}, path),
    )
    with pytest.raises(CapwrightError, match=r"exported model differs from .* nothing was written"):
        export(plain, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
