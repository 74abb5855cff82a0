import numpy as np
import pytest

from capwright.adapt.zsseg.splits import (
    UNSEEN,
    harmonic_mean,
    split_metrics,
    split_of,
    taught_labels,
)
from capwright.core.errors import CapwrightError
from capwright.datasets import coco_stuff, pascal_voc20
from capwright.datasets.coco_names import STUFF_IDS, THING_IDS

RAW = (20, 24, 32, 33, 40, 56, 86, 99, 105, 123, 144, 147, 148, 168, 171)  # as published
CLASSES = ("ground", "apple", "bird", "cat")


def test_the_published_split_of_coco_stuff() -> None:
    split = split_of("coco-stuff", coco_stuff.CLASSES)
    ids = (*THING_IDS, *STUFF_IDS)
    assert tuple(sorted(ids[number] - 1 for number in split.unseen)) == RAW
    assert (len(split.seen), len(split.unseen)) == (156, 15)


def test_the_published_split_of_voc() -> None:
    split = split_of("pascal-voc20", pascal_voc20.CLASSES)
    assert (len(split.seen), len(split.unseen)) == (15, 5)
    assert [split.classes[number] for number in split.unseen] == list(UNSEEN["pascal-voc20"])


def test_labels_of_classes_that_are_not_taught_are_hidden() -> None:
    seg_HW = np.array([[0, 1, 2], [3, 255, 1]], np.uint8)
    taught = taught_labels(seg_HW, (0, 2), 4)
    assert taught.tolist() == [[0, 255, 1], [255, 255, 255]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("dog",), "the unseen class 'dog' is none of toys: its classes are ground, apple"),
        ((), "of 4 classes 0 are unseen: at least one must be seen"),
        (CLASSES, "of 4 classes 4 are unseen"),
        (None, "toys has no published split"),
    ],
)
def test_splits_that_are_none(names: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(CapwrightError, match=message):
        split_of("toys", CLASSES, names)


def test_one_class_cannot_be_split() -> None:
    with pytest.raises(CapwrightError, match="of 1 classes 1 are unseen"):
        split_of("toys", ("apple",), ("apple",))


def test_a_label_outside_the_list_is_refused() -> None:
    with pytest.raises(CapwrightError, match="has the label 7, but there are 4 classes"):
        taught_labels(np.array([[0, 7]], np.uint8), (0,), 4)


def test_metrics_against_plain_numbers() -> None:
    split = split_of("toys", CLASSES, ("bird", "cat"))
    confusion = np.random.default_rng(0).integers(0, 50, (4, 4))
    found = split_metrics(confusion, split)
    ious = []
    for c in range(4):
        union = sum(confusion[c]) + sum(row[c] for row in confusion) - confusion[c][c]
        ious.append(float(confusion[c][c]) / float(union))
    seen, unseen = (ious[0] + ious[1]) / 2, (ious[2] + ious[3]) / 2
    assert found["miou_seen"] == pytest.approx(seen, abs=1e-12)
    assert found["miou_unseen"] == pytest.approx(unseen, abs=1e-12)
    assert found["hiou"] == pytest.approx(2 / (1 / seen + 1 / unseen), abs=1e-12)


def test_a_class_that_no_picture_shows_does_not_count() -> None:
    split = split_of("toys", CLASSES, ("bird", "cat"))
    confusion = np.zeros((4, 4), np.int64)
    confusion[0, 0], confusion[2, 2], confusion[2, 0] = 10, 5, 5
    found = split_metrics(confusion, split)
    assert found["miou_seen"] == pytest.approx(10 / 15)
    assert found["miou_unseen"] == pytest.approx(0.5)
    no_unseen = split_metrics(np.diag([4, 4, 0, 0]), split)
    assert no_unseen["miou_unseen"] is None and no_unseen["hiou"] is None


def test_harmonic_mean_at_its_ends() -> None:
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert harmonic_mean(0.5, 0.0) == 0.0
    assert harmonic_mean(None, 0.5) is None
