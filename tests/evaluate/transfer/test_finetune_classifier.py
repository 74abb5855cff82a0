"""Fine-tuning for classification: crops, mixup, the loss."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.datasets.sets import ClassificationItem, ClassificationSet
from capwright.dense.backbone import load_backbone
from capwright.evaluate.transfer.finetune_classifier import (
    Classifier,
    ClassifierLearner,
    FineTuning,
    mixed,
    random_box,
    random_view,
)

SIZE = 64


def item(number: int) -> ClassificationItem:
    pixels = np.random.default_rng(number).integers(0, 256, (70, 90, 3), np.uint8)
    return ClassificationItem(key=str(number), image=Image.fromarray(pixels), label=number % 3)


PICTURES = ClassificationSet(
    name="toys", keys=tuple("012345"), read=item, classes=("ants", "bees", "cats")
)


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier(load_backbone(None, model="nano"), 3, "penultimate")


def viewed(
    learner: ClassifierLearner, items: list[ClassificationItem], seed: int
) -> list[tuple[torch.Tensor, int]]:
    draws = np.random.default_rng(seed)
    return [learner.view(each, draws) for each in items]


def test_boxes_lie_within_the_picture_and_have_area_and_aspect_asked_for() -> None:
    settings = FineTuning(crop_area=(0.2, 0.5))
    shares, aspects = [], []
    for seed in range(200):
        top, left, tall, wide = random_box(300, 400, settings, np.random.default_rng(seed))
        assert top >= 0 and left >= 0 and top + tall <= 300 and left + wide <= 400
        shares.append(tall * wide / 120_000)
        aspects.append(wide / tall)
    assert 0.19 < min(shares) < 0.24
    assert 0.45 < max(shares) < 0.51
    assert 0.74 < min(aspects) < 0.8
    assert 1.25 < max(aspects) < 1.35


def test_where_no_crop_fits_the_whole_picture_is_taken() -> None:
    wide = FineTuning(crop_area=(1.0, 1.0), crop_aspect=(3.0, 4.0))
    assert random_box(50, 50, wide, np.random.default_rng(0)) == (0, 0, 50, 50)


def test_views_are_mirrored_half_of_the_time() -> None:
    pixels = np.tile(np.arange(64, dtype=np.uint8)[None, :, None], (64, 1, 3))
    whole = FineTuning(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    seen = [
        bool(view[0, 0, 0] < view[0, 0, -1])
        for view in (
            random_view(Image.fromarray(pixels), whole, 64, np.random.default_rng(seed))
            for seed in range(60)
        )
    ]
    assert 15 < sum(seen) < 45


def test_mixing_is_with_the_other_end_of_the_batch() -> None:
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    expected = torch.tensor([[0.75, 0.0], [0.0, 1.0], [0.25, 0.0]])
    torch.testing.assert_close(mixed(values, 0.75), expected)


def test_the_loss_is_the_cross_entropy_of_smoothed_targets(model: Classifier) -> None:
    model.eval()
    settings = FineTuning(label_smoothing=0.1)
    learner = ClassifierLearner(model, PICTURES, settings, SIZE)
    items = [item(number) for number in range(4)]
    draws = np.random.default_rng(3)
    views = torch.stack([random_view(each.image, settings, SIZE, draws) for each in items])
    logs = model(model.backbone.normalised(views)).log_softmax(dim=1).double()
    targets = F.one_hot(torch.tensor([0, 1, 2, 0]), 3).double() * 0.9 + 0.1 / 3
    expected = -(targets * logs).sum(dim=1).mean()
    found = learner.loss(viewed(learner, items, 3), np.random.default_rng(0))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_mixup_mixes_pictures_and_targets_alike(model: Classifier) -> None:
    model.eval()
    settings = FineTuning(mixup=0.8)
    items = [item(number) for number in range(4)]
    draws = np.random.default_rng(3)
    views = torch.stack([random_view(each.image, settings, SIZE, draws) for each in items])
    share = np.random.default_rng(7).beta(0.8, 0.8)
    assert 0.02 < share < 0.98
    images = model.backbone.normalised(views)
    logs = model(share * images + (1 - share) * images.flip(0)).log_softmax(dim=1)
    labels = [0, 1, 2, 0]
    expected = np.mean(
        [
            -share * logs[i, labels[i]].item() - (1 - share) * logs[i, labels[3 - i]].item()
            for i in range(4)
        ]
    )
    learner = ClassifierLearner(model, PICTURES, settings, SIZE)
    found = learner.loss(viewed(learner, items, 3), np.random.default_rng(7))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_step_reaches_encoder_and_layer(model: Classifier) -> None:
    learner = ClassifierLearner(model.train(), PICTURES, FineTuning(), SIZE)
    items = viewed(learner, [item(number) for number in range(4)], 0)
    learner.loss(items, np.random.default_rng(0)).backward()
    assert model.predict.weight.grad is not None
    assert sum(p.grad is not None for p in model.backbone.parameters()) > 10


@pytest.mark.parametrize(
    "wrong", [{"crop_area": (0.0, 1.0)}, {"mixup": -1.0}, {"label_smoothing": 1.0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(CapwrightError, match="areas are above 0 and at most 1"):
        FineTuning(**wrong)  # type: ignore[arg-type]
