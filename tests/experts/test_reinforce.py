"""The stage of the teachers' knowledge on tiny real teachers, and what training reads of it."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import tiny_teachers
from capwright.captions.runner import Running
from capwright.cli import group
from capwright.core.errors import CapwrightError
from capwright.corpus.index import load_index
from capwright.corpus.sidecars import captions_of, read_sidecars
from capwright.experts import reinforce
from capwright.experts.reinforce import ReinforceConfig
from capwright.models import towers
from capwright.pretrain.draws import Draws
from capwright.pretrain.objectives.reinforced import ReplayedViews
from capwright.pretrain.reinforcement import Reinforcements, choice, pack, unpack
from capwright.pretrain.replay import parse

SIDES, WIDTHS = (32, 24), (16, 8)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("teachers")
    return tuple(
        tiny_teachers.teacher(folder / str(i), seed=i, side=SIDES[i], width=WIDTHS[i])
        for i in range(2)
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, teachers: tuple[str, ...]) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    tiny_teachers.write_corpus(folder / "tars", folder / "work")
    reinforce.run(config(folder / "work", teachers))
    return folder / "work"


def config(work: Path, teachers: tuple[str, ...], **changes: Any) -> ReinforceConfig:
    return ReinforceConfig(
        **{"work": work, "teachers": teachers, "augmentations": 3, "batch_size": 8, **changes}
    )


def test_every_view_and_caption_has_the_embedding_that_its_teacher_gives(
    work: Path, teachers: tuple[str, ...]
) -> None:
    """Computed again from the sidecar's own parameters with open_clip's preprocessing by hand."""
    models = [towers.load(name) for name in teachers]
    rows = read_sidecars(work / "captions" / "reinforce").to_pylist()
    pictures = [row for row in rows if row["augmentations"]]
    captions = [row for row in rows if row["text_embedding"]]
    assert len(pictures) == 12
    assert len(captions) == 11 + 24
    assert {row["source"] for row in captions} == {"alt", "tiny"}
    for row in pictures[:4]:
        picture = Image.open(io.BytesIO(tiny_teachers.picture(int(row["key"]))))
        stored = unpack(row["image_embeddings"], 24)
        augmentations = parse(row["augmentations"])
        assert stored.shape == (3, 24)
        assert len(augmentations) == 3
        assert row["widths"] == [16, 8]
        for i, augmentation in enumerate(augmentations):
            parts = []
            for (model, _, _), side in zip(models, SIDES, strict=True):
                view = reinforce.views(picture, [augmentation], side)[0] / 255
                view = (view - model.visual.image_mean) / model.visual.image_std
                image = torch.from_numpy(view).permute(2, 0, 1)[None].float()
                parts.append(model.encode_image(image, normalize=True)[0].detach())
            assert torch.allclose(torch.cat(parts), stored[i].float(), atol=4e-3)
    model, _, tokenizer = models[1]
    for row in captions[:6]:
        expected = model.encode_text(tokenizer([row["text"]]), normalize=True)[0].detach()
        assert torch.allclose(
            unpack(row["text_embedding"], 24)[0, 16:].float(), expected, atol=4e-3
        )


def test_training_sees_the_very_bytes_that_the_teacher_saw(
    work: Path, teachers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[bytes, torch.Tensor] = {}
    original = reinforce.Teacher.images

    def images(self: Any, views: np.ndarray) -> torch.Tensor:
        embedded = original(self, views)
        if self.side == SIDES[0]:
            seen.update({v.tobytes(): e for v, e in zip(views, embedded, strict=True)})
        return embedded

    monkeypatch.setattr(reinforce.Teacher, "images", images)
    reinforce.dry_run(config(work, teachers), pictures=12)
    assert len(seen) == 36
    index, store = load_index(work), Reinforcements(work, "reinforce")
    maker = pickle.loads(pickle.dumps(ReplayedViews(index, store, SIDES[0])))
    rows = np.arange(12)
    drawn = set()
    for epoch in range(6):
        draws = Draws(5, rows, np.full(12, epoch))
        views = maker(rows, draws)
        assert views.shape == (12, 1, 3, SIDES[0], SIDES[0])
        bytes_ = (views[:, 0] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for row, uniform in enumerate(draws.uniform("reinforced", 1)[:, 0]):
            stored = store.image(row, uniform)
            assert stored is not None
            view = bytes_[row].tobytes()
            assert torch.equal(seen[view].bfloat16(), stored[:16])
            drawn.add((row, choice(store.augmentations(row), uniform)))
    assert len(drawn) > 24


def test_the_store_finds_captions_by_row_and_text(work: Path) -> None:
    index, store = load_index(work), Reinforcements(work, "reinforce")
    rows = read_sidecars(work / "captions" / "reinforce").to_pylist()
    stored = {(row["key"], row["text"]): row["text_embedding"] for row in rows}
    for row, key in enumerate(index["key"].to_pylist()):
        text = f"a photo of picture {key}"
        found = store.text(row, text)
        assert found is not None
        assert pack(found) == stored[key, text]
        assert store.text((row + 1) % 12, text) is None
    assert store.widths == WIDTHS
    assert [part.shape[-1] for part in store.split(torch.zeros(2, 24))] == [16, 8]


def test_the_sidecar_is_a_source_of_captions_like_others(work: Path) -> None:
    captions = captions_of(load_index(work), work / "captions" / "reinforce")
    assert captions[0] == ["alt text 0", "a drawing of picture 0000", "a photo of picture 0000"]


def test_a_run_in_two_halves_writes_what_one_run_writes(
    work: Path, teachers: tuple[str, ...], tmp_path: Path
) -> None:
    tiny_teachers.write_corpus(tmp_path / "tars", tmp_path / "work")
    half = reinforce.run(config(tmp_path / "work", teachers), Running(limit=6))
    assert (half.shards_left, half.pictures) == (1, 6)
    with pytest.raises(CapwrightError, match="no teachers' knowledge for 00001: run `capwright"):
        Reinforcements(tmp_path / "work", "reinforce")
    whole = reinforce.run(config(tmp_path / "work", teachers))
    assert (whole.shards_left, whole.shards_reused, whole.pictures) == (0, 1, 12)
    for shard in ("00000", "00001"):
        one, other = (
            read_sidecars(place / "captions" / "reinforce", [shard])
            for place in (work, tmp_path / "work")
        )
        assert one.equals(other)


def test_another_seed_is_another_plan(work: Path, teachers: tuple[str, ...]) -> None:
    with pytest.raises(CapwrightError, match=r"another plan \(seed 0 -> 1\)"):
        reinforce.run(config(work, teachers, seed=1))


def test_a_picture_that_fails_is_counted_and_repaired_later(
    teachers: tuple[str, ...], tmp_path: Path
) -> None:
    tiny_teachers.write_corpus(tmp_path / "tars", tmp_path / "work")
    tar = tmp_path / "tars" / "00000.tar"
    data = tar.read_bytes()
    good = tiny_teachers.picture(4)
    tar.write_bytes(data.replace(good, b"x" * len(good)))
    found = reinforce.run(config(tmp_path / "work", teachers), Running(max_failure_rate=0.5))
    assert found.reasons == {"failed: unreadable picture: UnidentifiedImageError": 1}
    index, store = load_index(tmp_path / "work"), Reinforcements(tmp_path / "work", "reinforce")
    bad = index["key"].to_pylist().index("0004")
    assert store.image(bad, 0.5) is None
    assert store.augmentations(bad) == []
    tar.write_bytes(data)
    middle = ReplayedViews(index, store, 32)(
        np.array([bad]), Draws(0, np.array([bad]), np.array([0]))
    )
    assert middle.shape == (1, 1, 3, 32, 32)
    reinforce.run(config(tmp_path / "work", teachers), Running(retry_failed=True))
    assert Reinforcements(tmp_path / "work", "reinforce").image(bad, 0.5) is not None


def test_bfloat16_survives_its_bytes() -> None:
    values = torch.randn(5, 7)
    assert torch.equal(unpack(pack(values), 7), values.bfloat16())


def test_the_command_line(teachers: tuple[str, ...], tmp_path: Path) -> None:
    tiny_teachers.write_corpus(tmp_path / "tars", tmp_path / "work")
    place = [str(tmp_path / "tars"), "--work", str(tmp_path / "work"), "--teacher", teachers[0]]
    more = ["--captions", "describe-tiny", "--augmentations", "2"]
    result = CliRunner().invoke(group, ["reinforce", *place, *more, "--dry-run", "1"])
    assert result.exit_code == 0, result.output
    first = json.loads(result.stdout.splitlines()[0])
    assert first["image_embeddings"] == f"{2 * 16 * 2} bytes"
    assert not (tmp_path / "work" / "captions" / "reinforce").exists()
    result = CliRunner().invoke(group, ["reinforce", *place, *more])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["pictures"], summary["captions"]) == (12, 12 + 11 + 24)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": ()}, "no teacher is named: give at least one --teacher"),
        ({"augmentations": 0}, "augmentations is 0: it must be 1 or more"),
        ({"level": 1.5}, "level is 1.5: a strength from 0 to 1"),
        ({"crop_area": (0.5, 1.5)}, r"crop_area is \(0.5, 1.5\): two numbers with"),
        ({"crop_aspect": (2.0, 1.0)}, r"crop_aspect is \(2.0, 1.0\)"),
        ({"operations": -1}, "operations is -1: give 0 for crops alone"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match=message):
        config(tmp_path, **{"teachers": ("a/b",), **changes})


def test_a_stage_without_embeddings_is_refused(work: Path) -> None:
    with pytest.raises(CapwrightError, match=r"reinforced\.stage must name a stage that"):
        Reinforcements(work, "describe-tiny")
