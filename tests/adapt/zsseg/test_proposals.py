import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from capwright.adapt.zsseg.learners import PixelClassifierLearner, ProposalLearner, TaughtView
from capwright.adapt.zsseg.losses import LossWeights
from capwright.adapt.zsseg.one_stage import PixelClassifier
from capwright.adapt.zsseg.proposals import (
    RESNET50,
    ProposalNetwork,
    ProposalSettings,
    enlarged,
    padded_side,
)
from capwright.adapt.zsseg.views import ViewSettings, learning_view
from capwright.core.errors import CapwrightError
from capwright.datasets.sets import SegmentationItem
from capwright.dense.backbone import load_backbone
from capwright.evaluate.transfer.loop import Schedule

E = 16
SCHEDULE = Schedule(steps=2, batch=2, learning_rate=1e-3, encoder_learning_rate=1e-4)
VIEWS = ViewSettings(short_sides=(30, 40), cut=37, test_short_side=33)


def test_the_last_layer_is_the_librarys(network: ProposalNetwork) -> None:
    pixels = torch.rand(2, 3, 64, 96)
    layers = network(pixels)
    assert len(layers) == network.settings.layers
    out = network.maskformer(network.padded(pixels))
    queries = out.transformer_decoder_last_hidden_state
    masks = torch.einsum(
        "bqm,bmhw->bqhw", network.mask_head(queries), out.pixel_decoder_last_hidden_state
    )
    torch.testing.assert_close(layers[-1].masks_BQhw, masks)
    torch.testing.assert_close(layers[-1].embeddings_BQE, network.classifier(queries))
    assert layers[-1].masks_BQhw.shape == (2, 5, 16, 24)
    assert not torch.allclose(layers[0].masks_BQhw, masks)


def test_logits_are_cosines(network: ProposalNetwork) -> None:
    embeddings, texts = torch.randn(1, 3, E), torch.randn(2, E)
    found = network.logits(embeddings, texts)[0].detach().double().numpy()
    targets = [*texts.double().numpy(), network.no_object_E.detach().double().numpy()]
    for query in range(3):
        vector = embeddings[0, query].double().numpy()
        for column, target in enumerate(targets):
            lengths = math.sqrt(float(vector @ vector)) * math.sqrt(float(target @ target))
            assert found[query, column] == pytest.approx(
                100 * float(vector @ target) / lengths, abs=1e-3
            )


@pytest.mark.parametrize("size", [(3, 5), (33, 65), (64, 64), (1, 100)])
def test_sides_that_do_not_divide(network: ProposalNetwork, size: tuple[int, int]) -> None:
    last = network(torch.rand(1, 3, *size))[-1]
    masks = enlarged(last.masks_BQhw, size, network.settings.stride)
    assert masks.shape == (1, 5, *size) and masks.isfinite().all()
    network.train()
    assert network(torch.rand(1, 3, *size))[-1].masks_BQhw.isfinite().all()


def test_what_is_added_is_the_mean_pixel(network: ProposalNetwork) -> None:
    padded = network.padded(torch.rand(1, 3, 40, 70))
    assert padded.shape[-2:] == (64, 96)
    assert not padded[..., 40:, :].any() and not padded[..., 70:].any()
    assert [padded_side(side, 32) for side in (1, 64, 65)] == [64, 64, 96]


def test_a_backbone_of_timm() -> None:
    backbone = {
        "model_type": "timm_backbone",
        "backbone": "test_resnet",
        "use_pretrained_backbone": False,
        "features_only": True,
        "out_indices": [1, 2, 3, 4],
    }
    settings = ProposalSettings(
        backbone=backbone, queries=3, layers=1, width=16, heads=2, feedforward=16, mask_features=32
    )
    layers = ProposalNetwork(settings, E).eval()(torch.rand(1, 3, 50, 70))
    assert [layer.masks_BQhw.shape[1] for layer in layers] == [3]


def test_trained_weights_of_timm_reach_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    made, create = [], timm.create_model

    def trained(name: str, *, pretrained: bool, **options: Any) -> Any:
        made.append(create(name, **options))
        return made[-1] if pretrained else create(name, **options)

    backbone = {**RESNET50, "backbone": "test_resnet"}
    sizes = {"queries": 3, "layers": 1, "width": 16, "heads": 2, "feedforward": 16}
    network = ProposalNetwork(ProposalSettings(backbone=backbone, mask_features=32, **sizes), E)
    monkeypatch.setattr(timm, "create_model", trained)
    network.load_backbone()
    own = network.maskformer.pixel_level_module.encoder._backbone.state_dict()
    (weights,) = (model.state_dict() for model in made)
    assert own.keys() == weights.keys()
    assert all(torch.equal(own[name], weights[name]) for name in own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": 0}, "0 queries"),
        ({"width": 30, "heads": 4}, "the heads must divide the width"),
        ({"mask_features": 48}, "and 32 the mask features"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict[str, int], message: str) -> None:
    with pytest.raises(CapwrightError, match=message):
        ProposalSettings(**changes)


def test_a_backbone_that_is_none() -> None:
    settings = ProposalSettings(backbone={"model_type": "resnest"}, mask_features=32)
    with pytest.raises(CapwrightError, match="is none that transformers' MaskFormer takes"):
        ProposalNetwork(settings, E)


def test_every_parameter_is_in_one_group(network: ProposalNetwork) -> None:
    groups = network.parameter_groups(SCHEDULE)
    in_groups = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in in_groups} == {id(p) for p in network.parameters()}
    assert len(in_groups) == len(list(network.parameters()))
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    backbone = network.maskformer.pixel_level_module.encoder
    assert {rates[id(p)] for p in backbone.parameters()} == {1e-4}
    assert rates[id(network.no_object_E)] == 1e-3


