"""The stage of training-free segmentation, on toy scenes and on Pascal VOC's layout."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from capwright import datasets
from capwright.cli.evaluate import command
from capwright.core.errors import CapwrightError
from capwright.datasets.pascal_voc import CLASSES
from capwright.dense.pamr import refine
from capwright.dense.training_free.segmenter import inference_for, name_logits, resized
from capwright.dense.vit import open_up
from capwright.dense.words import BACKGROUND, text_vectors
from capwright.evaluate import compare
from capwright.evaluate.class_words import plain_words
from capwright.evaluate.dense_metrics import segmentation_metrics
from capwright.evaluate.outcomes import read_outcomes, values
from capwright.evaluate.results import read_results
from capwright.evaluate.training_free import (
    TrainingFreeConfig,
    count,
    plan,
    run,
    without_background,
)

METHODS = ("clip", "sclip", "contrast")


def test_every_protocol_and_method_gets_a_row(toy_folders, tiny, tmp_path: Path) -> None:
    config = TrainingFreeConfig(
        checkpoint=None, model=tiny, data=toy_folders["seen"], out=tmp_path / "a.json",
        methods=METHODS,
    )  # fmt: skip
    summary = run(config)
    rows = read_results(config.out)
    named = [(f"{row.protocol.name}/{row.protocol.version}", row.options["method"]) for row in rows]
    assert named == [(p, m) for p in ("sclip/v1", "plain/v1") for m in METHODS]
    for (protocol, method), row in zip(named, rows, strict=True):
        assert summary.miou[protocol][method] == row.metrics["miou"]
        assert row.metrics["classes_counted"] > 1
    kept = read_outcomes(config.out.with_suffix(".npz"))
    for number, row in enumerate(rows):
        assert len(kept[number].keys) == 8
        for metric, outcome in kept[number].metrics.items():
            assert values(outcome, np.ones((1, 8)))[0] == pytest.approx(row.metrics[metric])
    assert run(config).miou == summary.miou


def test_batches_of_pictures_are_pictures_one_by_one(toy_folders, encoder) -> None:
    pictures = datasets.load("scenes", toy_folders["seen"])
    words, inference = plain_words(pictures), inference_for(encoder.image_size)
    texts = text_vectors(encoder.text_embeddings, words)
    whole = count(encoder, pictures, 5, words, texts, METHODS, inference)
    assert whole["clip"].confusion_CC.sum() == 5 * 32 * 32
    for method in METHODS:
        parts = [
            count(encoder, one_of(pictures, number), 1, words, texts, (method,), inference)[method]
            for number in range(5)
        ]
        difference = whole[method].confusion_CC - sum(part.confusion_CC for part in parts)
        assert np.abs(difference).sum() <= 10  # of 5120 pixels: rounding
        assert segmentation_metrics(whole[method].confusion_CC)["miou"] is not None


def one_of(pictures, number: int):
    return type(pictures)(
        name=pictures.name, keys=pictures.keys[number : number + 1],
        read=lambda index: pictures[number], classes=pictures.classes,
        has_background=pictures.has_background,
    )  # fmt: skip


def test_scores_are_refined_by_the_pictures_at_the_labels_size(toy_folders, encoder) -> None:
    pictures = datasets.load("scenes", toy_folders["seen"])
    words, usual = plain_words(pictures), inference_for(encoder.image_size)
    texts = text_vectors(encoder.text_embeddings, words)
    found = count(encoder, pictures, 2, words, texts, ("sclip",), replace(usual, pamr=True))
    expected = np.zeros((3, 3), int)
    for item in (pictures[0], pictures[1]):
        small = resized(encoder.normalised(np.array(item.image)[None]), usual.short_side, 8)
        vit = open_up(encoder.model)
        logits = name_logits(vit, small, texts, ("sclip",), usual, size=item.seg_HW.shape)["sclip"]
        image = torch.from_numpy(np.array(item.image)).permute(2, 0, 1)[None] / 255
        scores = refine(torch.softmax(40 * logits, dim=1), image)
        np.add.at(expected, (item.seg_HW, scores.argmax(dim=1)[0].numpy()), 1)
    assert np.abs(found["sclip"].confusion_CC - expected).sum() <= 4  # of 2048 pixels: rounding
    plain = count(encoder, pictures, 2, words, texts, ("sclip",), usual)["sclip"].confusion_CC
    assert np.abs(plain - expected).sum() > 40


def test_what_is_switched_is_kept_apart(toy_folders, tmp_path: Path) -> None:
    shared = ["scratch", "--data", str(toy_folders["seen"]), "--method", "sclip", "--samples", "2"]
    files = {}
    for name, options in {"usual": [], "switched": ["--no-residual", "--ffn", "--pamr"]}.items():
        files[name] = tmp_path / f"{name}.json"
        done = CliRunner().invoke(
            command, ["training-free", *shared, *options, "--out", str(files[name])]
        )
        assert done.exit_code == 0, done.output
    usual, switched = (read_results(file)[0].options for file in files.values())
    assert "mode" not in usual and switched["mode"] == "no residual, ffn, pamr"
    assert switched["method"] == usual["method"] == "sclip"
    kept = {name: switched["inference"][name] for name in ("residual", "ffn", "pamr")}
    assert kept == {"residual": False, "ffn": True, "pamr": True}
    rows = compare.run(compare.CompareConfig(sources=tuple(files.values()))).rows
    tasks = {row.task for row in rows if row.metric == "miou"}
    assert "training_free_segmentation (sclip/v1, sclip)" in tasks
    assert "training_free_segmentation (sclip/v1, no residual, ffn, pamr, sclip)" in tasks
    assert all(len(row.cells) == 1 for row in rows)


def test_the_words_of_the_scenes(toy_folders, tmp_path: Path) -> None:
    config = TrainingFreeConfig(checkpoint=None, data=toy_folders["seen"], out=tmp_path)
    pictures = datasets.load("scenes", toy_folders["seen"])
    plain, _ = plan(config, pictures, "plain", 64)
    engineered, inference = plan(config, pictures, "sclip", 64)
    assert plain.classes == (("background",), ("apples",), ("berries",))
    assert engineered.classes == (BACKGROUND, ("red apple",), ("blue berry",))
    assert plain.background == 1 and engineered.background == len(BACKGROUND)
    assert inference == inference_for(64)


def test_things_alone_are_scored_without_their_background(toy_folders, tiny, tmp_path) -> None:
    pictures = datasets.load("scenes", toy_folders["seen"])
    things = without_background(pictures)
    before, after = pictures[0].seg_HW, things[0].seg_HW
    assert things.classes == ("apples", "berries") and after.dtype == np.uint8
    assert set(np.unique(after)) == {0, 255}  # the first scene has apples alone
    assert ((before == 1) == (after == 0)).all()
    config = TrainingFreeConfig(
        checkpoint=None, model=tiny, data=toy_folders["seen"], out=tmp_path / "a.json",
        methods=("clip",), things=True,
    )  # fmt: skip
    run(config)
    for row in read_results(config.out):
        assert row.dataset == "scenes-things"
        assert set(row.metrics) == {
            "miou", "macc", "aacc", "classes_counted", "iou/apples", "iou/berries"
        }  # fmt: skip


def test_a_set_without_background_has_none_to_leave_out(voc: Path, tmp_path: Path) -> None:
    config = TrainingFreeConfig(
        checkpoint=None, data=voc, dataset="pascal-voc20", out=tmp_path / "a.json", things=True
    )
    with pytest.raises(CapwrightError, match="pascal-voc20 has no background to leave out"):
        run(config)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, size in enumerate(((40, 56), (40, 56), (70, 44))):
        pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{number}.jpg")
        seg = rng.choice(np.array([0, 4, 15, 255], np.uint8), size)
        Image.fromarray(seg).save(root / "SegmentationClass" / f"{number}.png")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("0\n1\n2\n")
    return tmp_path


def test_pascal_voc_with_sclips_words_and_constants(voc: Path, tiny) -> None:
    config = TrainingFreeConfig(
        checkpoint=None, model=tiny, data=voc, dataset="pascal-voc21", out=voc / "a.json",
        methods=("sclip",),
    )  # fmt: skip
    assert run(config).pictures == 3
    sclip, plain = read_results(voc / "a.json")
    assert (sclip.dataset, sclip.options["inference"]["logit_scale"]) == ("pascal-voc21", 65.0)
    assert sclip.options["inference"]["area_threshold"] == 0.1
    assert plain.options["inference"]["logit_scale"] == 40.0
    pictures = datasets.load("pascal-voc21", voc)
    words, _ = plan(config, pictures, "sclip", 224)
    assert words.classes[0] == BACKGROUND and words.classes[4] == ("ship", "boat")
    assert len(words.classes) == len(CLASSES) + 1 and len(words.classes[15]) == 7


def test_short_sides_grow_with_the_tower(voc: Path) -> None:
    config = TrainingFreeConfig(checkpoint=None, data=voc, out=voc)
    stuff = datasets.load("pascal-voc20", voc)
    object.__setattr__(stuff, "name", "cityscapes")
    assert plan(config, stuff, "sclip", 224)[1].short_side == 560
    assert plan(config, stuff, "sclip", 336)[1].short_side == 840
    assert plan(config, stuff, "plain", 224)[1].short_side == 336


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ()}, "no methods"),
        ({"methods": ("clip", "magic")}, "clip, maskclip"),
        ({"residual": False}, "method 'clip' has no switch for residual"),
        ({"methods": ("sclip", "scclip"), "ffn": True}, "method 'scclip' has no switch for ffn"),
        ({"dataset": "ade20"}, "did you mean 'ade20k'"),
    ],
)
def test_what_there_is_not(changes, words: str, tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match=words):
        run(TrainingFreeConfig(checkpoint=None, data=tmp_path, out=tmp_path / "a", **changes))
