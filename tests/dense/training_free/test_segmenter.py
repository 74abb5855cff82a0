"""Windows, scores and labels, against loops; and whole photos through the command."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image

from capwright.cli.segment import METHODS as OFFERED
from capwright.cli.segment import command
from capwright.core.errors import CapwrightError
from capwright.dense.sliding import starts
from capwright.dense.training_free import METHODS, find_method
from capwright.dense.training_free.layers import Layers
from capwright.dense.training_free.photos import SegmentConfig, run
from capwright.dense.training_free.segmenter import (
    Inference,
    class_scores,
    labels,
    name_logits,
    resized,
    window_logits,
)
from capwright.dense.vit import open_up
from capwright.dense.words import Vocabulary
from capwright.models import towers
from tiny_teachers import teacher

TWO = Vocabulary(classes=(("sky",), ("dog", "puppy")))


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return towers.build("nano").eval()


@pytest.fixture(scope="module")
def texts() -> Any:
    return F.normalize(torch.randn(3, 128, generator=torch.manual_seed(1)), dim=-1)


def test_windows_cover_a_side_and_the_last_one_fits() -> None:
    assert starts(336, 224, 112) == [0, 112]
    assert starts(300, 224, 112) == [0, 76]
    assert starts(224, 224, 112) == [0]
    assert starts(500, 224, 112) == [0, 112, 224, 276]


def test_the_short_side_and_multiples_of_a_patch() -> None:
    assert resized(torch.rand(1, 3, 50, 100), 64, 8).shape[-2:] == (64, 128)
    assert resized(torch.rand(1, 3, 97, 50), 60, 16).shape[-2:] == (112, 64)


def test_windows_in_batches_are_windows_one_by_one(model: Any, texts: Any) -> None:
    images = torch.randn(3, 3, 96, 136, generator=torch.manual_seed(2))
    inference = Inference(short_side=96, window=64, stride=32)
    found = name_logits(open_up(model), images, texts, ("clip", "scclip"), inference, size=(50, 70))
    for method, logits in found.items():
        for number, image in enumerate(images):
            total, count = torch.zeros(3, 96, 136), torch.zeros(96, 136)
            for y in (0, 32):
                for x in (0, 32, 64, 72):
                    crop = image[None, :, y : y + 64, x : x + 64]
                    with torch.no_grad():
                        part = window_logits(Layers(open_up(model), crop), texts, method)
                    part = F.interpolate(part, (64, 64), mode="bilinear", align_corners=False)
                    total[:, y : y + 64, x : x + 64] += part[0]
                    count[y : y + 64, x : x + 64] += 1
            expected = F.interpolate(
                (total / count)[None], (50, 70), mode="bilinear", align_corners=False
            )
            torch.testing.assert_close(logits[number], expected[0], atol=1e-4, rtol=1e-4)


def test_a_window_of_zero_is_the_whole_picture(model: Any, texts: Any) -> None:
    images = torch.randn(1, 3, 72, 88)
    whole = name_logits(
        open_up(model), images, texts, ("clip",), Inference(short_side=72, window=0)
    )["clip"]
    with torch.no_grad():
        part = window_logits(Layers(open_up(model), images), texts, "clip")
    expected = F.interpolate(part, (72, 88), mode="bilinear", align_corners=False)
    torch.testing.assert_close(whole, expected)


def test_scores_are_a_softmax_over_names() -> None:
    logits = torch.randn(2, 3, 4, 5)
    found = class_scores(logits, TWO, Inference(logit_scale=10.0))
    probability = torch.softmax(10 * logits, dim=1)
    torch.testing.assert_close(found[:, 0], probability[:, 0])
    torch.testing.assert_close(found[:, 1], probability[:, 1:].amax(dim=1))


def test_unsure_pixels_and_small_classes_are_background() -> None:
    scores = torch.zeros(1, 3, 10, 10)
    scores[:, 0] = 0.3
    scores[:, 1, :5] = 0.6  # 50 pixels
    scores[:, 2, 9, :4] = 0.7  # 4 pixels, 7% of the objects'
    plain = labels(scores, Inference())[0]
    assert plain.flatten().bincount().tolist() == [46, 50, 4]
    large = labels(scores, Inference(area_threshold=0.1))[0]
    assert large.flatten().bincount(minlength=3).tolist() == [50, 50, 0]
    sure = labels(scores, Inference(probability_threshold=0.65))[0]
    assert sure.flatten().bincount(minlength=3).tolist() == [96, 0, 4]


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": -1},
        {"short_side": 0},
        {"stride": 0},
        {"short_side": 100, "window": 200},
        {"window": 50, "stride": 51},
    ],
)
def test_sides_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(CapwrightError, match="pixels"):
        Inference(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"logit_scale": 0}, {"area_threshold": -0.1}, {"probability_threshold": 1.1}]
)
def test_scales_and_thresholds_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(CapwrightError, match="the scale must be above 0, both thresholds 0 to 1"):
        Inference(**wrong)  # type: ignore[arg-type]


@torch.no_grad()
def test_switches_reach_the_method_and_none_leaves_it_as_it_is(model: Any, texts: Any) -> None:
    images, usual = torch.randn(1, 3, 64, 64), Inference(short_side=64, window=64, stride=32)

    def found(inference: Inference) -> torch.Tensor:
        return name_logits(open_up(model), images, texts, ("sclip",), inference)["sclip"]

    assert torch.equal(found(usual), found(replace(usual, residual=True, ffn=True)))
    features = find_method("sclip").features(Layers(open_up(model), images), texts)
    small = (F.normalize(features, dim=-1) @ texts.T).transpose(1, 2).unflatten(2, (8, 8))
    large = F.interpolate(small, (64, 64), mode="bilinear", align_corners=False)
    assert torch.equal(found(usual), large)
    assert not torch.allclose(found(usual), found(replace(usual, residual=False)), atol=1e-3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return teacher(tmp_path_factory.mktemp("checkpoints") / "tiny", seed=0)


def photo(folder: Path, name: str = "a.png", size: tuple[int, int] = (90, 61)) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def test_a_photo_through_the_command(tmp_path: Path, checkpoint: str) -> None:
    done = CliRunner().invoke(
        command,
        [str(photo(tmp_path)), "--classes", "dog|puppy, sky, grass", "--model", checkpoint,
         "--out", str(tmp_path / "out"), "--method", "sclip", "--refine", "--window", "8",
         "--area-threshold", "0.01", "--logit-scale", "90"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "out" / "a.png") as found:
        numbers = np.asarray(found)
    assert numbers.shape == (61, 90) and set(np.unique(numbers)) <= {0, 1, 2}
    with Image.open(tmp_path / "out" / "a_overlay.png") as overlay:
        assert (overlay.size, overlay.format) == ((90, 61), "PNG")
    content = json.loads((tmp_path / "out" / "a.json").read_text())
    assert [item["class"] for item in content["classes"]] == ["dog", "sky", "grass"]
    for number, item in enumerate(content["classes"]):
        assert item["share"] == pytest.approx((numbers == number).mean())
    assert done.stdout.strip().startswith('{"shares"')


def test_the_background_is_not_painted(tmp_path: Path, checkpoint: str) -> None:
    words = {"classes": "background, sky", "model": checkpoint, "out": tmp_path / "out",
             "method": "sclip"}  # fmt: skip
    picture = tmp_path / "a.png"
    blocks = np.random.default_rng(1).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((90, 61)).save(picture)
    run(SegmentConfig(photos=(picture,), **words))  # type: ignore[arg-type]
    with Image.open(tmp_path / "out" / "a.png") as found:
        things = np.asarray(found) == 1
    with Image.open(tmp_path / "out" / "a_overlay.png") as overlay, Image.open(picture) as before:
        changed = np.abs(np.asarray(overlay).astype(int) - np.asarray(before)).mean(axis=-1)
    assert 0.02 < things.mean() < 0.98
    assert np.median(changed[things]) > 10 > np.median(changed[~things])


def test_the_command_offers_every_method() -> None:
    assert OFFERED == METHODS


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "nowhere"}, "no checkpoint at 'nowhere'"),
        ({"method": "magic"}, "method 'magic' is unknown"),
        ({"classes": "dog"}, "at least two"),
        ({"photos": ("a.txt",)}, "is no picture that can be read"),
        ({"photos": ("a.png", "b/a.png")}, r"would be one file, .*out/a\.png: segment"),
        ({"photos": ("a.png", "a_overlay.jpg")}, r"would be one file, .*out/a_overlay\.png"),
    ],
)
def test_bad_input(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    photo(tmp_path)
    (tmp_path / "a.txt").write_text("no picture")
    names = changes.pop("photos", ("a.png",))
    photos = tuple(tmp_path / name for name in names)
    plan: dict[str, Any] = {"classes": "dog, sky", "out": tmp_path / "out", "model": "nano"}
    with pytest.raises(CapwrightError, match=words):
        run(SegmentConfig(photos=photos, **{**plan, **changes}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a.png", "a_overlay.png"])
def test_a_photo_is_never_overwritten(
    name: str, tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = photo(tmp_path, name).read_bytes()
    photo(tmp_path, "a.jpg")
    monkeypatch.chdir(tmp_path)
    photos = ["a.png"] if name == "a.png" else ["a.jpg", "a_overlay.png"]
    done = CliRunner().invoke(
        command, [*photos, "--classes", "dog, sky", "--model", checkpoint, "--out", "."]
    )
    assert isinstance(done.exception, CapwrightError)
    assert str(done.exception) == (
        f"{name} is one of the photos and would be overwritten: give another --out"
    )
    assert (tmp_path / name).read_bytes() == before
    assert not (tmp_path / "a.json").exists()


def test_windows_of_another_size_overlap_by_a_half(tmp_path: Path, checkpoint: str) -> None:
    def labels_of(out: str, **changes: int) -> Any:
        run(SegmentConfig(
            photos=(photo(tmp_path),), classes="dog, sky, grass", out=tmp_path / out,
            model=checkpoint, method="sclip", changes=changes,
        ))  # fmt: skip
        with Image.open(tmp_path / out / "a.png") as found:
            return np.asarray(found)

    half = labels_of("half", window=8)  # a quarter of the tower's side
    assert (half == labels_of("given", window=8, stride=4)).all()
    assert (half != labels_of("other", window=8, stride=8)).any()
    assert (labels_of("whole", window=0) != half).any()