def item(classes: int = 3) -> SegmentationItem:
    """A picture of 45 x 34 pixels; the right half is of the last class."""
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (34, 45, 3)).astype(np.uint8)
    seg = draws.integers(0, classes - 1, (34, 45)).astype(np.uint8)
    seg[:, 22:] = classes - 1
    return SegmentationItem(key="a", image=Image.fromarray(pixels), seg_HW=seg)


def learners(network: ProposalNetwork, clip_config: dict) -> list:
    torch.manual_seed(0)
    texts = torch.randn(2, E)
    backbone = load_backbone(None, model=clip_config)
    return [
        ProposalLearner(network, texts, LossWeights()),
        PixelClassifierLearner(PixelClassifier(backbone, E, width=8), texts),
    ]


@pytest.mark.parametrize("which", [0, 1])
def test_unseen_pixels_never_reach_a_loss(
    network: ProposalNetwork, clip_config: dict, which: int
) -> None:
    """Neither what class they are of, nor that they are labelled at all, nor a gradient there."""
    learner = learners(network, clip_config)[which]
    learner.module.eval()
    view = TaughtView(taught=(0, 1), classes=4, views=VIEWS)
    shown = item()
    values = []
    for unseen in (2, 3, 255):
        seg = np.where(shown.seg_HW == 2, unseen, shown.seg_HW).astype(np.uint8)
        other = SegmentationItem(key="a", image=shown.image, seg_HW=seg)
        pixels, labels = view(other, np.random.default_rng(1))
        assert set(labels.flatten().tolist()) == {0, 1, 255}
        loss = learner.loss([(pixels, labels)] * 2, np.random.default_rng(0))
        values.append(float(loss.detach()))
    assert values[0] == values[1] == values[2]
    nothing = torch.full_like(labels, 255)
    loss = learner.loss([(pixels, nothing)], np.random.default_rng(0))
    assert float(loss.detach()) == 0.0
    loss.backward()
    gradients = [p.grad for p in learner.module.parameters() if p.grad is not None]
    assert gradients and not any(gradient.any() for gradient in gradients)


def test_the_baselines_logits_and_loss(network: ProposalNetwork, clip_config: dict) -> None:
    learner = learners(network, clip_config)[1]
    learner.module.eval()
    view = TaughtView(taught=(0, 1), classes=3, views=VIEWS)
    pixels, labels = view(item(), np.random.default_rng(1))  # 37 pixels; 40 for the encoder
    with torch.no_grad():
        found = float(learner.loss([(pixels, labels)], np.random.default_rng(0)))
        module = learner.module
        images = torch.nn.functional.pad(module.backbone.normalised(pixels[None]), (0, 3, 0, 3))
        cells = module.head(module.backbone(images), (5, 5))[0].double().numpy()
    texts = learner.texts_KE.double().numpy()
    cosines = np.einsum("eyx,ce->cyx", cells / np.linalg.norm(cells, axis=0), texts)
    cosines = 100 * cosines / np.linalg.norm(texts, axis=1)[:, None, None]
    total, number = 0.0, 0
    for y, x in np.argwhere(labels.numpy() != 255):
        row = [bilinear(plane, (y + 0.5) / 8 - 0.5, (x + 0.5) / 8 - 0.5) for plane in cosines]
        total += math.log(sum(math.exp(value - max(row)) for value in row)) + max(row)
        total -= row[int(labels[y, x])]
        number += 1
    assert found == pytest.approx(total / number, abs=1e-3)


def bilinear(plane: np.ndarray, y: float, x: float) -> float:
    total = 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    for i in (int(y), int(y) + 1):
        for j in (int(x), int(x) + 1):
            share = (1 - abs(y - i)) * (1 - abs(x - j))
            total += share * float(plane[min(i, 4), min(j, 4)])
    return total


def test_a_view_keeps_pixels_and_labels_together() -> None:
    seg = np.kron(np.arange(12).reshape(3, 4), np.ones((10, 10))).astype(np.uint8)
    image = Image.fromarray(np.repeat(seg[..., None] * 20, 3, axis=2))
    settings = ViewSettings(short_sides=(30, 30), cut=20)
    for seed in range(8):
        pixels, labels = learning_view(image, seg, settings, np.random.default_rng(seed))
        assert pixels.shape == (3, 20, 20) and labels.shape == (20, 20)
        torch.testing.assert_close((pixels[0] * 255 / 20).round().to(torch.uint8), labels)


def test_a_picture_smaller_than_the_cut_is_filled_unlabelled() -> None:
    seg = np.ones((4, 6), np.uint8)
    image = Image.new("RGB", (6, 4), (255, 255, 255))
    settings = ViewSettings(short_sides=(4, 4), cut=10)
    pixels, labels = learning_view(image, seg, settings, np.random.default_rng(0))
    assert (labels[:4, :6] == 1).all() and int((labels == 1).sum()) == 24
    assert (pixels[:, 4:] == 0.5).all() and (pixels[:, :4, :6] == 1).all()


def test_sizes_of_views_that_are_none() -> None:
    with pytest.raises(CapwrightError, match="short sides of 40 to 30"):
        ViewSettings(short_sides=(40, 30))
