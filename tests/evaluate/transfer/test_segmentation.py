"""Segmentation by transfer: heads learn, a broken run ends as an unbroken one, tests are exact."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from capwright.core.errors import CapwrightError
from capwright.datasets.sets import IGNORE, SegmentationItem, require_same_classes
from capwright.dense.backbone import load_backbone
from capwright.dense.pixel_model import PixelModel
from capwright.evaluate.dense_metrics import confusion_matrix, segmentation_metrics
from capwright.evaluate.dense_training import DenseLoss, ProbeRecipe
from capwright.evaluate.outcomes import values
from capwright.evaluate.transfer import nearest_patches
from capwright.evaluate.transfer.augment import ViewSettings
from capwright.evaluate.transfer.loop import Schedule, fit
from capwright.evaluate.transfer.segmentation import (
    ReadOut,
    SegmentationLearner,
    SegmentationSettings,
    build,
    class_weights,
    cross_entropy,
    measure,
    require_batches,
)
from segmentation_sets import COLOURS, squares

LEARNED = ("upernet", "semantic_fpn", "linear")
READ_OUT = ReadOut(short_side=0, window=0, batch=3)
VIEWS = ViewSettings(
    side=32, short_side=32, scale=(1.0, 1.0), most_of_one=1.0, mirror=False, colours=False
)
SETTINGS = SegmentationSettings(width=16, pyramid_width=16, views=VIEWS, read_out=READ_OUT)


def learned(head: Any, folder: Path, **changes: Any) -> tuple[PixelModel, SegmentationSettings]:
    """After a few steps on four pictures."""
    settings = replace(SETTINGS, head=head)
    torch.manual_seed(0)
    model = build(load_backbone(None, model=changes.pop("model", "nano"), seed=0), settings, 3)
    learner = SegmentationLearner(model, settings)
    schedule = Schedule(
        steps=changes.pop("steps", 40), batch=4, learning_rate=3e-3,
        encoder_learning_rate=changes.pop("encoder_learning_rate", 1e-3), weight_decay=0.0,
        warmup_steps=2, shape="cosine",
    )  # fmt: skip
    fit(
        learner, squares(4), range(4), schedule, folder=folder, seed=0, precision="fp32",
        view=learner.view, **changes,
    )  # fmt: skip
    return model, settings


class Oracle(nn.Module):
    """Logits of the class whose colour a pixel has."""

    def __init__(self) -> None:
        super().__init__()
        self.colours_C3 = nn.Parameter(torch.tensor(COLOURS).float() / 255)
        self.backbone = SimpleNamespace(normalised=self.normalised, parameters=self.parameters)
        self.sizes: list[tuple[int, int]] = []

    def normalised(self, pixels: Tensor) -> Tensor:
        return pixels.float() / 255

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append((images.shape[-2], images.shape[-1]))
        return -(images[:, None] - self.colours_C3[None, :, :, None, None]).square().sum(dim=2)


@pytest.mark.parametrize("head", LEARNED)
def test_four_pictures_are_learned_by_heart(head: str, tmp_path: Path) -> None:
    model, settings = learned(head, tmp_path)
    metrics, _ = measure(model, squares(4, 32, 32), range(4), settings)
    assert metrics["aacc"] > (0.8 if head == "linear" else 0.93)  # type: ignore[operator]


def test_a_hierarchical_encoder_learns_with_its_stages(tmp_path: Path) -> None:
    model, settings = learned("semantic_fpn", tmp_path, model="nano-mci", steps=25)
    metrics, _ = measure(model, squares(4, 32, 32), range(4), settings)
    assert metrics["aacc"] > 0.85  # type: ignore[operator]


@pytest.mark.parametrize("head", LEARNED)
def test_a_frozen_encoder_stays_to_the_bit(head: str, tmp_path: Path) -> None:
    before = load_backbone(None, model="nano-mci", seed=0).state_dict()
    model, _ = learned(head, tmp_path, encoder_learning_rate=0.0, model="nano-mci", steps=4)
    after = model.backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_resumed_run_equals_an_unbroken_one_and_workers_change_nothing(tmp_path: Path) -> None:
    whole, _ = learned("upernet", tmp_path / "whole", steps=6)

    class Killed(Exception):
        pass

    original = SegmentationLearner.loss
    seen: list[int] = []

    def loss(self: SegmentationLearner, items: Sequence[Any], draws: np.random.Generator) -> Tensor:
        seen.append(len(items))
        if len(seen) == 4:
            raise Killed
        return original(self, items, draws)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentationLearner, "loss", loss)
        with pytest.raises(Killed):
            learned("upernet", tmp_path / "broken", steps=6, save_every=2)
    broken, _ = learned("upernet", tmp_path / "broken", steps=6, save_every=2, workers=1)
    expected = whole.state_dict()
    for name, value in broken.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_the_loss_is_the_mean_over_labelled_pixels_and_a_share_of_the_auxiliarys() -> None:
    torch.manual_seed(0)
    model = build(load_backbone(None, model="nano"), SETTINGS, 3).eval()
    learner = SegmentationLearner(model, SETTINGS)
    pixels = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    seg = torch.randint(0, 3, (2, 48, 48), dtype=torch.uint8)
    seg[:, :10] = IGNORE
    loss = learner.loss(list(zip(pixels, seg, strict=True)), np.random.default_rng(0))
    outputs = model.both(model.backbone.normalised(pixels))
    parts = []
    for logits in outputs:
        assert logits is not None
        chosen = logits.double().log_softmax(dim=1).gather(1, seg.long().clamp(max=2)[:, None])
        parts.append(-chosen[:, 0][seg != IGNORE].mean())
    assert loss.item() == pytest.approx((parts[0] + 0.4 * parts[1]).item(), rel=1e-5)


def test_rare_classes_weigh_more_as_in_the_dense_probe(toy_scenes: Any) -> None:
    scenes = toy_scenes(6)
    scenes.seg_NSS[:, :3] = IGNORE

    def read(index: int) -> SegmentationItem:
        image = Image.fromarray(scenes.images_NSS3[index])
        return SegmentationItem(key=str(index), image=image, seg_HW=scenes.seg_NSS[index])

    pictures = replace(squares(6), read=read)
    expected = DenseLoss(scenes, ProbeRecipe()).class_weight_C
    found = class_weights(pictures, range(6), 0.5)
    assert found is not None
    torch.testing.assert_close(found, expected)
    assert class_weights(pictures, range(6), 0.0) is None

    torch.manual_seed(0)
    model = build(load_backbone(None, model="nano"), replace(SETTINGS, head="linear"), 3).eval()
    items = [(torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8), torch.zeros(32, 32).byte())]
    items[0][1][:8] = 1
    loss = SegmentationLearner(model, SETTINGS, found).loss(items, np.random.default_rng(0))
    logs = model(model.backbone.normalised(items[0][0][None])).log_softmax(dim=1)[0]
    seg = items[0][1].long()
    each = -logs.gather(0, seg[None])[0] * found[seg]
    assert loss.item() == pytest.approx((each.sum() / found[seg].sum()).item(), rel=1e-5)


def test_no_label_is_no_loss() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 4, 4), IGNORE, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_a_perfect_answer_is_perfect_and_ignored_pixels_do_not_count() -> None:
    metrics, outcomes = measure(Oracle(), squares(5), range(5), SETTINGS)  # type: ignore[arg-type]
    assert (metrics["miou"], metrics["macc"], metrics["aacc"]) == (1, 1, 1)
    assert metrics["iou/apples"] == 1
    assert outcomes.keys == ("000", "001", "002", "003", "004")
    assert outcomes.metrics["aacc"].whole.tolist() == [47 * 64] * 5


def test_metrics_equal_one_confusion_matrix_and_outcomes_give_them_back() -> None:
    torch.manual_seed(1)
    model = build(load_backbone(None, model="nano"), replace(SETTINGS, head="linear"), 3).eval()
    pictures, chosen = squares(5), [0, 2, 3, 4]
    nn.init.normal_(model.head.predict.weight)  # type: ignore[union-attr, arg-type]
    metrics, outcomes = measure(model, pictures, chosen, SETTINGS)
    total = np.zeros((3, 3), np.int64)
    with torch.no_grad():
        for number in chosen:
            item = pictures[number]
            pixels = torch.from_numpy(np.array(item.image)).permute(2, 0, 1)[None]
            answer = model(model.backbone.normalised(pixels)).argmax(dim=1)[0].numpy()
            total += confusion_matrix(answer, item.seg_HW, 3)
    for name, value in segmentation_metrics(total).items():
        assert metrics[name] == pytest.approx(value), name
    for name in ("miou", "macc", "aacc"):
        found = values(outcomes.metrics[name], np.ones((1, len(chosen))))
        assert found[0] == pytest.approx(metrics[name]), name


def test_windows_and_the_whole_are_the_same_where_one_window_fits() -> None:
    torch.manual_seed(1)
    model = build(load_backbone(None, model="nano"), SETTINGS, 3)
    whole, _ = measure(model, squares(3), range(3), SETTINGS)
    windows = replace(SETTINGS, read_out=ReadOut(short_side=0, window=64, stride=64, batch=2))
    assert measure(model, squares(3), range(3), windows)[0] == whole


def test_pictures_are_resized_seen_through_windows_and_scored_as_stored() -> None:
    model = Oracle()
    read_out = ReadOut(short_side=96, window=64, stride=48, batch=4)
    metrics, _ = measure(model, squares(2), range(2), replace(SETTINGS, read_out=read_out))  # type: ignore[arg-type]
    assert set(model.sizes) == {(64, 64)}  # of 96 × 128
    assert len(model.sizes) == 3  # six places, two pictures each, four windows at once
    assert metrics["aacc"] > 0.97  # type: ignore[operator]


def test_flip_averages_both_directions() -> None:
    class Lopsided(Oracle):
        """Sure of berries on the left half alone."""

        def forward(self, images: Tensor) -> Tensor:
            logits = torch.zeros(len(images), 3, *images.shape[-2:])
            logits[:, 2, :, : images.shape[-1] // 2] = 1.0
            logits[:, 0] = 0.4
            return logits + 0 * self.colours_C3.sum()

    plain, _ = measure(Lopsided(), squares(2), range(2), SETTINGS)  # type: ignore[arg-type]
    turned = replace(SETTINGS, read_out=replace(READ_OUT, flip=True))
    both, outcomes = measure(Lopsided(), squares(2), range(2), turned)  # type: ignore[arg-type]
    assert plain["iou/background"] != both["iou/background"]
    berries = outcomes.metrics["miou"].part[:, 2]
    assert berries.sum() == outcomes.metrics["macc"].whole[:, 2].sum()  # 0.5 beats 0.4 everywhere


def test_pictures_of_several_sizes_are_tested() -> None:
    pictures = squares(4)
    read = pictures.read

    def mixed(index: int) -> SegmentationItem:
        return squares(4, 64, 48)[index] if index in (1, 2) else read(index)

    metrics, outcomes = measure(Oracle(), replace(pictures, read=mixed), range(4), SETTINGS)  # type: ignore[arg-type]
    assert metrics["miou"] == 1
    assert len(outcomes.keys) == 4


def test_nothing_labelled_is_refused() -> None:
    pictures = squares(2)

    def bare(index: int) -> SegmentationItem:
        item = pictures.read(index)
        return replace(item, seg_HW=np.full_like(item.seg_HW, IGNORE))

    empty = replace(pictures, read=bare)
    with pytest.raises(CapwrightError, match="none of the 2 test pictures of squares"):
        measure(Oracle(), empty, range(2), SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(CapwrightError, match="none of the 2 training pictures of squares"):
        nearest_patches.build(load_backbone(None), SETTINGS, empty, range(2), 0)


def test_the_nearest_patches_find_what_they_kept() -> None:
    pictures, settings = squares(6), replace(SETTINGS, head="knn", neighbours=3)
    model = nearest_patches.build(
        load_backbone(None, model="nano"), settings, pictures, range(6), 0
    )
    own, _ = measure(model, pictures, range(6), settings)
    assert own["aacc"] > 0.9  # type: ignore[operator]
    assert not any(p.requires_grad for p in model.parameters())


def test_patches_are_kept_evenly_and_by_the_seed() -> None:
    settings = replace(SETTINGS, head="knn", kept_patches=20)
    backbone = load_backbone(None, model="nano")

    def kept(seed: int) -> Tensor:
        head: Any = nearest_patches.build(backbone, settings, squares(4), range(4), seed).head
        return head.vectors_MD

    assert kept(0).shape == (20, backbone.channels[-1])
    assert torch.equal(kept(0), kept(0))
    assert not torch.equal(kept(0), kept(1))


def test_patches_of_a_picture_that_is_no_multiple_have_their_cells() -> None:
    item = squares(1, 36, 52)[0]
    vectors, shares = nearest_patches.patches(load_backbone(None, model="nano"), item, SETTINGS, 3)
    assert len(vectors) == len(shares) == 5 * 7  # 40 × 56 pixels, cells of 8
    seg = np.full((40, 56), IGNORE, np.uint8)
    seg[:36, :52] = item.seg_HW
    one_hot = F.one_hot(torch.from_numpy(seg).long().clamp(max=3), 4)[..., :3].float()
    cells = one_hot.view(5, 8, 7, 8, 3).sum(dim=(1, 3)).flatten(0, 1)
    torch.testing.assert_close(shares, cells / cells.sum(dim=1, keepdim=True).clamp(min=1))


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(CapwrightError, match="head 'unet': allowed are upernet"):
        replace(SETTINGS, head="unet")  # type: ignore[arg-type]
    with pytest.raises(CapwrightError, match="class_balance=-1"):
        replace(SETTINGS, class_balance=-1)
    with pytest.raises(CapwrightError, match="neighbours=0"):
        replace(SETTINGS, neighbours=0)
    with pytest.raises(CapwrightError, match="cannot move by 0"):
        ReadOut(stride=0)
    with pytest.raises(CapwrightError, match="batch=0"):
        ReadOut(batch=0)
    with pytest.raises(CapwrightError, match=r"schedule\.batch must be at least 2"):
        require_batches(SETTINGS, 1)
    require_batches(replace(SETTINGS, head="semantic_fpn"), 1)
    with pytest.raises(CapwrightError, match=r"split 2, first .background. and .a.: both"):
        require_same_classes(squares(1), replace(squares(1), classes=("a", "b")))
